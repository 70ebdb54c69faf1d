"""The batches of a phase: images from the records, or stored outputs of the layers that it keeps frozen."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from carbrand.data import manifest, pipeline
from carbrand.data.preprocess import Preprocess
from carbrand.training import features
from carbrand.training.model import STAGES, boundary
from carbrand.training.settings import Phase, image_sizes, inputs_at, nonempty_phases
from carbrand.training.trainer import Trainer


def training_batches(trainer: Trainer, phase: Phase, make_batches: Callable[..., tf.data.Dataset]) -> Iterator[Any]:
    """The distributed training batches of a phase, from the trainer's step on."""
    steps_per_epoch = trainer.manifest.splits["train"].num_examples / trainer.batch_size
    for stop, preprocess in image_sizes(phase, trainer.settings, steps_per_epoch):
        if trainer.step < stop:
            make = functools.partial(make_batches, "train", is_training=True, preprocess=preprocess)
            yield from _distributed(trainer, make, trainer.step, stop)


def _distributed(trainer: Trainer, make: Callable[..., tf.data.Dataset], start: int, stop: int) -> Iterator[Any]:
    """The batches of steps `start` to `stop`, each worker's share of them for its replicas."""

    def share(context: tf.distribute.InputContext) -> tf.data.Dataset:
        dataset = make(start_step=start, num_steps=stop, input_context=context)
        # TensorFlow would ask all workers before each batch whether they have one, unless they never end.
        return dataset.apply(tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY))

    yield from itertools.islice(trainer.strategy.distribute_datasets_from_function(share), stop - start)


def source(trainer: Trainer, phase: Phase) -> Callable[..., tf.data.Dataset]:
    """A function (split, is_training=…) -> batches for the phase's network: images, or features of frozen layers."""
    settings, seed = trainer.settings, trainer.settings.schedule.seed
    if not phase.is_cached:
        return functools.partial(image_batches, trainer)

    stored = {split: frozen_features(trainer, phase, split) for split in ("train", "validation")}

    def frozen(split: str, *, is_training: bool, preprocess: object = None, **place: Any) -> tf.data.Dataset:
        outputs, labels = stored[split]
        return features.make_dataset(
            outputs,
            labels,
            batch_size=trainer.batch_size,
            is_training=is_training,
            sampling=settings.stream.sampling,
            seed=seed,
            **place,
        )

    return frozen


def image_batches(
    trainer: Trainer, split: str, *, is_training: bool, preprocess: Preprocess | None = None, **place: Any
) -> tf.data.Dataset:
    """Batches of images as the run's step takes them: (image, label), and what mixes photos where it does."""
    settings = trainer.settings
    fields = ["mix"] if is_training and settings.augment.mixes_photos else []
    dataset = pipeline.make_dataset(
        trainer.data,
        split,
        batch_size=trainer.batch_size,
        is_training=is_training,
        preprocess=preprocess or settings.preprocess,
        augment=settings.augment,
        stream=settings.stream if is_training else features.STRICT,
        seed=settings.schedule.seed,
        pad_last=not is_training,
        fields=fields,
        **place,
    )
    return dataset.map(lambda batch: tuple(batch[name] for name in ("image", "label", *fields)))


def photos_at(trainer: Trainer, step: int) -> list[dict[str, str]]:
    """Which photos the batch of a step holds, in its order: file, brand and content hash of each."""
    inputs = inputs_at(step, trainer.manifest.splits["train"].num_examples, trainer.settings)
    fields = {"file": "image/filename", "brand": "image/class/text", "sha256": "image/key/sha256"}
    batches = pipeline.make_dataset(
        trainer.data,
        "train",
        batch_size=inputs.batch_size,
        preprocess=inputs.preprocess,
        augment=inputs.augment,
        stream=inputs.stream,
        seed=inputs.seed,
        start_step=step,
        num_steps=step + 1,
        fields=list(fields.values()),
    )
    (batch,) = batches.as_numpy_iterator()
    columns = {name: [value.decode() for value in batch[field]] for name, field in fields.items()}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def frozen_layers(trainer: Trainer, phase: Phase, below: Phase | None = None) -> keras.Model:
    """Images, or the stored features of the phase `below`, -> the features that `phase` is trained on."""
    inputs = trainer.model.input if below is None else boundary(trainer.model, below.freeze_until)
    with trainer.strategy.scope():
        return keras.Model(inputs, boundary(trainer.model, phase.freeze_until))


def frozen_features(trainer: Trainer, phase: Phase, split: str) -> tuple[np.ndarray, np.ndarray]:
    """The outputs [N, …] of the phase's frozen layers for all photos of a split, and their labels [N].

    They are computed from those of another phase that keeps fewer layers frozen, where that stores its own.
    """
    labels = manifest.load_index(trainer.data, split)["label"]
    below = _stored_below(trainer, phase)
    if below is None:
        dataset = image_batches(trainer, split, is_training=False)
    else:
        stored, _ = frozen_features(trainer, below, split)
        dataset = features.make_dataset(stored, labels, batch_size=trainer.batch_size, is_training=False)
    settings = trainer.settings
    key = {
        "dataset": trainer.manifest.fingerprint,
        "split": split,
        "from": below and below.freeze_until,
        "layers": [phase.freeze_until, settings.model.variant, settings.model.pooling],
        "preprocess": dataclasses.asdict(settings.preprocess),
        "precision": settings.hardware.precision,
    }
    array = features.compute(
        frozen_layers(trainer, phase, below),
        dataset,
        len(labels),
        trainer.strategy,
        folder=trainer.run / "features",
        key=key,
        title=f"{split} features of frozen {phase.freeze_until}",
    )
    return array, labels


def _stored_below(trainer: Trainer, phase: Phase) -> Phase | None:
    """The phase with the most frozen layers of those that store features and keep fewer frozen than `phase`."""
    phases = nonempty_phases(trainer.manifest.splits["train"].num_examples, trainer.settings)
    depth = STAGES.index(phase.freeze_until)
    below = [other for other in phases if other.is_cached and STAGES.index(other.freeze_until) < depth]
    return max(below, key=lambda x: STAGES.index(x.freeze_until), default=None)
