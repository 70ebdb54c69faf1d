import numpy as np
import pytest
import scipy.special
import scipy.stats

from carbrand.evaluation import calibration, metrics


def too_sure(num_photos=4000, factor=3.0):
    """Labels drawn from honest probabilities, and the logits of a model that is too sure of itself."""
    rng = np.random.default_rng(0)
    honest = rng.dirichlet(np.ones(5), num_photos)
    labels = np.minimum((rng.random((num_photos, 1)) > honest.cumsum(axis=1)).sum(axis=1), 4)
    return labels, factor * np.log(honest)


def test_the_right_temperature_makes_confidence_honest():
    labels, logits = too_sure()
    found = calibration.compute(labels, logits, 3.0)
    raw = metrics.compute(labels, scipy.special.softmax(logits, axis=1), list("abcde"))
    assert raw.expected_calibration_error > 0.2
    assert found.expected_calibration_error < 0.03
    assert found.log_loss < raw.log_loss
    assert found.brier_score < raw.brier_score
    assert all(abs(row.confidence - row.accuracy) < 0.1 for row in found.reliability)


def test_chance_makes_an_error_that_shrinks_with_the_photos():
    # One bin of 24 photos at 1/2: the mean distance of a binomial share from 1/2.
    shares = scipy.stats.binom(24, 0.5)
    expected = sum(shares.pmf(k) * abs(k / 24 - 0.5) for k in range(25))
    few = calibration.compute(np.zeros(24, int), np.zeros((24, 2)), 1.0).error_by_chance
    assert few == pytest.approx(expected, rel=0.05)
    many = calibration.compute(np.zeros(2400, int), np.zeros((2400, 2)), 1.0).error_by_chance
    assert many == pytest.approx(few / 10, rel=0.1)


def test_the_numbers_are_those_of_the_scaled_probabilities():
    labels, logits = too_sure(50)
    found = calibration.compute(labels, logits, 2.0)
    scaled = metrics.compute(labels, scipy.special.softmax(logits / 2.0, axis=1), list("abcde"))
    assert found.temperature == 2.0
    assert found.log_loss == pytest.approx(scaled.log_loss)
    assert found.brier_score == pytest.approx(scaled.brier_score)
    assert found.expected_calibration_error == pytest.approx(scaled.expected_calibration_error)
    assert found.reliability == scaled.reliability
