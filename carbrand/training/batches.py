"""The batches of a phase: images from the records, or stored outputs of the layers that it keeps frozen."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from carbrand.data import manifest, pipeline
from carbrand.data.preprocess import Preprocess
from carbrand.training import features
from carbrand.training.model import boundary
from carbrand.training.settings import Phase, image_sizes
from carbrand.training.trainer import Trainer


def training_batches(
    trainer: Trainer, phase: Phase, make_batches: Callable[..., tf.data.Dataset], steps_per_epoch: float
) -> Iterator[Any]:
    """The distributed training batches of a phase, from the trainer's step on."""
    for stop, preprocess in image_sizes(phase, trainer.settings, steps_per_epoch):
        if trainer.step < stop:
            place = {"start_step": trainer.step, "num_steps": stop}
            dataset = make_batches("train", is_training=True, preprocess=preprocess, **place)
            yield from trainer.strategy.experimental_distribute_dataset(dataset)


def source(trainer: Trainer, phase: Phase) -> Callable[..., tf.data.Dataset]:
    """A function (split, is_training=…) -> batches for the phase's network: images, or features of frozen layers."""
    settings, seed = trainer.settings, trainer.settings.schedule.seed
    if not phase.is_cached:
        return functools.partial(image_batches, trainer)

    stored = {split: frozen_features(trainer, phase, split) for split in ("train", "validation")}

    def frozen(split: str, *, is_training: bool, preprocess: object = None, **place: int) -> tf.data.Dataset:
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
    trainer: Trainer, split: str, *, is_training: bool, preprocess: Preprocess | None = None, **place: int
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


def frozen_layers(trainer: Trainer, phase: Phase) -> keras.Model:
    """Images -> the features that a phase on stored features is trained on."""
    with trainer.strategy.scope():
        return keras.Model(trainer.model.input, boundary(trainer.model, phase.freeze_until))


def frozen_features(trainer: Trainer, phase: Phase, split: str) -> tuple[np.ndarray, np.ndarray]:
    """The outputs [N, …] of the phase's frozen layers for all photos of a split, and their labels [N]."""
    prefix = frozen_layers(trainer, phase)
    dataset = image_batches(trainer, split, is_training=False)
    labels = manifest.load_index(trainer.data, split)["label"]
    settings = trainer.settings
    key = {
        "dataset": trainer.manifest.fingerprint,
        "split": split,
        "layers": [phase.freeze_until, settings.model.variant, settings.model.pooling],
        "preprocess": dataclasses.asdict(settings.preprocess),
        "precision": settings.hardware.precision,
    }
    array = features.compute(
        prefix,
        dataset,
        len(labels),
        trainer.strategy,
        folder=trainer.run / "features",
        key=key,
        title=f"{split} features of frozen {phase.freeze_until}",
    )
    return array, labels
