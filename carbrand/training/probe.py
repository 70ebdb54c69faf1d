"""The best linear head on frozen features, by L-BFGS: features in, weights of the logits layer out, in seconds."""

import dataclasses
import logging

import numpy as np
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression

from carbrand.errors import DataError

# How little the weights are held back, for features whose centred rows have a mean square of 1; a guess.
_GRID = tuple(10.0**power for power in np.arange(-1, 4.5, 0.5))
_MAX_ITERATIONS = 1000
_TOLERANCE = 1e-6  # of the gradient; at scikit-learn's 1e-4 probabilities were off by up to 1.5 points
_NEVER = -20.0  # below the lowest bias, for a brand without training photos

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Head:
    """A linear classifier: features @ kernel + bias -> logits.

    Attributes:
      kernel: [units, C] float32.
      bias: [C] float32.
      inverse_regularization: scikit-learn's C that was chosen.
    """

    kernel: np.ndarray
    bias: np.ndarray
    inverse_regularization: float


def solve(
    train: tuple[np.ndarray, np.ndarray],
    validation: tuple[np.ndarray, np.ndarray],
    num_brands: int,
    class_weights: np.ndarray | None = None,
) -> Head:
    """The logistic regression on `train` whose regularisation has the lowest cross-entropy on `validation`.

    Args:
      train: Features [N, units] float32 and labels [N] int32.
      validation: The same of other photos.
      num_brands: C.
      class_weights: How much a photo of each brand counts, [C]; by default all alike.

    Raises:
      DataError: `train` has one brand only.
    """
    features, labels = np.asarray(train[0], np.float32), train[1]
    brands = np.unique(labels)
    if len(brands) < 2:
        raise DataError("the train split has photos of one brand only: there is nothing to tell apart. Add photos.")
    mean = features.mean(0, dtype=np.float64).astype(np.float32)
    scale = np.float32(np.sqrt(np.mean(np.sum((features - mean) ** 2, 1)))) or np.float32(1)
    rows = (features - mean) / scale
    weights = None if class_weights is None else class_weights[labels]
    # Each candidate starts from the one before, which is nearly right already.
    solver = LogisticRegression(max_iter=_MAX_ITERATIONS, tol=_TOLERANCE, warm_start=True)
    heads, losses = [], []
    for c in _GRID:
        solver.set_params(C=c).fit(rows, labels, weights)
        heads.append(_head(solver, brands, num_brands, mean, scale))
        losses.append(_loss(heads[-1], np.asarray(validation[0], np.float32), validation[1]))
    best = heads[int(np.argmin(losses))]
    log.info(
        "L-BFGS on %d photos: C=%.3g of %.3g to %.3g, validation loss %.4g",
        len(rows),
        best.inverse_regularization,
        _GRID[0],
        _GRID[-1],
        min(losses),
    )
    return best


def _head(solver: LogisticRegression, brands: np.ndarray, num_brands: int, mean: np.ndarray, scale: np.float32) -> Head:
    """The solver's weights for features as they are, with a column for each brand."""
    coefficients, intercepts = solver.coef_ / scale, solver.intercept_
    if len(brands) == 2:  # scikit-learn then has one row, the second brand's logit above the first's
        coefficients = np.concatenate([-coefficients, coefficients]) / 2
        intercepts = np.concatenate([-intercepts, intercepts]) / 2
    intercepts = intercepts - coefficients @ mean
    kernel = np.zeros([coefficients.shape[1], num_brands], np.float32)
    bias = np.full([num_brands], intercepts.min() + _NEVER, np.float32)
    kernel[:, brands], bias[brands] = coefficients.T, intercepts
    return Head(kernel, bias, float(solver.C))


def _loss(head: Head, features: np.ndarray, labels: np.ndarray) -> float:
    log_probabilities = log_softmax((features @ head.kernel + head.bias).astype(np.float64), axis=1)
    return float(-log_probabilities[np.arange(len(labels)), labels].mean())
