"""Metrics of photos that count with weights: ones give the plain number, numbers of draws that of a bootstrap resample.

Weights are [N, R], a column for each resample. Results are [R], or [C, R] where there is one for each brand; what is
not defined, as the recall of a brand without photos, is NaN. scikit-learn's `sample_weight` gives the same numbers, one
column and one brand at a time.
"""

import warnings

import numpy as np
from numpy.typing import NDArray

MAX_CALIBRATION_BINS = 15  # Guo et al. 2017, arXiv:1706.04599, 5
# Fewer photos to a bin, and chance alone looks like an error: in bins of 11, 10 % on 164 photos of exact confidence; in
# bins of 27, 6.6 %.
MIN_PHOTOS_OF_BIN = 25

Floats = NDArray[np.floating]
Weights = NDArray[np.floating]


def mean(values: NDArray, weights: Weights) -> Floats:
    """Mean of `values` [N]."""
    return (values @ weights) / weights.sum(axis=0)


def brand_scores(labels: NDArray, predicted: NDArray, num_brands: int, weights: Weights) -> tuple[Floats, ...]:
    """Precision, recall and F1 of each brand, and its share of all photos; [C, R].

    Precision is 0 for a brand that is never predicted; all three are NaN where it has no photo.
    """
    hits = _sums(np.where(labels == predicted, labels, num_brands), num_brands, weights)
    taken, support = _sums(predicted, num_brands, weights), _sums(labels, num_brands, weights)
    with np.errstate(divide="ignore", invalid="ignore"):
        recall = hits / support
        precision = np.where(taken > 0, hits / taken, 0.0)
        f1 = 2 * hits / (taken + support)
        share = support / weights.sum(axis=0)
    is_absent = support == 0
    return np.where(is_absent, np.nan, precision), recall, np.where(is_absent, np.nan, f1), share


def macro(scores: Floats) -> Floats:
    """Plain mean of `scores` [C, R] over the brands that have one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # no brand has one: NaN
        return np.nanmean(scores, axis=0)


def num_calibration_bins(num_photos: int) -> int:
    """15, or as many as leave 25 photos to each."""
    return max(min(num_photos // MIN_PHOTOS_OF_BIN, MAX_CALIBRATION_BINS), 1)


def calibration_bins(confidence: Floats, weights: Weights) -> NDArray[np.int64]:
    """Which bin of equal mass each photo is in, [N, R] (Nixon et al. 2019, arXiv:1904.01685, 3).

    Photos of the same confidence share a bin, so that their order does not matter; bins then differ in size.
    """
    num_bins = num_calibration_bins(len(confidence))
    order = np.argsort(confidence, kind="stable")
    masses = np.cumsum(weights[order], axis=0)
    below = _first(masses, np.searchsorted(confidence[order], confidence[order], side="left"))
    bins = np.empty(weights.shape, np.int64)
    bins[order] = np.minimum(below * num_bins // masses[-1], num_bins - 1)
    return bins


def calibration_error(confidence: Floats, is_correct: NDArray[np.bool_], weights: Weights) -> Floats:
    """Expected calibration error: mean distance between confidence and accuracy over the bins."""
    num_resamples, num_bins = weights.shape[1], num_calibration_bins(len(confidence))
    keys = calibration_bins(confidence, weights) + num_bins * np.arange(num_resamples)
    gaps = np.bincount(
        keys.ravel(),
        weights=(weights * (confidence - is_correct)[:, np.newaxis]).ravel(),
        minlength=num_bins * num_resamples,
    )
    return np.abs(gaps).reshape(num_resamples, num_bins).sum(axis=1) / weights.sum(axis=0)


def ranking(scores: Floats, is_positive: NDArray[np.bool_], weights: Weights) -> tuple[Floats, Floats]:
    """Average precision and area under the ROC curve of `scores` [N] for finding the positive ones; each [R]."""
    order = np.argsort(-scores, kind="stable")
    scores, is_positive, weights = scores[order], is_positive[order], weights[order]
    positives = np.flatnonzero(is_positive)
    if not len(positives):
        undefined = np.full(weights.shape[1], np.nan)
        return undefined, undefined
    of_positives = weights[positives]
    # Equal scores are passed at once, so masses are looked at where a run of them starts and where it ends.
    starts, ends = (np.searchsorted(-scores, -scores[positives], side) for side in ("left", "right"))
    masses, hits = np.cumsum(weights, axis=0), np.cumsum(of_positives, axis=0)
    all_before, all_after = (_first(masses, place) for place in (starts, ends))
    hits_before, hits_after = (_first(hits, np.searchsorted(positives, place)) for place in (starts, ends))
    num_positive = hits[-1]
    num_negative = masses[-1] - num_positive
    negatives_above = (all_before - hits_before + all_after - hits_after) / 2  # half of those of the same score
    with np.errstate(divide="ignore", invalid="ignore"):
        precision = np.where(of_positives > 0, hits_after / all_after, 0.0)
        average_precision = (of_positives * precision).sum(axis=0) / num_positive
        area = 1 - (of_positives * negatives_above).sum(axis=0) / (num_positive * num_negative)
    return average_precision, area


def _sums(keys: NDArray, num_keys: int, weights: Weights) -> Floats:
    """The weights of the photos of each key in [0, num_keys), [num_keys, R]; other keys count nowhere."""
    return (keys == np.arange(num_keys)[:, np.newaxis]).astype(weights.dtype) @ weights


def _first(sums: Floats, places: NDArray) -> Floats:
    """Of cumulative `sums` [N, R], those of the first `places` [P] rows, [P, R]."""
    return np.where((places > 0)[:, np.newaxis], sums[places - 1], 0.0)
