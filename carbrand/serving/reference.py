"""What a model answers for held-out photos of its records: what `monitor` holds the answers of production against.

Rows in the form of `prediction_log`, so that a log may be the reference as well; `label` is the photo's true brand.
"""

import os
import pathlib
from collections.abc import Iterator
from typing import Any

from carbrand import exported, files
from carbrand.data import catalogue, manifest
from carbrand.data.reader import RecordReader
from carbrand.serving.predictor import BATCH_SIZE, Failure, Predictor

MAX_PHOTOS = 1000  # tell shifts of 7 points; a guess
# Of validation no photo is called unknown: those are the known ones that others are compared with.
_SPLITS = ("test", "validation")


def write(folder: pathlib.Path, predictor: Predictor, data: str | os.PathLike[str], dataset: manifest.Manifest) -> None:
    """Writes it into the `folder` of a version, with the answers of `predictor`; nothing if no photo is held out."""
    split = next((name for name in _SPLITS if dataset.splits[name].num_examples), None)
    if split is not None:
        photos = manifest.load_photos(data, split)
        files.write_jsonl(folder / exported.REFERENCE, _rows(predictor, RecordReader(data, split), photos))


def _rows(predictor: Predictor, reader: RecordReader, photos: list[catalogue.Row]) -> Iterator[dict[str, Any]]:
    """Of up to 1,000 photos, one of each group: several shots of one car would look like more photos than they are."""
    first_of = {photo.group: number for number, photo in reversed(list(enumerate(photos)))}
    numbers = sorted(first_of.values())[:MAX_PHOTOS]  # records lie shuffled
    for start in range(0, len(numbers), BATCH_SIZE):
        batch = numbers[start : start + BATCH_SIZE]
        results = predictor.predict([reader.photo(number) for number in batch])
        for number, result in zip(batch, results, strict=True):
            if not isinstance(result, Failure):
                yield _row(photos[number], predictor.fields(result))


def _row(photo: catalogue.Row, answer: dict[str, Any]) -> dict[str, Any]:
    del answer["probabilities"]
    size = {"width": photo.original_width, "height": photo.original_height}
    return {"sha256": photo.sha256, "label": photo.brand, **answer, **size, "mean_rgb": photo.mean_rgb}
