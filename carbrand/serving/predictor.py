"""An exported model, ready to predict: photos in any format that the build takes in, brands and probabilities out."""

import concurrent.futures
import dataclasses
import io
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import PIL.Image
import tensorflow as tf

from carbrand import exported
from carbrand.data import images, overlay
from carbrand.errors import ConfigError, DataError

BATCH_SIZE = 32
_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")

Photo = bytes | str | os.PathLike[str] | PIL.Image.Image | np.ndarray


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What the model says of one photo.

    Attributes:
      brand: The most probable brand.
      probability: Its probability.
      probabilities: Of every brand, float32 [C], in the order of `Predictor.brands`.
      logits: What they were computed from, before temperature scaling, float32 [C].
      unknown_score: The share of photos of known brands that look more familiar to the model, 0 to 1.
      is_unknown: Whether that is so much that the photo probably shows none of the brands.
    """

    brand: str
    probability: float
    probabilities: np.ndarray
    logits: np.ndarray
    unknown_score: float
    is_unknown: bool


@dataclasses.dataclass(frozen=True)
class Failure:
    """Why there is no prediction for a photo."""

    reason: str


class Predictor:
    """An exported model, ready to predict. Needs neither gin nor Beam; safe to call from many threads."""

    def __init__(self, model_dir: str | os.PathLike[str], *, max_pixels: int = images.MAX_PIXELS) -> None:
        """Loads the newest version of the model in `model_dir`, or the version whose folder it is.

        Args:
          model_dir: An exported model.
          max_pixels: Photos with more are not decoded.

        Raises:
          DataError: `model_dir` is not a complete export.
        """
        self.folder = exported.find(model_dir)
        self.description = exported.load(self.folder)
        self._module = exported.load_graph(self.folder)  # keeps the signatures' variables alive
        self._max_pixels = max_pixels
        self._threads = concurrent.futures.ThreadPoolExecutor(os.cpu_count(), "decode")

    @property
    def brands(self) -> tuple[str, ...]:
        """The classes, in the order of the probabilities."""
        return self.description.brands

    @property
    def version(self) -> int | None:
        """The number of the loaded version; None if its folder has another name."""
        return exported.number_of(self.folder)

    @property
    def signatures(self) -> Mapping[str, tf.types.experimental.ConcreteFunction]:
        """The functions of the SavedModel, by name."""
        return self._module.signatures

    def predict(self, photos: Sequence[Photo]) -> list[Prediction | Failure]:
        """One result per photo, in order.

        Photos are checked and normalised exactly as the dataset build does it, so a photo gets the answer here that it
        got in evaluation.

        Args:
          photos: Each is the bytes of an image file, a path, a PIL image, or an array [H, W, 3] RGB or [H, W], uint8.

        Raises:
          DataError: An array has another shape or type, or something is no photo at all.
        """
        if isinstance(photos, str | bytes):
            raise DataError(f"a single {type(photos).__name__} as photos: give a list of photos.")
        photos = list(photos)
        results: list[Prediction | Failure] = []
        for start in range(0, len(photos), BATCH_SIZE):
            results += self.predict_normalised(
                list(self._threads.map(self.normalise, photos[start : start + BATCH_SIZE]))
            )
        return results

    def normalise(self, photo: Photo) -> images.NormalisedImage | Failure:
        """A photo as it would stand in a record, or why it cannot: what `predict` does before the network."""
        try:
            return images.normalise(
                _content(photo),
                resize_short_px=self.description.resize_short_px,
                jpeg_quality=self.description.jpeg_quality,
                max_pixels=self._max_pixels,
            )
        except images.Rejected as error:
            return Failure(f"{error.reason}: {error.detail}")
        except OSError as error:
            return Failure(f"unreadable: {error.strerror}")
        except ValueError as error:  # an image without pixels, or closed; a path with a zero byte
            return Failure(f"unreadable: {error}")

    def predict_normalised(self, photos: Sequence[images.NormalisedImage | Failure]) -> list[Prediction | Failure]:
        """One result per photo of `normalise`, in order, of one batch."""
        good = [photo.encoded for photo in photos if not isinstance(photo, Failure)]
        rows = iter(self._answers(good) if good else ())
        return [photo if isinstance(photo, Failure) else next(rows) for photo in photos]

    def heatmap(self, photo: Photo, brand: str) -> bytes | Failure:
        """A JPEG of what the network sees of a photo, bright where that speaks for `brand`.

        Raises:
          ConfigError: The model does not know the brand.
        """
        if brand not in self.brands:
            raise ConfigError(f"brand {brand!r}: the model knows {', '.join(self.brands)}.")
        image = self.normalise(photo)
        if isinstance(image, Failure):
            return image
        label = tf.constant([self.brands.index(brand)], tf.int32)
        answer = self.signatures["heatmap"](encoded=tf.constant([image.encoded]), label=label)
        return overlay.jpeg(answer["image"].numpy()[0], answer["heat"].numpy()[0])

    def features(self, encoded: Sequence[bytes]) -> np.ndarray:
        """What the model's head sees of photos as they stand in records, of one batch: [B, F] float32.

        Raises:
          DataError: An older carbrand exported the model.
        """
        if "features" not in self.signatures:
            raise DataError(f"{self.folder}: has no signature 'features', as older exports. Export the run again.")
        return self.signatures["features"](encoded=tf.constant(encoded))["features"].numpy()

    def fields(self, result: Prediction | Failure) -> dict[str, Any]:
        """A result as JSON values; of a failure only "error"."""
        if isinstance(result, Failure):
            return {"error": result.reason}
        shares = {brand: digits(p) for brand, p in zip(self.brands, result.probabilities, strict=True)}
        return {
            "brand": result.brand,
            "probability": digits(result.probability),
            "unknown_score": digits(result.unknown_score),
            "is_unknown": result.is_unknown,
            "probabilities": shares,
        }

    def _answers(self, encoded: list[bytes]) -> list[Prediction | Failure]:
        try:
            answers = self.signatures["serving_default"](tf.constant(encoded))
        except tf.errors.InvalidArgumentError as error:
            # One photo that TensorFlow cannot decode fails all of them.
            if len(encoded) > 1:
                return [result for photo in encoded for result in self._answers([photo])]
            return [Failure(f"decode_error: {error.message.splitlines()[0]}")]
        columns = (answers[name].numpy() for name in ("probabilities", "logits", "unknown_score"))
        return [self._prediction(*row) for row in zip(*columns, strict=True)]

    def _prediction(self, probabilities: np.ndarray, logits: np.ndarray, unknown_score: np.float32) -> Prediction:
        best = int(logits.argmax())
        return Prediction(
            brand=self.brands[best],
            probability=float(probabilities[best]),
            probabilities=probabilities,
            logits=logits,
            unknown_score=float(unknown_score),
            is_unknown=float(unknown_score) > self.description.unknown_above,
        )


def digits(number: float) -> float:
    """As many digits as a float32 has."""
    return float(f"{number:.9g}")


def _content(photo: Photo) -> bytes:
    """A photo as an image file, but no more of it than `images.normalise` needs to see that it is too large."""
    if isinstance(photo, bytes):
        return photo
    if isinstance(photo, np.ndarray):
        return _encode(_image(photo))
    if isinstance(photo, PIL.Image.Image):
        return _encode(photo)
    if not isinstance(photo, str | os.PathLike):
        raise DataError(f"a photo of type {type(photo).__name__}: give bytes, a path, a PIL image or an array.")
    with pathlib.Path(photo).open("rb") as file:
        return file.read(images.MAX_FILE_BYTES + 1)


def _image(pixels: np.ndarray) -> PIL.Image.Image:
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] != 3):
        raise DataError(f"an array {list(pixels.shape)} {pixels.dtype}: give [H, W, 3] RGB or [H, W], uint8, 0 to 255.")
    return PIL.Image.fromarray(pixels)


def _encode(image: PIL.Image.Image) -> bytes:
    """A file with the same pixels, colour profile and orientation."""
    buffer = io.BytesIO()
    kept = {"exif": image.getexif(), "icc_profile": image.info.get("icc_profile")}
    if image.mode == "CMYK":
        image.save(buffer, "TIFF", **kept)
    else:
        plain = image if image.mode in _PNG_MODES else image.convert("RGB")
        plain.save(buffer, "PNG", compress_level=1, **kept)
    return buffer.getvalue()
