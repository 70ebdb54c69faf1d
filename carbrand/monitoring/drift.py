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
    "unknown": lambda answers: answers.is_unknown,
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
      beyond_chance: The size from which on a shift of so many photos is no chance, about; at most 1.
      before: Of the reference: the median, or the share of unknown photos; None for brands.
      now: Of the photos.
      has_drifted: Whether it is no chance, and large.
    """

    signal: str
    size: float
    p_value: float
    beyond_chance: float
    before: float | None
    now: float | None
    has_drifted: bool


def shifts(reference: Answers, now: Answers, min_shift: float = MIN_SHIFT, *, seed: int = 0) -> list[Shift]:
    """The shift of each signal, largest first; each of both has at least one photo."""
    rng = np.random.default_rng(seed)
    found = []
    for signal, values_of in {**CLASSES, **MEASURES}.items():
        samples = values_of(reference), values_of(now)
        test = total_variation(*samples, rng) if signal in CLASSES else kolmogorov_smirnov(*samples)
        before, after = (None if signal == "brand" else _middle(sample) for sample in samples)
        has_drifted = test[1] <= ALPHA / NUM_SIGNALS and test[0] >= min_shift
        found.append(Shift(signal, *test, before, after, has_drifted))
    return sorted(found, key=lambda shift: -shift.size)


def total_variation(before: NDArray, now: NDArray, rng: np.random.Generator) -> tuple[float, float, float]:
    """Of two samples of classes: size, p-value and `Shift.beyond_chance`, by random permutations of the photos."""
    _, classes = np.unique(np.concatenate([before, now]), return_inverse=True)
    total = np.bincount(classes)
    of_now = np.bincount(classes[len(before) :], minlength=len(total))

    def distance(counts: NDArray[np.integer]) -> NDArray[np.floating]:
        return np.abs((total - counts) / len(before) - counts / len(now)).sum(axis=-1) / 2

    size = float(distance(of_now))
    drawn = distance(rng.multivariate_hypergeometric(total, len(now), _PERMUTATIONS, method="marginals"))
    at_least = int((drawn >= size - 1e-12).sum())
    return size, (1 + at_least) / (1 + _PERMUTATIONS), float(np.quantile(drawn, 1 - ALPHA / NUM_SIGNALS))


def kolmogorov_smirnov(before: NDArray, now: NDArray) -> tuple[float, float, float]:
    """Of two samples of a measure: size, p-value and `Shift.beyond_chance`."""
    test = scipy.stats.ks_2samp(before, now, method="asymp")
    # The first term of Kolmogorov's series, which is all of it for sizes this rare.
    beyond_chance = np.sqrt(-np.log(ALPHA / NUM_SIGNALS / 2) / 2 * (1 / len(before) + 1 / len(now)))
    return float(test.statistic), float(test.pvalue), min(1.0, float(beyond_chance))


def _middle(sample: NDArray) -> float:
    """The median of a measure; the share of what is true."""
    return float(sample.mean() if sample.dtype == bool else np.median(sample))
