"""A trained model over a split, each example exactly once: a run or an export in, a report folder out."""

import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf
import tqdm

from carbrand import exported
from carbrand.data import manifest, pipeline, records
from carbrand.data.preprocess import Preprocess
from carbrand.data.reader import RecordReader
from carbrand.errors import ConfigError, DataError
from carbrand.evaluation import metrics, report
from carbrand.training import checkpoint, features, hardware


def run(
    data: str | os.PathLike[str],
    *,
    run_dir: str | os.PathLike[str] | None = None,
    model_dir: str | os.PathLike[str] | None = None,
    split: str = "test",
    output: str | os.PathLike[str] | None = None,
    which: str = "latest",
    batch_size: int = 64,
) -> tuple[metrics.Metrics, pathlib.Path]:
    """Evaluates a checkpoint of a run, or an exported model, in float32.

    Args:
      data: A records folder with the brands that the model was trained on.
      run_dir: A run; or
      model_dir: An exported model.
      split: Of `data`.
      output: Gets the report; by default the folder `evaluation-SPLIT` in the run or model folder.
      which: Of the run's checkpoints: "latest" or "best", see `checkpoint.load_run`.
      batch_size: Photos per forward pass, over all replicas; the result does not depend on it.

    Returns:
      The metrics, and the folder of the report.

    Raises:
      DataError: The split is empty, or `data` has other brands than the model.
    """
    if (run_dir is None) == (model_dir is None):
        raise ConfigError("Evaluate one of --run and --model.")
    if model_dir is not None and which != "latest":
        raise ConfigError(f"--checkpoint={which}: an exported model has one state. Leave it out, or give --run.")
    source = pathlib.Path(run_dir or model_dir or "")
    dataset = manifest.load(data)
    predict, brands, facts = _run_predictor(source, which) if run_dir else _export_predictor(source)
    if brands != dataset.brands:
        raise DataError(f"{data}: has the brands {', '.join(dataset.brands)}; {source} knows {', '.join(brands)}.")
    reader = RecordReader(data, split)
    batches = predict(data, split, batch_size)
    with pipeline.data_errors():
        probabilities = np.concatenate(list(_with_progress(batches, len(reader), f"evaluate {split}")))
    result = metrics.compute(reader.labels, probabilities, brands)
    folder = pathlib.Path(output) if output else source / f"evaluation-{split}"
    facts = {"model": str(source), **facts, "records": dataset.fingerprint, "split": split}
    report.write(folder, metrics=result, rows=_rows(reader, probabilities), facts=facts)
    return result, folder


_Predict = Callable[[Any, str, int], Iterator[np.ndarray]]


def _run_predictor(run_dir: pathlib.Path, which: str) -> tuple[_Predict, tuple[str, ...], dict[str, Any]]:
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
        return features.outputs(features.make_forward(model, strategy), dataset, num_examples, strategy)

    return predict, tuple(meta["brands"]), {"step": meta["step"], "trained_on": meta["dataset"]}


def _export_predictor(model_dir: pathlib.Path) -> tuple[_Predict, tuple[str, ...], dict[str, Any]]:
    description = exported.load(model_dir)
    signature = tf.saved_model.load(str(exported.saved_model(model_dir))).signatures["serving_default"]

    def predict(data: Any, split: str, batch_size: int) -> Iterator[np.ndarray]:
        reader = RecordReader(data, split)
        for start in range(0, len(reader), batch_size):
            numbers = range(start, min(start + batch_size, len(reader)))
            encoded = [records.decode(tf.constant(reader.read(n)))["image/encoded"] for n in numbers]
            yield signature(tf.stack(encoded))["probabilities"].numpy()

    return predict, description.brands, description.facts


def _with_progress(batches: Iterator[np.ndarray], total: int, title: str) -> Iterator[np.ndarray]:
    with tqdm.tqdm(total=total, unit="photo", desc=title, disable=None) as bar:
        for batch in batches:
            yield batch
            bar.update(len(batch))


def _rows(reader: RecordReader, probabilities: np.ndarray) -> Iterator[report.PhotoRow]:
    for number, row in enumerate(probabilities):
        record = records.decode(tf.constant(reader.read(number)))
        yield {
            "filename": record["image/filename"].numpy().decode(),
            "sha256": record["image/key/sha256"].numpy().decode(),
            "brand": record["image/class/text"].numpy().decode(),
            "probabilities": row,
        }
