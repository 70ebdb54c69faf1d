"""What a model answers for held-out photos of its records: what `monitor` holds the answers of production against.

Rows in the form of `prediction_log`, so that a log may be the reference as well; `label` is the photo's true brand.
"""

import os
import pathlib
from collections.abc import Iterator
from typing import Any

from carbrand import exported, files
from carbrand.data import catalogue, manifest, records
from carbrand.data.reader import RecordReader
from carbrand.serving.predictor import BATCH_SIZE, Failure, Predictor

MAX_PHOTOS = 1000  # tell shifts of 5 points; a guess
_SPLITS = ("test", "validation", "train")  # those first in which no photo had a part in the model


def write(folder: pathlib.Path, predictor: Predictor, data: str | os.PathLike[str], dataset: manifest.Manifest) -> None:
    """Writes it into the `folder` of a version, with the answers of `predictor`."""
    files.write_jsonl(folder / exported.REFERENCE, _rows(predictor, data, dataset))


def _rows(predictor: Predictor, data: str | os.PathLike[str], dataset: manifest.Manifest) -> Iterator[dict[str, Any]]:
    """Of up to 1,000 photos of the first split that has some; records lie shuffled, so these are a fair sample."""
    split = next(name for name in _SPLITS if dataset.splits[name].num_examples)
    photos = catalogue.of_shards(data, [shard.name for shard in dataset.splits[split].shards])
    reader = RecordReader(data, split)
    numbers = range(min(len(photos), MAX_PHOTOS))
    for start in range(0, len(numbers), BATCH_SIZE):
        batch = numbers[start : start + BATCH_SIZE]
        encoded = [bytes(records.parse_bytes(reader.read(number), "image/encoded")) for number in batch]
        for number, result in zip(batch, predictor.predict(encoded), strict=True):
            if not isinstance(result, Failure):
                yield _row(photos[number], predictor.fields(result))


def _row(photo: catalogue.Row, answer: dict[str, Any]) -> dict[str, Any]:
    del answer["probabilities"]
    size = {"width": photo.original_width, "height": photo.original_height}
    return {"sha256": photo.sha256, "label": photo.brand, **answer, **size, "mean_rgb": photo.mean_rgb}
