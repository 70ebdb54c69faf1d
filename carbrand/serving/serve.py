"""An HTTP server for an exported model: starts, answers, takes up new versions, and ends without losing a request."""

import asyncio
import contextlib
import errno
import logging
import os
import pathlib
import re
import socket
from collections.abc import AsyncIterator
from typing import Any

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

from carbrand import checks, exported
from carbrand.errors import ConfigError
from carbrand.serving import app as application
from carbrand.serving.models import Models
from carbrand.serving.prediction_log import PredictionLog
from carbrand.serving.telemetry import Telemetry
from carbrand.serving.uploads import Limits

API_KEY = "CARBRAND_API_KEY"  # in the environment, as other users see the arguments of a process
MAX_PIXELS = 40_000_000  # of a photo: 120 MB as RGB, per core
_HEAD_TIMEOUT_S = 10  # for the head of a connection's first request
_KEEP_ALIVE_S = 30

log = logging.getLogger(__name__)


def run(
    model_dir: str | os.PathLike[str],
    *,
    host: str = "127.0.0.1",
    port: int = 8501,
    name: str = "carbrand",
    log_dir: str | os.PathLike[str] | None = None,
    keep_photos: bool = False,
    max_batch: int = 32,
    max_delay_ms: float = 5,
    max_waiting: int = 256,
    max_body_mib: int = 64,
    max_pixels: int = MAX_PIXELS,
    timeout_s: float = 30,
    drain_s: float = 5,
    poll_s: float = 5,
) -> None:
    """Serves until SIGTERM or SIGINT.

    Args:
      model_dir: An exported model, whose newest version answers; or one version of it.
      host: Address to listen on; "0.0.0.0" for all.
      port: 0 for any.
      name: Of the model in TensorFlow Serving's paths.
      log_dir: Gets one line of JSON per photo.
      keep_photos: Whether the photos go there too.
      max_batch: Photos per pass through the network.
      max_delay_ms: For which a photo waits for others to pass with.
      max_waiting: Photos in the house; more are answered by 503.
      max_body_mib: Of a request.
      max_pixels: Of a photo.
      timeout_s: For an answer, and before it for the body of its request.
      drain_s: After a signal, how long new requests are still answered, while /readyz says 503.
      poll_s: How often a newer version is looked for; 0: never.

    Raises:
      DataError: There is no such model.
      ConfigError: The address cannot be listened on, or another option cannot work.
    """
    whole = {"max_batch": max_batch, "max_waiting": max_waiting, "max_body_mib": max_body_mib, "max_pixels": max_pixels}
    for option, value in whole.items():
        checks.number(f"--{option}", value, at_least=1, whole=True)
    if not host:
        raise ConfigError("--host '': names no address. Give one; 0.0.0.0 is all of this machine's.")
    if not re.fullmatch(r"[\w.-]+", name):
        raise ConfigError(f"--name={name!r}: is part of a path: give letters, digits, '.', '_' and '-' only.")
    checks.number("--port", port, at_least=0, at_most=65_535, whole=True)
    checks.number("--timeout_s", timeout_s, above=0)
    checks.number("--max_delay_ms", max_delay_ms, at_least=0)
    checks.number("--drain_s", drain_s, at_least=0)
    checks.number("--poll_s", poll_s, at_least=0)
    if log_dir:
        checks.folder("--log", log_dir)
    exported.load(model_dir)
    telemetry = Telemetry()
    settings = application.Settings(
        name=name,
        timeout_s=timeout_s,
        api_key=os.environ.get(API_KEY) or None,
        limits=Limits(body_bytes=max_body_mib * 2**20, body_timeout_s=timeout_s),
    )
    listening = _listen(host, port)
    prediction_log = PredictionLog(pathlib.Path(log_dir), keep_photos=keep_photos) if log_dir else None

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        watching = asyncio.create_task(_watch(models, poll_s)) if poll_s else None
        yield
        if watching:
            watching.cancel()
        await models.close()
        if prediction_log:
            await asyncio.to_thread(prediction_log.close)

    models = Models(
        pathlib.Path(model_dir),
        max_pixels=max_pixels,
        max_batch=max_batch,
        max_delay_s=max_delay_ms / 1000,
        max_waiting=max_waiting,
        watch=telemetry.watch_batch,
    )
    app = application.App(models, telemetry, prediction_log, settings)
    config = uvicorn.Config(
        application.make(app, telemetry, settings, lifespan),
        http=_Protocol,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
    )
    try:
        _Server(config, app, models, drain_s).run(sockets=[listening])
    except OSError as error:
        if error.errno != errno.EADDRINUSE:  # two servers may bind one port, until the first of them listens
            raise
        raise _cannot_listen(host, port, error) from error


class _Server(uvicorn.Server):
    """Ends in three steps: says that it is not ready, stops to listen, answers what it has accepted."""

    def __init__(self, config: uvicorn.Config, app: application.App, models: Models, drain_s: float) -> None:
        super().__init__(config)
        self._app = app
        self._models = models
        self._drain_s = drain_s

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await self._models.load()
        await super().startup(sockets)
        if not self.should_exit:
            for listening in sockets or []:
                host, port = listening.getsockname()[:2]
                print(f"Serving on http://{f'[{host}]' if ':' in host else host}:{port}/", flush=True)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._app.is_draining = True
        log.info("draining for %g s, then stopping", self._drain_s)
        until = asyncio.get_running_loop().time() + self._drain_s
        while asyncio.get_running_loop().time() < until and not self.force_exit:  # by a second Ctrl-C
            await asyncio.sleep(0.1)
        await super().shutdown(sockets)
        log.info("stopped; all requests are answered")


class _Protocol(H11Protocol):
    """Closes connections that do not begin a request: uvicorn itself would keep them for ever."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._head_timer = self.loop.call_later(_HEAD_TIMEOUT_S, self._close_if_silent)

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_timer.cancel()
        super().connection_lost(exc)

    def _close_if_silent(self) -> None:
        if self.cycle is None and not self.transport.is_closing():
            self.transport.close()


async def _watch(models: Models, poll_s: float) -> None:
    problem = ""
    while True:
        await asyncio.sleep(poll_s)
        try:
            await models.reload_if_changed()
            problem = ""
        except OSError as error:  # of the disk; it may be mended
            before, problem = problem, f"{error.filename}: {error.strerror}"
            if problem != before:
                log.error("%s; what is served stays", problem)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as error:
        raise _cannot_listen(host, port, error) from error
    return listening


def _cannot_listen(host: str, port: int, error: OSError) -> ConfigError:
    return ConfigError(f"--host {host} --port {port}: {error.strerror}. Choose another.")
