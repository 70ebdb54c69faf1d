"""Kernels in 8 bits: on the grid, and nearer to the layer's outputs than by rounding each weight."""

import keras
import numpy as np
import pytest
import scipy.special
import tensorflow as tf

from carbrand.serving import lite, rounding
from carbrand.training.model import ModelSpec, build_model

LARGEST = 127


def nearest(weights):
    steps = np.abs(weights).max(axis=0) / LARGEST
    return np.round(weights / steps) * steps


@pytest.fixture
def weights():
    return np.random.default_rng(0).normal(0, 1, (300, 8))  # more inputs than a block has


def test_inputs_that_do_not_go_together_get_the_nearest_codes(weights):
    rounded = rounding.round_matrix(weights, np.diag(np.arange(1.0, 301.0)))
    np.testing.assert_allclose(rounded, nearest(weights), atol=1e-6)


def test_an_error_is_made_up_for_by_an_equal_input():
    # Steps of 1: 0.4 and 0.4 by themselves become 0 and 0; of two equal inputs, the second takes 0.8 together.
    weights = np.array([[127.0], [0.4], [0.4]])
    products = np.array([[9.0, 0.0, 0.0], [0.0, 4.0, 4.0], [0.0, 4.0, 4.0]])
    np.testing.assert_allclose(rounding.round_matrix(weights, products), [[127], [0], [1]], atol=1e-5)


def test_outputs_change_less_than_by_rounding_each_weight(weights):
    generator = np.random.default_rng(1)
    inputs = generator.normal(0, 1, (1000, 40)) @ generator.normal(0, 1, (40, 300))
    seen, new = inputs[:500], inputs[500:]
    rounded = rounding.round_matrix(weights, seen.T @ seen)
    ours, theirs = (np.square(new @ (matrix - weights)).mean() for matrix in (rounded, nearest(weights)))
    assert ours < theirs / 4


def test_columns_lie_on_the_steps_of_their_largest_weight_which_stays(weights):
    weights[:, 3] = 0
    inputs = np.random.default_rng(1).normal(0, 1, (50, 300))
    inputs[:, :20] = 0
    rounded = rounding.round_matrix(weights, inputs.T @ inputs)
    largest, columns = np.abs(weights).argmax(axis=0), np.arange(8)
    np.testing.assert_allclose(rounded[largest, columns], weights[largest, columns], rtol=1e-6)
    assert not rounded[:, 3].any()
    codes = np.delete(rounded / (np.abs(weights).max(axis=0, keepdims=True) + 1e-30) * LARGEST, 3, axis=1)
    np.testing.assert_allclose(codes, np.round(codes), atol=1e-4)
    assert np.abs(codes).max() == pytest.approx(LARGEST)


@pytest.mark.slow  # and one test of all, as converting takes a minute
def test_an_int8_file_holds_the_codes_that_were_chosen_and_answers_nearly_as_the_model(tmp_path):
    keras.utils.set_random_seed(0)
    model = build_model(("a", "b", "c"), ModelSpec(), image_size_px=(32, 32))
    model.get_layer("logits").kernel.assign(np.random.default_rng(0).normal(0, 0.1, (2048, 3)))
    generator = np.random.default_rng(1)
    for name in ("conv1", "conv4_block2_2"):  # what BatchNorm multiplies into the kernels, negative factors too
        for variable in (model.get_layer(f"{name}_bn").gamma, model.get_layer(f"{name}_bn").moving_variance):
            variable.assign(generator.uniform(0.5, 2, variable.shape))
        gamma = model.get_layer(f"{name}_bn").gamma
        gamma.assign(gamma * generator.choice([-1, 1], gamma.shape))
    images = generator.integers(0, 256, (20, 32, 32, 3), np.uint8)
    weights = [value.copy() for value in model.get_weights()]
    path = tmp_path / "int8.tflite"
    lite.write(path, model, 2.0, "int8", images)
    assert path.stat().st_size < 1.2 * 23_600_000  # a byte per parameter
    assert all(map(np.array_equal, model.get_weights(), weights))
    expected = scipy.special.softmax(np.log(model(images, training=False).numpy()) / 2, axis=1)
    np.testing.assert_allclose(lite.predict(path, images), expected, atol=0.2)
    interpreter = tf.lite.Interpreter(str(path), experimental_preserve_all_tensors=True)
    stored = {}
    for tensor in interpreter.get_tensor_details():
        if tensor["dtype"] == np.int8:
            stored.setdefault(tuple(tensor["shape"]), []).append(interpreter.get_tensor(tensor["index"]))
    with rounding.rounded(model, images):
        for name in ("conv1_conv", "conv4_block2_2_conv", "logits"):
            kernel = model.get_layer(name).kernel.numpy()
            codes = np.round(np.moveaxis(kernel / np.abs(kernel).max(axis=tuple(range(kernel.ndim - 1))), -1, 0) * 127)
            if name != "logits":
                sign = np.sign(model.get_layer(f"{name[:-5]}_bn").gamma.numpy())
                codes *= sign.reshape(-1, 1, 1, 1)
            assert any(np.array_equal(codes, other) for other in stored[codes.shape]), name
