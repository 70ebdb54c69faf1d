"""Weighted metrics against scikit-learn's `sample_weight`, on cases with ties, absent brands and photos of weight 0."""

import numpy as np
import pytest
import sklearn.metrics

from carbrand.evaluation import weighted

NUM_CASES = 20
NUM_RESAMPLES = 5


def random_case(seed):
    """Up to 40 photos, tied probabilities, brands that no photo has, and how often each photo counts, [N, 5]."""
    rng = np.random.default_rng(seed)
    num_brands, num_photos = int(rng.integers(2, 7)), int(rng.integers(1, 40))
    labels = rng.integers(0, rng.integers(1, num_brands + 1), num_photos)
    probabilities = rng.multinomial(5, np.full(num_brands, 1 / num_brands), num_photos) / 5
    weights = rng.integers(0, 3, (num_photos, NUM_RESAMPLES)).astype(float)
    weights[rng.integers(num_photos)] = 1  # at least one counts
    return labels, probabilities, weights


def cases():
    for seed in range(NUM_CASES):
        labels, probabilities, weights = random_case(seed)
        yield labels, probabilities, np.ones((len(labels), 1))
        yield labels, probabilities, weights


def columns(case):
    labels, probabilities, weights = case
    for number, weight in enumerate(weights.T):
        yield number, labels, probabilities, weight


def test_means():
    for case in cases():
        labels, probabilities, weights = case
        predicted = probabilities.argmax(axis=1)
        found = weighted.mean(predicted == labels, weights)
        for number, _, _, weight in columns(case):
            assert found[number] == pytest.approx(
                sklearn.metrics.accuracy_score(labels, predicted, sample_weight=weight)
            )


def test_brand_scores():
    for case in cases():
        labels, probabilities, weights = case
        num_brands, predicted = probabilities.shape[1], probabilities.argmax(axis=1)
        found = weighted.brand_scores(labels, predicted, num_brands, weights)
        for number, _, _, weight in columns(case):
            *expected, support = sklearn.metrics.precision_recall_fscore_support(
                labels, predicted, labels=range(num_brands), sample_weight=weight, zero_division=0
            )
            for ours, theirs in zip(found[:3], expected, strict=True):
                np.testing.assert_allclose(ours[:, number], np.where(support > 0, theirs, np.nan))
            np.testing.assert_allclose(found[3][:, number], support / weight.sum())
            present = np.flatnonzero(support)
            macro = sklearn.metrics.f1_score(
                labels, predicted, labels=present, average="macro", sample_weight=weight, zero_division=0
            )
            assert weighted.macro(found[2])[number] == pytest.approx(macro)


def test_rankings():
    num_defined = 0
    for case in cases():
        labels, probabilities, weights = case
        for label in range(probabilities.shape[1]):
            is_label, scores = labels == label, probabilities[:, label]
            precision, area = weighted.ranking(scores, is_label, weights)
            for number, _, _, weight in columns(case):
                kinds = set(is_label[weight > 0])
                if True not in kinds:
                    assert np.isnan([precision[number], area[number]]).all()
                    continue
                assert precision[number] == pytest.approx(
                    sklearn.metrics.average_precision_score(is_label, scores, sample_weight=weight)
                )
                if len(kinds) < 2:
                    assert np.isnan(area[number])
                else:
                    num_defined += 1
                    expected = sklearn.metrics.roc_auc_score(is_label, scores, sample_weight=weight)
                    assert area[number] == pytest.approx(expected)
    assert num_defined > 100


def test_a_weight_is_a_number_of_copies():
    for labels, probabilities, weights in cases():
        confidence, is_correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
        found = weighted.calibration_error(confidence, is_correct, weights)
        for number, weight in enumerate(weights.T):
            copies = np.repeat(np.arange(len(labels)), weight.astype(int))
            ones = np.ones((len(copies), 1))
            expected = weighted.calibration_error(confidence[copies], is_correct[copies], ones)
            assert found[number] == pytest.approx(expected[0])


def test_calibration_error_by_hand():
    # 375 photos, 25 to a bin; every second one is right, so 13 or 12 of a bin by turns.
    confidence = 0.5 + np.arange(375) / 1000
    is_correct = np.arange(375) % 2 == 0
    means = confidence.reshape(15, 25).mean(axis=1)
    found = weighted.calibration_error(confidence, is_correct, np.ones((375, 1)))
    assert found[0] == pytest.approx(np.abs(means - np.tile([13 / 25, 12 / 25], 8)[:15]).mean())


@pytest.mark.parametrize(("num_photos", "num_bins"), [(1, 1), (49, 1), (50, 2), (164, 6), (375, 15), (10_000, 15)])
def test_bins_hold_at_least_25_photos(num_photos, num_bins):
    bins = weighted.calibration_bins(np.linspace(0, 1, num_photos), np.ones((num_photos, 1)))
    counts = np.bincount(bins[:, 0])
    assert len(counts) == num_bins
    assert counts.max() - counts.min() <= 1
