"""Which photos of a dataset have a label that the others contradict: features and labels in, a score for each out.

Each photo is judged by a linear classifier that has not seen it, nor its group, as in confident learning (Northcutt et
al. 2021, arXiv:1911.00068). They are ranked and not sorted out: with features that tell 20 brands apart in half of the
cases, the thresholds of confident learning suspect a third of all photos where one in twenty has a wrong label
(`tests/benchmarks/wrong_labels.py`). The features themselves have to come from a backbone that did not learn these
labels, such as a frozen one: one that was trained on a wrong label may show its photo as that label says.
"""

import warnings

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold

_FOLDS = 5
NEEDED = f"Two brands with two groups of photos or more are needed, and one with {_FOLDS} photos."
_C = 10.0  # for centred features with a mean square of 1; of 1, 10, 100 and 1,000 the best log loss on real photos
_MAX_ITERATIONS = 1000


def are_enough(labels: NDArray[np.integer], groups: NDArray) -> bool:
    """Whether photos with these labels [N] int and groups [N] can judge one another, as `NEEDED` says."""
    groups_of = [len(np.unique(groups[labels == brand])) for brand in np.unique(labels)]
    return (
        sum(count >= 2 for count in groups_of) >= 2
        and len(np.unique(groups)) >= _FOLDS
        and int(np.bincount(labels).max()) >= _FOLDS
    )


def probabilities(features: NDArray[np.floating], labels: NDArray[np.integer], groups: NDArray) -> NDArray[np.floating]:
    """What the other groups say of each photo: the probability of every brand, [N, C], C the number of `labels`.

    NaN for photos of whose brand there is no other group: nothing can be said of them.

    Args:
      features: [N, F].
      labels: [N] int, from 0 on, each at least once.
      groups: [N] which photos belong together; see `are_enough`.
    """
    centred = features - features.mean(axis=0)
    rows = centred / max(np.sqrt((centred**2).sum(axis=1).mean()), 1e-12)
    folds = StratifiedGroupKFold(_FOLDS, shuffle=True, random_state=0)
    found = np.zeros((len(labels), labels.max() + 1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.simplefilter("ignore", UserWarning)  # of brands with fewer photos than folds
        for others, judged in folds.split(rows, labels, groups):
            classifier = LogisticRegression(C=_C, max_iter=_MAX_ITERATIONS).fit(rows[others], labels[others])
            found[np.ix_(judged, classifier.classes_)] = classifier.predict_proba(rows[judged])
            found[judged[~np.isin(labels[judged], labels[others])]] = np.nan
    return found


def margins(found: NDArray[np.floating], labels: NDArray[np.integer]) -> NDArray[np.floating]:
    """By how much the label of each photo is more probable than the best other brand, [N], -1 to 1; or NaN.

    Args:
      found: `probabilities`, [N, C].
      labels: [N] int.
    """
    photos = np.arange(len(labels))
    others = found.copy()
    others[photos, labels] = -1
    return found[photos, labels] - others.max(axis=1)
