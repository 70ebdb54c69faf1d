"""Is a model worse than the one before? The same photos, predicted by both, resampled together.

A number has got worse where the whole 95 % interval of its difference lies below 0. As there are many brands and other
parts, by one of which an equally good model would be worse by chance, their intervals are as much wider (Bonferroni).
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from carbrand.errors import DataError
from carbrand.evaluation import bootstrap, slices, weighted
from carbrand.evaluation.bootstrap import Interval

NUM_RESAMPLES = 10_000  # for the wide intervals that many numbers need
MIN_COMMON_SHARE = 0.5  # of the photos of either report
TOO_FEW = f"not judged, as fewer than {slices.MIN_PHOTOS} groups of photos are too few"


@dataclasses.dataclass(frozen=True)
class Difference:
    """A number of the new model less that of the old one, with its interval.

    Attributes:
        what: "macro F1", or a part of the photos as "brand: audi", of which it is the accuracy.
        photos: that it is computed from.
    """

    what: str
    photos: int
    before: float
    now: float
    interval: Interval

    @property
    def is_worse(self) -> bool:
        """Whether the number has fallen by more than chance explains."""
        return self.interval.high < 0


def compare(
    labels: NDArray[np.integer],
    before: NDArray[np.integer],
    now: NDArray[np.integer],
    *,
    brands: Sequence[str],
    columns: Mapping[str, Sequence[str]],
    groups: Sequence[str],
    seed: int = 0,
) -> list[Difference]:
    """Macro F1, and the accuracies of the brands and of the parts of `columns`; worst first.

    Parts of fewer than 10 groups are left out: where each of them changed, every resample looks the same. Nothing is
    left if all photos together form fewer; see `TOO_FEW`.

    Args:
        labels: [N] int in [0, C).
        before: [N] the labels that the old model predicts.
        now: [N] those of the new one.
        brands: C names.
        columns: what photos can be divided by; see `slices.columns_of`.
        groups: [N] which photos belong together.
        seed: of the resamples.
    """
    if not _are_enough(np.asarray(groups)):
        return []
    parts = {
        name: among
        for name, among in slices.members({slices.BRAND: [brands[label] for label in labels], **columns}).items()
        if _are_enough(np.asarray(groups)[among])
    }
    names = ["macro F1", *(f"{column}: {value}" for column, value in parts)]
    is_member = np.array([*parts.values()], bool).reshape(-1, len(labels))
    photos = [len(labels), *is_member.sum(axis=1).tolist()]

    def numbers(predicted: NDArray[np.integer], weights: NDArray[np.floating]) -> NDArray[np.floating]:
        accuracies = slices.accuracies(is_member, predicted == labels, weights)
        return np.vstack([_macro_f1(labels, predicted, len(brands), weights), accuracies])

    ones = np.ones((len(labels), 1))
    values = [numbers(predicted, ones)[:, 0].tolist() for predicted in (before, now)]
    blocks = bootstrap.resamples(groups, NUM_RESAMPLES, seed=seed)
    samples = np.concatenate([numbers(now, drawn) - numbers(before, drawn) for drawn in blocks], axis=1)
    of_all, *of_parts = samples
    intervals = [bootstrap.ends(of_all), *(bootstrap.ends(drawn, len(parts)) for drawn in of_parts)]
    differences = map(Difference, names, photos, *values, intervals)
    return sorted(differences, key=lambda row: (row.interval.high, row.now - row.before, row.what))


def macro_f1_difference(
    labels: NDArray[np.integer], before: NDArray[np.integer], now: NDArray[np.integer], groups: Sequence[str]
) -> Interval | None:
    """The 95 % interval of the macro F1 of labels `now` [N] less that of `before` [N], if nothing else is looked at."""
    num_brands = int(max(labels.max(), before.max(), now.max())) + 1
    samples = [
        _macro_f1(labels, now, num_brands, drawn) - _macro_f1(labels, before, num_brands, drawn)
        for drawn in bootstrap.resamples(groups)
    ]
    return bootstrap.interval(0.0, np.concatenate(samples))


def common(theirs: Sequence[str], ours: Sequence[str], where: str) -> tuple[list[int], list[int]]:
    """The places in both lists of the photos that are in both, by their content hashes.

    Raises:
        DataError: fewer than half of either are.
    """
    place_of = {name: place for place, name in enumerate(theirs)}
    pairs = [(place_of[name], place) for place, name in enumerate(ours) if name in place_of]
    if len(pairs) < MIN_COMMON_SHARE * max(len(theirs), len(ours)):
        raise DataError(
            f"{where}: {len(pairs)} of its {len(theirs)} photos are among the {len(ours)} evaluated now. Evaluate the "
            "old model on the same records and split."
        )
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def _are_enough(groups: NDArray) -> bool:
    return len(np.unique(groups)) >= slices.MIN_PHOTOS


def _macro_f1(
    labels: NDArray[np.integer], predicted: NDArray[np.integer], num_brands: int, weights: NDArray[np.floating]
) -> NDArray[np.floating]:
    _, _, f1, _ = weighted.brand_scores(labels, predicted, num_brands, weights)
    return weighted.macro(f1)
