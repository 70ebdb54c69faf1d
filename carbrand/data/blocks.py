"""Python functions inside tf.data: called in blocks and in order, by many threads, and done when the program ends."""

import atexit
import math
import threading
import time
from collections.abc import Callable

import numpy as np
import tensorflow as tf

_ALIGNMENT = 64  # bytes; TensorFlow's EIGEN_MAX_ALIGN_BYTES with AVX-512, and no less elsewhere
_READ_AHEAD = 2  # batches that are ready before they are asked for
_QUIET_S = 0.1  # without a call, after which nothing is under way any more


def map_blocks(
    places: tf.data.Dataset,
    function: Callable[[np.ndarray], dict[str, np.ndarray]],
    specs: dict[str, tf.TensorSpec],
    *,
    block: int,
    threads: int,
    only_full: bool = False,
) -> tf.data.Dataset:
    """Maps blocks of numbers [K] through a Python function, in order.

    Args:
      places: int64 scalars.
      function: [K] int64 -> for each of `specs` an array [K, …].
      specs: Type and shape of one row of each array.
      block: K, but the last one may be smaller.
      threads: Blocks that are worked on at once.
      only_full: All blocks are full, so that K is part of the shapes.
    """

    def rows(numbers: np.ndarray) -> list[np.ndarray]:
        with _CALLS:
            found = function(numbers)
            return [found[name] for name in specs]

    def call(numbers: tf.Tensor) -> dict[str, tf.Tensor]:
        # Not stateful, or tf.data would give up all parallelism when operations have to be deterministic.
        values = tf.numpy_function(rows, [numbers], [spec.dtype for spec in specs.values()], stateful=False)
        shapes = ((block if only_full else None, *spec.shape) for spec in specs.values())
        return dict(zip(specs, map(tf.ensure_shape, values, shapes), strict=True))

    return places.batch(block, drop_remainder=only_full).map(call, num_parallel_calls=threads)


def finish(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Reads ahead, and keeps the order whatever the parallelism, which is fixed.

    Else tf.data would tune it in a thread that sleeps for up to a minute, and that an iterator often waits for when it
    ends: without a message, after each evaluation and validation.
    """
    options = tf.data.Options()
    options.deterministic = True
    options.autotune.enabled = False
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return dataset.prefetch(_READ_AHEAD).with_options(options)


def aligned(shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """A new array, where TensorFlow wants its tensors to be: it copies all others."""
    if dtype is object:
        return np.empty(shape, dtype)
    count = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.empty(count + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + count].view(dtype).reshape(shape)


class _Calls:
    """The calls from tf.data into Python. A program that ends waits for them, and refuses new ones.

    Else the interpreter, which ends first, would wait for a call that waits for the interpreter, for ever: as soon as
    a program ends while an iterator of its is alive.
    """

    def __init__(self) -> None:
        self._running = 0
        self._last = 0.0
        self._is_closed = False
        self._lock = threading.Lock()
        atexit.register(self._close)

    def __enter__(self) -> None:
        with self._lock:
            self._last = time.monotonic()
            if self._is_closed:
                raise RuntimeError("the program ends")
            self._running += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._running -= 1
            self._last = time.monotonic()

    def _close(self) -> None:
        self._is_closed = True
        while self._running or time.monotonic() - self._last < _QUIET_S:
            time.sleep(_QUIET_S / 10)


_CALLS = _Calls()
