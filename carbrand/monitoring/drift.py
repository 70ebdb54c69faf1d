"""Do two samples of photos differ by more than chance explains, and by so much that it matters? One number per signal.

The size of a shift is the share of photos, 0 to 1, that would at least have to be others for both samples to look
alike: the total variation distance of what falls into classes, the Kolmogorov-Smirnov distance of what is measured.
Chance alone makes one too, the larger the fewer photos there are; a signal has drifted where chance hardly explains its
shift (for all signals together in one comparison of twenty; Bonferroni) and where that is at least `MIN_SHIFT`.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
import scipy.stats
from numpy.typing import NDArray

from carbrand.monitoring.answers import Answers

ALPHA = 0.05
MIN_SHIFT = 0.1  # a guess; below, 9 of 10 photos could stay as they are
_PERMUTATIONS = 9_999
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601

CLASSES: dict[str, Callable[[Answers], NDArray]] = {
    "brand": lambda answers: answers.brand,
    "unknown": lambda answers: np.where(answers.is_unknown, "unknown", "known"),
}
MEASURES: dict[str, Callable[[Answers], NDArray]] = {
    "confidence": lambda answers: answers.probability,
    "brightness": lambda answers: answers.mean_rgb @ _LUMA,
    "red less blue": lambda answers: answers.mean_rgb[:, 0] - answers.mean_rgb[:, 2],
    "short side, px": lambda answers: np.minimum(answers.width, answers.height).astype(float),
    "width / height": lambda answers: answers.width / answers.height,
}
NUM_SIGNALS = len(CLASSES) + len(MEASURES)


@dataclasses.dataclass(frozen=True)
class Shift:
    """How far a signal of some photos is from that of the reference.

    Attributes:
      signal: A key of `CLASSES` or `MEASURES`.
      size: 0 to 1, see above.
      p_value: How probable chance alone makes one at least so large.
      before: Of the reference: the median, or the share of "unknown"; None for brands.
      now: Of the photos.
      has_drifted: Whether it is large, and no chance.
    """

    signal: str
    size: float
    p_value: float
    before: float | None
    now: float | None
    has_drifted: bool


def shifts(reference: Answers, now: Answers, min_shift: float = MIN_SHIFT, *, seed: int = 0) -> list[Shift]:
    """The shift of each signal, largest first; each of both has at least one photo."""
    rng = np.random.default_rng(seed)
    found = []
    for signal, values_of in CLASSES.items():
        samples = values_of(reference), values_of(now)
        size, p_value = total_variation(*samples, rng)
        middles = [float((sample == "unknown").mean()) if signal == "unknown" else None for sample in samples]
        found.append(Shift(signal, size, p_value, middles[0], middles[1], _counts(size, p_value, min_shift)))
    for signal, values_of in MEASURES.items():
        samples = values_of(reference), values_of(now)
        test = scipy.stats.ks_2samp(*samples, method="asymp")
        size, p_value = float(test.statistic), float(test.pvalue)
        medians = [float(np.median(sample)) for sample in samples]
        found.append(Shift(signal, size, p_value, medians[0], medians[1], _counts(size, p_value, min_shift)))
    return sorted(found, key=lambda shift: -shift.size)


def total_variation(before: NDArray, now: NDArray, rng: np.random.Generator) -> tuple[float, float]:
    """The total variation distance of two samples of classes, and its p-value by random permutations of the photos."""
    _, classes = np.unique(np.concatenate([before, now]), return_inverse=True)
    total = np.bincount(classes)
    of_now = np.bincount(classes[len(before) :], minlength=len(total))

    def distance(counts: NDArray[np.integer]) -> NDArray[np.floating]:
        return np.abs((total - counts) / len(before) - counts / len(now)).sum(axis=-1) / 2

    size = float(distance(of_now))
    drawn = distance(rng.multivariate_hypergeometric(total, len(now), _PERMUTATIONS, method="marginals"))
    at_least = int((drawn >= size - 1e-12).sum())
    return size, (1 + at_least) / (1 + _PERMUTATIONS)


def smallest_visible(num_before: int, num_now: int) -> float:
    """The Kolmogorov-Smirnov distance from which on so many photos tell a shift from chance, about."""
    return float(np.sqrt(-np.log(ALPHA / NUM_SIGNALS / 2) / 2 * (1 / num_before + 1 / num_now)))


def _counts(size: float, p_value: float, min_shift: float) -> bool:
    return p_value <= ALPHA / NUM_SIGNALS and size >= min_shift
