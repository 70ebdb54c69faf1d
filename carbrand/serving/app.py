"""The server's routes: TensorFlow Serving's REST paths, an upload, a page, health and metrics."""

import asyncio
import base64
import contextlib
import dataclasses
import hmac
import importlib.resources
import logging
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import prometheus_client
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from carbrand.data.images import NormalisedImage
from carbrand.serving import rest, uploads
from carbrand.serving.batching import Admission, QueueFullError
from carbrand.serving.models import Models, Served
from carbrand.serving.prediction_log import PredictionLog
from carbrand.serving.predictor import Failure, Prediction
from carbrand.serving.telemetry import Telemetry
from carbrand.serving.uploads import Limits

_LATER = {"Retry-After": "1"}
_OPEN_PATHS = ("/healthz", "/readyz", "/")  # without the key
_PAGE_PATH = "/page/"
_PAGE = importlib.resources.files("carbrand.serving") / "page"
_PAGE_TYPES = {"index.html": "text/html", "page.css": "text/css", "page.js": "text/javascript"}
_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src blob: data:; base-uri 'none'; form-action 'self'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a server answers.

    Attributes:
      name: Of the model in TensorFlow Serving's paths.
      timeout_s: For an answer, once the body has arrived, in seconds.
      api_key: That requests have to bring; None: none is needed.
      limits: Of one request.
      waiting_bytes: Of the bodies of all requests in the house.
    """

    name: str = "carbrand"
    timeout_s: float = 30.0
    api_key: str | None = None
    limits: Limits = dataclasses.field(default_factory=Limits)
    waiting_bytes: int = 2**30


class App:
    """The handlers, and what they share."""

    def __init__(
        self, models: Models, telemetry: Telemetry, prediction_log: PredictionLog | None, settings: Settings
    ) -> None:
        self._models = models
        self._telemetry = telemetry
        self._log = prediction_log
        self._settings = settings
        self._limits = settings.limits
        self.is_draining = False

    def routes(self) -> list[Route]:
        """All paths."""
        model, version = "/v1/models/{name}", "/v1/models/{name}/versions/{version}"
        both = [
            Route(start + end, handler, methods=[method])
            for start in (version, model)
            for end, handler, method in (
                (":predict", self.serving_predict, "POST"),
                (":classify", self.serving_classify, "POST"),
                ("/metadata", self.serving_metadata, "GET"),
                ("", self.serving_status, "GET"),
            )
        ]
        return [
            *both,
            Route("/predict", self.predict, methods=["POST"]),
            Route("/ask", self.ask, methods=["POST"]),
            Route("/healthz", self.healthz),
            Route("/readyz", self.readyz),
            Route("/metrics", self.metrics),
            Route("/", self.page),
            Route("/page/{file}", self.page),
        ]

    async def serving_predict(self, request: Request) -> Response:
        """TensorFlow Serving's predict."""
        content = await asyncio.to_thread(rest.parse_predict, await uploads.read_body(request, self._limits))
        served = self._find(request)
        return JSONResponse(rest.predict_answer(content, await self._all(served, content.photos)))

    async def serving_classify(self, request: Request) -> Response:
        """TensorFlow Serving's classify."""
        photos = await asyncio.to_thread(rest.parse_classify, await uploads.read_body(request, self._limits))
        served = self._find(request)
        return JSONResponse(rest.classify_answer(served.predictor.brands, await self._all(served, photos)))

    async def serving_metadata(self, request: Request) -> Response:
        """TensorFlow Serving's metadata."""
        served = self._find(request)
        return JSONResponse(rest.metadata_answer(self._settings.name, served.version, served.signatures))

    async def serving_status(self, request: Request) -> Response:
        """TensorFlow Serving's status."""
        return JSONResponse(rest.status_answer(self._find(request).version))

    async def predict(self, request: Request) -> Response:
        """An upload of one photo, or of several."""
        photos = await uploads.read_photos(request, self._limits)
        served = self._current()
        results = await self._predict(served, photos)
        version = {"model_version": served.version}
        answers = [{**served.predictor.fields(result), **version} for result in results]
        if all(isinstance(result, Failure) for result in results):
            return JSONResponse({"error": "; ".join(str(answer["error"]) for answer in answers)}, 400)
        return JSONResponse(answers[0] if len(answers) == 1 else {"predictions": answers})

    async def ask(self, request: Request) -> Response:
        """An upload of one photo, for the page: the prediction and a heat map, or {"error": …} with status 200.

        So that a photo that is none is no error of the page, which browsers would log.
        """
        try:
            photo = (await uploads.read_photos(request, self._limits))[0]
            served = self._current()
            (result,) = await self._predict(served, [photo])
            if isinstance(result, Failure):
                return JSONResponse({"error": result.reason})
            async with self._in_time():
                picture = await self._models.heatmap(served, photo, result.brand)
        except HTTPException as error:
            return JSONResponse({"error": error.detail})
        assert isinstance(picture, bytes)
        heat = "data:image/jpeg;base64," + base64.b64encode(picture).decode()
        return JSONResponse({**served.predictor.fields(result), "model_version": served.version, "heatmap": heat})

    async def healthz(self, _: Request) -> Response:
        """Whether the process lives."""
        return JSONResponse({"status": "alive"})

    async def readyz(self, _: Request) -> Response:
        """Whether requests should be sent here."""
        if self.is_draining or self._models.current is None:
            raise HTTPException(503, "draining" if self.is_draining else "loading the model")
        return JSONResponse({"status": "ready"})

    async def metrics(self, _: Request) -> Response:
        """For Prometheus."""
        self._telemetry.waiting.set(self._models.admission.count)
        if self._models.current:
            self._telemetry.version.set(self._models.current.version)
        if self._log:
            self._telemetry.lost_rows.set(self._log.lost)
        return Response(self._telemetry.text(), media_type=prometheus_client.CONTENT_TYPE_LATEST.partition(";")[0])

    async def page(self, request: Request) -> Response:
        """The page, and what belongs to it."""
        name = request.path_params.get("file", "index.html")
        if name not in _PAGE_TYPES:
            raise HTTPException(404, "no such page")
        return Response((_PAGE / name).read_bytes(), media_type=_PAGE_TYPES[name], headers=_PAGE_HEADERS)

    def _current(self) -> Served:
        """The version that answers now: to be asked for once the body is there, as a version may end meanwhile."""
        if self._models.current is None:
            raise HTTPException(503, "the model is being loaded")
        return self._models.current

    def _find(self, request: Request) -> Served:
        """The version that a path of TensorFlow Serving's names."""
        served, name = self._current(), request.path_params["name"]
        version = request.path_params.get("version")
        if name != self._settings.name or version not in (None, str(served.version)):
            wanted = "Latest" if version is None else "Specific"
            details = name if version is None else f"{name}, {version}"
            raise HTTPException(404, f"Servable not found for request: {wanted}({details})")
        return served

    async def _all(self, served: Served, photos: list[bytes]) -> list[Prediction]:
        """The predictions of a request in which each photo has to be good, as in one of TensorFlow Serving."""
        predictions = []
        for place, result in enumerate(await self._predict(served, photos)):
            if isinstance(result, Failure):
                raise HTTPException(400, f"photo {place}: {result.reason}")
            predictions.append(result)
        return predictions

    async def _predict(self, served: Served, photos: list[bytes]) -> list[Prediction | Failure]:
        if len(photos) > self._limits.photos:
            raise HTTPException(413, f"{len(photos)} photos in one request: at most {self._limits.photos} are taken")
        async with self._in_time():
            results = await self._models.predict(served, photos)
        for photo, (image, result) in zip(photos, results, strict=True):
            self._telemetry.photos.labels("failure" if isinstance(result, Failure) else "prediction").inc()
            if self._log:
                facts = {} if isinstance(image, Failure) else _facts(image)
                fields = {"model_version": served.version, **served.predictor.fields(result), **facts}
                self._log.add(fields, photo)
        return [result for _, result in results]

    @contextlib.asynccontextmanager
    async def _in_time(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._settings.timeout_s):
                yield
        except TimeoutError as error:
            raise HTTPException(504, f"no answer within {self._settings.timeout_s:g} s") from error
        except QueueFullError as error:
            raise HTTPException(503, "too many photos are waiting", _LATER) from error


def make(app: App, telemetry: Telemetry, settings: Settings, lifespan: Callable[[Starlette], Any]) -> Starlette:
    """The ASGI application."""
    return Starlette(
        routes=app.routes(),
        lifespan=lifespan,
        middleware=[Middleware(_Gate, app, telemetry, settings)],
        exception_handlers={HTTPException: _error, rest.BadRequestError: _bad_request},
    )


class _Gate:
    """Around every request: the key, room for its body, the metrics, and a last answer on connections at the end."""

    def __init__(self, inner: ASGIApp, app: App, telemetry: Telemetry, settings: Settings) -> None:
        self._inner = inner
        self._app = app
        self._telemetry = telemetry
        self._key = settings.api_key
        self._max_body = settings.limits.body_bytes
        self._bytes = Admission(settings.waiting_bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._inner(scope, receive, send)
            return
        started, status = time.perf_counter(), None  # until an answer begins

        async def send_noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if self._app.is_draining:
                    message["headers"] = [*message["headers"], (b"connection", b"close")]
            await send(message)

        if self._is_allowed(scope):
            try:
                with self._bytes.admit(self._size(scope)):
                    await self._inner(scope, receive, send_noted)
            except QueueFullError:
                await JSONResponse({"error": "too much is waiting"}, 503, _LATER)(scope, receive, send_noted)
            except Exception as error:  # Starlette would answer it outside of this gate
                log.error("%s %s", scope["method"], scope["path"], exc_info=error)
                if status is None:
                    answer = JSONResponse({"error": "the server failed at this; its log says why"}, 500)
                    await answer(scope, receive, send_noted)
        else:
            refusal = JSONResponse({"error": "send the key as 'Authorization: Bearer KEY'"}, 401)
            await refusal(scope, receive, send_noted)
        path = getattr(scope.get("route"), "path", "other")
        self._telemetry.requests.labels(path, status or 500).inc()
        self._telemetry.seconds.labels(path).observe(time.perf_counter() - started)

    def _size(self, scope: Scope) -> int:
        """Of the part of the body that is kept, by its head; as large as may be where that does not say it."""
        if scope["method"] in ("GET", "HEAD"):
            return 0
        stated = Headers(scope=scope).get("content-length", "")
        return min(int(stated), self._max_body) if stated.isdecimal() else self._max_body

    def _is_allowed(self, scope: Scope) -> bool:
        path = scope["path"]
        if self._key is None or path in _OPEN_PATHS or path.startswith(_PAGE_PATH):
            return True
        given = Headers(scope=scope).get("authorization", "")
        return hmac.compare_digest(given.encode("latin-1"), f"Bearer {self._key}".encode())  # as it was sent, in UTF-8


def _facts(image: NormalisedImage) -> dict[str, object]:
    """What is known of a photo itself."""
    size = {"width": image.original_width, "height": image.original_height}
    return {**size, "mean_rgb": image.mean_rgb, "perceptual_hash": image.perceptual_hash}


def _error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


def _bad_request(_: Request, error: Exception) -> Response:
    return JSONResponse({"error": str(error)}, 400)
