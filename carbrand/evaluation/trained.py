"""A trained model to be looked at: the checkpoint of a run or an export, by the same few functions."""

import dataclasses
import logging
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from carbrand import exported
from carbrand.data import manifest, pipeline
from carbrand.data.preprocess import Preprocess
from carbrand.data.reader import RecordReader
from carbrand.errors import ConfigError, DataError
from carbrand.training import checkpoint, features, hardware, weights
from carbrand.training.model import logits_model

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Trained:
    """A trained model.

    Attributes:
      folder: Of the run or the export.
      predict: (records folder, split, batch size) -> batches of logits, in the order of the records.
      make_model: Builds the Keras model, images -> probabilities, in float32.
      brands: The classes, in the order of the logits.
      preprocess: From the JPEG of a record to the model's input.
      resize_short_px: What photos are shrunk to before that, as in the dataset build; None: not at all.
      jpeg_quality: Of the photos that have to be encoded again for it.
      temperature: By which logits are divided for honest probabilities.
      facts: JSON values that say which model it is.
      config: Settings by group, as in config.gin; of an export only those of model and preprocessing.
    """

    folder: pathlib.Path
    predict: Callable[[Any, str, int], Iterator[np.ndarray]]
    make_model: Callable[[], keras.Model]
    brands: tuple[str, ...]
    preprocess: Preprocess
    resize_short_px: int | None
    jpeg_quality: int
    temperature: float
    facts: dict[str, Any]
    config: dict[str, dict[str, Any]]


def load(
    run_dir: str | os.PathLike[str] | None, model_dir: str | os.PathLike[str] | None, which: str = "latest"
) -> Trained:
    """The model of a run or of an export, one of which is given.

    Args:
      run_dir: A run.
      model_dir: An exported model.
      which: Of the run's checkpoints: "latest" or "best", see `checkpoint.load_run`.

    Raises:
      ConfigError: Both are given, or none; or "best" of an export.
      CheckpointError: The run has no such checkpoint.
      DataError: `model_dir` is no complete export.
    """
    if (run_dir is None) == (model_dir is None):
        raise ConfigError("Give one of --run and --model.")
    if model_dir is None:
        return _of_run(pathlib.Path(run_dir or ""), which)
    if which != "latest":
        raise ConfigError(f"--checkpoint={which}: an exported model has one state. Leave it out, or give --run.")
    return _of_export(pathlib.Path(model_dir))


def check_brands(dataset: manifest.Manifest, data: Any, brands: tuple[str, ...], folder: Any) -> None:
    """Raises DataError unless the records in `data` have the `brands` that the model in `folder` knows."""
    if brands != dataset.brands:
        theirs, ours = ", ".join(dataset.brands), ", ".join(brands)
        raise DataError(f"{data}: has the brands {theirs}; {folder} knows {ours}.")


def warn_of_other_records(dataset: manifest.Manifest, data: Any, model: Trained) -> None:
    """Logs a warning if `model` was trained on other records than those in `data`, or those they were appended to."""
    trained_on = model.facts["trained_on"]
    if trained_on not in (dataset.fingerprint, *dataset.ancestors):
        log.warning(
            "%s: has the records %s, but %s was trained on %s: photos that it was trained on may be among those "
            "evaluated. Evaluate it on the records that it was trained on, or on those appended to them.",
            *(data, dataset.fingerprint[:12], model.folder, trained_on[:12]),
        )


def _of_run(run_dir: pathlib.Path, which: str) -> Trained:
    strategy = hardware.make_strategy(hardware.Hardware())
    with strategy.scope():
        model, meta = checkpoint.load_model(run_dir, which)
    preprocess = Preprocess(**meta["config"]["preprocess"])

    def predict(data: Any, split: str, batch_size: int) -> Iterator[np.ndarray]:
        batch_size = -(-batch_size // strategy.num_replicas_in_sync) * strategy.num_replicas_in_sync
        dataset = pipeline.make_dataset(
            data,
            split,
            batch_size=batch_size,
            is_training=False,
            preprocess=preprocess,
            stream=features.STRICT,
            pad_last=True,
        )
        num_examples = manifest.load(data).splits[split].num_examples
        return features.outputs(features.make_forward(logits_model(model), strategy), dataset, num_examples, strategy)

    return Trained(
        folder=run_dir,
        predict=predict,
        make_model=lambda: model,
        brands=tuple(meta["brands"]),
        preprocess=preprocess,
        resize_short_px=meta["resize_short_px"],
        jpeg_quality=meta["jpeg_quality"],
        temperature=checkpoint.temperature(meta),
        facts={"step": meta["step"], "trained_on": meta["dataset"]},
        config=meta["config"],
    )


def _of_export(model_dir: pathlib.Path) -> Trained:
    version = exported.find(model_dir)  # once: a newer one may come meanwhile
    description = exported.load(version)
    signature = exported.load_graph(version).signatures["serving_default"]
    preprocess = Preprocess(**description.preprocess)

    def predict(data: Any, split: str, batch_size: int) -> Iterator[np.ndarray]:
        reader = RecordReader(data, split)
        for start in range(0, len(reader), batch_size):
            numbers = range(start, min(start + batch_size, len(reader)))
            encoded = [reader.photo(number) for number in numbers]
            yield signature(tf.constant(encoded))["logits"].numpy()

    config = {"model": description.model, "preprocess": description.preprocess}

    def make_model() -> keras.Model:
        arrays = weights.read(str(version), description.model["variant"])
        return checkpoint.model_of(description.brands, config, arrays)

    return Trained(
        folder=model_dir,
        predict=predict,
        make_model=make_model,
        brands=description.brands,
        preprocess=preprocess,
        resize_short_px=description.resize_short_px,
        jpeg_quality=description.jpeg_quality,
        temperature=description.temperature,
        facts=description.facts,
        config=config,
    )
