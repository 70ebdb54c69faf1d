"""What an evaluation finds out: the one thing that all forms of the report are made from."""

import dataclasses
from collections.abc import Sequence
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from carbrand.evaluation.calibration import Calibration
from carbrand.evaluation.gate import Difference
from carbrand.evaluation.metrics import Metrics
from carbrand.evaluation.slices import Slice


class PhotoRow(TypedDict):
    """One photo of the split. `brand` is the true one; `probabilities` [C] float, in label order."""

    filename: str
    sha256: str
    group: str
    brand: str
    probabilities: Sequence[float] | NDArray[np.floating]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What is known of a model on a split.

    Attributes:
        facts: what was evaluated: JSON values by name, such as run, dataset fingerprint, split, checkpoint step.
        metrics: of the model's probabilities as they are.
        calibration: after temperature scaling.
        slices: lowest accuracy first.
        comparison: with the model before, worst first, empty where the photos are too few; None where there is none.
    """

    facts: dict[str, Any]
    metrics: Metrics
    calibration: Calibration
    slices: list[Slice]
    comparison: list[Difference] | None = None
