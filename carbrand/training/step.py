"""One training step, right for any number of replicas.

The gradients are summed over the replicas once, and only then unscaled, tested, clipped, and applied or skipped by all
replicas alike.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from carbrand.data import mixing
from carbrand.errors import ConfigError
from carbrand.training.averaging import WeightAverage
from carbrand.training.batch_norm import SynchronizedBatchNormalization
from carbrand.training.losses import Objective, cross_entropy
from carbrand.training.model import dropout_seed
from carbrand.training.optimizer import OptimizerSpec

_INITIAL_LOSS_SCALE = 2.0**15
_NO_VOTE = np.float32(0)
_NO_PHOTO = -1  # the label of a row that only fills
_GROWTH_STEPS = 2000  # finite steps after which the scale doubles: Micikevicius et al. 2017, arXiv:1710.03740


@dataclasses.dataclass(frozen=True)
class StepResult:
    """Sums over the global batch, each a scalar tensor.

    Attributes:
      loss: Mean loss per photo, weighted if the brands have weights, float32.
      correct: Photos whose brand had the highest logit, float32.
      gradient_norm: Global norm of the summed gradient before clipping, float32; not finite if the step was skipped.
      loss_scale: That the step was computed with, float32.
      votes: Sum over the replicas of what their workers gave the step.
    """

    loss: tf.Tensor
    correct: tf.Tensor
    gradient_norm: tf.Tensor
    loss_scale: tf.Tensor
    votes: tf.Tensor


TrainStep = Callable[..., StepResult]


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
    accumulate: int = 1,
    objective: Objective | None = None,
    average: WeightAverage | None = None,
) -> TrainStep:
    """A compiled function (distributed batch, step number int64, vote=0) -> StepResult that trains the variables.

    A batch is (inputs, labels [B] int32), or (images, labels, plan [B, 5]) whose photos are mixed in pairs here, on the
    device; see `mixing.mix`. Each photo counts as much as any other, also where the replicas get different numbers.
    The votes of several workers, float32, come back as one sum.

    Args:
      model: Images or features -> logits [B, C].
      optimizer: As `build_optimizer` makes it, for at least the trainable variables of `model`.
      loss_scale: State of the loss scaling.
      strategy: The one under whose scope model and optimizer were made.
      spec: For clip_norm and label_smoothing.
      seed: Of dropout, together with the step number.
      xla: Compile each replica's forward and backward pass with XLA.
      accumulate: Micro-batches into which each replica cuts its batch, so that the activations of only one are in
        memory. The result is that of the whole batch, but for BatchNorm: its statistics are those of a micro-batch
        (over all replicas, if synchronised), and the moving ones are updated after each.
      objective: The loss; by default the plain cross-entropy.
      average: Takes in the weights after each step that is applied.
    """
    objective = objective or Objective()
    variables = model.trainable_variables
    statistics = [v.value for layer in _batch_norms(model) for v in (layer.moving_mean, layer.moving_variance)]
    check_xla(model, strategy, xla)

    num_brands = model.output.shape[-1]
    num_replicas = strategy.num_replicas_in_sync

    def forward_backward(batch: tuple[Any, ...], step: Any, part: Any, factor: Any) -> tuple[Any, ...]:
        """Sums over the photos of one part of the global batch: loss, correct, weight, gradient of loss × factor."""
        images, labels, *plan = batch
        targets = tf.one_hot(labels, num_brands)
        is_photo = tf.cast(labels != _NO_PHOTO, tf.float32)
        if plan:
            images, targets = mixing.mix(images, targets, *plan)
        weights = is_photo * objective.photo_weights(targets)
        with tf.GradientTape() as tape, dropout_seed(tf.stack([seed, step]), part, num_replicas * accumulate):
            logits = model(images, training=True)
            losses = cross_entropy(targets, objective.adjust(logits), spec.label_smoothing, objective.gamma)
            loss = tf.reduce_sum(weights * losses)
            scaled_loss = loss * factor
        correct = tf.reduce_sum(tf.cast(tf.argmax(logits, -1, tf.int32) == labels, tf.float32))
        return loss, correct, tf.reduce_sum(weights), tape.gradient(scaled_loss, [v.value for v in variables])

    compiled = tf.function(forward_backward, jit_compile=True) if xla else forward_backward
    # Replicas cannot meet inside a loop of the graph, as synchronised statistics make them do.
    sum_parts = _sum_unrolled if num_replicas > 1 and _is_synchronized(model) else _sum_in_loop

    def replica_step(batch: tuple[Any, ...], step: Any, scale: Any, vote: Any) -> tuple[Any, ...]:
        context = tf.distribute.get_replica_context()
        old_statistics = [tf.identity(v) for v in statistics]
        size = tf.cast(tf.shape(batch[1])[0], tf.float32)
        global_size = _sum_over_replicas(context, size)
        first_part = context.replica_id_in_sync_group * accumulate

        def part_sums(number: Any) -> list[tf.Tensor]:
            part = _filled(tuple(_part(column, number, accumulate) for column in batch))
            *sums, gradients = compiled(part, step, first_part + number, scale / global_size)
            return [*sums, *map(tf.convert_to_tensor, gradients)]

        zeros = [tf.zeros([])] * 3 + [tf.zeros_like(v.value) for v in variables]
        loss, correct, *to_reduce = part_sums(0) if accumulate == 1 else sum_parts(part_sums, accumulate, zeros)
        weight, votes, *gradients = _sum_over_replicas(context, [to_reduce[0], vote, *to_reduce[1:]])
        # They are divided by the number of photos already, which keeps float16 in range; without class weights and loss
        # scale the rest is 1, and passing over all of them would cost a CPU 2 % of a step.
        factor = scale * weight / global_size
        norm = tf.linalg.global_norm(gradients) / factor
        gradients = tf.cond(factor == 1, lambda: gradients, lambda: [g / factor for g in gradients])
        settle_statistics(context, old_statistics, tf.math.is_finite(norm))
        if spec.clip_norm is not None:
            gradients, _ = tf.clip_by_global_norm(gradients, spec.clip_norm, use_norm=norm)
        return loss / weight, correct, norm, votes, gradients

    def settle_statistics(context: Any, old_values: list[tf.Tensor], is_finite: tf.Tensor) -> None:
        """Makes the moving statistics one for all replicas; a step that is skipped leaves them as they were."""
        if not statistics:
            return
        values = [tf.convert_to_tensor(v) for v in statistics]
        if num_replicas > 1:  # equal already where they are synchronised
            values = [total / num_replicas for total in _sum_over_replicas(context, values)]
        for variable, new, old in zip(statistics, values, old_values, strict=True):
            variable.assign(tf.where(is_finite, new, old))

    def apply(gradients: list[tf.Tensor]) -> None:
        optimizer.apply(gradients, variables)

    def apply_on_all(gradients: Any) -> tf.Operation:
        strategy.run(apply, args=(gradients,))
        if average is not None:
            average.update()
        return tf.no_op()

    @tf.function
    def step_fn(batch: Any, step: tf.Tensor, vote: tf.Tensor) -> tuple[tf.Tensor, ...]:
        scale = tf.convert_to_tensor(loss_scale.scale)
        loss, correct, *alike, gradients = strategy.run(replica_step, args=(batch, step, scale, vote))
        norm, votes = (strategy.experimental_local_results(values)[0] for values in alike)
        is_finite = tf.math.is_finite(norm)
        # The choice is made outside of the replicas: inside, some could apply while others skip.
        tf.cond(is_finite, lambda: apply_on_all(gradients), tf.no_op)
        loss_scale.update(is_finite)
        total = tf.distribute.ReduceOp.SUM
        loss, correct = (strategy.reduce(total, values, axis=None) for values in (loss, correct))
        return loss, correct, norm, scale, votes

    return lambda batch, step, vote=_NO_VOTE: StepResult(*step_fn(batch, step, vote))


def _sum_over_replicas(context: Any, values: Any) -> Any:
    # The identities have a device, without which a worker with one replica cannot reduce what comes out of a loop.
    return context.all_reduce(tf.distribute.ReduceOp.SUM, tf.nest.map_structure(tf.identity, values))


def check_xla(model: keras.Model, strategy: tf.distribute.Strategy, xla: bool) -> None:
    """Raises ConfigError if XLA cannot compile the training of `model` under `strategy`."""
    if xla and _is_synchronized(model) and strategy.num_replicas_in_sync > 1:
        raise ConfigError(
            "hardware.xla=True with several replicas: XLA cannot synchronise BatchNorm across them. "
            "Set model.synchronized_batch_norm = False (statistics are then averaged after each step)."
        )


def _batch_norms(model: keras.Model) -> list[keras.layers.BatchNormalization]:
    return [x for x in model.layers if isinstance(x, keras.layers.BatchNormalization) and x.trainable]


def _is_synchronized(model: keras.Model) -> bool:
    return any(isinstance(layer, SynchronizedBatchNormalization) for layer in _batch_norms(model))


def _part(column: tf.Tensor, number: Any, parts: int) -> tf.Tensor:
    """The rows of `column` [B, …] that are part `number` of `parts`; a short batch fills the first ones."""
    if parts == 1:
        return column
    rows = column.shape[0]
    size = -(-(tf.shape(column)[0] if rows is None else rows) // parts)
    part = column[number * size : (number + 1) * size]
    if rows is not None and rows % parts == 0:  # the slice by a tensor has forgotten it
        part.set_shape([size, *column.shape[1:]])
    return part


def _filled(batch: tuple[tf.Tensor, ...]) -> tuple[tf.Tensor, ...]:
    """The batch, with a row (or a pair to be mixed) that counts nothing if it is empty, which layers cannot take."""
    _, labels, *plan = batch
    if labels.shape[0]:
        return batch
    missing = tf.where(tf.shape(labels)[0] > 0, 0, 1 + len(plan))

    def fill(column: tf.Tensor, value: int) -> tf.Tensor:
        return tf.pad(column, [[0, missing], *[[0, 0]] * (len(column.shape) - 1)], constant_values=value)

    return tuple(fill(column, _NO_PHOTO if column is labels else 0) for column in batch)


_Sums = list[tf.Tensor]


def _sum_in_loop(part_sums: Callable[[Any], _Sums], parts: int, zeros: _Sums) -> _Sums:
    """The sum of `part_sums` over the parts, traced once."""

    def body(number: tf.Tensor, *total: tf.Tensor) -> tuple[tf.Tensor, ...]:
        return number + 1, *map(tf.add, total, part_sums(number))

    _, *total = tf.while_loop(lambda number, *_: number < parts, body, (0, *zeros), parallel_iterations=1)
    return total


def _sum_unrolled(part_sums: Callable[[Any], _Sums], parts: int, zeros: _Sums) -> _Sums:
    """The same without a loop in the graph; a part waits for the one before, so that its activations are gone."""
    total = zeros
    for number in range(parts):
        with tf.control_dependencies(total):
            total = list(map(tf.add, total, part_sums(number)))
    return total
