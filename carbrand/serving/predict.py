"""Predictions from an exported model: photos in any format that the build takes in, brands and probabilities out."""

import csv
import dataclasses
import io
import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import tensorflow as tf

from carbrand import exported, files
from carbrand.data import images
from carbrand.errors import DataError

_BATCH = 32


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What the model says of one photo.

    Attributes:
      brand: The most probable brand.
      probability: Its probability.
      probabilities: Of every brand, float32 [C], in the order of `Predictor.brands`.
    """

    brand: str
    probability: float
    probabilities: np.ndarray


@dataclasses.dataclass(frozen=True)
class Failure:
    """Why there is no prediction for a photo."""

    reason: str


class Predictor:
    """An exported model, ready to predict. Needs neither gin nor Beam; safe to call from many threads."""

    def __init__(self, model_dir: str | os.PathLike[str]) -> None:
        """Loads the model.

        Raises:
          DataError: `model_dir` is not a complete export.
        """
        self._exported = exported.load(model_dir)
        self._module = tf.saved_model.load(
            str(exported.saved_model(model_dir))
        )  # keeps the signature's variables alive
        self._signature = self._module.signatures["serving_default"]

    @property
    def brands(self) -> tuple[str, ...]:
        """The classes, in the order of the probabilities."""
        return self._exported.brands

    def predict(self, photos: Sequence[bytes | str | os.PathLike[str]]) -> list[Prediction | Failure]:
        """One result per photo, in order; each photo is the bytes of an image file, or a path.

        Photos are checked and normalised exactly as the dataset build does it, so a photo gets the answer here that it
        got in evaluation.
        """
        results: list[Prediction | Failure] = []
        for start in range(0, len(photos), _BATCH):
            results += self._predict_batch([self._normalise(photo) for photo in photos[start : start + _BATCH]])
        return results

    def _normalise(self, photo: bytes | str | os.PathLike[str]) -> bytes | Failure:
        try:
            content = photo if isinstance(photo, bytes) else _read(pathlib.Path(photo))
            return images.normalise(
                content,
                resize_short_px=self._exported.resize_short_px,
                jpeg_quality=self._exported.jpeg_quality,
            ).encoded
        except images.Rejected as error:
            return Failure(f"{error.reason}: {error.detail}")
        except OSError as error:
            return Failure(f"unreadable: {error.strerror}")

    def _predict_batch(self, photos: list[bytes | Failure]) -> list[Prediction | Failure]:
        good = [photo for photo in photos if isinstance(photo, bytes)]
        rows = iter(self._signature(tf.constant(good))["probabilities"].numpy() if good else ())
        return [photo if isinstance(photo, Failure) else self._prediction(next(rows)) for photo in photos]

    def _prediction(self, probabilities: np.ndarray) -> Prediction:
        best = int(probabilities.argmax())
        return Prediction(self.brands[best], float(probabilities[best]), probabilities)


def run(
    model_dir: str | os.PathLike[str],
    paths: Sequence[str],
    *,
    output_format: str = "table",
    output: str | os.PathLike[str] | None = None,
) -> tuple[str, int]:
    """Predicts files and, recursively, the files in folders.

    Args:
      model_dir: An exported model.
      paths: Files and folders.
      output_format: "table", "csv" or "jsonl".
      output: A file for the text; None: it is only returned.

    Returns:
      The text, one row per photo in order, and the number of photos without a prediction.

    Raises:
      DataError: A path does not exist, or there is no photo among them.
    """
    photos = list(_expand(paths))
    if not photos:
        raise DataError(f"{', '.join(paths)}: no files in there. Give photos, or folders of photos.")
    predictor = Predictor(model_dir)
    results = predictor.predict(photos)
    write = {"table": _table, "csv": _csv, "jsonl": _jsonl}[output_format]
    text = write(predictor.brands, list(zip(map(str, photos), results, strict=True)))
    if output is not None:
        files.write_text(output, text)
    return text, sum(isinstance(result, Failure) for result in results)


def _read(path: pathlib.Path) -> bytes:
    """The file, but no more of it than `images.normalise` needs to see that it is too large."""
    with path.open("rb") as file:
        return file.read(images.MAX_FILE_BYTES + 1)


_Rows = list[tuple[str, Prediction | Failure]]


def _expand(paths: Iterable[str]) -> Iterator[pathlib.Path]:
    for path in map(pathlib.Path, paths):
        if path.is_dir():
            yield from sorted(file for file in path.rglob("*") if file.is_file() and not file.name.startswith("."))
        elif path.exists():
            yield path
        else:
            raise DataError(f"{path}: no such file or folder.")


def _table(_: Sequence[str], rows: _Rows) -> str:
    width = max(len(path) for path, _ in rows)
    return "".join(f"{path:<{width}}  {_line(result)}\n" for path, result in rows)


def _line(result: Prediction | Failure) -> str:
    if isinstance(result, Failure):
        return f"     —  {result.reason}"
    return f"{result.probability:>6.1%}  {result.brand}"


def _csv(brands: Sequence[str], rows: _Rows) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["path", "brand", "probability", "error", *(f"probability_{brand}" for brand in brands)])
    for path, result in rows:
        if isinstance(result, Failure):
            writer.writerow([path, "", "", result.reason, *([""] * len(brands))])
        else:
            shares = [f"{p:.9g}" for p in result.probabilities]
            writer.writerow([path, result.brand, f"{result.probability:.9g}", "", *shares])
    return text.getvalue()


def _jsonl(brands: Sequence[str], rows: _Rows) -> str:
    return "".join(
        json.dumps({"path": path, **_fields(brands, result)}, ensure_ascii=False) + "\n" for path, result in rows
    )


def _fields(brands: Sequence[str], result: Prediction | Failure) -> dict[str, object]:
    if isinstance(result, Failure):
        return {"error": result.reason}
    shares = {brand: float(f"{p:.9g}") for brand, p in zip(brands, result.probabilities, strict=True)}
    return {"brand": result.brand, "probability": float(f"{result.probability:.9g}"), "probabilities": shares}
