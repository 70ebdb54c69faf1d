"""Which photos of a prediction log a person should label."""

import numpy as np
from numpy.typing import NDArray

BY_CHANCE, UNSURE, UNKNOWN = "by chance", "unsure", "unknown"


def choose(probability: NDArray[np.floating], is_unknown: NDArray[np.bool_], number: int, seed: int) -> dict[int, str]:
    """Photos by their place in the log, and why each was chosen.

    A third by chance, whose errors are those of all photos; a third of those of which the model is least sure, which
    teach it most (Lewis and Gale 1994, arXiv:cmp-lg/9407020); a third that it calls unknown, as new brands are. Where
    there are too few of the last, there are more of the unsure ones.

    Args:
      probability: [N] of the predicted brand.
      is_unknown: [N] whether the photo was called unknown.
      number: How many to choose; if there are no more, all are, and none is harder than the others.
      seed: Of those by chance.
    """
    shuffled = np.random.default_rng(seed).permutation(len(probability))
    if number >= len(probability):
        return dict.fromkeys(shuffled.tolist(), BY_CHANCE)
    chosen = dict.fromkeys(shuffled[: -(-number // 3)].tolist(), BY_CHANCE)
    unknown = [place for place in shuffled.tolist() if is_unknown[place] and place not in chosen]
    chosen |= dict.fromkeys(unknown[: number // 3], UNKNOWN)
    unsure = [place for place in np.argsort(probability, kind="stable").tolist() if place not in chosen]
    return chosen | dict.fromkeys(unsure[: max(0, number - len(chosen))], UNSURE)
