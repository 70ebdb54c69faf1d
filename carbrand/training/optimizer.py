"""The optimizer and its learning-rate schedule."""

import dataclasses
import math

import gin
import keras

from carbrand import checks

OPTIMIZERS = ("sgd", "adamw")


@gin.configurable("optimizer", module="carbrand")
@dataclasses.dataclass(frozen=True)
class OptimizerSpec:
    """How gradients become weights.

    Attributes:
      name: "sgd" (Nesterov momentum 0.9) or "adamw".
      learning_rate: Peak rate of the main phase.
      head_learning_rate: Peak rate while only the head is trained first (`train.run.head_epochs`).
      weight_decay: Decoupled, times the learning rate; not on BatchNorm's parameters nor on biases.
      warmup_epochs: Epochs of linear warm-up at the start of the main phase.
      clip_norm: Largest global norm of the gradient, summed over the replicas; None: no limit.
      label_smoothing: Share of each label that is spread over all brands, in [0, 1).
    """

    name: str = "sgd"
    learning_rate: float = 0.01
    head_learning_rate: float = 0.1
    weight_decay: float = 1e-4
    warmup_epochs: float = 0.0
    clip_norm: float | None = None
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        checks.choice("optimizer.name", self.name, OPTIMIZERS)
        checks.number("optimizer.learning_rate", self.learning_rate, above=0)
        checks.number("optimizer.head_learning_rate", self.head_learning_rate, above=0)
        checks.number("optimizer.weight_decay", self.weight_decay, at_least=0)
        checks.number("optimizer.warmup_epochs", self.warmup_epochs, at_least=0)
        checks.number("optimizer.label_smoothing", self.label_smoothing, at_least=0, below=1)
        if self.clip_norm is not None:
            checks.number("optimizer.clip_norm", self.clip_norm, above=0)


def build_optimizer(spec: OptimizerSpec, variables: list[keras.Variable]) -> keras.optimizers.Optimizer:
    """An optimizer with state for all of `variables`, to be applied to gradients that are summed already."""
    # The name is given, as variables are stored by their paths, and Keras would number it within a process.
    if spec.name == "sgd":
        optimizer = keras.optimizers.SGD(
            momentum=0.9, nesterov=True, weight_decay=spec.weight_decay or None, name=spec.name
        )
    else:
        optimizer = keras.optimizers.AdamW(weight_decay=spec.weight_decay, name=spec.name)
    if spec.weight_decay:
        optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    optimizer.build(variables)
    # Inside `strategy.run` Keras would sum the gradients over the replicas once more.
    optimizer._all_reduce_sum_gradients = lambda grads_and_vars: grads_and_vars
    return optimizer


def learning_rate(peak: float, step: int, num_steps: int, warmup_steps: float = 0.0) -> float:
    """Linear warm-up to `peak`, then a half cosine to 0 (Loshchilov & Hutter 2016, arXiv:1608.03983)."""
    if step < warmup_steps:
        return peak * (step + 1) / math.ceil(warmup_steps)
    progress = (step - warmup_steps) / max(1.0, num_steps - warmup_steps)
    return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
