import numpy as np
import pytest
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression

from carbrand.errors import DataError
from carbrand.training import probe


def photos(number, brands, seed=0, units=6):
    generator = np.random.default_rng(seed)
    centres = np.random.default_rng(9).normal(size=(max(brands) + 1, units))
    labels = generator.choice(brands, number).astype(np.int32)
    return (5 + 10 * (centres[labels] + generator.normal(size=(number, units)))).astype(np.float32), labels


def loss(head, data):
    return -log_softmax(data[0] @ head.kernel + head.bias, 1)[np.arange(len(data[1])), data[1]].mean()


@pytest.mark.parametrize("brands", [(0, 1), pytest.param((0, 1, 2, 3), marks=pytest.mark.slow)])
def test_head_is_scikit_learn_s_of_the_best_regularisation(brands):
    train, validation, test = (photos(n, brands, seed) for seed, n in enumerate((60, 40, 40)))
    head = probe.solve(train, validation, len(brands))
    scale = np.sqrt(((train[0] - train[0].mean(0)) ** 2).sum(1).mean())
    expected = LogisticRegression(C=head.inverse_regularization / scale**2, max_iter=10_000, tol=1e-8).fit(
        train[0].astype(float), train[1]
    )
    ours = np.exp(log_softmax(test[0] @ head.kernel + head.bias, 1))
    np.testing.assert_allclose(ours, expected.predict_proba(test[0]), atol=2e-3)
    for c in probe._GRID:
        other = LogisticRegression(C=c / scale**2, max_iter=10_000).fit(train[0].astype(float), train[1])
        rows = np.arange(len(validation[1]))
        assert loss(head, validation) <= -other.predict_log_proba(validation[0])[rows, validation[1]].mean() + 1e-3


def test_solution_is_the_same_every_time():
    first, second = (probe.solve(photos(60, (0, 1, 2)), photos(30, (0, 1, 2), 1), 3) for _ in range(2))
    np.testing.assert_array_equal(first.kernel, second.kernel)
    np.testing.assert_array_equal(first.bias, second.bias)


@pytest.mark.parametrize("brands", [(0, 2), (0, 2, 3)])
def test_a_brand_without_training_photos_is_never_predicted(brands):
    head = probe.solve(photos(60, brands), photos(30, brands, 1), 4)
    features, _ = photos(30, brands, 2)
    logits = features @ head.kernel + head.bias
    assert set(logits.argmax(1)) <= set(brands)
    assert np.isfinite(logits).all()


def test_class_weights_reach_the_solver():
    data, validation = photos(60, (0, 1)), photos(30, (0, 1), 1)
    for features, _ in (data, validation):
        features[:] = np.random.default_rng(0).normal(size=features.shape)  # nothing to tell the brands by
    tilted = probe.solve(data, validation, 2, np.float32([1, 50]))
    assert (data[0] @ tilted.kernel + tilted.bias).argmax(1).all()


def test_one_brand_raises():
    with pytest.raises(DataError, match="photos of one brand only"):
        probe.solve(photos(10, (1,)), photos(10, (0, 1)), 2)
