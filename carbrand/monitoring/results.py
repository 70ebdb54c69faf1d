"""What `monitor` finds out: the one thing that all forms of its report are made from."""

import dataclasses
from typing import Any

from carbrand.evaluation.bootstrap import Interval
from carbrand.monitoring.drift import Shift


@dataclasses.dataclass(frozen=True)
class BrandShare:
    """The share of a brand among the predictions, 0 to 1, in the reference and in the log; `photos` in the log."""

    brand: str
    before: float
    now: float
    photos: int


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """The share of predictions that are right, 0 to 1, among `photos` whose true brand is known."""

    value: float
    interval: Interval
    photos: int


@dataclasses.dataclass(frozen=True)
class Day:
    """What was answered on a day, UTC.

    Attributes:
      date: As 2026-11-30; "" where the log does not say it.
      answers: And `failures`: photos with and without a prediction, repeated ones included.
      confidence: The mean probability of the predicted brand, of photos first seen on this day; None if there are none.
      unknown: The share of these that were called unknown.
    """

    date: str
    answers: int
    failures: int
    confidence: float | None
    unknown: float | None


@dataclasses.dataclass(frozen=True)
class Monitoring:
    """What was found.

    Attributes:
      facts: What was compared: JSON values by name.
      shifts: Of each signal, largest first.
      min_shift: From which on a shift counts.
      expected_accuracy: The mean probability of the predicted brand: so many are right, while the model is calibrated.
      reference_confidence: The same in the reference.
      reference_accuracy: Of the photos of the reference, where their brands are known.
      accuracy: Of the photos in the log whose brands are given.
      brands: Largest change first.
      days: In their order.
      failures: Photos without a prediction, by reason.
    """

    facts: dict[str, Any]
    shifts: list[Shift]
    min_shift: float
    expected_accuracy: float
    reference_confidence: float
    reference_accuracy: Accuracy | None
    accuracy: Accuracy | None
    brands: list[BrandShare]
    days: list[Day]
    failures: dict[str, int]

    @property
    def answered(self) -> int:
        """Photos with a prediction, repeated ones included."""
        return sum(day.answers for day in self.days)

    @property
    def failed(self) -> int:
        """Photos without one."""
        return sum(day.failures for day in self.days)

    @property
    def told_facts(self) -> dict[str, Any]:
        """The facts that say something."""
        return {name: value for name, value in self.facts.items() if value not in (None, 0)}

    @property
    def drifted(self) -> list[Shift]:
        """The signals that have drifted, largest shift first."""
        return [shift for shift in self.shifts if shift.has_drifted]
