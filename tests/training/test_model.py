import keras
import numpy as np
import pytest
import tensorflow as tf

from carbrand.errors import ConfigError
from carbrand.training.model import STAGES, ModelSpec, boundary, build_model, freeze, logits_model
from carbrand.training.step import LossScale, make_step

BRANDS = ("a", "b", "c")
IMAGES = np.random.default_rng(0).integers(0, 256, (2, 64, 96, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def reference():
    keras.utils.set_random_seed(0)
    generator = np.random.default_rng(0)
    model = keras.applications.ResNet50(weights=None, include_top=False)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.set_weights([generator.uniform(0.5, 1.5, w.shape) for w in layer.get_weights()])
    return model


def with_weights_of(reference, **spec):
    model = build_model(BRANDS, ModelSpec(**spec))
    for layer in reference.layers:
        if layer.weights:
            model.get_layer(layer.name).set_weights(layer.get_weights())
    return model


def test_v1_equals_keras_applications_with_its_preprocessing(reference):
    model = with_weights_of(reference)
    ours = keras.Model(model.input, model.get_layer("conv5_block3_out").output)(IMAGES, training=False)
    theirs = reference(keras.applications.resnet50.preprocess_input(IMAGES.astype(np.float32)), training=False)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-4)


def test_v1_5_moves_the_stride_to_the_padded_3_by_3_convolution():
    model = build_model(BRANDS, ModelSpec(variant="v1.5"))
    assert model.get_layer("conv3_block1_1_conv").strides == (1, 1)
    assert model.get_layer("conv3_block1_2_conv").strides == (2, 2)
    assert model.get_layer("conv3_block1_2_pad").padding == ((1, 1), (1, 1))
    assert model.get_layer("conv2_block1_2_conv").strides == (1, 1)
    parameters = [build_model(BRANDS, ModelSpec(variant=v)).count_params() for v in ("v1", "v1.5")]
    assert parameters[0] == parameters[1] == 23_587_712 + 3 * 2049  # keras.applications' backbone, and the head


def test_output_is_probabilities(reference):
    probabilities = with_weights_of(reference)(IMAGES).numpy()
    assert probabilities.shape == (2, 3)
    np.testing.assert_allclose(probabilities, 1 / 3, rtol=1e-6)  # the new head starts without an opinion


def test_logits_model_shares_layers_and_leaves_out_the_softmax(reference):
    model = with_weights_of(reference)
    model.get_layer("logits").bias.assign([0.0, 1.0, 2.0])
    np.testing.assert_allclose(logits_model(model)(IMAGES), [[0, 1, 2]] * 2, atol=1e-6)


@pytest.mark.parametrize("stage", STAGES[1:])
def test_frozen_prefix_and_rest_make_the_whole(reference, stage):
    model = with_weights_of(reference)
    model.get_layer("logits").kernel.assign(np.random.default_rng(1).normal(size=(2048, 3)) / 100)
    inputs = boundary(model, stage)
    features = keras.Model(model.input, inputs)(IMAGES, training=False)
    np.testing.assert_allclose(logits_model(model, inputs)(features), logits_model(model)(IMAGES), atol=1e-5)


@pytest.mark.parametrize(("stage", "trainable"), [("none", 214), ("conv1", 210), ("conv4", 42), ("conv5", 2)])
def test_freezing_leaves_the_stages_above(stage, trainable):
    model = build_model(BRANDS, ModelSpec(freeze_until=stage))
    assert len(model.trainable_variables) == trainable
    freeze(model, "none")
    assert len(model.trainable_variables) == 214


def test_training_leaves_frozen_stages_bit_unchanged():
    from carbrand.training.hardware import Hardware, make_strategy
    from carbrand.training.optimizer import OptimizerSpec, build_optimizer

    strategy, spec = make_strategy(Hardware()), OptimizerSpec(weight_decay=0.1)
    with strategy.scope():
        model = build_model(BRANDS, ModelSpec(freeze_until="conv4"), image_size_px=(64, 96))
        every = [v for layer in model.layers for v in layer.weights if "moving" not in v.name]
        optimizer = build_optimizer(spec, every)
        step = make_step(logits_model(model), optimizer, LossScale("float32"), strategy, spec=spec)
    before = {v.path: v.numpy() for v in model.variables}
    dataset = tf.data.Dataset.from_tensors((IMAGES, np.array([0, 1], np.int32)))
    for batch in strategy.experimental_distribute_dataset(dataset.repeat(2)):
        step(batch, tf.constant(0, tf.int64))
    changed = {v.path.split("_")[0] for v in model.variables if (v.numpy() != before[v.path]).any()}
    assert changed == {"conv5", "logits/kernel", "logits/bias"}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"variant": "v2"}, "model.variant='v2' is not one of 'v1', 'v1.5'"),
        ({"freeze_until": "conv6"}, "model.freeze_until='conv6' is not one of"),
        ({"pooling": "sum"}, "model.pooling='sum'"),
        ({"hidden_units": 256}, "model.hidden_units=256: give a tuple of widths"),
        ({"hidden_units": (0,)}, "model.hidden_units=0: give a whole number at least 1"),
        ({"dropout": 1.0}, "model.dropout=1.0: give a number at least 0 and below 1"),
    ],
)
def test_bad_spec_raises(spec, message):
    with pytest.raises(ConfigError, match=message):
        ModelSpec(**spec)


def test_hidden_units_and_max_pooling():
    model = build_model(BRANDS, ModelSpec(hidden_units=(16, 8), pooling="max", dropout=0.5))
    assert model.get_layer("head_dense_1").kernel.shape == (2048, 16)
    assert model.get_layer("logits").kernel.shape == (8, 3)


def test_saved_model_file_loads_again(tmp_path, reference):
    model = with_weights_of(reference, dropout=0.5)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(loaded(IMAGES), model(IMAGES), atol=1e-6)
