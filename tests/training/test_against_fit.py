"""What `model.fit` gets wrong under a strategy on this TensorFlow and Keras, and what our step makes of the same.

Each test runs twice. The half with `fit` is expected to fail: the day it passes, Keras has mended it.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf

from carbrand.training.hardware import Hardware, make_strategy
from carbrand.training.model import ExampleDropout
from carbrand.training.optimizer import OptimizerSpec, build_optimizer
from carbrand.training.step import LossScale, make_step

RATE = 0.1
X = np.random.default_rng(0).normal(size=(16, 4)).astype(np.float32)
Y = (np.arange(16) % 3).astype(np.int32)
BOTH = pytest.mark.parametrize(
    "trainer",
    ["ours", pytest.param("fit", marks=pytest.mark.xfail(strict=True, reason="model.fit gets this wrong"))],
)


def network(*layers):
    keras.utils.set_random_seed(0)
    inputs = outputs = keras.Input((4,))
    for layer in (*layers, keras.layers.Dense(3, name="logits")):
        outputs = layer(outputs)
    return keras.Model(inputs, outputs)


class Training:
    """One of both trainers on `replicas` replicas, by SGD with Nesterov momentum."""

    def __init__(self, trainer, replicas, *, layers=list, precision="float32", xla=False, clip_norm=None, accumulate=1):
        self.trainer, self.strategy = trainer, make_strategy(Hardware(replicas=replicas))
        spec = OptimizerSpec(weight_decay=0.0, clip_norm=clip_norm)
        with self.strategy.scope():
            self.model = network(*layers())
            if trainer == "fit":
                optimizer = keras.optimizers.SGD(
                    RATE,
                    0.9,
                    nesterov=True,
                    global_clipnorm=clip_norm,
                    gradient_accumulation_steps=accumulate if accumulate > 1 else None,
                )
                if precision == "mixed_float16":
                    optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
                loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
                self.model.compile(optimizer, loss, jit_compile=xla)
            else:
                self.optimizer = build_optimizer(spec, self.model.trainable_variables)
                self.optimizer.learning_rate.assign(RATE)
                self.loss_scale = LossScale(precision)
                self.step = make_step(
                    self.model,
                    self.optimizer,
                    self.loss_scale,
                    self.strategy,
                    spec=spec,
                    xla=xla,
                    accumulate=accumulate,
                )

    def train(self, x, y, batch, steps=None):
        """Passes once over the examples, in batches, the last of which may be short."""
        dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(batch)
        if self.trainer == "fit":
            self.model.fit(dataset, epochs=1, verbose=0)
        else:
            for number, part in enumerate(self.strategy.experimental_distribute_dataset(dataset)):
                self.step(part, tf.constant(number, tf.int64))
        return self

    @property
    def scale(self):
        if self.trainer == "ours":
            return float(self.loss_scale.scale.numpy())
        return float(np.asarray(self.model.optimizer.dynamic_scale.value.values[0]))

    @property
    def weights(self):
        return [variable.numpy() for variable in self.model.variables]


def assert_close(ours, theirs, tolerance=1e-6):
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)


@BOTH
def test_overflow_in_the_last_replica_alone_skips_the_step_and_halves_the_scale(trainer):
    run = Training(trainer, 2, precision="mixed_float16")
    before, scale = run.weights, 2.0**15
    x = X[:8].copy()
    x[-1] = np.inf
    run.train(x, Y[:8], 8)
    assert_close(run.weights, before)
    assert run.scale == scale / 2


@BOTH
@pytest.mark.parametrize("rest", [1, 3])  # fit gets 2 right, which divides among the replicas
def test_a_last_batch_of_any_size_counts_each_example_once(trainer, rest):
    one = Training("fit", 1).train(X[: 4 + rest], Y[: 4 + rest], 4)  # on one device, `fit` is right
    assert_close(Training(trainer, 2).train(X[: 4 + rest], Y[: 4 + rest], 4).weights, one.weights)


@BOTH
def test_gradients_are_clipped_after_they_are_summed(trainer):
    one = Training("fit", 1, clip_norm=0.1).train(X, Y, 8)
    assert_close(Training(trainer, 2, clip_norm=0.1).train(X, Y, 8).weights, one.weights)


@BOTH
def test_gradients_are_accumulated(trainer):
    one = Training("fit", 1).train(X, Y, 8)
    batch = 8 if trainer == "ours" else 4  # ours cuts the batch; Keras counts batches
    assert_close(Training(trainer, 2, accumulate=2).train(X, Y, batch).weights, one.weights)


@BOTH
def test_moving_statistics_stay_the_same_on_all_replicas(trainer):
    run = Training(trainer, 2, layers=lambda: [keras.layers.BatchNormalization(momentum=0.5)]).train(X, Y, 8)
    for variable in run.model.non_trainable_variables[:2]:
        first, second = variable.value.values
        np.testing.assert_array_equal(first.numpy(), second.numpy())


@BOTH
def test_dropout_differs_between_replicas(trainer):
    """Both replicas see the same two examples; without dropout of its own each would have the same gradient."""
    layer = ExampleDropout if trainer == "ours" else keras.layers.Dropout
    masks = []

    class Noted(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.dropout = layer(0.5)

        def call(self, inputs, training=False):
            outputs = self.dropout(inputs, training=training)
            tf.numpy_function(lambda x: masks.append(x == 0) or np.int64(0), [outputs], tf.int64)
            return outputs

    x = np.ones([8, 4], np.float32)
    Training(trainer, 2, layers=lambda: [keras.layers.Dense(32, kernel_initializer="ones"), Noted()]).train(x, Y[:8], 8)
    first, second = masks[-2:]
    assert (first != second).any()


@BOTH
def test_xla_compiles_two_replicas(trainer):
    one = Training("fit", 1).train(X, Y, 8)
    assert_close(Training(trainer, 2, xla=True).train(X, Y, 8).weights, one.weights, 1e-5)


@BOTH
def test_two_kills_in_one_epoch_cost_nothing(trainer, tmp_path):
    """By exceptions here; `test_killed_runs` and `test_train` kill processes."""
    batches, epochs = 8, 3
    x, y = np.tile(X, (2, 1)), np.tile(Y, 2)

    def train(kill_at, folder):
        seen = []

        def after_step(number):
            seen.append(number)
            if len(seen) == kill_at:
                raise RuntimeError("killed")

        (fit_to_the_end if trainer == "fit" else step_to_the_end)(x, y, batches, epochs, folder, after_step)

    def finally_after(kills, name):
        folder = tmp_path / name
        folder.mkdir()
        for kill_at in kills:
            with pytest.raises(RuntimeError, match="killed"):
                train(kill_at, folder)
        train(None, folder)
        return np.load(folder / "weights.npy")

    np.testing.assert_array_equal(finally_after([13, 2], "killed"), finally_after([], "whole"))


def fit_to_the_end(x, y, batches, epochs, folder, after_step):
    model = network()
    model.compile(keras.optimizers.SGD(RATE), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    note = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: after_step(batch))
    backup = keras.callbacks.BackupAndRestore(folder / "backup", save_freq=1)
    model.fit(x, y, len(x) // batches, epochs, shuffle=False, verbose=0, callbacks=[backup, note])
    np.save(folder / "weights.npy", model.get_weights()[0])


def step_to_the_end(x, y, batches, epochs, folder, after_step):
    run, path, size = Training("ours", 1), folder / "state.npz", len(x) // batches
    variables = run.model.variables + run.optimizer.variables
    start = 0
    if path.exists():
        state = np.load(path)
        start = int(state["step"])
        for number, variable in enumerate(variables):
            variable.assign(state[str(number)])
    for step in range(start, batches * epochs):
        first = step % batches * size
        run.train(x[first : first + size], y[first : first + size], size)
        np.savez(path, step=step + 1, **{str(n): v.numpy() for n, v in enumerate(variables)})
        after_step(step)
    np.save(folder / "weights.npy", run.weights[0])
