"""Whether an export answers as the run that it was made from: the same photos, in odd formats too, through both."""

import dataclasses
import io
import os
import pathlib
from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from PIL import ExifTags, Image

from carbrand.data import images, manifest, records
from carbrand.data.preprocess import Preprocess
from carbrand.data.reader import RecordReader
from carbrand.errors import DataError
from carbrand.exported import Format
from carbrand.serving import lite
from carbrand.serving.predictor import Failure, Predictor
from carbrand.training import temperature
from carbrand.training.model import logits_model

MAX_PHOTOS = 200
MAX_DIFFERENCE = {"saved_model": 1e-5, "float16": 1e-2}  # of a probability
MIN_AGREEMENT = {"int8": 0.97}  # of the most probable brands
_BATCH = 32
_ODD_EVERY = 4  # each fourth photo is no longer the JPEG of its record


@dataclasses.dataclass(frozen=True)
class Photo:
    """A photo of some records: as it is stored, and the name of its group."""

    encoded: bytes
    group: bytes

    @classmethod
    def of(cls, payload: bytes) -> "Photo":
        """That of a record."""
        return cls(*(bytes(records.parse_bytes(payload, f"image/{name}")) for name in ("encoded", "group")))


def photos(data: str | os.PathLike[str], dataset: manifest.Manifest) -> list[bytes]:
    """Up to 200 photos that were not trained on, if there are; among them PNG, WebP, AVIF, CMYK and turned ones."""
    found = [photo.encoded for photo in read(data, dataset, ("test", "validation", "train"), MAX_PHOTOS)]
    for place, number in enumerate(range(0, len(found), _ODD_EVERY)):
        found[number] = _RECODINGS[place % len(_RECODINGS)](found[number])
    return found


def read(data: str | os.PathLike[str], dataset: manifest.Manifest, splits: Sequence[str], limit: int) -> list[Photo]:
    """Up to `limit` photos of the first of `splits`, then of the next ones, as they are stored.

    Raises:
      DataError: There are none.
    """
    found: list[Photo] = []
    for split in splits:
        if dataset.splits[split].num_examples:
            reader = RecordReader(data, split)
            rows = range(min(limit - len(found), len(reader)))
            found += [Photo.of(reader.read(row)) for row in rows]
    if not found:
        raise DataError(f"{data}: holds no photos. Give the records of the run.")
    return found


def network_inputs(preprocess: Preprocess, encoded: Sequence[bytes]) -> NDArray[np.uint8]:
    """Normalised photos as evaluation gives them to the network: [N, H, W, 3]."""
    return np.stack([preprocess(tf.constant(photo)).numpy() for photo in encoded])


def compare(predictor: Predictor, model: keras.Model, given: Sequence[bytes], formats: Sequence[str]) -> list[Format]:
    """The SavedModel of `predictor`, and each format beside it, against `model`, as evaluation uses it, on `given`."""
    folder, description = predictor.folder, predictor.description
    normalised = [
        images.normalise(
            photo, resize_short_px=description.resize_short_px, jpeg_quality=description.jpeg_quality
        ).encoded
        for photo in given
    ]
    inputs = network_inputs(Preprocess(**description.preprocess), normalised)
    to_logits = logits_model(model)
    rows = [to_logits(inputs[start : start + _BATCH], training=False) for start in range(0, len(inputs), _BATCH)]
    expected = temperature.probabilities(np.concatenate(rows), description.temperature)
    answers = {"saved_model": _of_saved_model(predictor, given, normalised)}
    for name in formats:
        answers[name] = [lite.predict(folder / f"{name}.tflite", inputs)]
    return [_row(folder, name, expected, found) for name, found in answers.items()]


def table(rows: Sequence[Format], num_photos: int) -> str:
    """The comparison, for people."""
    lines = [f"{'format':<12} {'MiB':>6}  largest difference  same brand, of {num_photos} photos"]
    for row in rows:
        size = row.size_bytes / 2**20
        lines.append(f"{row.name:<12} {size:>6.1f}  {row.max_difference:>18.2g}  {row.agreement:>10.1%}")
    return "\n".join(lines)


def failures(rows: Sequence[Format]) -> str:
    """What is beyond the tolerances, or ""."""
    found = []
    for row in rows:
        if not row.max_difference <= MAX_DIFFERENCE.get(row.name, 1):  # so that NaN fails
            found.append(
                f"{row.name}'s probabilities differ by {row.max_difference:.3g}, "
                f"{MAX_DIFFERENCE.get(row.name, 1):g} is allowed"
            )
        if row.agreement < MIN_AGREEMENT.get(row.name, 0):
            found.append(
                f"{row.name} names the same brand for {row.agreement:.1%}, {MIN_AGREEMENT[row.name]:.0%} are needed"
            )
    return "; ".join(found)


def _row(
    folder: pathlib.Path, name: str, expected: NDArray[np.floating], answers: list[NDArray[np.floating]]
) -> Format:
    files = [folder / f"{name}.tflite"] if name in lite.FORMATS else _files_of_saved_model(folder)
    return Format(
        name=name,
        size_bytes=sum(file.stat().st_size for file in files),
        max_difference=max(float(np.abs(found - expected).max()) for found in answers),
        agreement=min(float((found.argmax(axis=1) == expected.argmax(axis=1)).mean()) for found in answers),
    )


def _files_of_saved_model(folder: pathlib.Path) -> list[pathlib.Path]:
    return [folder / "saved_model.pb", *(folder / "variables").iterdir()]


def _of_saved_model(
    predictor: Predictor, given: Sequence[bytes], normalised: Sequence[bytes]
) -> list[NDArray[np.floating]]:
    """Probabilities by every way into the SavedModel: our Predictor, encoded photos, pixels."""
    results = predictor.predict(given)
    failed = [result.reason for result in results if isinstance(result, Failure)]
    if failed:
        raise DataError(f"{predictor.folder}: the exported graph cannot read a photo of the records: {failed[0]}.")
    signatures = predictor.signatures
    decoded = (tf.io.decode_image(photo, channels=3, expand_animations=False) for photo in normalised)
    return [
        np.stack([result.probabilities for result in results if not isinstance(result, Failure)]),
        signatures["serving_default"](tf.constant(normalised))["probabilities"].numpy(),
        np.concatenate([signatures["pixels"](image[tf.newaxis])["probabilities"].numpy() for image in decoded]),
    ]


def _saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _turned(image: Image.Image) -> bytes:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    return _saved(image.transpose(Image.Transpose.ROTATE_90), "PNG", exif=exif)


def _recoding(write: Callable[[Image.Image], bytes]) -> Callable[[bytes], bytes]:
    def recoded(content: bytes) -> bytes:
        with Image.open(io.BytesIO(content)) as image:
            return write(image.convert("RGB"))

    return recoded


_RECODINGS = tuple(
    map(
        _recoding,
        (
            lambda image: _saved(image, "PNG"),
            lambda image: _saved(image, "WEBP", lossless=True),
            lambda image: _saved(image, "AVIF", speed=10),
            lambda image: _saved(image.convert("CMYK"), "JPEG"),
            lambda image: _saved(image, "TIFF"),
            _turned,
        ),
    )
)
