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
_PERMUTATIONS = 1_999
_MAX_PERMUTED = 2_000  # photos of both samples together: half a second for all measures
_MANY = 100  # as n m / (n + m): from here on the asymptotic distribution of the Kolmogorov-Smirnov distance is right
_ROUNDING = 1e-12
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
      beyond_chance: The size from which on a shift of so many photos is no chance, about; None if it always may be.
      before: Of the reference: the median, or the share of unknown photos; None for brands.
      now: Of the photos.
      has_drifted: Whether it is no chance, and large.
    """

    signal: str
    size: float
    p_value: float
    beyond_chance: float | None
    before: float | None
    now: float | None
    has_drifted: bool


def shifts(reference: Answers, now: Answers, min_shift: float = MIN_SHIFT, *, seed: int = 0) -> list[Shift]:
    """The shift of each signal, largest first; each of both has at least one photo."""
    rng = np.random.default_rng(seed)
    found = []
    for signal, values_of in {**CLASSES, **MEASURES}.items():
        samples = values_of(reference), values_of(now)
        test = (total_variation if signal in CLASSES else kolmogorov_smirnov)(*samples, rng)
        before, after = (None if signal == "brand" else _middle(sample) for sample in samples)
        has_drifted = test[1] <= ALPHA / NUM_SIGNALS and test[0] >= min_shift
        found.append(Shift(signal, *test, before, after, has_drifted))
    return sorted(found, key=lambda shift: -shift.size)


def total_variation(before: NDArray, now: NDArray, rng: np.random.Generator) -> tuple[float, float, float | None]:
    """Of two samples of classes: size, p-value and `Shift.beyond_chance`, by random permutations of the photos."""
    _, classes = np.unique(np.concatenate([before, now]), return_inverse=True)
    total = np.bincount(classes)
    of_now = np.bincount(classes[len(before) :], minlength=len(total))

    def distance(counts: NDArray[np.integer]) -> NDArray[np.floating]:
        return np.abs((total - counts) / len(before) - counts / len(now)).sum(axis=-1) / 2

    drawn = distance(rng.multivariate_hypergeometric(total, len(now), _PERMUTATIONS, method="marginals"))
    return _judged(float(distance(of_now)), drawn)


def kolmogorov_smirnov(before: NDArray, now: NDArray, rng: np.random.Generator) -> tuple[float, float, float | None]:
    """Of two samples of a measure: size, p-value and `Shift.beyond_chance`.

    By random permutations of the photos, right for few of them and for equal values; of more than 2,000 by the
    asymptotic distribution. If one sample alone is small, chance is that of 2,000 photos.
    """
    size = float(scipy.stats.ks_2samp(before, now, method="asymp").statistic)
    many = len(before) * len(now) / (len(before) + len(now))
    if len(before) + len(now) > _MAX_PERMUTED and many >= _MANY:
        # The first term of Kolmogorov's series, which is all of it for sizes this rare.
        beyond_chance = np.sqrt(-np.log(ALPHA / NUM_SIGNALS / 2) / 2 / many)
        return size, float(scipy.stats.kstwobign.sf(size * np.sqrt(many))), float(beyond_chance)
    small, large = sorted([before, now], key=len)
    large = rng.permutation(large)[: _MAX_PERMUTED - len(small)]
    return _judged(size, _permuted_distances(small, large, rng))


def _permuted_distances(small: NDArray, large: NDArray, rng: np.random.Generator) -> NDArray[np.floating]:
    """The Kolmogorov-Smirnov distances of random permutations of two samples."""
    below = np.cumsum(np.unique(np.concatenate([small, large]), return_counts=True)[1])  # equal values count together
    is_small = np.arange(len(small) + len(large)) < len(small)
    distances = []
    for _ in range(_PERMUTATIONS):
        of_small = np.cumsum(rng.permutation(is_small))[below - 1]
        distances.append(np.abs(of_small / len(small) - (below - of_small) / len(large)).max())
    return np.array(distances)


def _judged(size: float, drawn: NDArray[np.floating]) -> tuple[float, float, float | None]:
    """A size with its p-value, and the least size that is no chance, given what chance has drawn."""
    drawn = np.sort(drawn)
    p_value = (1 + int((drawn >= size - _ROUNDING).sum())) / (1 + len(drawn))
    allowed = int(ALPHA / NUM_SIGNALS * (1 + len(drawn))) - 1  # so many may be as large
    larger = drawn[drawn > drawn[-1 - allowed] + _ROUNDING]
    return size, p_value, float(larger[0]) if len(larger) else None


def _middle(sample: NDArray) -> float:
    """The median of a measure; the share of what is true."""
    return float(sample.mean() if sample.dtype == bool else np.median(sample))
