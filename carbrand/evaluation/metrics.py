"""How good a split's predictions are: true labels and predicted probabilities in, one `Metrics` out.

Needs NumPy, SciPy and scikit-learn only. The order of the photos changes no number beyond rounding.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import scipy.stats
import sklearn.metrics
from numpy.typing import ArrayLike, NDArray

from carbrand.errors import DataError

TOP_K = (1, 3, 5)
CONFIDENCE_LEVEL = 0.95
CALIBRATION_BINS = 15  # Guo et al. 2017, arXiv:1706.04599, 5
# Room for probabilities that a network computed in bfloat16 or float16.
SUM_TOLERANCE = 1e-3


@dataclasses.dataclass(frozen=True)
class Interval:
    """A 95 % confidence interval, ends in [0, 1]."""

    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class BrandMetrics:
    """One brand against the rest, in [0, 1]; all three None when the split holds no photo of it (`support` 0)."""

    brand: str
    support: int
    precision: float | None
    recall: float | None
    f1: float | None


@dataclasses.dataclass(frozen=True)
class Average:
    """Precision, recall and F1 over the brands, in [0, 1]."""

    precision: float
    recall: float
    f1: float


@dataclasses.dataclass(frozen=True)
class Metrics:
    """What `compute` returns; `dataclasses.asdict` turns it into JSON values, with None for what is undefined.

    Attributes:
        examples: number of photos, at least 1.
        accuracy: share of photos whose most probable brand is theirs.
        accuracy_interval: Wilson score interval of `accuracy`.
        top_k_accuracy: "top_1", "top_3", "top_5", those below the number of brands: share of photos whose brand is
            among the k most probable.
        log_loss: mean cross-entropy, in nats; a probability of 0 counts as 2.2e-16, so it is always finite.
        expected_calibration_error: mean distance between confidence and accuracy over bins, in [0, 1].
        macro: plain mean over the brands that have examples.
        micro: all decisions pooled; for one brand per photo, each of the three is the accuracy.
        weighted: mean over the brands, weighted by support.
        brands_without_examples: the brands left out of `macro`, in label order.
        per_brand: in label order.
        confusion_matrix: [C][C] counts, rows true, columns predicted, both in label order.
    """

    examples: int
    accuracy: float
    accuracy_interval: Interval
    top_k_accuracy: dict[str, float]
    log_loss: float
    expected_calibration_error: float
    macro: Average
    micro: Average
    weighted: Average
    brands_without_examples: list[str]
    per_brand: list[BrandMetrics]
    confusion_matrix: list[list[int]]


def compute(labels: ArrayLike, probabilities: ArrayLike, brands: Sequence[str]) -> Metrics:
    """Compares true labels with predicted probabilities.

    Of equally probable brands, the one with the lower label ranks first, here and in `numpy.argmax`.

    Args:
        labels: [N] int in [0, C), N at least 1.
        probabilities: [N, C] float, each row at least 0 and summing to 1 within 1e-3.
        brands: C names in label order, C at least 2.

    Raises:
        DataError: the arrays do not fit each other, or hold a value that is no label or no probability.
    """
    labels = np.asarray(labels)
    probabilities = np.asarray(probabilities, np.float64)
    _check(labels, probabilities, brands)
    # sklearn's log_loss warns on sums that are not exactly 1.
    normalized = probabilities / probabilities.sum(axis=1, keepdims=True)
    predicted = probabilities.argmax(axis=1)
    is_correct = predicted == labels
    all_labels = range(len(brands))
    per_brand = _per_brand(labels, predicted, brands)
    present = [label for label, row in enumerate(per_brand) if row.support]
    return Metrics(
        examples=len(labels),
        accuracy=float(is_correct.mean()),
        accuracy_interval=wilson_interval(int(is_correct.sum()), len(labels)),
        top_k_accuracy=_top_k_accuracy(labels, probabilities),
        log_loss=float(sklearn.metrics.log_loss(labels, normalized, labels=all_labels)),
        expected_calibration_error=calibration_error(probabilities.max(axis=1), is_correct),
        macro=_average(labels, predicted, present, "macro"),
        micro=_average(labels, predicted, all_labels, "micro"),
        weighted=_average(labels, predicted, present, "weighted"),
        brands_without_examples=[row.brand for row in per_brand if not row.support],
        per_brand=per_brand,
        confusion_matrix=sklearn.metrics.confusion_matrix(labels, predicted, labels=all_labels).tolist(),
    )


def wilson_interval(successes: int, trials: int) -> Interval:
    """95 % Wilson score interval of a proportion; `trials` at least 1."""
    interval = scipy.stats.binomtest(successes, trials).proportion_ci(CONFIDENCE_LEVEL, method="wilson")
    return Interval(float(interval.low), float(interval.high))


def calibration_error(confidence: NDArray[np.floating], is_correct: NDArray[np.bool_]) -> float:
    """Expected calibration error over 15 bins of equal mass (Nixon et al. 2019, arXiv:1904.01685, 3).

    Photos of the same confidence share a bin, so that their order does not matter; bins then differ in size. Below
    15 photos each has a bin of its own, and the number says little.

    Args:
        confidence: [N] probability of the predicted brand.
        is_correct: [N] whether that brand is the true one.
    """
    photos_below = scipy.stats.rankdata(confidence, method="min").astype(np.int64) - 1
    bins = photos_below * CALIBRATION_BINS // len(confidence)
    gaps = np.bincount(bins, weights=confidence - is_correct)  # per bin: photos × (mean confidence - accuracy)
    return float(np.abs(gaps).sum() / len(confidence))


def _top_k_accuracy(labels: NDArray[np.integer], probabilities: NDArray[np.floating]) -> dict[str, float]:
    # Not sklearn's top_k_accuracy_score: of equal probabilities it ranks the higher label first, against argmax.
    of_label = np.take_along_axis(probabilities, labels[:, np.newaxis], axis=1)
    is_lower_label = np.arange(probabilities.shape[1]) < labels[:, np.newaxis]
    brands_before = ((probabilities > of_label) | ((probabilities == of_label) & is_lower_label)).sum(axis=1)
    return {f"top_{k}": float((brands_before < k).mean()) for k in TOP_K if k < probabilities.shape[1]}


def _per_brand(
    labels: NDArray[np.integer], predicted: NDArray[np.integer], brands: Sequence[str]
) -> list[BrandMetrics]:
    # zero_division=0: a brand that has examples and is never predicted has precision 0.
    columns = sklearn.metrics.precision_recall_fscore_support(
        labels, predicted, labels=range(len(brands)), zero_division=0
    )
    return [
        BrandMetrics(brand, int(support), float(precision), float(recall), float(f1))
        if support
        else BrandMetrics(brand, 0, None, None, None)
        for brand, precision, recall, f1, support in zip(brands, *columns, strict=True)
    ]


def _average(labels: NDArray[np.integer], predicted: NDArray[np.integer], over: Sequence[int], average: str) -> Average:
    precision, recall, f1, _ = sklearn.metrics.precision_recall_fscore_support(
        labels, predicted, labels=over, average=average, zero_division=0
    )
    return Average(float(precision), float(recall), float(f1))


def _check(labels: NDArray, probabilities: NDArray[np.floating], brands: Sequence[str]) -> None:
    if len(brands) < 2:
        raise DataError(f"brands: {list(brands)} is fewer than 2. Evaluate a model that tells at least 2 brands apart.")
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise DataError(f"labels: shape {labels.shape}, {labels.dtype}. Pass one integer per photo, shape [N].")
    if not labels.size:
        raise DataError("labels: no examples. Evaluate a split that holds at least one photo.")
    if probabilities.shape != (len(labels), len(brands)):
        raise DataError(
            f"probabilities: shape {probabilities.shape}, but {len(labels)} labels and {len(brands)} brands."
            f" Pass shape ({len(labels)}, {len(brands)})."
        )
    _check_values(labels, probabilities)


def _check_values(labels: NDArray[np.integer], probabilities: NDArray[np.floating]) -> None:
    num_brands = probabilities.shape[1]
    bad = (labels < 0) | (labels >= num_brands)
    if bad.any():
        example = int(bad.argmax())
        raise DataError(
            f"example {example}: label {labels[example]} is not in 0..{num_brands - 1}."
            " Evaluate on records built with the model's brands."
        )
    # Written so that NaN, for which every comparison is false, is bad too.
    bad = ~(probabilities >= 0).all(axis=1)
    if bad.any():
        example = int(bad.argmax())
        value = probabilities[example][~(probabilities[example] >= 0)][0]
        raise DataError(
            f"example {example}: probability {value} is not in [0, 1]. Check the weights for NaN; pass softmax outputs."
        )
    sums = probabilities.sum(axis=1)
    bad = np.abs(sums - 1) > SUM_TOLERANCE
    if bad.any():
        example = int(bad.argmax())
        raise DataError(
            f"example {example}: probabilities sum to {sums[example]:.6g}, not 1. Pass softmax outputs, not logits."
        )
