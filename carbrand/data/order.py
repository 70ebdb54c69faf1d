"""Which record each example of a training stream is: a pure function of (seed, example number), with no state to save.

An epoch is a permutation that is computed where it is asked for, by a small Feistel cipher, so that a shuffle of any
number of records takes no memory and begins anywhere at once.
"""

import dataclasses
import functools
import math

import numpy as np

from carbrand.data import draws

SAMPLING = {"natural": 1.0, "sqrt": 0.5, "balanced": 0.0}  # a brand's share grows with its photos to this power

_ROUNDS = 6  # of the cipher; Luby and Rackoff 1988 prove 4 for large sets, small ones need more
_MIN_BITS = 8  # of what it enciphers: with fewer, some permutations of a handful are much rarer than others
_CHUNK = 4096  # example numbers that are computed at once: alone, each would cost 50 times as much
_EPOCH, _WINDOW, _BRAND = -1, -2, -3  # purposes of a key; the numbers from 0 on are those of examples, for their draws


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Reading in windows of blocks, where single reads are slow: a window is mixed, then the next one.

    Attributes:
        block: records that lie one after another and are read at once.
        window: examples that are mixed with each other, at most.
    """

    block: int
    window: int


class Order:
    """Example numbers of an endless stream -> records; each epoch of N examples is mixed afresh.

    With `sampling` "natural" an epoch holds each record once. Otherwise it holds as many examples of each brand as its
    share wants, and passes over a brand's records go on from epoch to epoch: all of them are seen equally often.
    """

    def __init__(
        self, labels: np.ndarray, seed: int, *, sampling: str = "natural", blocks: Blocks | None = None
    ) -> None:
        """Sets how to mix.

        Args:
            labels: of all records, [N] int32.
            seed: of the order.
            sampling: one of `SAMPLING`.
            blocks: how to read, for "natural" sampling; by default the whole split is mixed.
        """
        self._size = len(labels)
        self._seed = seed
        self.blocks = blocks
        self._brands = None if sampling == "natural" else _Brands(labels, seed, SAMPLING[sampling])
        self._chunk = functools.lru_cache(maxsize=8)(self._compute)

    def __call__(self, numbers: np.ndarray) -> np.ndarray:
        """[K] int64 example numbers, from 0 -> [K] int64 records."""
        chunks, places = np.divmod(numbers, _CHUNK)
        if len(numbers) and chunks[0] == chunks[-1]:  # the usual case; numbers ascend
            return self._chunk(int(chunks[0]))[places]
        return np.array([self._chunk(chunk)[place] for chunk, place in zip(chunks.tolist(), places, strict=True)], int)

    def window_of(self, number: int) -> tuple[tuple[int, int], float]:
        """Epoch and window of an example, and the share of the window that comes before it; only with `blocks`."""
        assert self.blocks
        epoch, place = divmod(number, self._size)
        window, within = divmod(place, self.blocks.window)
        size = min(self.blocks.window, self._size - window * self.blocks.window)  # the last of an epoch is shorter
        return (epoch, window), within / size

    def window_records(self, place: tuple[int, int]) -> np.ndarray:
        """The records of a window, ascending [K] int64, in runs of neighbours; only with `blocks`."""
        assert self.blocks
        epoch, window = place
        first = window * self.blocks.window
        places = np.arange(first, min(first + self.blocks.window, self._size))
        return np.sort(self._record_at(np.full(len(places), epoch), places))

    def next_window(self, place: tuple[int, int]) -> tuple[int, int]:
        """The one after it; only with `blocks`."""
        assert self.blocks
        epoch, window = place
        return (epoch + 1, 0) if (window + 1) * self.blocks.window >= self._size else (epoch, window + 1)

    def _compute(self, chunk: int) -> np.ndarray:
        epochs, places = np.divmod(np.arange(chunk * _CHUNK, (chunk + 1) * _CHUNK), self._size)
        if self.blocks:
            windows = places // self.blocks.window
            sizes = np.minimum(self.blocks.window, self._size - windows * self.blocks.window)
            within = permute(places % self.blocks.window, sizes, self._keys(_WINDOW, epochs, windows))
            return self._record_at(epochs, windows * self.blocks.window + within)
        slots = permute(places, np.full(len(places), self._size), self._keys(_EPOCH, epochs))
        return self._brands.records(epochs, slots) if self._brands else slots

    def _record_at(self, epochs: np.ndarray, places: np.ndarray) -> np.ndarray:
        """The record at each place of an epoch in which blocks are mixed as a whole."""
        assert self.blocks
        block = self.blocks.block
        count, short = -(-self._size // block), self._size % block or block
        full = np.full(len(places), count)
        # The last block of the split is shorter, and so are the places after it.
        short_at = invert(full - 1, full, self._keys(_EPOCH, epochs)) * block
        is_after = places >= short_at + short
        shifted = np.where(is_after, places + block - short, places)
        return permute(shifted // block, full, self._keys(_EPOCH, epochs)) * block + shifted % block

    def _keys(self, purpose: int, *numbers: np.ndarray) -> np.ndarray:
        return _keys(self._seed, purpose, *numbers)


class _Brands:
    """The slots of an epoch, shared out among the brands."""

    def __init__(self, labels: np.ndarray, seed: int, power: float) -> None:
        self._seed = seed
        self._records = np.argsort(labels, kind="stable").astype(np.uint32)  # one brand's after another's
        self._sizes = np.bincount(labels)
        self._first = np.cumsum(self._sizes) - self._sizes
        self.quotas = _shares(self._sizes, power)
        self._stop = np.cumsum(self.quotas)

    def records(self, epochs: np.ndarray, slots: np.ndarray) -> np.ndarray:
        brands = np.searchsorted(self._stop, slots, side="right")
        drawn = epochs * self.quotas[brands] + slots - (self._stop - self.quotas)[brands]  # so many of the brand before
        passes, places = np.divmod(drawn, self._sizes[brands])
        within = permute(places, self._sizes[brands], _keys(self._seed, _BRAND, brands, passes))
        return self._records[self._first[brands] + within].astype(np.int64)


def examples_per_brand(labels: np.ndarray, sampling: str) -> np.ndarray:
    """How many examples of each brand one epoch holds: [N] labels -> [C] int64, whose sum is N."""
    return _shares(np.bincount(labels), SAMPLING[sampling])


def permute(places: np.ndarray, sizes: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Where each place goes in a permutation of range(size) that its key fixes: [K] int64 each, keys uint64 -> [K].

    A Feistel network over a power of two; what falls outside goes through it again (Black and Rogaway 2002).
    """
    return _walk(places, sizes, keys, range(_ROUNDS))


def invert(places: np.ndarray, sizes: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """The inverse of `permute`."""
    return _walk(places, sizes, keys, range(_ROUNDS)[::-1])


def _walk(places: np.ndarray, sizes: np.ndarray, keys: np.ndarray, rounds: range) -> np.ndarray:
    found = places.astype(np.uint64)
    sizes = sizes.astype(np.uint64)
    outside = np.arange(len(found))
    while len(outside):
        found[outside] = _encipher(found[outside], sizes[outside], keys[outside], rounds)
        outside = outside[found[outside] >= sizes[outside]]
    return found.astype(np.int64)


def _encipher(values: np.ndarray, sizes: np.ndarray, keys: np.ndarray, rounds: range) -> np.ndarray:
    """One pass through the network, forward or, with `rounds` backward, back."""
    one = np.uint64(1)
    bits = np.maximum(np.frexp((sizes - one).astype(np.float64))[1], _MIN_BITS).astype(np.uint64)
    low_bits = bits // np.uint64(2)
    low_mask, high_mask = (one << low_bits) - one, (one << (bits - low_bits)) - one
    high, low = values >> low_bits, values & low_mask
    for number in rounds:
        # By turns one half is changed by the other, so that both keep their widths.
        changed, other = (high, low) if number % 2 else (low, high)
        mixed = draws.words(keys, (other * np.uint64(_ROUNDS) + np.uint64(number)).astype(np.int64))
        changed = (changed ^ mixed) & (high_mask if number % 2 else low_mask)
        high, low = (changed, other) if number % 2 else (other, changed)
    return high << low_bits | low


def _keys(seed: int, purpose: int, *numbers: np.ndarray) -> np.ndarray:
    """A key for each row of numbers [K], uint64."""
    keys = draws.words(np.array([seed % 2**64], np.uint64), np.array([purpose]))
    for column in numbers:
        keys = draws.words(keys, column)
    return np.broadcast_to(keys, numbers[0].shape)


def _shares(sizes: np.ndarray, power: float) -> np.ndarray:
    """Shares out sum(sizes) by sizes ** power, rounded by largest remainders; nothing to what is empty."""
    weights = np.where(sizes > 0, sizes.astype(float) ** power, 0)
    exact = weights / weights.sum() * sizes.sum()
    shares = np.floor(exact).astype(np.int64)
    missing = int(sizes.sum() - shares.sum())
    shares[np.argsort(shares - exact, kind="stable")[:missing]] += 1
    return shares


def make_blocks(shuffle_bytes: int, record_bytes: float) -> Blocks:
    """Blocks of about 1 MiB, in windows of which two take `shuffle_bytes`."""
    window = max(int(shuffle_bytes / 2 / record_bytes), 1)
    block = min(max(math.ceil(2**20 / record_bytes), 1), max(window // 8, 1))
    return Blocks(block, window)
