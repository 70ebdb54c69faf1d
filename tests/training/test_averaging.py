import keras
import numpy as np
import pytest
from test_accumulate import BATCH, IMAGES, Run

from carbrand.training.averaging import WeightAverage
from carbrand.training.optimizer import OptimizerSpec


def test_average_of_three_weights_by_hand():
    weight = keras.Variable(np.float32([1.0]), name="w")
    average = WeightAverage(0.15, [weight])
    for value in (2.0, 4.0):
        weight.assign([value])
        average.update()
    # It keeps 1/10 of 1, then 0.15, which is less than 2/11, of that.
    np.testing.assert_allclose(average.arrays()["w"], [0.15 * (0.1 * 1 + 0.9 * 2) + 0.85 * 4], rtol=1e-6)


def test_weights_that_stay_are_their_own_average():
    values = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    average = WeightAverage(0.999, [keras.Variable(values)])
    for _ in range(50):
        average.update()
    np.testing.assert_array_equal(next(iter(average.arrays().values())), values)


@pytest.mark.parametrize("replicas", [1, 2])
def test_every_applied_step_is_averaged(replicas):
    run = Run(replicas, ema_decay=0.9, spec=OptimizerSpec())
    expected = {v.path: v.numpy() for v in run.model.trainable_variables}
    for number in range(3):
        run.train(1)
        keep = (1 + number) / (10 + number)
        expected = {name: keep * value + (1 - keep) * run.weights()[name] for name, value in expected.items()}
    for name, value in run.average.arrays().items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-5, atol=1e-7)


def test_skipped_steps_are_not_averaged():
    run = Run(2, ema_decay=0.9, precision="mixed_float16")
    images = IMAGES.copy()
    images[BATCH - 1] = np.inf
    before = run.average.arrays()
    run.train(1, images)
    assert run.average.updates.numpy() == 0
    for name, value in run.average.arrays().items():
        np.testing.assert_array_equal(value, before[name])


def test_averages_are_lent_to_the_model():
    weight = keras.Variable(np.float32([1.0]), name="w")
    average = WeightAverage(0.5, [weight])
    weight.assign([3.0])
    with average.in_use():
        assert weight.numpy() == 1
    assert weight.numpy() == 3
    average.restart()
    assert average.arrays()["w"] == 3


def test_without_decay_nothing_is_kept():
    weight = keras.Variable(np.float32([1.0]), name="w")
    average = WeightAverage(0.0, [weight])
    average.update()
    assert average.arrays() == {}
    assert average.updates.numpy() == 0
