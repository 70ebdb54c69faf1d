import numpy as np
import pytest
import scipy.special

from carbrand.training import temperature


def drawn(true_temperature, num_photos=20_000):
    rng = np.random.default_rng(0)
    logits = 3 * rng.normal(size=(num_photos, 5))
    honest = scipy.special.softmax(logits / true_temperature, axis=1)
    labels = (rng.random((num_photos, 1)) > honest.cumsum(axis=1)).sum(axis=1)
    return np.minimum(labels, 4), logits


@pytest.mark.parametrize("planted", [0.5, 1.0, 3.0])
def test_a_planted_temperature_is_found(planted):
    assert temperature.fit(*drawn(planted)) == pytest.approx(planted, rel=0.03)


def test_at_the_optimum_confidence_in_the_true_brand_is_what_the_logits_expect():
    # The derivative of the loss by 1 / T: the mean logit of the true brand is the mean of the expected logits.
    labels, logits = drawn(2.0, 300)
    scaled = scipy.special.softmax(logits / temperature.fit(labels, logits), axis=1)
    assert logits[np.arange(300), labels].mean() == pytest.approx((scaled * logits).sum(axis=1).mean(), abs=1e-3)


def test_a_probability_that_float32_cannot_hold_is_scaled_rightly():
    logits = np.array([[200.0, 0.0]], np.float32)
    second = 1 / (1 + np.exp(200.0 / 20.0))
    np.testing.assert_allclose(temperature.probabilities(logits, 20.0), [[1 - second, second]], rtol=1e-12)


def test_photos_without_an_error_do_not_make_it_surer():
    _, logits = drawn(1.0, 100)
    assert temperature.fit(logits.argmax(axis=1), logits) == 1.0


@pytest.mark.parametrize(("logits", "expected"), [([[5.0, 0.0]], 1.0), ([[-5.0, 0.0]], 20.0), ([[np.nan, 0.0]], 1.0)])
def test_what_one_photo_says_is_limited(logits, expected):
    assert temperature.fit([0], logits) == pytest.approx(expected, rel=0.01)
