"""One training step, right for any number of replicas.

The gradients are summed over the replicas once, and only then unscaled, tested, clipped, and applied or skipped by all
replicas alike.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from carbrand.data import mixing
from carbrand.errors import ConfigError
from carbrand.training.batch_norm import SynchronizedBatchNormalization
from carbrand.training.model import dropout_seed
from carbrand.training.optimizer import OptimizerSpec

_INITIAL_LOSS_SCALE = 2.0**15
_GROWTH_STEPS = 2000  # finite steps after which the scale doubles: Micikevicius et al. 2017, arXiv:1710.03740


@dataclasses.dataclass(frozen=True)
class StepResult:
    """Sums over the global batch, each a scalar tensor.

    Attributes:
      loss: Mean loss per photo, float32.
      correct: Photos whose brand had the highest logit, float32.
      gradient_norm: Global norm of the summed gradient before clipping, float32; not finite if the step was skipped.
    """

    loss: tf.Tensor
    correct: tf.Tensor
    gradient_norm: tf.Tensor


class LossScale:
    """Dynamic loss scaling for float16, one state for all replicas; constant 1 for the other precisions."""

    def __init__(self, precision: str) -> None:
        self.is_dynamic = precision == "mixed_float16"
        self.scale = tf.Variable(_INITIAL_LOSS_SCALE if self.is_dynamic else 1.0, trainable=False)
        self.finite_steps = tf.Variable(0, dtype=tf.int64, trainable=False)

    def update(self, is_finite: tf.Tensor) -> None:
        """Halves the scale after an overflow, down to 1, and doubles it after many steps without one."""
        if not self.is_dynamic:
            return
        finite_steps = tf.where(is_finite, self.finite_steps + 1, 0)
        grows = finite_steps >= _GROWTH_STEPS
        smaller = tf.maximum(self.scale / 2, 1.0)
        self.scale.assign(tf.where(is_finite, tf.where(grows, self.scale * 2, self.scale), smaller))
        self.finite_steps.assign(tf.where(grows, tf.zeros_like(finite_steps), finite_steps))


def make_step(
    model: keras.Model,
    optimizer: keras.optimizers.Optimizer,
    loss_scale: LossScale,
    strategy: tf.distribute.Strategy,
    *,
    spec: OptimizerSpec,
    seed: int = 0,
    xla: bool = False,
) -> Callable[[Any, tf.Tensor], StepResult]:
    """A compiled function (distributed batch, step number int64) -> StepResult that trains the trainable variables.

    A batch is (inputs, labels [B] int32), or (images, labels, plan [B, 5]) whose photos are mixed in pairs here, on the
    device; see `mixing.mix`.

    Args:
      model: Images or features -> logits [B, C].
      optimizer: As `build_optimizer` makes it, for at least the trainable variables of `model`.
      loss_scale: State of the loss scaling.
      strategy: The one under whose scope model and optimizer were made.
      spec: For clip_norm and label_smoothing.
      seed: Of dropout, together with the step number.
      xla: Compile each replica's forward and backward pass with XLA.
    """
    variables = model.trainable_variables
    statistics = [v.value for layer in _batch_norms(model) for v in (layer.moving_mean, layer.moving_variance)]
    check_xla(model, strategy, xla)

    num_brands = model.output.shape[-1]

    def forward_backward(batch: tuple[Any, ...], step: Any, replica: Any, scale: Any) -> tuple[Any, ...]:
        images, labels, *plan = batch
        targets = tf.one_hot(labels, num_brands)
        if plan:
            images, targets = mixing.mix(images, targets, *plan)
        num_replicas = strategy.num_replicas_in_sync
        global_batch = tf.cast(tf.shape(labels)[0] * num_replicas, tf.float32)
        with tf.GradientTape() as tape, dropout_seed(tf.stack([seed, step]), replica, num_replicas):
            logits = model(images, training=True)
            loss = tf.reduce_sum(cross_entropy(targets, logits, spec.label_smoothing)) / global_batch
            scaled_loss = loss * scale
        correct = tf.reduce_sum(tf.cast(tf.argmax(logits, -1, tf.int32) == labels, tf.float32))
        return loss, correct, tape.gradient(scaled_loss, [v.value for v in variables])

    compiled = tf.function(forward_backward, jit_compile=True) if xla else forward_backward

    def replica_step(batch: tuple[Any, ...], step: Any, scale: Any) -> tuple[Any, ...]:
        context = tf.distribute.get_replica_context()
        old_statistics = [tf.identity(v) for v in statistics]
        loss, correct, gradients = compiled(batch, step, context.replica_id_in_sync_group, scale)
        gradients = context.all_reduce(tf.distribute.ReduceOp.SUM, [tf.convert_to_tensor(g) for g in gradients])
        gradients = [g / scale for g in gradients]
        norm = tf.linalg.global_norm(gradients)
        settle_statistics(context, old_statistics, tf.math.is_finite(norm))
        if spec.clip_norm is not None:
            gradients, _ = tf.clip_by_global_norm(gradients, spec.clip_norm, use_norm=norm)
        return loss, correct, norm, gradients

    def settle_statistics(context: Any, old_values: list[tf.Tensor], is_finite: tf.Tensor) -> None:
        """Makes the moving statistics one for all replicas; a step that is skipped leaves them as they were."""
        if not statistics:
            return
        values = [tf.convert_to_tensor(v) for v in statistics]
        if strategy.num_replicas_in_sync > 1:  # equal already where they are synchronised
            values = context.all_reduce(tf.distribute.ReduceOp.MEAN, values)
        for variable, new, old in zip(statistics, values, old_values, strict=True):
            variable.assign(tf.where(is_finite, new, old))

    def apply(gradients: list[tf.Tensor]) -> None:
        optimizer.apply(gradients, variables)

    @tf.function
    def step_fn(batch: Any, step: tf.Tensor) -> tuple[tf.Tensor, ...]:
        loss, correct, norms, gradients = strategy.run(
            replica_step, args=(batch, step, tf.convert_to_tensor(loss_scale.scale))
        )
        norm = strategy.experimental_local_results(norms)[0]
        is_finite = tf.math.is_finite(norm)
        # The choice is made outside of the replicas: inside, some could apply while others skip.
        tf.cond(is_finite, lambda: strategy.run(apply, args=(gradients,)) or tf.no_op(), tf.no_op)
        loss_scale.update(is_finite)
        total = tf.distribute.ReduceOp.SUM
        return strategy.reduce(total, loss, axis=None), strategy.reduce(total, correct, axis=None), norm

    return lambda batch, step: StepResult(*step_fn(batch, step))


def check_xla(model: keras.Model, strategy: tf.distribute.Strategy, xla: bool) -> None:
    """Raises ConfigError if XLA cannot compile the training of `model` under `strategy`."""
    is_synchronized = any(isinstance(layer, SynchronizedBatchNormalization) for layer in _batch_norms(model))
    if xla and is_synchronized and strategy.num_replicas_in_sync > 1:
        raise ConfigError(
            "hardware.xla=True with several replicas: XLA cannot synchronise BatchNorm across them. "
            "Set model.synchronized_batch_norm = False (statistics are then averaged after each step)."
        )


def cross_entropy(targets: tf.Tensor, logits: tf.Tensor, label_smoothing: float = 0.0) -> tf.Tensor:
    """Targets [B, C] float32, each row a distribution, and logits [B, C] -> loss per photo [B] float32."""
    targets = targets * (1 - label_smoothing) + label_smoothing / logits.shape[-1]
    return tf.nn.softmax_cross_entropy_with_logits(targets, tf.cast(logits, tf.float32))


def _batch_norms(model: keras.Model) -> list[keras.layers.BatchNormalization]:
    return [x for x in model.layers if isinstance(x, keras.layers.BatchNormalization) and x.trainable]
