"""95 % intervals by resampling groups of photos: what was photographed together is drawn, or left out, together.

Percentile bootstrap (Efron and Tibshirani 1993, 13.3) of whole groups (Davison and Hinkley 1997, 3.8).
"""

import dataclasses
from collections.abc import Iterator

import numpy as np
import scipy.stats
from numpy.typing import ArrayLike, NDArray

CONFIDENCE_LEVEL = 0.95
NUM_RESAMPLES = 1000
_MAX_WEIGHTS = 4_000_000  # held at a time, 8 bytes each
_ROUNDING = 1e-9


@dataclasses.dataclass(frozen=True)
class Interval:
    """A 95 % confidence interval."""

    low: float
    high: float


def resamples(
    groups: ArrayLike, num_resamples: int = NUM_RESAMPLES, *, seed: int = 0
) -> Iterator[NDArray[np.floating]]:
    """How often each photo counts in resamples: blocks of [N, r], `num_resamples` columns in all.

    Args:
        groups: [N] the group of each photo, of any type that sorts.
        num_resamples: of as many groups each as there are, drawn with replacement.
        seed: the same one draws the same resamples.
    """
    names, group_of = np.unique(np.asarray(groups), return_inverse=True)
    rng = np.random.default_rng(seed)
    block = max(1, _MAX_WEIGHTS // len(group_of))
    for start in range(0, num_resamples, block):
        columns = min(block, num_resamples - start)
        drawn = rng.integers(len(names), size=(columns, len(names))) + len(names) * np.arange(columns)[:, np.newaxis]
        counts = np.bincount(drawn.ravel(), minlength=len(names) * columns).reshape(columns, len(names))
        yield counts.T[group_of].astype(np.float64)


def interval(value: float, samples: NDArray[np.floating]) -> Interval | None:
    """Of `value`, given what it was in the resamples [R], NaN where it was not defined.

    None if it never was, or was the same in all of them, as that of a single group is: resampling then says nothing.
    """
    if np.isnan(value) or _is_constant(samples):
        return None
    return ends(samples)


def ends(samples: NDArray[np.floating], num_intervals: int = 1) -> Interval:
    """The interval that holds 95 % of samples [R], or so much more that `num_intervals` of them hold all at once.

    (Bonferroni.) What is NaN is left out.
    """
    tail = 50 * (1 - CONFIDENCE_LEVEL) / num_intervals
    low, high = np.nanpercentile(samples, [tail, 100 - tail])
    return Interval(float(low), float(high))


def share_interval(value: float, samples: NDArray[np.floating], num_groups: int) -> Interval | None:
    """As `interval`, of a number in [0, 1].

    Where it is 0 or 1 in all resamples, as the accuracy of a few photos that are all right, it is Wilson's interval of
    so many groups that are all wrong, or all right; where it is another number in all of them, it may be anything.
    """
    if np.isnan(value) or not _is_constant(samples):
        return interval(value, samples)
    return wilson_interval(round(value * num_groups), num_groups) if value in (0.0, 1.0) else Interval(0.0, 1.0)


def unbiased(value: float, samples: NDArray[np.floating]) -> NDArray[np.floating]:
    """Samples [R] of a number that is at least 0, moved so that their mean is `value`; none falls below 0.

    Such a number as the calibration error is larger in resamples than in the photos that they are drawn from: what is
    drawn twice adds chance to chance. Without this its interval would often lie above it.
    """
    return np.maximum(samples - (samples.mean() - value), 0.0)


def _is_constant(samples: NDArray[np.floating]) -> bool:
    known = samples[~np.isnan(samples)]
    return not known.size or float(np.ptp(known)) < _ROUNDING


def wilson_interval(successes: int, trials: int) -> Interval:
    """95 % Wilson score interval of a proportion of independent trials; `trials` at least 1."""
    found = scipy.stats.binomtest(successes, trials).proportion_ci(CONFIDENCE_LEVEL, method="wilson")
    return Interval(float(found.low), float(found.high))
