"""How good a split's predictions are: true labels and predicted probabilities in, one `Metrics` out.

Needs NumPy, SciPy and scikit-learn only. The order of the photos changes no number beyond rounding.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import sklearn.metrics
from numpy.typing import ArrayLike, NDArray

from carbrand.errors import DataError
from carbrand.evaluation import bootstrap, weighted
from carbrand.evaluation.bootstrap import Interval

TOP_K = (1, 3, 5)
# Room for probabilities that a network computed in bfloat16 or float16.
SUM_TOLERANCE = 1e-3
BRAND_SCORES = ("precision", "recall", "f1", "average_precision", "roc_auc")
_UNBOUNDED = ("log_loss", "brier_score")


@dataclasses.dataclass(frozen=True)
class BrandMetrics:
    """One brand against the rest, in [0, 1]; all None when the split holds no photo of it (`support` 0).

    Attributes:
        average_precision: area under the curve of precision over recall, in steps.
        roc_auc: area under the ROC curve; None too when the split holds this brand only.
        intervals: by the names of the numbers above; none for what is None.
    """

    brand: str
    support: int
    precision: float | None
    recall: float | None
    f1: float | None
    average_precision: float | None
    roc_auc: float | None
    intervals: dict[str, Interval]


@dataclasses.dataclass(frozen=True)
class Average:
    """Precision, recall and F1 over the brands, in [0, 1]."""

    precision: float
    recall: float
    f1: float


@dataclasses.dataclass(frozen=True)
class ReliabilityBin:
    """Photos of about the same confidence: its mean, and the share of them that are right."""

    photos: int
    confidence: float
    accuracy: float


@dataclasses.dataclass(frozen=True)
class Metrics:
    """What `compute` returns; `dataclasses.asdict` turns it into JSON values, with None for what is undefined.

    Attributes:
        examples: number of photos, at least 1.
        groups: how many groups they form, of which the intervals draw.
        accuracy: share of photos whose most probable brand is theirs.
        top_k_accuracy: "top_1", "top_3", "top_5", those below the number of brands: share of photos whose brand is
            among the k most probable.
        log_loss: mean cross-entropy, in nats; a probability of 0 counts as 2.2e-16, so it is always finite.
        brier_score: mean over the photos of the squared distances of all probabilities from 0 or 1, in [0, 2].
        expected_calibration_error: mean distance between confidence and accuracy over bins, in [0, 1].
        macro: plain mean over the brands that have examples.
        micro: all decisions pooled; for one brand per photo, each of the three is the accuracy.
        weighted: mean over the brands, weighted by support.
        mean_average_precision: plain mean over the brands that have examples.
        mean_roc_auc: the same; None where no brand has one.
        brands_without_examples: the brands left out of `macro`, in label order.
        per_brand: in label order.
        confusion_matrix: [C][C] counts, rows true, columns predicted, both in label order.
        reliability: up to 15 bins of as many photos each, at least 25, least confident first.
        intervals: 95 % intervals of the numbers above by name, "top_3", "macro_f1", "weighted_recall" and the like
            among them; without those that a bootstrap cannot give, of the log loss of a single photo for example. That
            of the calibration error is moved by its bias; see `bootstrap.unbiased`.
    """

    examples: int
    groups: int
    accuracy: float
    top_k_accuracy: dict[str, float]
    log_loss: float
    brier_score: float
    expected_calibration_error: float
    macro: Average
    micro: Average
    weighted: Average
    mean_average_precision: float
    mean_roc_auc: float | None
    brands_without_examples: list[str]
    per_brand: list[BrandMetrics]
    confusion_matrix: list[list[int]]
    reliability: list[ReliabilityBin]
    intervals: dict[str, Interval]


def compute(
    labels: ArrayLike, probabilities: ArrayLike, brands: Sequence[str], groups: ArrayLike | None = None
) -> Metrics:
    """Compares true labels with predicted probabilities.

    Of equally probable brands, the one with the lower label ranks first, here and in `numpy.argmax`.

    Args:
        labels: [N] int in [0, C), N at least 1.
        probabilities: [N, C] float, each row at least 0 and summing to 1 within 1e-3.
        brands: C names in label order, C at least 2.
        groups: [N] which photos belong together, as near copies do; by default each stands for itself. The intervals
            draw groups, not photos.

    Raises:
        DataError: the arrays do not fit each other, or hold a value that is no label or no probability.
    """
    labels = np.asarray(labels)
    probabilities = np.asarray(probabilities, np.float64)
    _check(labels, probabilities, brands)
    groups = np.arange(len(labels)) if groups is None else np.asarray(groups)
    ones = np.ones((len(labels), 1))
    values = {name: column[..., 0] for name, column in numbers(labels, probabilities, ones).items()}
    blocks = [numbers(labels, probabilities, weights) for weights in bootstrap.resamples(groups)]
    samples = {name: np.concatenate([block[name] for block in blocks], axis=-1) for name in values}
    error = "expected_calibration_error"
    samples[error] = bootstrap.unbiased(float(values[error]), samples[error])
    num_groups = len(np.unique(groups))
    averages = {
        name: Average(*(float(values[f"{name}_{score}"]) for score in BRAND_SCORES[:3]))
        for name in ("macro", "weighted")
    }
    per_brand = [_brand(brand, label, labels, groups, values, samples) for label, brand in enumerate(brands)]
    accuracy = float(values["accuracy"])
    return Metrics(
        examples=len(labels),
        groups=num_groups,
        accuracy=accuracy,
        top_k_accuracy={f"top_{k}": float(values[f"top_{k}"]) for k in TOP_K if k < len(brands)},
        log_loss=float(values["log_loss"]),
        brier_score=float(values["brier_score"]),
        expected_calibration_error=float(values["expected_calibration_error"]),
        macro=averages["macro"],
        micro=Average(accuracy, accuracy, accuracy),
        weighted=averages["weighted"],
        mean_average_precision=float(values["mean_average_precision"]),
        mean_roc_auc=_or_none(values["mean_roc_auc"]),
        brands_without_examples=[row.brand for row in per_brand if not row.support],
        per_brand=per_brand,
        confusion_matrix=sklearn.metrics.confusion_matrix(
            labels, probabilities.argmax(axis=1), labels=range(len(brands))
        ).tolist(),
        reliability=reliability(labels, probabilities),
        intervals=_intervals({name: value for name, value in values.items() if not value.ndim}, samples, num_groups),
    )


def numbers(
    labels: NDArray[np.integer], probabilities: NDArray[np.floating], weights: NDArray[np.floating]
) -> dict[str, NDArray[np.floating]]:
    """All numbers of photos that count `weights` [N, R]: by name [R], and those of the brands [C, R].

    `precision`, `recall`, `f1`, `average_precision` and `roc_auc` are those of the brands.
    """
    num_brands = probabilities.shape[1]
    predicted = probabilities.argmax(axis=1)
    is_label = labels[:, np.newaxis] == np.arange(num_brands)
    *scores, share = weighted.brand_scores(labels, predicted, num_brands, weights)
    rankings = [weighted.ranking(probabilities[:, c], is_label[:, c], weights) for c in range(num_brands)]
    by_brand = dict(zip(BRAND_SCORES, [*scores, *map(np.array, zip(*rankings, strict=True))], strict=True))
    brands_before = _brands_before(labels, probabilities)
    return {
        "accuracy": weighted.mean(predicted == labels, weights),
        **{f"top_{k}": weighted.mean(brands_before < k, weights) for k in TOP_K if k < num_brands},
        **confidence_numbers(labels, probabilities, weights),
        **{f"macro_{name}": weighted.macro(by_brand[name]) for name in BRAND_SCORES[:3]},
        **{f"weighted_{name}": np.nansum(share * by_brand[name], axis=0) for name in BRAND_SCORES[:3]},
        "mean_average_precision": weighted.macro(by_brand["average_precision"]),
        "mean_roc_auc": weighted.macro(by_brand["roc_auc"]),
        **by_brand,
    }


def confidence_numbers(
    labels: NDArray[np.integer], probabilities: NDArray[np.floating], weights: NDArray[np.floating]
) -> dict[str, NDArray[np.floating]]:
    """Those of `numbers` that tell whether the probabilities can be believed: `log_loss` and the like, each [R]."""
    is_label = labels[:, np.newaxis] == np.arange(probabilities.shape[1])
    normalized = probabilities / probabilities.sum(axis=1, keepdims=True)
    of_label = np.maximum(normalized[is_label], np.finfo(np.float64).eps)
    confidence, is_correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    return {
        "log_loss": weighted.mean(-np.log(of_label), weights),
        "brier_score": weighted.mean(np.square(normalized - is_label).sum(axis=1), weights),
        "expected_calibration_error": weighted.calibration_error(confidence, is_correct, weights),
    }


def reliability(labels: NDArray[np.integer], probabilities: NDArray[np.floating]) -> list[ReliabilityBin]:
    """Confidence against accuracy, in bins of about as many photos each, those of `expected_calibration_error`."""
    confidence, is_correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    bins = weighted.calibration_bins(confidence, np.ones((len(labels), 1)))[:, 0]
    return [
        ReliabilityBin(int(among.sum()), float(confidence[among].mean()), float(is_correct[among].mean()))
        for among in (bins == number for number in np.unique(bins))
    ]


def _brands_before(labels: NDArray[np.integer], probabilities: NDArray[np.floating]) -> NDArray[np.integer]:
    """How many brands rank before the true one, [N]."""
    # Not sklearn's top_k_accuracy_score: of equal probabilities it ranks the higher label first, against argmax.
    of_label = np.take_along_axis(probabilities, labels[:, np.newaxis], axis=1)
    is_lower_label = np.arange(probabilities.shape[1]) < labels[:, np.newaxis]
    return ((probabilities > of_label) | ((probabilities == of_label) & is_lower_label)).sum(axis=1)


def _brand(
    brand: str,
    label: int,
    labels: NDArray[np.integer],
    groups: NDArray,
    values: dict[str, NDArray[np.floating]],
    samples: dict[str, NDArray[np.floating]],
) -> BrandMetrics:
    is_brand = labels == label
    of_brand = {name: values[name][label] for name in BRAND_SCORES}
    drawn = {name: samples[name][label] for name in BRAND_SCORES}
    return BrandMetrics(
        brand,
        int(is_brand.sum()),
        **{name: _or_none(value) for name, value in of_brand.items()},
        intervals=_intervals(of_brand, drawn, len(np.unique(groups[is_brand]))),
    )


def _intervals(
    values: dict[str, NDArray[np.floating]], samples: dict[str, NDArray[np.floating]], num_groups: int
) -> dict[str, Interval]:
    intervals = {
        name: bootstrap.interval(float(value), samples[name])
        if name in _UNBOUNDED
        else bootstrap.share_interval(float(value), samples[name], num_groups)
        for name, value in values.items()
    }
    return {name: interval for name, interval in intervals.items() if interval}


def _or_none(value: NDArray[np.floating]) -> float | None:
    return None if np.isnan(value) else float(value)


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
