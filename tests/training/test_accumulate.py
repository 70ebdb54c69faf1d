"""Accumulated micro-batches and uneven batches against whole batches on one device, without BatchNorm unless named."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from carbrand.data.augment import Augment
from carbrand.data.pipeline import Stream
from carbrand.data.preprocess import Preprocess
from carbrand.errors import ConfigError
from carbrand.training.averaging import WeightAverage
from carbrand.training.batch_norm import SynchronizedBatchNormalization
from carbrand.training.hardware import Hardware, make_strategy
from carbrand.training.model import ExampleDropout, ModelSpec
from carbrand.training.optimizer import OptimizerSpec, build_optimizer
from carbrand.training.settings import Schedule, Settings, check_batch
from carbrand.training.step import LossScale, make_step
from carbrand.training.weights import Weights

BATCH = 16
IMAGES = np.random.default_rng(0).normal(size=(4 * BATCH, 6, 6, 3)).astype(np.float32)
LABELS = (np.arange(4 * BATCH) % 3).astype(np.int32)
# Photos 2k and 2k + 1, each with half of both, then boxes of a third of the other's pixels.
PLAN = np.array([[0.5, 0, 0, 0, 0], [0.5, 0, 0, 0, 0], [1, 0, 0, 2, 6], [1, 4, 0, 6, 6]] * BATCH, np.float32)


def small_network(batch_norm=None):
    keras.utils.set_random_seed(7)
    image = keras.Input((6, 6, 3))
    x = keras.layers.Conv2D(4, 3, name="conv4_conv")(image)
    if batch_norm:
        x = batch_norm(momentum=0.5, name="bn")(x)
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Activation("relu")(x))
    x = ExampleDropout(0.3)(x)
    return keras.Model(image, keras.layers.Dense(3, dtype="float32", name="logits")(x))


class Run:
    """A small network under `replicas` replicas."""

    def __init__(
        self,
        replicas,
        accumulate=1,
        *,
        batch_norm=None,
        spec=None,
        thaws=False,
        precision="float32",
        ema_decay=0.0,
        **options,
    ):
        self.strategy = make_strategy(Hardware(replicas=replicas))
        spec = spec or OptimizerSpec(weight_decay=0.01, clip_norm=0.5, label_smoothing=0.1)
        keras.config.set_dtype_policy(precision)
        try:
            with self.strategy.scope():
                self.model = small_network(batch_norm)
                self.optimizer = build_optimizer(spec, self.model.trainable_variables, thaws=thaws)
                self.loss_scale = LossScale(precision)
                self.average = WeightAverage(ema_decay, self.model.trainable_variables)
                self.step = make_step(
                    self.model, self.optimizer, self.loss_scale, self.strategy,
                    spec=spec, seed=3, accumulate=accumulate, average=self.average, **options,
                )  # fmt: skip
        finally:
            keras.config.set_dtype_policy("float32")
        self.optimizer.learning_rate.assign(0.1)

    def train(self, steps, images=IMAGES, plan=None):
        columns = (images, LABELS) if plan is None else (images, LABELS, plan)
        dataset = tf.data.Dataset.from_tensor_slices(columns).batch(BATCH, drop_remainder=True).repeat()
        batches = iter(self.strategy.experimental_distribute_dataset(dataset))
        return [self.step(next(batches), tf.constant(n, tf.int64)) for n in range(steps)]

    def train_on(self, *shares):
        """One step in which each replica gets the photos of its share, a slice."""

        def value(context):
            share = shares[context.replica_id_in_sync_group]
            return tf.constant(IMAGES[share]), tf.constant(LABELS[share])

        batch = self.strategy.experimental_distribute_values_from_function(value)
        return self.step(batch, tf.constant(0, tf.int64))

    def weights(self):
        return {v.path: v.numpy() for v in self.model.variables}


def assert_close(ours, theirs, tolerance=1e-6):
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        np.testing.assert_allclose(value, theirs[name], rtol=tolerance, atol=tolerance, err_msg=name)


@pytest.fixture(scope="module")
def whole():
    """Weights after 6 steps of whole batches on one device."""
    run = Run(1)
    return [float(result.loss) for result in run.train(6)], run.weights()


@pytest.mark.parametrize(("replicas", "accumulate"), [(1, 8), (2, 4), pytest.param(4, 2, marks=pytest.mark.slow)])
def test_micro_batches_give_the_losses_and_weights_of_the_whole(whole, replicas, accumulate):
    run = Run(replicas, accumulate)
    np.testing.assert_allclose([float(result.loss) for result in run.train(6)], whole[0], atol=1e-6)
    assert_close(run.weights(), whole[1])


def test_synchronised_statistics_are_those_of_a_micro_batch_over_all_replicas():
    """With two micro-batches, one replica and two see the same groups of 8."""
    one, two = (
        Run(1, 2, batch_norm=SynchronizedBatchNormalization),
        Run(2, 2, batch_norm=SynchronizedBatchNormalization),
    )
    one.train(1, IMAGES)
    # On one device micro-batch 0 holds photos 0 to 7; on two it holds 0 to 3 of one and 8 to 11 of the other.
    order = np.concatenate([np.r_[0:4, 8:12, 4:8, 12:16] + start for start in range(0, len(IMAGES), BATCH)])
    two_images = IMAGES[order]
    np.testing.assert_array_equal(two_images[np.r_[0:4, 8:12]], IMAGES[:8])
    two.train(1, two_images)
    for name in ("bn/moving_mean", "bn/moving_variance"):
        np.testing.assert_allclose(one.weights()[name], two.weights()[name], rtol=1e-5, atol=1e-6)


def test_moving_statistics_are_updated_once_per_micro_batch():
    run = Run(1, 4, batch_norm=keras.layers.BatchNormalization)
    kernel, bias = (v.numpy() for v in run.model.get_layer("conv4_conv").weights)
    run.train(1)
    outputs = tf.nn.conv2d(IMAGES[:BATCH], kernel, 1, "VALID") + bias
    expected = 0.0
    for part in np.split(outputs, 4):
        expected = 0.5 * expected + 0.5 * part.mean((0, 1, 2))
    np.testing.assert_allclose(run.weights()["bn/moving_mean"], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("replicas", [1, 2])
def test_mixed_micro_batches_are_the_mixed_whole(replicas):
    whole, parts = Run(1), Run(replicas, 4)
    losses = [[float(result.loss) for result in run.train(2, plan=PLAN)] for run in (whole, parts)]
    np.testing.assert_allclose(*losses, atol=1e-6)
    assert_close(parts.weights(), whole.weights())


@pytest.mark.parametrize("bad_photo", [BATCH // 2 - 1, BATCH - 1])
def test_overflow_in_any_micro_batch_skips_the_step(bad_photo):
    run = Run(2, 4, precision="mixed_float16", batch_norm=keras.layers.BatchNormalization)
    images = IMAGES.copy()
    images[bad_photo] = np.inf
    before, scale = run.weights(), run.loss_scale.scale.numpy()
    run.train(1, images)
    for name, value in run.weights().items():
        np.testing.assert_array_equal(value, before[name])
    assert run.loss_scale.scale.numpy() == scale / 2


class NoDropout(Run):
    """Masks depend on the place in the batch, which is another one when batches are uneven; XLA draws others."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        for layer in self.model.layers:
            if isinstance(layer, ExampleDropout):
                layer.rate = 0.0


@pytest.mark.slow
@pytest.mark.parametrize("replicas", [1, 2])
def test_micro_batches_under_xla(replicas):
    whole, parts = NoDropout(1), NoDropout(replicas, 4, xla=True)
    losses = [[float(result.loss) for result in run.train(6)] for run in (whole, parts)]
    np.testing.assert_allclose(*losses, atol=1e-5)
    assert_close(parts.weights(), whole.weights(), 1e-5)


@pytest.fixture(scope="module")
def uneven_runs():
    """One run for each number of replicas, and its first state."""
    runs = {replicas: NoDropout(replicas) for replicas in (1, 2, 4)}
    for run in runs.values():
        run.start = [v.numpy() for v in run.model.variables + run.optimizer.variables]
    return runs


def restart(run):
    for variable, value in zip(run.model.variables + run.optimizer.variables, run.start, strict=True):
        variable.assign(value)
    return run


@pytest.mark.parametrize("size", range(1, 9))
@pytest.mark.parametrize("replicas", [pytest.param(2, marks=pytest.mark.slow), 4])
def test_a_batch_of_any_size_counts_every_photo_once(uneven_runs, replicas, size):
    one, many = restart(uneven_runs[1]), restart(uneven_runs[replicas])
    expected = one.train_on(slice(0, size))
    edges = np.linspace(0, size, replicas + 1).astype(int)  # 0, 1 or more photos for each replica
    result = many.train_on(*map(slice, edges[:-1], edges[1:]))
    for name in ("loss", "correct", "gradient_norm"):
        np.testing.assert_allclose(float(getattr(result, name)), float(getattr(expected, name)), rtol=1e-6)
    assert_close(many.weights(), one.weights())


@pytest.mark.parametrize("size", [1, 5, 7])
def test_a_short_batch_in_micro_batches_counts_every_photo_once(uneven_runs, size):
    one, parts = restart(uneven_runs[1]), NoDropout(2, 4)
    expected, result = one.train_on(slice(0, size)), parts.train_on(slice(0, size // 2), slice(size // 2, size))
    np.testing.assert_allclose(float(result.loss), float(expected.loss), rtol=1e-6)
    assert_close(parts.weights(), one.weights())


@pytest.mark.slow
def test_the_short_end_of_a_distributed_dataset_counts_every_photo_once(uneven_runs):
    one, many = restart(uneven_runs[1]), restart(uneven_runs[4])
    expected = one.train_on(slice(0, 3))
    dataset = tf.data.Dataset.from_tensor_slices((IMAGES[:3], LABELS[:3])).batch(8)
    for batch in many.strategy.experimental_distribute_dataset(dataset):
        result = many.step(batch, tf.constant(0, tf.int64))
    np.testing.assert_allclose(float(result.loss), float(expected.loss), rtol=1e-6)
    assert_close(many.weights(), one.weights())


def settings(batch_size, accumulate, **augment):
    return Settings(
        model=ModelSpec(), weights=Weights(), preprocess=Preprocess(), augment=Augment(**augment), stream=Stream(),
        optimizer=OptimizerSpec(), hardware=Hardware(), schedule=Schedule(1, 0, batch_size, 0, True, (), accumulate),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("batch_size", "accumulate", "augment", "message"),
    [
        (12, 4, {}, "batch_size=12 does not divide among 2 replicas and train.run.accumulate=4 micro-batches of each. "
                    "Use a multiple of 8, for example 16"),
        (24, 4, {"mixup_alpha": 0.2}, "of each in pairs to be mixed. Use a multiple of 16, for example 32"),
        (6, 1, {"cutmix_alpha": 1.0}, "among 2 replicas in pairs to be mixed. Use a multiple of 4, for example 8"),
    ],
)  # fmt: skip
def test_batches_that_do_not_divide_raise(batch_size, accumulate, augment, message):
    with pytest.raises(ConfigError, match=message):
        check_batch(settings(batch_size, accumulate, **augment), replicas=2)


@pytest.mark.parametrize("accumulate", [0, 1.0, True, "2"])
def test_bad_accumulate_raises(accumulate):
    with pytest.raises(ConfigError, match="train.run.accumulate=.*: give a whole number at least 1"):
        settings(8, accumulate)
