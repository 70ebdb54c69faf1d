import keras
import numpy as np
import pytest
import tensorflow as tf

from carbrand.evaluation import heatmap
from carbrand.training.model import ModelSpec, build_model, last_features


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    return build_model(["a", "b", "c"], ModelSpec())


def test_after_mean_pooling_maps_are_the_head_applied_to_each_place(model):
    # With a linear head after mean pooling, Grad-CAM is CAM (Selvaraju et al. 2017, 3.1; Zhou et al. 2016).
    images = np.random.default_rng(0).integers(0, 256, (2, 96, 128, 3), np.uint8)
    labels = np.array([2, 0])
    features = keras.Model(model.input, last_features(model))(images, training=False).numpy()
    kernel = model.get_layer("logits").kernel.numpy()
    expected = np.maximum(np.einsum("bhwc,cb->bhw", features, kernel[:, labels]), 0)
    expected /= np.maximum(expected.max(axis=(1, 2), keepdims=True), 1e-12)
    found = heatmap.make(model)(images, labels)
    assert found.shape == (2, 3, 4)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_where_nothing_speaks_for_a_brand_the_map_is_zero(model):
    model.get_layer("logits").kernel.assign(-tf.ones_like(model.get_layer("logits").kernel))
    found = heatmap.make(model)(np.full((1, 64, 64, 3), 200, np.uint8), np.array([1]))
    np.testing.assert_array_equal(found, 0)
