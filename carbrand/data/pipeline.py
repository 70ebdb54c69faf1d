"""Records -> tf.data batches whose every pixel is a function of (dataset, seed, global example number).

Example number `n` of a training stream is photo `order(n)` with the random crop of `n`: the stream starts at any step
at once, and is the same for any number of replicas, workers and restarts. Records are read by position, so the whole
split is shuffled without a buffer.
"""

import contextlib
import functools
import io
import os
import pathlib
import re
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf

from carbrand.data import manifest, records
from carbrand.data.augment import Augment
from carbrand.data.preprocess import Preprocess
from carbrand.errors import ConfigError, DataError

_READ_BLOCK = 32  # records per call into Python, so that the call costs little beside the decoding
_FOREVER = 2**62
_RECORD = (tf.TensorSpec([], tf.string), tf.TensorSpec([], tf.int32))  # serialized, label


def make_dataset(
    folder: str | os.PathLike[str],
    split: str,
    *,
    batch_size: int,
    is_training: bool | None = None,
    preprocess: Preprocess | None = None,
    augment: Augment | None = None,
    seed: int = 0,
    start_step: int = 0,
    num_steps: int | None = None,
    pad_last: bool = False,
) -> tf.data.Dataset:
    """Batches (image [B, H, W, 3] uint8 RGB, label [B] int32) of one split.

    In training, batches follow one another without end (or up to step `num_steps`), each epoch a fresh shuffle of the
    whole split, all batches full: where an epoch ends, its last photos share a batch with the next one's first. In
    evaluation every photo comes once, in the order of the records, and the last batch is smaller.

    Args:
      folder: A records folder, as `carbrand build` writes it.
      split: "train", "validation" or "test".
      batch_size: Photos per batch, over all replicas.
      is_training: Shuffled and endless, or once in order; by default True for the "train" split.
      preprocess: The size of the images and what evaluation cuts from a photo.
      augment: Random variation; by default `Augment()` in training. Never applied outside of training.
      seed: Of order and augmentation.
      start_step: The first batch to yield, in batches since the beginning of training; nothing before it is read.
      num_steps: Where a training stream ends, in batches since the beginning.
      pad_last: In evaluation, fill the last batch by repeating the last photo.

    Raises:
      DataError: The folder is not a complete records folder, the split is unknown or empty.
      tf.errors.OpError: While iterating: a record is damaged or gone; `data_errors` makes a DataError of it.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size={batch_size} is not a positive number.")
    reader = RecordReader(folder, split)
    is_training = split == "train" if is_training is None else is_training
    preprocess = preprocess or Preprocess()
    augment = (augment or Augment()) if is_training else Augment(enabled=False)
    order = Order(len(reader), seed) if is_training else None

    numbers = example_numbers(len(reader), batch_size, is_training, start_step, num_steps, pad_last)
    dataset = map_blocks(numbers, functools.partial(_read_block, reader, order), _RECORD)
    dataset = dataset.map(
        functools.partial(_example, seed=seed, preprocess=preprocess, augment=augment),
        num_parallel_calls=tf.data.AUTOTUNE,
    )
    return finish(dataset, batch_size)


class Order:
    """Which record example number `n` of an endless training stream is: each epoch a permutation of all records."""

    def __init__(self, num_examples: int, seed: int) -> None:
        self._num_examples = num_examples
        self._epoch = functools.lru_cache(maxsize=2)(functools.partial(permutation, num_examples, seed))

    def __call__(self, numbers: np.ndarray) -> np.ndarray:
        """[K] int64 example numbers -> [K] int64 records."""
        epochs, places = np.divmod(numbers, self._num_examples)
        return np.array([self._epoch(int(epoch))[place] for epoch, place in zip(epochs, places, strict=True)])


def permutation(num_examples: int, seed: int, epoch: int) -> np.ndarray:
    """A permutation of `range(num_examples)` [N] int64, fixed by (seed, epoch) whatever the numpy version.

    numpy keeps the raw stream of a bit generator for ever, but not what its `permutation` makes of it.
    """
    return np.argsort(np.random.Philox(key=[seed, epoch]).random_raw(num_examples), kind="stable")


class RecordReader:
    """Random access to one split's records; safe to call from many threads."""

    def __init__(self, folder: str | os.PathLike[str], split: str) -> None:
        self._folder = pathlib.Path(folder)
        self._index = manifest.load_index(folder, split)
        self._shards = manifest.load(folder).splits[split].shards
        if not len(self._index):
            raise DataError(f"{folder}: the {split} split is empty. Build with more photos, or another --split.")

    def __len__(self) -> int:
        return len(self._index)

    @property
    def labels(self) -> np.ndarray:
        """Label of every record [N] int32."""
        return self._index["label"]

    def read(self, record: int) -> bytes:
        """The payload of one record; see `records.read`.

        The shard is opened for each record, which costs microseconds: a split may have more shards than a process may
        have open files.
        """
        row = self._index[record]
        path = self._folder / self._shards[row["shard"]].name
        try:
            with io.FileIO(path) as file:
                where = f"{path}: record {record}"
                return records.read(file.fileno(), int(row["offset"]), int(row["length"]), where=where)
        except FileNotFoundError:
            raise DataError(f"{path}: missing, though the manifest lists it. Run `carbrand build` again.") from None


@contextlib.contextmanager
def data_errors() -> Iterator[None]:
    """Within the block, a DataError raised inside tf.data comes out as one, not as TensorFlow's report of it."""
    try:
        yield
    except tf.errors.OpError as error:
        found = re.search(r"DataError: (.+)", str(error))
        if not found:
            raise
        raise DataError(found[1]) from error


def example_numbers(
    num_examples: int, batch_size: int, is_training: bool, start_step: int, num_steps: int | None, pad_last: bool
) -> tf.data.Dataset:
    """The numbers of the examples to yield: int64 scalars."""
    if is_training:
        stop = _FOREVER if num_steps is None else num_steps * batch_size
    else:
        stop = -(-num_examples // batch_size) * batch_size if pad_last else num_examples
    numbers = tf.data.Dataset.range(start_step * batch_size, stop)
    return numbers if is_training else numbers.map(lambda n: tf.minimum(n, num_examples - 1))


def map_blocks(
    numbers: tf.data.Dataset, function: Callable[[np.ndarray], tuple[np.ndarray, ...]], rows: tuple[tf.TensorSpec, ...]
) -> tf.data.Dataset:
    """Maps blocks of example numbers [K] through a Python function: (number, *rows) for each number, in order.

    Args:
      numbers: int64 scalars.
      function: [K] int64 -> one array [K, …] for each of `rows`.
      rows: Type and shape of one row of each array.
    """

    def call(block: tf.Tensor) -> tuple[tf.Tensor, ...]:
        # Not stateful, or tf.data would give up all parallelism when operations have to be deterministic.
        values = tf.numpy_function(function, [block], [row.dtype for row in rows], stateful=False)
        return (block, *(tf.ensure_shape(v, (None, *row.shape)) for v, row in zip(values, rows, strict=True)))

    return numbers.batch(_READ_BLOCK).map(call).unbatch()


def finish(dataset: tf.data.Dataset, batch_size: int) -> tf.data.Dataset:
    """Batches, reads ahead, and keeps the order whatever the parallelism."""
    options = tf.data.Options()
    options.deterministic = True
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return dataset.batch(batch_size).prefetch(tf.data.AUTOTUNE).with_options(options)


def _read_block(reader: RecordReader, order: Order | None, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    indexes = order(numbers) if order else numbers
    payloads = np.array([reader.read(i) for i in indexes], dtype=object)
    return payloads, reader.labels[indexes]


def _example(
    number: tf.Tensor, serialized: tf.Tensor, label: tf.Tensor, *, seed: int, preprocess: Preprocess, augment: Augment
) -> tuple[tf.Tensor, tf.Tensor]:
    encoded = records.decode(serialized)["image/encoded"]
    if augment.enabled:
        image = augment(encoded, tf.stack([tf.constant(seed, tf.int64), number]), preprocess.height_width)
    else:
        image = preprocess(encoded)
    return tf.ensure_shape(image, (*preprocess.height_width, 3)), label
