"""What temperature scaling makes of a model's probabilities on the evaluated photos."""

import dataclasses

import numpy as np
from numpy.typing import NDArray

from carbrand.evaluation import metrics, weighted
from carbrand.training import temperature as scaling

_NUM_DRAWS = 1000


@dataclasses.dataclass(frozen=True)
class Calibration:
    """The numbers of `metrics.Metrics` that change once logits are divided by `temperature`.

    Attributes:
        temperature: fitted on the validation split; above 1 where the model is too sure of itself.
        error_by_chance: the mean calibration error that chance alone makes on so many photos, if each of the scaled
            confidences is exact.
    """

    temperature: float
    log_loss: float
    brier_score: float
    expected_calibration_error: float
    error_by_chance: float
    reliability: list[metrics.ReliabilityBin]


def compute(labels: NDArray[np.integer], logits: NDArray[np.floating], temperature: float) -> Calibration:
    """The calibration of `logits` [N, C] for `labels` [N] after scaling."""
    scaled = scaling.probabilities(logits, temperature)
    values = metrics.confidence_numbers(labels, scaled, np.ones((len(labels), 1)))
    return Calibration(
        temperature=temperature,
        **{name: float(value[0]) for name, value in values.items()},
        error_by_chance=_error_by_chance(scaled.max(axis=1)),
        reliability=metrics.reliability(labels, scaled),
    )


def _error_by_chance(confidence: NDArray[np.floating]) -> float:
    bins = weighted.calibration_bins(confidence, np.ones((len(confidence), 1)))
    is_in_bin = (bins == np.unique(bins)).astype(np.float64)  # [N, bins]
    is_correct = np.random.default_rng(0).random((_NUM_DRAWS, len(confidence))) < confidence
    return float(np.abs((is_correct - confidence) @ is_in_bin).sum(axis=1).mean() / len(confidence))
