"""Records -> tf.data batches whose every pixel is a function of (dataset, seed, global example number).

Example number `n` of a training stream is the record `order(n)` with the random variation of `n`: the stream starts at
any step at once, and is the same for any number of replicas, workers, threads and restarts. Records are read by their
position, so the whole split is shuffled without a buffer; where single reads are slow, `Stream.shuffle_mib` gives one.

Photos are decoded, cut and varied in uint8 by libjpeg-turbo and OpenCV, at less than half the CPU time of TensorFlow's
operations (tests/benchmarks/input_pipeline.py); evaluation goes through `preprocess`, as exported models do.
"""

import contextlib
import dataclasses
import functools
import itertools
import logging
import os
import re
from collections.abc import Collection, Iterator

import gin
import numpy as np
import tensorflow as tf

from carbrand import checks
from carbrand.data import augment as augmentation
from carbrand.data import blocks, draws, mixing, order, records
from carbrand.data.augment import Augment
from carbrand.data.order import Order
from carbrand.data.preprocess import Preprocess
from carbrand.data.reader import Damage, RecordReader, Window, WindowReader
from carbrand.errors import ConfigError, DataError

MAX_BLOCK = 128  # examples per call into Python: enough that the call costs nothing beside the decoding
_FOREVER = 2**62
_ENCODED = "image/encoded"
_DTYPES = {bytes: tf.string, int: tf.int64}
# What a batch can hold besides image, label and the record's features: see `make_dataset`.
EXTRA_FIELDS = {"number": tf.int64, "record": tf.int64, "weight": tf.float32, "mix": tf.float32}

_LOG = logging.getLogger(__name__)


@gin.configurable("stream", module="carbrand")
@dataclasses.dataclass(frozen=True)
class Stream:
    """How training photos are drawn and read.

    Attributes:
      sampling: "natural": each photo once per epoch; "balanced": as many of each brand; "sqrt": between the two, by the
        square root of a brand's photos.
      shuffle_mib: 0 shuffles the whole split and reads photos one by one, for local disks. Otherwise long runs are read
        into so much memory (MiB) and mixed there, for network disks; only with "natural" sampling.
      max_damaged_fraction: Share of the records that may be damaged; each is replaced by the next one.
      threads: That decode; 0: one per core.
    """

    sampling: str = "natural"
    shuffle_mib: int = 0
    max_damaged_fraction: float = 0.01  # a guess: more is no accident
    threads: int = 0

    def __post_init__(self) -> None:
        checks.choice("stream.sampling", self.sampling, tuple(order.SAMPLING))
        checks.number("stream.shuffle_mib", self.shuffle_mib, at_least=0, whole=True)
        checks.number("stream.max_damaged_fraction", self.max_damaged_fraction, at_least=0, at_most=1)
        checks.number("stream.threads", self.threads, at_least=0, whole=True)
        if self.shuffle_mib and self.sampling != "natural":
            raise ConfigError(
                f"stream.shuffle_mib={self.shuffle_mib} with stream.sampling={self.sampling!r}: balanced brands are "
                "drawn from the whole split. Set shuffle_mib to 0, or sampling to 'natural'."
            )


def make_dataset(
    folder: str | os.PathLike[str],
    split: str,
    *,
    batch_size: int,
    is_training: bool | None = None,
    preprocess: Preprocess | None = None,
    augment: Augment | None = None,
    stream: Stream | None = None,
    seed: int = 0,
    start_step: int = 0,
    num_steps: int | None = None,
    pad_last: bool = False,
    fields: Collection[str] | None = None,
    input_context: tf.distribute.InputContext | None = None,
) -> tf.data.Dataset:
    """Batches of one split, as Keras takes them too: (image [B, H, W, 3] uint8 RGB, label [B] int32).

    In training, batches follow one another without end (or up to step `num_steps`), each epoch a fresh shuffle of the
    whole split, all batches full: where an epoch ends, its last photos share a batch with the next one's first. In
    evaluation every photo comes once, in the order of the records, and the last batch is smaller, or padded.

    Args:
      folder: A records folder, as `carbrand build` writes it.
      split: "train", "validation" or "test".
      batch_size: Photos per step, over all replicas and workers.
      is_training: Shuffled and endless, or once in order; by default True for the "train" split.
      preprocess: The size of the images and what evaluation cuts from a photo.
      augment: Random variation; by default `Augment()` in training. Never applied outside of training. Where it mixes
        photos, images are float32 and labels are targets [B, C] float32, the shares of the brands.
      stream: How training photos are drawn and read. In evaluation, only its `max_damaged_fraction` counts: damaged
        records are left out, or have weight 0.
      seed: Of order and augmentation.
      start_step: The first batch to yield, in batches since the beginning; nothing before it is read.
      num_steps: Where the stream ends, in batches since the beginning.
      pad_last: In evaluation, fill the last batch by repeating the last photo. Batches are then (image, label, weight
        [B] float32): 0 for what does not count, as Keras's sample weights.
      fields: If given, batches are dicts with "image", "label" and these: features of the records (see
        `records.FEATURES`; tf.string or tf.int64), "number" (of the example in the stream), "record" (its place in the
        split), "weight", or "mix": what `mixing.mix` needs to mix photos on the device, which is then not done here.
      input_context: For `strategy.distribute_datasets_from_function`: this worker's share of each step, in batches
        for one replica. No two workers share an example.

    Raises:
      DataError: The folder is not a complete records folder, the split is unknown or empty.
      ConfigError: An argument cannot work.
      tf.errors.OpError: While iterating: too many records are damaged; `data_errors` makes a DataError of it.
    """
    batch_size = checks.whole("batch_size", batch_size, at_least=1)
    start_step = checks.whole("start_step", start_step, at_least=0)
    seed = checks.whole("seed", seed)
    if num_steps is not None:
        num_steps = checks.whole("num_steps", num_steps, at_least=0)
    checks.kind("preprocess", preprocess, Preprocess)
    checks.kind("augment", augment, Augment)
    checks.kind("stream", stream, Stream)
    is_training = split == "train" if is_training is None else is_training
    preprocess, stream = preprocess or Preprocess(), stream or Stream()
    augment = (augment or Augment()) if is_training else Augment(enabled=False)
    names = _names(fields, augment, pad_last)
    share = Share.of(batch_size, input_context)
    if not is_training and not pad_last and share.workers > 1:
        raise ConfigError("pad_last=False with several workers: they would end at different steps. Set pad_last=True.")
    reader = RecordReader(folder, split)
    ordering = make_order(reader, stream, seed) if is_training else None
    read = _Blocks(reader, ordering, share, names, augment, preprocess.height_width, stream, seed)

    first, last = steps(len(reader), batch_size, is_training, start_step, num_steps)
    block, num_places = _even_part(share.per_replica), (last - first) * share.per_worker
    # Augmented blocks are full ones, so that their shape is known: what is read beyond the end is not taken, below.
    read_beyond = -num_places % block if augment.enabled else 0
    places = tf.data.Dataset.range(first * share.per_worker, first * share.per_worker + num_places + read_beyond)
    if not is_training and not pad_last:
        places = places.take(len(reader) - first * batch_size)
    threads = stream.threads or len(os.sched_getaffinity(0))
    dataset = blocks.map_blocks(places, read, read.specs, block=block, threads=threads, only_full=augment.enabled)
    if augment.enabled:
        if block != share.per_replica:  # which copies every image
            dataset = dataset.rebatch(share.per_replica, drop_remainder=True).take(num_places // share.per_replica)
    else:
        dataset = dataset.unbatch()
        if not is_training and not pad_last:
            dataset = dataset.filter(lambda example: example["weight"] > 0)
        dataset = dataset.map(functools.partial(_preprocessed, preprocess), num_parallel_calls=threads)
        dataset = dataset.batch(share.per_replica, drop_remainder=is_training or pad_last)
    if augment.mixes_photos and "mix" not in (fields or ()):
        mixing.check_even(share.per_replica)  # here: what a traced function raises is wrapped in a report
        dataset = dataset.map(functools.partial(_mixed, reader.num_brands), num_parallel_calls=threads)
    if is_training or pad_last:  # else damaged records are left out, and the number of batches is not known
        # Of full batches whose number it does not know, Keras asks for one too many, and counts its rows.
        num_batches = tf.data.INFINITE_CARDINALITY
        if num_steps is not None or not is_training:
            num_batches = max(num_places, 0) // share.per_replica
        dataset = dataset.apply(tf.data.experimental.assert_cardinality(num_batches))
    return blocks.finish(dataset.map(functools.partial(_element, fields, pad_last)))


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


def steps(
    num_examples: int, batch_size: int, is_training: bool, start_step: int = 0, num_steps: int | None = None
) -> tuple[int, int]:
    """The first step of a stream, and the one before which it ends; the arguments are those of `make_dataset`."""
    last = _FOREVER // batch_size if is_training else -(-num_examples // batch_size)
    return start_step, last if num_steps is None else min(num_steps, last)


@dataclasses.dataclass(frozen=True)
class Share:
    """Which examples of each step a worker sees: `per_worker` from `first` on, in batches of `per_replica`."""

    batch_size: int
    workers: int
    first: int
    per_worker: int
    per_replica: int

    @classmethod
    def of(cls, batch_size: int, context: tf.distribute.InputContext | None) -> "Share":
        """That of the worker whose context it is; ConfigError if the batch does not divide."""
        if context is None:
            return cls(batch_size, 1, 0, batch_size, batch_size)
        replicas, workers = context.num_replicas_in_sync, context.num_input_pipelines
        check_batch("batch_size", batch_size, replicas)
        check_batch("batch_size", batch_size, workers, "workers")
        per_worker = batch_size // workers
        return cls(batch_size, workers, context.input_pipeline_id * per_worker, per_worker, batch_size // replicas)

    def numbers(self, places: np.ndarray) -> np.ndarray:
        """What this worker counts [K] -> example numbers, over all workers."""
        steps, within = np.divmod(places, self.per_worker)
        return steps * self.batch_size + self.first + within


class _Blocks:
    """A block of examples -> arrays, from the bytes on disk to the pixels; called by many threads."""

    def __init__(
        self,
        reader: RecordReader,
        ordering: Order | None,
        share: Share,
        names: tuple[str, ...],
        augment: Augment,
        height_width: tuple[int, int],
        stream: Stream,
        seed: int,
    ) -> None:
        self._reader = reader
        self._order = ordering
        self._windows = WindowReader(reader, ordering) if ordering and ordering.blocks else None
        self._damage = Damage(len(reader), stream.max_damaged_fraction)
        self._share = share
        self._features = tuple(name for name in names if name in records.FEATURES)
        self._augment = augment
        self._height_width = height_width
        self._seed = seed
        image = {"image": tf.TensorSpec((*height_width, 3), tf.uint8)}
        self.specs = image if augment.enabled else {_ENCODED: tf.TensorSpec([], tf.string)}
        self.specs |= {"label": tf.TensorSpec([], tf.int32)}
        self.specs |= {name: tf.TensorSpec([], _DTYPES[records.FEATURES[name]]) for name in self._features}
        self.specs |= {
            name: tf.TensorSpec([mixing.PLAN_COLUMNS] if name == "mix" else [], dtype)
            for name, dtype in EXTRA_FIELDS.items()
            if name in names
        }
        # What is filled example by example: shape and type.
        own = ({"image"} if augment.enabled else {_ENCODED}) | set(self._features)
        self._arrays = {name: (self.specs[name].shape, self.specs[name].dtype.as_numpy_dtype) for name in own}

    def __call__(self, places: np.ndarray) -> dict[str, np.ndarray]:
        numbers = self._share.numbers(places)
        asked = self._order(numbers) if self._order else np.minimum(numbers, len(self._reader) - 1)
        photo_draws = draws.uniform(self._seed, numbers, self._augment.num_draws)
        used = asked.copy()
        found = {name: blocks.aligned((len(numbers), *shape), dtype) for name, (shape, dtype) in self._arrays.items()}
        windows = self._windows.windows_of(numbers) if self._windows else [None] * len(numbers)
        for place, (record, window) in enumerate(zip(asked.tolist(), windows, strict=True)):
            rows = {name: array[place : place + 1] for name, array in found.items()}
            used[place] = self._fill_sound(rows, record, window, photo_draws[place])
        found |= {"label": self._reader.labels[used], "number": numbers, "record": used}
        # In training each place has to be filled, and what stands in for a damaged record counts as any other.
        counts = (used == asked) & (numbers < len(self._reader)) if self._order is None else np.full(len(used), True)
        found["weight"] = counts.astype(np.float32)
        if "mix" in self.specs:
            found["mix"] = mixing.plan(photo_draws, self._augment, self._height_width)
        return found

    def _fill_sound(
        self, rows: dict[str, np.ndarray], record: int, window: Window | None, photo_draws: np.ndarray
    ) -> int:
        """Fills one row of each array with the record, or the next one that is sound, and says which it was."""
        num_records = len(self._reader)
        for candidate in itertools.chain(range(record, num_records), range(record)):
            try:
                source = window if window and candidate == record else self._reader
                payload = source.read(candidate)
                self._fill(rows, candidate, payload, photo_draws)
                return candidate
            except DataError as error:
                self._damage.note(candidate, error)
        raise DataError(f"{self._reader.name_of(record)}: none of {num_records} records is sound. Build them again.")

    def _fill(self, rows: dict[str, np.ndarray], record: int, payload: bytes, photo_draws: np.ndarray) -> None:
        parsed = records.parse(payload) if self._features else {}
        for name in self._features:
            rows[name][0] = parsed[name]
        encoded = records.parse_bytes(payload, _ENCODED)
        if not self._augment.enabled:
            rows[_ENCODED][0] = bytes(encoded)
            return
        try:
            augmentation.augmented(encoded, photo_draws, self._augment, self._height_width, rows["image"][0])
        except ValueError as error:
            where = self._reader.name_of(record)
            raise DataError(f"{where}: cannot be decoded ({error}). Build the records again.") from error


def check_batch(name: str, batch_size: int, parts: int, what: str = "replicas") -> None:
    """Raises ConfigError unless all replicas, or what else shares a batch, get as many photos of it."""
    if batch_size % parts:
        raise ConfigError(
            f"{name}={batch_size} does not divide among {parts} {what}. "
            f"Use a multiple of {parts}, for example {-(-batch_size // parts) * parts}."
        )


def _names(fields: Collection[str] | None, augment: Augment, pad_last: bool) -> tuple[str, ...]:
    """What to read besides image and label."""
    known = [*EXTRA_FIELDS, *records.FEATURES]
    if isinstance(fields, str):
        raise ConfigError(f"fields={fields!r}: give a list of names.")
    for name in fields or ():
        checks.choice("fields", name, known)
    needed = {"weight"} if pad_last or not augment.enabled else set()
    return tuple(sorted({*(fields or ()), *needed, *({"mix"} if augment.mixes_photos else ())}))


def make_order(reader: RecordReader, stream: Stream, seed: int) -> Order:
    """The order in which training draws the records."""
    windows = order.make_blocks(stream.shuffle_mib * 2**20, reader.mean_bytes) if stream.shuffle_mib else None
    if stream.sampling != "natural":
        counts = order.examples_per_brand(reader.labels, stream.sampling)
        _LOG.info("%s sampling: an epoch holds %s photos of each brand", stream.sampling, counts.tolist())
    return Order(reader.labels, seed, sampling=stream.sampling, blocks=windows)


def _even_part(count: int) -> int:
    """The size of the parts when `count` is cut into equal parts, as nearly as can be, of at most `MAX_BLOCK`."""
    return -(-count // -(-count // MAX_BLOCK))


def _preprocessed(preprocess: Preprocess, example: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    image = preprocess(example[_ENCODED])
    return {**example, "image": tf.ensure_shape(image, (*preprocess.height_width, 3))}


def _mixed(num_brands: int, batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    image, target = mixing.mix(batch["image"], tf.one_hot(batch["label"], num_brands), batch["mix"])
    return {**batch, "image": image, "label": target}


def _element(
    fields: Collection[str] | None, pad_last: bool, batch: dict[str, tf.Tensor]
) -> dict[str, tf.Tensor] | tuple[tf.Tensor, ...]:
    if fields is not None:
        return {name: batch[name] for name in ("image", "label", *fields)}
    return (batch["image"], batch["label"], *([batch["weight"]] if pad_last else []))
