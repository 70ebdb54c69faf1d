"""One number that makes a classifier's confidence honest: its logits are divided by it, which changes no decision.

Temperature scaling (Guo et al. 2017, arXiv:1706.04599, 4.2).
"""

import numpy as np
import scipy.optimize
import scipy.special
from numpy.typing import ArrayLike, NDArray

LIMITS = (0.05, 20.0)  # beyond these the network is broken


def fit(labels: ArrayLike, logits: ArrayLike) -> float:
    """The temperature that gives `logits` [N, C] the lowest mean cross-entropy; 1 where they are not all finite.

    They are best those of photos that the network was not trained on. Where all are right, each lower temperature has a
    lower loss, which says nothing of how sure the network may be: the temperature is 1 then, too.
    """
    labels, logits = np.asarray(labels), np.asarray(logits, np.float64)
    if not np.isfinite(logits).all() or (logits.argmax(axis=1) == labels).all():
        return 1.0

    def loss(inverse: float) -> float:  # convex
        scaled = logits * inverse
        return float((scipy.special.logsumexp(scaled, axis=1) - scaled[np.arange(len(labels)), labels]).mean())

    low, high = LIMITS
    return float(1 / scipy.optimize.minimize_scalar(loss, bounds=(1 / high, 1 / low), method="bounded").x)


def probabilities(logits: ArrayLike, temperature: float = 1.0) -> NDArray[np.floating]:
    """Of `logits` [N, C] divided by `temperature`; float64."""
    return scipy.special.softmax(np.asarray(logits, np.float64) / temperature, axis=1)
