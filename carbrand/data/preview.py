"""Records -> a picture of what the network sees: labelled photos out of the real pipeline.

Above, some photos as evaluation sees them, each beside what training makes of it; below, examples as they come out of
`pipeline.make_dataset`, mixed in pairs where training mixes them.
"""

import dataclasses
import itertools
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from carbrand import checks
from carbrand.data import augment as augmentation
from carbrand.data import contact_sheet, draws, manifest, pipeline, records
from carbrand.data.augment import Augment
from carbrand.data.contact_sheet import Cell, ContactSheet
from carbrand.data.pipeline import Stream
from carbrand.data.preprocess import Preprocess
from carbrand.data.reader import RecordReader
from carbrand.errors import ConfigError

MAX_COMPARED = 6  # photos that are shown without and with variation
MAX_PHOTOS = 1000  # a guess: the picture is then some 30,000 pixels high

_FILE_NAME = "image/filename"

Example = dict[str, Any]  # one row of a batch


def run(
    data: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    split: str = "train",
    photos: int = 48,
    step: int = 0,
    batch_size: int = 32,
    seed: int = 0,
    preprocess: Preprocess | None = None,
    augment: Augment | None = None,
    stream: Stream | None = None,
    note: str = "",
) -> None:
    """Draws photos of `data` as the network sees them: "train" as training does, other splits as evaluation does.

    Args:
      data: A records folder.
      output: The picture: .png, .jpg or .jpeg. One that is there is replaced.
      split: "train", "validation" or "test".
      photos: How many examples to show, from the first one of `step` on; up to 1,000.
      step: In batches since the beginning.
      batch_size: This and the following as for `pipeline.make_dataset`.
      seed: Of order and augmentation.
      preprocess: Image size, and what evaluation cuts from a photo.
      augment: How training photos are varied.
      stream: How training photos are drawn and read.
      note: Stands in the picture's title.

    Raises:
      DataError: `data` is no complete records folder, the split is unknown or empty, or too many records are damaged.
      ConfigError: An argument cannot work, or `output` cannot be written.
    """
    contact_sheet.format_of(output)
    checks.number("photos", photos, at_least=1, at_most=MAX_PHOTOS, whole=True)
    checks.number("batch_size", batch_size, at_least=1, whole=True)
    is_training = split == "train"
    preprocess, stream = preprocess or Preprocess(), stream or Stream()
    augment = (augment or Augment()) if is_training else Augment(enabled=False)
    batches = pipeline.make_dataset(
        data,
        split,
        batch_size=batch_size,
        preprocess=preprocess,
        augment=augment,
        stream=stream,
        seed=seed,
        start_step=step,
        num_steps=step + math.ceil(photos / batch_size),
        fields=["number", "record", _FILE_NAME],
    )
    with pipeline.data_errors():
        examples = list(itertools.islice(batches.unbatch().as_numpy_iterator(), photos))
    dataset = manifest.load(data)
    if not examples:
        last = math.ceil(dataset.splits[split].num_examples / batch_size) - 1
        raise ConfigError(f"step={step}: the {split} split has steps 0 to {last}. Give one of them.")

    sheet = ContactSheet(preprocess.height_width)
    sheet.add_heading(f"What the network sees of the {split} split, from step {step:,} on", size_px=24)
    facts = [f"dataset {dataset.fingerprint[:12]}", f"{dataset.splits[split].num_examples:,} photos"]
    sheet.add_text([*facts, sheet.size_in_words, *([note] if note else []), f"batch size {batch_size}", f"seed {seed}"])
    settings = {"augment": augment, "stream": stream} if is_training else {}
    sheet.add_text(changes({**settings, "preprocess": preprocess}))
    if augment.enabled and sheet.columns > 1:
        before = ", before mixing" if augment.mixes_photos else ""
        sheet.add_heading(f"Left: as evaluation sees a photo. Right: as training varies it, each time anew{before}")
        reader = RecordReader(data, split)
        for example in _distinct(examples)[:MAX_COMPARED]:
            record, number = int(example["record"]), int(example["number"])
            encoded = records.parse_bytes(reader.read(record), "image/encoded")
            image = preprocess(tf.constant(bytes(encoded))).numpy()
            numbers = number + len(reader) * np.arange(sheet.columns - 1)  # one of this epoch and of each that follows
            varied = _varied(encoded, draws.uniform(seed, numbers, augment.num_draws), augment, preprocess)
            evaluated = _cell({**example, "image": image, "label": reader.labels[record]}, dataset.brands)
            sheet.add_photos([evaluated, *varied])
    sheet.add_heading(_heading(examples, augment, is_training))
    sheet.add_photos([_cell(example, dataset.brands) for example in examples])
    sheet.write(output)


def caption(label: np.ndarray, brands: Sequence[str]) -> list[str]:
    """The brand of a label, or the brands of a mixed photo [C] with their shares, the largest first.

    Shares that round to 0 % are left out.
    """
    if label.ndim == 0:
        return [brands[int(label)]]
    percent = np.rint(100 * label).astype(int).tolist()
    seen = [number for number in np.argsort(-label, kind="stable").tolist() if percent[number]]
    return [f"{brands[number]} {percent[number]} %" for number in seen] if len(seen) > 1 else [brands[seen[0]]]


def changes(settings: Mapping[str, Any]) -> list[str]:
    """What differs from the defaults in dataclasses that gin knows by these names, such as "augment.flip = False"."""
    found = [
        f"{name}.{field.name} = {getattr(values, field.name)!r}"
        for name, values in settings.items()
        for field in dataclasses.fields(values)
        if field.name != "image_size_px" and getattr(values, field.name) != field.default
    ]
    return found or [f"{', '.join(settings)} as by default"]


def _heading(examples: Sequence[Example], augment: Augment, is_training: bool) -> str:
    numbers = f"{examples[0]['number']:,} to {examples[-1]['number']:,}"
    if not is_training:
        return f"Photos {numbers} of the split, in the order of the records"
    if augment.mixes_photos:
        return f"Examples {numbers} of the stream, varied and mixed in pairs, with the share of each brand"
    return f"Examples {numbers} of the stream, {'varied' if augment.enabled else 'not varied'}"


def _varied(encoded: memoryview, rows: np.ndarray, augment: Augment, preprocess: Preprocess) -> list[Cell]:
    """One photo by several rows of draws."""
    return [Cell(augmentation.augmented(encoded, row, augment, preprocess.height_width)) for row in rows]


def _distinct(examples: Sequence[Example]) -> list[Example]:
    """The first example of each record."""
    found: dict[int, Example] = {}
    for example in examples:
        found.setdefault(int(example["record"]), example)
    return list(found.values())


def _cell(example: Example, brands: Sequence[str]) -> Cell:
    image = np.rint(example["image"]).astype(np.uint8)  # mixed photos are float32
    name = example[_FILE_NAME].decode().rpartition("/")[2]
    text = caption(example["label"], brands)
    return Cell(image, text, name if len(text) == 1 else "")
