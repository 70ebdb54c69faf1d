"""The optimizer and its learning rates, by stage and over time."""

import dataclasses
import math
from typing import Any

import gin
import keras

from carbrand import checks
from carbrand.training.model import STAGES

OPTIMIZERS = ("sgd", "adamw", "lamb")
REFERENCE_BATCH = 256  # photos that `scale_with_batch` refers to: Goyal et al. 2017, arXiv:1706.02677, 2.1


@gin.configurable("optimizer", module="carbrand")
@dataclasses.dataclass(frozen=True)
class OptimizerSpec:
    """How gradients become weights.

    Attributes:
      name: "sgd" (Nesterov momentum 0.9), "adamw", or "lamb" for very large batches (You et al. 2019, arXiv:1904.00962,
        as Keras has it: each variable's step is as long as the variable, also BatchNorm's and biases).
      learning_rate: Peak rate of the main phase.
      head_learning_rate: Peak rate while only the head is trained first (`train.run.head_epochs`).
      scale_with_batch: Both rates are per 256 photos of a batch, and grow in proportion to it.
      stage_decay: Each of the backbone's stages learns by so much slower than the one above it, in (0, 1]; conv5 is the
        first below the head. Weight decay goes with the rate.
      weight_decay: Decoupled, times the learning rate; not on BatchNorm's parameters nor on biases.
      warmup_epochs: Epochs of linear warm-up at the start of the main phase.
      clip_norm: Largest global norm of the gradient, summed over the replicas; None: no limit.
      label_smoothing: Share of each label that is spread over all brands, in [0, 1).
      ema_decay: Validation, evaluation and export use an exponential moving average of the weights, of so much of which
        each step keeps, in [0, 1); 0: the weights themselves. See `WeightAverage`.
    """

    name: str = "sgd"
    learning_rate: float = 0.01
    head_learning_rate: float = 0.1
    scale_with_batch: bool = False
    stage_decay: float = 1.0
    weight_decay: float = 1e-4
    warmup_epochs: float = 0.0
    clip_norm: float | None = None
    label_smoothing: float = 0.0
    ema_decay: float = 0.0

    def __post_init__(self) -> None:
        checks.choice("optimizer.name", self.name, OPTIMIZERS)
        checks.number("optimizer.learning_rate", self.learning_rate, above=0)
        checks.number("optimizer.head_learning_rate", self.head_learning_rate, above=0)
        checks.boolean("optimizer.scale_with_batch", self.scale_with_batch)
        checks.number("optimizer.stage_decay", self.stage_decay, above=0, at_most=1)
        checks.number("optimizer.weight_decay", self.weight_decay, at_least=0)
        checks.number("optimizer.warmup_epochs", self.warmup_epochs, at_least=0)
        checks.number("optimizer.label_smoothing", self.label_smoothing, at_least=0, below=1)
        checks.number("optimizer.ema_decay", self.ema_decay, at_least=0, below=1)
        if self.clip_norm is not None:
            checks.number("optimizer.clip_norm", self.clip_norm, above=0)


def build_optimizer(
    spec: OptimizerSpec, variables: list[keras.Variable], *, thaws: bool = False
) -> keras.optimizers.Optimizer:
    """An optimizer with state for all of `variables`, to be applied to gradients that are summed already.

    With `thaws`, some of them may be trained from a later step on only.
    """
    # The name is given, as variables are stored by their paths, and Keras would number it within a process.
    options: dict[str, Any] = {"weight_decay": spec.weight_decay or None, "name": spec.name}
    if spec.name == "sgd":
        options |= {"momentum": 0.9, "nesterov": True}
    elif spec.name == "adamw":
        options["weight_decay"] = spec.weight_decay
    adamw = _LateAdamW if thaws else keras.optimizers.AdamW
    kind = {"sgd": keras.optimizers.SGD, "adamw": adamw, "lamb": keras.optimizers.Lamb}[spec.name]
    if spec.stage_decay == 1:
        optimizer = kind(**options)
    else:
        optimizer = _with_rates(kind)(**options)
        optimizer.rates = [stage_rate(variable.path, spec.stage_decay) for variable in variables]
    if spec.weight_decay:
        optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    optimizer.build(variables)
    # Inside `strategy.run` Keras would sum the gradients over the replicas once more.
    optimizer._all_reduce_sum_gradients = lambda grads_and_vars: grads_and_vars
    return optimizer


def stage_rate(path: str, decay: float) -> float:
    """What the learning rate of the variable at `path` is multiplied by: 1 in the head, `decay` in conv5, and so on."""
    stages_below_head = [stage for stage in reversed(STAGES) if stage != "none"]
    for depth, stage in enumerate(stages_below_head, start=1):
        if path.startswith(f"{stage}_"):
            return decay**depth
    return 1.0


class _LateAdamW(keras.optimizers.AdamW):
    """AdamW whose steps are right for variables that are trained from a later step on, too.

    Adam lengthens its moments by the number of steps, as they start at zero. Keras counts the steps of all variables
    together: the moments of late ones would hardly be lengthened, and their first steps be up to six times too long.
    LAMB divides by the length of the step, and SGD lengthens nothing.
    """

    def build(self, variables: list[keras.Variable]) -> None:
        super().build(variables)
        self._missed = self.add_variable(
            [len(variables)], dtype="int64", aggregation="only_first_replica", name="missed"
        )

    def apply(self, grads: Any, trainable_variables: Any = None) -> None:
        present = {self._get_variable_index(variable) for variable in trainable_variables}
        super().apply(grads, trainable_variables)
        self._missed.assign_add([int(index not in present) for index in range(self._missed.shape[0])])

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        step = self.iterations + 1
        own_step = step - self._missed[self._get_variable_index(variable)]
        super().update_step(gradient, variable, learning_rate * self._length(own_step) / self._length(step))

    def _length(self, step: Any) -> Any:
        """What Keras's Adam multiplies the learning rate by in the step of this number, from 1 on."""
        step = keras.ops.cast(step, "float32")
        return keras.ops.sqrt(1 - keras.ops.power(self.beta_2, step)) / (1 - keras.ops.power(self.beta_1, step))


def _with_rates(kind: type[keras.optimizers.Optimizer]) -> Any:
    """`kind`, with the learning rate of variable i multiplied by `rates[i]`, in its step and in its weight decay.

    Scaled gradients would do nothing under Adam.
    """

    class WithRates(kind):
        rates: list[float]

        def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
            rate = learning_rate * self.rates[self._get_variable_index(variable)]
            if self.weight_decay and self._use_weight_decay(variable):
                variable.assign_sub(variable * self.weight_decay * rate)
            super().update_step(gradient, variable, rate)

        def _apply_weight_decay(self, variables: Any) -> None:
            """Nothing: Keras's would decay all by one rate, before the steps."""

    return WithRates


def peak_rates(spec: OptimizerSpec, batch_size: int) -> tuple[float, float]:
    """The peak learning rates of the head's phase and of the main one."""
    factor = batch_factor(spec, batch_size)
    return spec.head_learning_rate * factor, spec.learning_rate * factor


def batch_factor(spec: OptimizerSpec, batch_size: int) -> float:
    """What the rates are multiplied by for a batch; 1 without `scale_with_batch`."""
    return batch_size / REFERENCE_BATCH if spec.scale_with_batch else 1.0


def learning_rate(peak: float, step: int, num_steps: int, warmup_steps: float = 0.0) -> float:
    """Linear warm-up to `peak`, then a half cosine to 0 (Loshchilov & Hutter 2016, arXiv:1608.03983)."""
    if step < warmup_steps:
        return peak * (step + 1) / math.ceil(warmup_steps)
    progress = (step - warmup_steps) / max(1.0, num_steps - warmup_steps)
    return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
