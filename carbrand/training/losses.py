"""The training loss, from targets [B, C] that may be mixed, and how much each brand counts. Evaluation uses neither."""

import dataclasses
from collections.abc import Sequence

import gin
import numpy as np
import tensorflow as tf

from carbrand import checks

LOSSES = ("cross_entropy", "focal", "logit_adjusted")
CLASS_WEIGHTS = {"none": 0.0, "sqrt": 0.5, "inverse": 1.0}  # a brand's weight falls with its photos to this power


@gin.configurable("loss", module="carbrand")
@dataclasses.dataclass(frozen=True)
class Loss:
    """What training makes small. Validation always reports the plain cross-entropy.

    Attributes:
      name: "cross_entropy"; "focal", which counts photos that are right already less (Lin et al. 2017,
        arXiv:1708.02002); or "logit_adjusted", which asks for larger margins for rare brands, so that all brands
        become equally likely before the photo is looked at (Menon et al. 2021, arXiv:2007.07314).
      gamma: Of "focal": the loss of a brand of probability p is multiplied by (1 - p) ** gamma; 0: cross-entropy.
      tau: Of "logit_adjusted": share of the brands' log priors, those of the training split, that is added.
      class_weights: "none", "inverse" or "sqrt": photos of a brand with n training photos count by 1/n or 1/sqrt(n).
        The mean weight of a training photo is 1; a batch's loss is the weighted sum over the sum of its weights.
    """

    name: str = "cross_entropy"
    gamma: float = 2.0  # Lin et al., table 1b
    tau: float = 1.0  # Menon et al., 4.1: consistent for the balanced error
    class_weights: str = "none"

    def __post_init__(self) -> None:
        checks.choice("loss.name", self.name, LOSSES)
        checks.number("loss.gamma", self.gamma, at_least=0)
        checks.number("loss.tau", self.tau, at_least=0)
        checks.choice("loss.class_weights", self.class_weights, tuple(CLASS_WEIGHTS))


@dataclasses.dataclass(frozen=True)
class Objective:
    """A loss with the numbers of a training split.

    Attributes:
      offsets: Added to the logits in training, [C] float32; or None.
      weights: Of the brands, [C] float32; or None.
      gamma: Of the focal loss; 0: none.
    """

    offsets: np.ndarray | None = None
    weights: np.ndarray | None = None
    gamma: float = 0.0

    def adjust(self, logits: tf.Tensor) -> tf.Tensor:
        """Logits [B, C] -> what the loss is computed from, the same shape."""
        return logits if self.offsets is None else tf.cast(logits, tf.float32) + self.offsets

    def photo_weights(self, targets: tf.Tensor) -> tf.Tensor:
        """Targets [B, C] float32 -> how much each photo counts, [B] float32."""
        return tf.ones_like(targets[:, 0]) if self.weights is None else tf.linalg.matvec(targets, self.weights)


def make_objective(loss: Loss, brand_counts: Sequence[int]) -> Objective:
    """`loss` for a training split with so many photos of each brand."""
    return Objective(
        offsets=loss.tau * log_priors(brand_counts) if loss.name == "logit_adjusted" else None,
        weights=None if loss.class_weights == "none" else class_weights(brand_counts, loss.class_weights),
        gamma=loss.gamma if loss.name == "focal" else 0.0,
    )


def log_priors(brand_counts: Sequence[int]) -> np.ndarray:
    """Logarithm of each brand's share of the photos, [C] float32; a brand without photos counts as if it had one."""
    counts = np.maximum(brand_counts, 1)
    return np.log(counts / counts.sum()).astype(np.float32)


def class_weights(brand_counts: Sequence[int], kind: str) -> np.ndarray:
    """Weight of each brand's photos, [C] float32; the mean over the photos is 1. `kind`: see `Loss.class_weights`."""
    counts = np.asarray(brand_counts, float)
    weights = np.maximum(counts, 1) ** -CLASS_WEIGHTS[kind]
    return (weights * counts.sum() / (weights * counts).sum()).astype(np.float32)


def cross_entropy(targets: tf.Tensor, logits: tf.Tensor, label_smoothing: float = 0.0, gamma: float = 0.0) -> tf.Tensor:
    """Targets [B, C] float32, each row a distribution, and logits [B, C] -> loss per photo [B] float32.

    With `gamma`, the focal loss: each brand's share of the cross-entropy times (1 - its probability) ** gamma.
    """
    targets = targets * (1 - label_smoothing) + label_smoothing / logits.shape[-1]
    logits = tf.cast(logits, tf.float32)
    if not gamma:
        return tf.nn.softmax_cross_entropy_with_logits(targets, logits)
    log_probabilities = tf.nn.log_softmax(logits)
    # 1 - p, but never 0, where a power below 1 would have no finite slope.
    rest = tf.maximum(-tf.math.expm1(log_probabilities), 1e-7)
    return -tf.reduce_sum(targets * rest**gamma * log_probabilities, -1)
