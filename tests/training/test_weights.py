import logging

import h5py
import keras
import numpy as np
import pytest
from keras.src.legacy.saving import legacy_h5_format

from carbrand.errors import ConfigError, WeightsError
from carbrand.training import weights
from carbrand.training.model import ModelSpec, build_model


@pytest.fixture(scope="module")
def reference():
    keras.utils.set_random_seed(3)
    return keras.applications.ResNet50(weights=None, include_top=False)


@pytest.fixture(scope="module")
def built():
    return build_model(("a", "b"), ModelSpec())


@pytest.fixture
def model(built):
    """One network for all tests, with values that are in no weights."""
    for variable in built.variables:
        variable.assign(np.full(variable.shape, 7.0))
    return built


def assert_loaded(model, reference):
    for variable in reference.variables:
        layer, name = variable.path.split("/")
        ours = next(v for v in model.get_layer(layer).variables if v.name == name)
        np.testing.assert_array_equal(ours.numpy(), variable.numpy())


def test_keras_3_weights_file(tmp_path, reference, model, caplog):
    reference.save_weights(tmp_path / "r.weights.h5")
    with caplog.at_level(logging.INFO):
        coverage = weights.load(model, str(tmp_path / "r.weights.h5"), "v1")
    assert_loaded(model, reference)
    assert coverage.backbone_fraction == 1
    assert coverage.new == ("logits/bias", "logits/kernel")
    assert "100.0% of the backbone's parameters loaded (318 arrays)" in caplog.text


def test_the_name_of_the_file_does_not_matter(tmp_path, reference, model):
    reference.save_weights(tmp_path / "r.weights.h5")
    (tmp_path / "r.weights.h5").rename(tmp_path / "resnet.h5")
    weights.load(model, str(tmp_path / "resnet.h5"), "v1")
    assert_loaded(model, reference)


def test_legacy_weights_file(tmp_path, reference, model):
    with h5py.File(tmp_path / "r_notop.h5", "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, reference)
    weights.load(model, str(tmp_path / "r_notop.h5"), "v1")
    assert_loaded(model, reference)


def test_weights_file_with_the_imagenet_head(tmp_path, model):
    with_top = keras.applications.ResNet50(weights=None, include_top=True)
    with_top.save_weights(tmp_path / "top.weights.h5")
    coverage = weights.load(model, str(tmp_path / "top.weights.h5"), "v1")
    assert coverage.backbone_fraction == 1
    assert_loaded(model, keras.Model(with_top.input, with_top.get_layer("avg_pool").output))


def test_keras_file(tmp_path, reference, model):
    reference.save(tmp_path / "r.keras")
    weights.load(model, str(tmp_path / "r.keras"), "v1")
    assert_loaded(model, reference)


def test_too_little_coverage_raises(tmp_path, model):
    keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="conv1_conv")]).save(tmp_path / "other.keras")
    with pytest.raises(WeightsError, match=r"fits 0.0% of the backbone's parameters, 99% are needed; new: conv1_bn"):
        weights.load(model, str(tmp_path / "other.keras"), "v1")


def test_other_architecture_raises(tmp_path, model):
    network = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    network.save_weights(tmp_path / "other.weights.h5")
    with pytest.raises(WeightsError, match="not the weights of keras.applications.ResNet50"):
        weights.load(model, str(tmp_path / "other.weights.h5"), "v1")


def test_missing_file_raises(model):
    with pytest.raises(WeightsError, match=r"weights.path='no/such.h5': no such file"):
        weights.load(model, "no/such.h5", "v1")


def test_file_that_holds_no_weights_raises(tmp_path, model):
    (tmp_path / "page.h5").write_text("<!DOCTYPE html>")
    with pytest.raises(WeightsError, match="not a weights file"):
        weights.load(model, str(tmp_path / "page.h5"), "v1")


def test_h5_without_layers_raises(tmp_path, model):
    h5py.File(tmp_path / "empty.h5", "w").close()
    with pytest.raises(WeightsError, match="neither of Keras's weight layouts"):
        weights.load(model, str(tmp_path / "empty.h5"), "v1")


def test_imagenet_weights_are_v1(model):
    with pytest.raises(ConfigError, match="trained as variant 'v1', model.variant is 'v1.5'"):
        weights.load(model, "imagenet", "v1.5")


def test_failed_download_says_which_file_to_fetch(model, monkeypatch):
    def fail(**_):
        raise Exception("URL fetch failure")

    monkeypatch.setattr(keras.applications, "ResNet50", fail)
    with pytest.raises(WeightsError, match=r"Fetch resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5 elsewhere"):
        weights.load(model, "imagenet", "v1")


def test_no_path_loads_nothing(model):
    assert weights.load(model, None, "v1") is None
