import dataclasses
import json
import re
import warnings

import numpy as np
import pytest
import sklearn.metrics

from carbrand.errors import DataError
from carbrand.evaluation import metrics
from carbrand.evaluation.bootstrap import Interval

BRANDS = ["Audi", "BMW", "Kia", "Seat"]


def random_case(seed):
    """Up to 60 photos of 2 to 8 brands, some of them absent, softmax in float32."""
    rng = np.random.default_rng(seed)
    num_brands, num_photos = int(rng.integers(2, 9)), int(rng.integers(1, 60))
    labels = rng.integers(0, rng.integers(1, num_brands + 1), num_photos)
    logits = rng.normal(size=(num_photos, num_brands)) + 2 * np.eye(num_brands)[labels]
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return labels, probabilities.astype(np.float32), [f"brand {label}" for label in range(num_brands)]


def one_hot(predicted, num_brands=4):
    return np.eye(num_brands, dtype=np.float32)[predicted]


@pytest.mark.parametrize("seed", range(20))
def test_counts_and_averages_equal_sklearn(seed):
    labels, probabilities, brands = random_case(seed)
    predicted = probabilities.argmax(axis=1)
    present = sorted(set(labels.tolist()))
    result = metrics.compute(labels, probabilities, brands)
    assert result.examples == len(labels)
    assert result.accuracy == pytest.approx(sklearn.metrics.accuracy_score(labels, predicted))
    confusion = sklearn.metrics.confusion_matrix(labels, predicted, labels=range(len(brands)))
    assert result.confusion_matrix == confusion.tolist()
    for average, over in {"macro": present, "micro": range(len(brands)), "weighted": present}.items():
        expected = sklearn.metrics.precision_recall_fscore_support(
            labels, predicted, labels=over, average=average, zero_division=0
        )[:3]
        assert dataclasses.astuple(getattr(result, average)) == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(20))
def test_brand_scores_follow_from_the_counts(seed):
    labels, probabilities, brands = random_case(seed)
    result = metrics.compute(labels, probabilities, brands)
    counts = np.array(result.confusion_matrix)
    assert [row.brand for row in result.per_brand] == brands
    for label, row in enumerate(result.per_brand):
        hits, taken, support = counts[label, label], counts[:, label].sum(), counts[label].sum()
        assert row.support == support
        if support:
            assert row.precision == pytest.approx(hits / taken if taken else 0)
            assert row.recall == pytest.approx(hits / support)
            assert row.f1 == pytest.approx(2 * hits / (taken + support))


@pytest.mark.parametrize("seed", range(20))
def test_log_loss_is_the_mean_negative_log_of_the_true_brand(seed):
    labels, probabilities, brands = random_case(seed)
    exact = probabilities.astype(np.float64)
    exact /= exact.sum(axis=1, keepdims=True)
    expected = -np.log(exact[np.arange(len(labels)), labels]).mean()
    assert metrics.compute(labels, probabilities, brands).log_loss == pytest.approx(expected)


# For two brands, sklearn takes one column.
@pytest.mark.parametrize("seed", [seed for seed in range(24) if len(random_case(seed)[2]) > 2])
def test_top_k_equals_sklearn_where_nothing_is_tied(seed):
    labels, probabilities, brands = random_case(seed)
    top_k = metrics.compute(labels, probabilities, brands).top_k_accuracy
    assert list(top_k) == [f"top_{k}" for k in (1, 3, 5) if k < len(brands)]
    for name, value in top_k.items():
        expected = sklearn.metrics.top_k_accuracy_score(
            labels, probabilities, k=int(name.removeprefix("top_")), labels=range(len(brands))
        )
        assert value == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(20))
def test_order_of_photos_changes_nothing(seed):
    labels, _, brands = random_case(seed)
    rng = np.random.default_rng(seed)
    # Quarters: many ties, within photos and between them.
    probabilities = rng.multinomial(4, np.full(len(brands), 1 / len(brands)), size=len(labels)) / 4
    order = rng.permutation(len(labels))
    ahead = metrics.compute(labels, probabilities, brands)
    shuffled = metrics.compute(labels[order], probabilities[order], brands)
    assert shuffled.confusion_matrix == ahead.confusion_matrix
    assert shuffled.top_k_accuracy == pytest.approx(ahead.top_k_accuracy)
    assert shuffled.expected_calibration_error == pytest.approx(ahead.expected_calibration_error)


def test_of_equal_probabilities_the_lower_label_ranks_first():
    result = metrics.compute([0, 1, 2, 3], np.full((4, 4), 0.25), BRANDS)
    assert result.top_k_accuracy == {"top_1": 0.25, "top_3": 0.75}
    assert [row[0] for row in result.confusion_matrix] == [1, 1, 1, 1]


def test_tied_brand_behind_a_more_probable_one_takes_the_next_rank():
    # Ranks: Seat, Audi, BMW, Kia. Kia, the true brand, is fourth.
    result = metrics.compute([2], [[0.2, 0.2, 0.2, 0.4]], BRANDS)
    assert result.top_k_accuracy == {"top_1": 0.0, "top_3": 0.0}


def test_two_brands_have_top_1_only():
    assert metrics.compute([0, 1], one_hot([0, 0], 2), BRANDS[:2]).top_k_accuracy == {"top_1": 0.5}


def test_brand_without_examples_has_no_scores_and_no_part_in_the_macro_mean():
    # Kia has no photo and is predicted once; Seat has none and is never predicted.
    result = metrics.compute([0, 0, 1, 1], one_hot([0, 0, 1, 2]), BRANDS)
    assert result.brands_without_examples == ["Kia", "Seat"]
    assert result.per_brand[2] == metrics.BrandMetrics("Kia", 0, None, None, None, None, None, {})
    assert result.per_brand[3] == metrics.BrandMetrics("Seat", 0, None, None, None, None, None, {})
    assert result.macro == metrics.Average(precision=1.0, recall=0.75, f1=pytest.approx((1 + 2 / 3) / 2))
    assert result.micro == metrics.Average(0.75, 0.75, 0.75)


def test_brand_that_is_never_predicted_has_precision_0():
    result = metrics.compute([0, 1], one_hot([0, 0]), BRANDS)
    row = result.per_brand[1]
    assert (row.brand, row.support, row.precision, row.recall, row.f1) == ("BMW", 1, 0.0, 0.0, 0.0)
    assert result.macro == metrics.Average(0.25, 0.5, pytest.approx(1 / 3))


def test_split_of_one_brand():
    result = metrics.compute([1, 1, 1, 1], one_hot([1, 1, 1, 0]), BRANDS)
    assert result.accuracy == 0.75
    assert result.brands_without_examples == ["Audi", "Kia", "Seat"]
    assert result.macro == metrics.Average(1.0, 0.75, pytest.approx(6 / 7))
    assert result.weighted == result.macro


def test_one_example():
    result = metrics.compute([2], [[0.1, 0.2, 0.6, 0.1]], BRANDS)
    assert result.examples == 1
    assert result.accuracy == 1.0
    assert result.log_loss == pytest.approx(0.5108256)  # -ln 0.6
    assert result.expected_calibration_error == pytest.approx(0.4)
    # z² / (1 + z²) with z = 1.959964
    assert result.intervals["accuracy"] == Interval(pytest.approx(0.206549, abs=1e-6), pytest.approx(1.0))


def test_brier_score_equals_sklearn():
    for seed in range(20):
        labels, probabilities, brands = random_case(seed)
        exact = probabilities / probabilities.sum(axis=1, keepdims=True)
        expected = sklearn.metrics.brier_score_loss(labels, exact, labels=range(len(brands)), scale_by_half=False)
        assert metrics.compute(labels, probabilities, brands).brier_score == pytest.approx(expected)


def test_rankings_equal_sklearn():
    for seed in range(20):
        labels, probabilities, brands = random_case(seed)
        result = metrics.compute(labels, probabilities, brands)
        areas = []
        for label, row in enumerate(result.per_brand):
            is_label = labels == label
            if is_label.any():
                expected = sklearn.metrics.average_precision_score(is_label, probabilities[:, label])
                assert row.average_precision == pytest.approx(expected)
            if is_label.any() and not is_label.all():
                areas.append(sklearn.metrics.roc_auc_score(is_label, probabilities[:, label]))
                assert row.roc_auc == pytest.approx(areas[-1])
        assert result.mean_roc_auc == (pytest.approx(np.mean(areas)) if areas else None)
        present = [row.average_precision for row in result.per_brand if row.support]
        assert result.mean_average_precision == pytest.approx(np.mean(present))


def test_every_number_has_an_interval_that_holds_it():
    labels, probabilities, brands = random_case(4)
    result = metrics.compute(labels, probabilities, brands)
    values = {**dataclasses.asdict(result), **result.top_k_accuracy}
    values |= {f"macro_{name}": value for name, value in dataclasses.asdict(result.macro).items()}
    values |= {f"weighted_{name}": value for name, value in dataclasses.asdict(result.weighted).items()}
    assert set(result.intervals) == {
        *("accuracy", "top_1", "top_3", "top_5", "log_loss", "brier_score", "expected_calibration_error"),
        *("macro_precision", "macro_recall", "macro_f1", "weighted_precision", "weighted_recall", "weighted_f1"),
        *("mean_average_precision", "mean_roc_auc"),
    }
    for name, interval in result.intervals.items():
        assert interval.low < interval.high
        assert interval.low <= values[name] <= interval.high
    for row in result.per_brand:
        for name, interval in row.intervals.items():
            assert interval.low <= getattr(row, name) <= interval.high
        assert set(row.intervals) == ({*metrics.BRAND_SCORES} if row.support else set())


@pytest.mark.parametrize("seed", range(20))
def test_the_interval_of_a_calibration_error_holds_it(seed):
    rng = np.random.default_rng(seed)
    confidence = rng.uniform(0.5, 1.0, 400)
    labels = (rng.random(400) > confidence).astype(int)  # each confidence is exact
    result = metrics.compute(labels, np.stack([confidence, 1 - confidence], axis=1), BRANDS[:2])
    interval = result.intervals["expected_calibration_error"]
    assert 0 <= interval.low < result.expected_calibration_error < interval.high
    assert 0.02 < interval.high - interval.low < 0.08


def test_near_copies_make_intervals_wider():
    labels, probabilities, brands = random_case(4)
    copies = np.repeat(np.arange(len(labels)), 4)
    grouped = metrics.compute(labels[copies], probabilities[copies], brands, copies)
    alone = metrics.compute(labels[copies], probabilities[copies], brands)
    assert (grouped.groups, alone.groups) == (len(labels), len(copies))
    widths = [result.intervals["macro_f1"].high - result.intervals["macro_f1"].low for result in (grouped, alone)]
    assert widths[0] > 1.5 * widths[1]


def test_reliability_by_hand():
    # Two bins of 25 photos of 60 %, of which 20 are right, and of 90 %, of which 21 are.
    probabilities = [[0.4, 0.6]] * 25 + [[0.9, 0.1]] * 25
    result = metrics.compute([1] * 20 + [0] * 5 + [0] * 21 + [1] * 4, probabilities, BRANDS[:2])
    assert result.reliability == [
        metrics.ReliabilityBin(25, pytest.approx(0.6), 0.8),
        metrics.ReliabilityBin(25, pytest.approx(0.9), 0.84),
    ]
    assert result.expected_calibration_error == pytest.approx((0.2 + 0.06) / 2)


def test_photos_of_equal_confidence_share_a_bin():
    result = metrics.compute([0] * 75 + [1] * 25, [[0.8, 0.2]] * 100, BRANDS[:2])
    assert result.expected_calibration_error == pytest.approx(0.05)
    assert [row.photos for row in result.reliability] == [100]


def test_log_loss_of_a_certain_mistake_is_finite():
    assert metrics.compute([0], one_hot([1]), BRANDS).log_loss == pytest.approx(36.04, abs=0.01)  # -ln 2.2e-16


def test_sums_within_the_tolerance_pass_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert metrics.compute([0], [[0.9005, 0.1, 0.0, 0.0]], BRANDS).accuracy == 1.0


@pytest.mark.parametrize("seed", range(5))
def test_metrics_are_json_values(seed):
    values = dataclasses.asdict(metrics.compute(*random_case(seed)))
    assert json.loads(json.dumps(values, allow_nan=False)) == values


@pytest.mark.parametrize(
    ("labels", "probabilities", "brands", "message"),
    [
        ([0], [[1.0]], ["Kia"], "brands: ['Kia'] is fewer than 2. Evaluate a model"),
        ([[0]], one_hot([0]), BRANDS, "labels: shape (1, 1), int64. Pass one integer per photo"),
        ([0.0], one_hot([0]), BRANDS, "labels: shape (1,), float64. Pass one integer per photo"),
        (np.zeros(0, int), np.zeros((0, 4)), BRANDS, "labels: no examples. Evaluate a split"),
        ([0, 1], one_hot([0]), BRANDS, "probabilities: shape (1, 4), but 2 labels and 4 brands. Pass shape (2, 4)."),
        ([0], [[0.5, 0.5]], BRANDS, "probabilities: shape (1, 2), but 1 labels and 4 brands. Pass shape (1, 4)."),
        ([0, 4], one_hot([0, 1]), BRANDS, "example 1: label 4 is not in 0..3. Evaluate on records"),
        ([-1], one_hot([0]), BRANDS, "example 0: label -1 is not in 0..3. Evaluate on records"),
        ([0], [[0.5, np.nan, 0.5, 0]], BRANDS, "example 0: probability nan is not in [0, 1]. Check the weights"),
        ([0], [[1.5, -0.5, 0, 0]], BRANDS, "example 0: probability -0.5 is not in [0, 1]. Check the weights"),
        (
            [0],
            [[2, 1, 0.5, 0]],
            BRANDS,
            "example 0: probabilities sum to 3.5, not 1. Pass softmax outputs, not logits.",
        ),
        ([0], [[np.inf, 0, 0, 0]], BRANDS, "example 0: probabilities sum to inf, not 1. Pass softmax"),
    ],
)
def test_bad_input_raises(labels, probabilities, brands, message):
    with pytest.raises(DataError, match="^" + re.escape(message)) as error:
        metrics.compute(labels, probabilities, brands)
    assert "\n" not in str(error.value)
