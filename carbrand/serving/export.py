"""A run's checkpoint -> a model that needs no carbrand to serve, and that answers as the run does."""

import dataclasses
import logging
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

import carbrand
from carbrand import checks, exported, quiet
from carbrand.data import manifest
from carbrand.data.preprocess import Preprocess
from carbrand.errors import DataError, GateError
from carbrand.evaluation import trained
from carbrand.serving import lite, parity, reference
from carbrand.serving.graph import ServingModule, network_of
from carbrand.serving.predictor import BATCH_SIZE, Predictor
from carbrand.training import checkpoint

UNKNOWN_ABOVE = 0.95  # then one photo of a known brand in twenty is taken for an unknown one
# Photos with which others are compared to find unknown brands: 8 kB each in the graph, and enough to tell 5 %; guesses.
_MIN_KNOWN, _MAX_KNOWN = 20, 1000

log = logging.getLogger(__name__)


def run(
    run_dir: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    data: str | os.PathLike[str],
    which: str = "latest",
    formats: Sequence[str] = (),
) -> pathlib.Path:
    """Exports a checkpoint of `run_dir` as a new version in the folder `output`.

    Args:
      run_dir: A run with at least one checkpoint.
      output: A new folder, or one with older versions; `exported` says what it holds.
      data: The run's records. The export has to answer as the run does on 200 of the photos, those of test first;
        the unknown-brand score compares with those of validation, and int8's weights are rounded by these.
      which: "latest" or "best" checkpoint, see `checkpoint.load_run`.
      formats: "float16" and "int8": TFLite files, for phones and small devices, beside the SavedModel.

    Returns:
      The folder of the version.

    Raises:
      ConfigError: `output` holds something else, or a format is none of ours.
      DataError: `data` has no photos, or other brands.
      GateError: A format answers otherwise than the run; nothing is exported.
    """
    for name in formats:
        checks.choice("--formats", name, lite.FORMATS)
    exported.check_output(output)
    dataset = manifest.load(data)
    model, meta = checkpoint.load_model(run_dir, which)
    trained.check_brands(dataset, data, tuple(meta["brands"]), run_dir)
    description = _describe(model, meta, run_dir)
    preprocess = Preprocess(**description.preprocess)
    photos = _known_photos(data, dataset)
    known = parity.network_inputs(preprocess, [photo.encoded for photo in photos])
    module = ServingModule(
        model,
        description.brands,
        preprocess,
        temperature=description.temperature,
        known_features=_features(model, known),
        known_groups=[photo.group for photo in photos],
    )
    with exported.new_version(output) as folder:
        try:
            with quiet.output():
                tf.saved_model.save(module, str(folder), signatures=module.signatures())
        except tf.errors.OpError as error:
            raise DataError(f"{folder}: the graph cannot be written ({error.message}).") from error
        for name in formats:
            lite.write(folder / f"{name}.tflite", model, description.temperature, name, known)
        exported.write(folder, description)
        given = parity.photos(data, dataset)
        predictor = Predictor(folder)
        rows = parity.compare(predictor, model, given, formats)
        log.info("%s", parity.table(rows, len(given)))
        failures = parity.failures(rows)
        if failures:
            raise GateError(f"{output}: {failures}. Nothing was exported.")
        reference.write(folder, predictor, data, dataset)
        exported.write(folder, dataclasses.replace(description, formats=tuple(rows)))
    return exported.find(output)


def _describe(model: keras.Model, meta: dict[str, Any], run_dir: Any) -> exported.Exported:
    facts = {"run": pathlib.Path(run_dir).name, "step": meta["step"], "trained_on": meta["dataset"]}
    return exported.Exported(
        brands=tuple(meta["brands"]),
        model=meta["config"]["model"],
        preprocess=meta["config"]["preprocess"],
        resize_short_px=meta["resize_short_px"],
        jpeg_quality=meta["jpeg_quality"],
        variables=tuple(variable.path for variable in model.variables),
        temperature=checkpoint.temperature(meta),
        unknown_above=UNKNOWN_ABOVE,
        facts={**facts, "carbrand_version": carbrand.__version__, "tensorflow_version": tf.__version__},
    )


def _known_photos(data: str | os.PathLike[str], dataset: manifest.Manifest) -> list[parity.Photo]:
    """Photos of known brands: of validation, and only where these are too few of train, which look too familiar."""
    number = max(_MIN_KNOWN, min(_MAX_KNOWN, dataset.splits["validation"].num_examples))
    found = parity.read(data, dataset, ("validation", "train"), number)
    if len(found) < 2:
        raise DataError(f"{data}: holds one photo; an export needs two or more to compare others with.")
    return found


def _features(model: keras.Model, images: NDArray[np.uint8]) -> NDArray[np.floating]:
    network = tf.function(network_of(model), reduce_retracing=True)
    parts = (images[start : start + BATCH_SIZE] for start in range(0, len(images), BATCH_SIZE))
    return np.concatenate([network(part, training=False)[0] for part in parts])
