"""Outputs of frozen layers, computed once: an unaugmented photo never passes a frozen backbone twice."""

import hashlib
import itertools
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping

import keras
import numpy as np
import tensorflow as tf
import tqdm

from carbrand import files
from carbrand.data import blocks, pipeline
from carbrand.data.order import Order
from carbrand.errors import DataError
from carbrand.training import hardware

# Where the rows of a result are those of the records, a damaged record is an error.
STRICT = pipeline.Stream(max_damaged_fraction=0)

Forward = Callable[[tuple[tf.Tensor, ...]], tf.Tensor]


def make_forward(model: keras.Model, strategy: tf.distribute.Strategy) -> Forward:
    """A compiled function: distributed batch (inputs, …) -> `model`'s output in inference mode, per replica."""

    @tf.function
    def forward(batch: tuple[tf.Tensor, ...]) -> tf.Tensor:
        return strategy.run(lambda inputs, *_: model(inputs, training=False), args=batch)

    return forward


def outputs(
    forward: Forward, dataset: tf.data.Dataset, num_examples: int, strategy: tf.distribute.Strategy
) -> Iterator[np.ndarray]:
    """The model's output for each batch of `dataset`, `num_examples` rows in all, in order.

    Args:
      forward: As `make_forward` makes it.
      dataset: Batches (inputs, …) that are all full: rows beyond `num_examples` are padding, and left out.
      num_examples: Number of rows that count.
      strategy: Its replicas share each batch; of several workers, each computes all of them.
    """
    remaining = num_examples
    batch_size = dataset.element_spec[0].shape[0]
    here = hardware.workers_of(strategy).count
    parts = dataset.rebatch(batch_size // (strategy.num_replicas_in_sync // here), drop_remainder=True)
    if here > 1:  # TensorFlow would ask all workers before each batch whether they have one, unless they never end
        parts = parts.repeat()
    distributed = strategy.distribute_datasets_from_function(lambda _: parts)
    for batch in itertools.islice(distributed, -(-num_examples // batch_size)):
        rows = np.concatenate([part.numpy() for part in strategy.experimental_local_results(forward(batch))])
        yield rows[:remaining]
        remaining -= len(rows)


def compute(
    prefix: keras.Model,
    dataset: tf.data.Dataset,
    num_examples: int,
    strategy: tf.distribute.Strategy,
    *,
    folder: pathlib.Path,
    key: Mapping[str, object],
    title: str,
) -> np.ndarray:
    """`prefix`'s output [N, …] for every photo, in the order of the records, from a file in `folder` if it is there.

    The file's name holds a hash of `key` and of the weights of `prefix`, so a change of either computes it anew.
    """
    path = folder / f"{files.fingerprint({**key, 'weights': _weights_hash(prefix)})[:16]}.npy"
    folder.mkdir(parents=True, exist_ok=True)
    with files.one_at_a_time(folder / ".lock"):  # trials of a search share the folder
        if not path.exists():
            shape = (num_examples, *prefix.output.shape[1:])
            _check_space(folder, int(np.prod(shape)) * 4, title)
            temporary = path.with_suffix(".tmp")
            array = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float32, shape=shape)
            row = 0
            with tqdm.tqdm(total=num_examples, unit="photo", desc=title, disable=None) as bar:
                for rows in outputs(make_forward(prefix, strategy), dataset, num_examples, strategy):
                    array[row : row + len(rows)] = rows
                    row += len(rows)
                    bar.update(len(rows))
            array.flush()
            os.replace(temporary, path)
    return np.load(path, mmap_mode="r")


def make_dataset(
    features: np.ndarray,
    labels: np.ndarray,
    *,
    batch_size: int,
    is_training: bool,
    sampling: str = "natural",
    seed: int = 0,
    start_step: int = 0,
    num_steps: int | None = None,
    input_context: tf.distribute.InputContext | None = None,
) -> tf.data.Dataset:
    """Batches (features [B, …] float32, label [B] int32) in the order of `pipeline.make_dataset`; all full."""
    order = Order(labels, seed, sampling=sampling) if is_training else None
    share = pipeline.Share.of(batch_size, input_context)
    first, last = pipeline.steps(len(labels), batch_size, is_training, start_step, num_steps)

    def rows(places: np.ndarray) -> dict[str, np.ndarray]:
        numbers = share.numbers(places)
        indexes = order(numbers) if order else np.minimum(numbers, len(labels) - 1)
        return {"features": np.ascontiguousarray(features[indexes]), "label": labels[indexes]}

    specs = {"features": tf.TensorSpec(features.shape[1:], tf.float32), "label": tf.TensorSpec([], tf.int32)}
    places = tf.data.Dataset.range(first * share.per_worker, last * share.per_worker)
    dataset = blocks.map_blocks(places, rows, specs, block=share.per_replica, threads=1, only_full=True)
    return blocks.finish(dataset.map(lambda batch: (batch["features"], batch["label"])))


def _weights_hash(model: keras.Model) -> str:
    digest = hashlib.sha256()
    for variable in model.variables:
        digest.update(np.ascontiguousarray(variable.value.numpy()).tobytes())
    return digest.hexdigest()


def _check_space(folder: pathlib.Path, needed: int, title: str) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DataError(
            f"{folder}: {title} take {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free. Free some space, set "
            "model.freeze_until = 'conv5' (small features), or augment.enabled = True (none are kept)."
        )
