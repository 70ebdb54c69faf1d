"""Uniform random numbers that depend on (seed, example number, column) alone: the same in every process, for ever.

A counter-based SplitMix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators", OOPSLA), with
the constants of java.util.SplittableRandom: integer arithmetic modulo 2**64 only, so no numpy version changes it.
"""

import numpy as np

_GOLDEN_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))  # right shift, then multiplier; "variant 13" of Stafford
_LAST_SHIFT = np.uint64(31)
_UNUSED_BITS = np.uint64(11)  # a float64 keeps 53 of the 64 bits


def uniform(seed: int, numbers: np.ndarray, count: int) -> np.ndarray:
    """`count` draws for each example: numbers [K] int64 -> [K, count] float64 in [0, 1).

    Example n draws from its own SplitMix64, started at output n of the one that `seed` starts. Its row depends neither
    on its neighbours in `numbers` nor on `count`: a larger count only adds columns.
    """
    starts = words(np.array([seed % 2**64], np.uint64), np.asarray(numbers, np.int64))
    return (words(starts[:, None], np.arange(count)) >> _UNUSED_BITS) * 2.0**-53


def words(starts: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Outputs `steps` (int64, the first is 0) of the SplitMix64 begun at `starts` (uint64), broadcast -> uint64."""
    bits = starts + (steps.astype(np.uint64) + np.uint64(1)) * _GOLDEN_GAMMA
    for shift, multiplier in _MIX:
        bits = (bits ^ (bits >> np.uint64(shift))) * np.uint64(multiplier)
    return bits ^ (bits >> _LAST_SHIFT)
