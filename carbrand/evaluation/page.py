"""An evaluation as one HTML file that needs no network: numbers, curves, confusions, and the photos behind them."""

import dataclasses
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from carbrand import files, templates
from carbrand.data import catalogue, images
from carbrand.evaluation import confusion, gate
from carbrand.evaluation.metrics import ReliabilityBin
from carbrand.evaluation.results import Evaluation

NUM_PAIRS = 20
NUM_PHOTOS_OF_PAIR = 4
NUM_ERRORS = 24
MAX_BRANDS_IN_MATRIX = 100  # those with the most errors; a browser is slow with more cells
THUMBNAIL_PX = 160
_METRICS, _CONFIG = "metrics.jsonl", "config.gin"  # of a run


class Pictures(Protocol):
    """The evaluated photos, by their number in the split."""

    def photo(self, number: int) -> bytes:
        """A JPEG."""

    def heat(self, numbers: list[int], labels: list[int]) -> list[bytes]:
        """JPEGs with what speaks for the brand of each label."""


@dataclasses.dataclass(frozen=True)
class Shown:
    """A photo: data URI, file name, and what the model says; `heat` is a data URI too, or ""."""

    picture: str
    name: str
    brand: str
    predicted: str
    probability: float
    heat: str = ""


@dataclasses.dataclass(frozen=True)
class Pair:
    """Photos of `brand` that are taken for `predicted`, some of which are shown."""

    brand: str
    predicted: str
    count: int
    share: float
    photos: list[Shown]


def render(
    evaluation: Evaluation,
    labels: NDArray[np.integer],
    probabilities: NDArray[np.floating],
    photos: Sequence[catalogue.Row],
    *,
    run: pathlib.Path,
    pictures: Pictures,
) -> str:
    """The page; equal for equal evaluations.

    Args:
        evaluation: what was found.
        labels: [N] int, the true brands.
        probabilities: [N, C] float.
        photos: N rows of the catalogue.
        run: the evaluated folder, of which metrics.jsonl and config.gin are shown where they are.
        pictures: of these photos.
    """
    predictions = _Predictions(evaluation, labels, probabilities, photos, pictures)
    config = run / _CONFIG
    filters = {
        "percent": lambda share: "–" if share is None else f"{100 * share:.1f}",
        "points": lambda share: f"{100 * share:+.1f}",
    }
    return templates.load("carbrand.evaluation", "report.html", filters).render(
        evaluation=evaluation,
        metrics=evaluation.metrics,
        calibration=evaluation.calibration,
        too_few=gate.TOO_FEW,
        worse=[row for row in evaluation.comparison or [] if row.is_worse],
        matrix=_matrix(evaluation),
        pairs=predictions.pairs(),
        errors=predictions.errors(),
        num_errors=int((probabilities.argmax(axis=1) != labels).sum()),
        curves=templates.svg(_curves(list(files.read_log(run / _METRICS)))),
        reliability=templates.svg(_reliability(evaluation)),
        config=config.read_text(encoding="utf-8") if config.is_file() else "",
    )


class _Predictions:
    """The photos behind the numbers."""

    def __init__(
        self,
        evaluation: Evaluation,
        labels: NDArray[np.integer],
        probabilities: NDArray[np.floating],
        photos: Sequence[catalogue.Row],
        pictures: Pictures,
    ) -> None:
        self._metrics = evaluation.metrics
        self._brands = [row.brand for row in evaluation.metrics.per_brand]
        self._labels, self._photos, self._pictures = labels, photos, pictures
        self._predicted, self._confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)

    def pairs(self) -> list[Pair]:
        """The pairs of brands with the most errors, each with its most confident ones."""
        support = {row.brand: row.support for row in self._metrics.per_brand}
        found = []
        for brand, predicted, count in confusion.pairs(self._metrics)[:NUM_PAIRS]:
            is_pair = self._labels == self._brands.index(brand)
            is_pair &= self._predicted == self._brands.index(predicted)
            shown = [self._shown(number) for number in self._surest(np.flatnonzero(is_pair))[:NUM_PHOTOS_OF_PAIR]]
            found.append(Pair(brand, predicted, count, count / support[brand], shown))
        return found

    def errors(self) -> list[Shown]:
        """The errors of which the model is most sure, with what it saw."""
        numbers = self._surest(np.flatnonzero(self._predicted != self._labels))[:NUM_ERRORS]
        heats = self._pictures.heat(numbers, [int(self._predicted[number]) for number in numbers])
        shown = [self._shown(number) for number in numbers]
        return [
            dataclasses.replace(photo, heat=templates.data_uri(heat)) for photo, heat in zip(shown, heats, strict=True)
        ]

    def _surest(self, numbers: NDArray[np.integer]) -> list[int]:
        return numbers[np.argsort(-self._confidence[numbers], kind="stable")].tolist()

    def _shown(self, number: int) -> Shown:
        return Shown(
            templates.data_uri(images.preview(self._pictures.photo(number), THUMBNAIL_PX)),
            self._photos[number].name,
            self._brands[self._labels[number]],
            self._brands[self._predicted[number]],
            float(self._confidence[number]),
        )


def _matrix(evaluation: Evaluation) -> dict[str, Any]:
    """Names, counts and F1 of the brands in the confusion matrix, all in label order."""
    counts = np.array(evaluation.metrics.confusion_matrix)
    rows = evaluation.metrics.per_brand
    errors = counts.sum(axis=0) + counts.sum(axis=1) - 2 * counts.diagonal()
    kept = np.sort(np.argsort(-errors, kind="stable")[:MAX_BRANDS_IN_MATRIX])
    return {
        "brands": [rows[label].brand for label in kept],
        "f1": [rows[label].f1 for label in kept],
        "support": [rows[label].support for label in kept],
        "counts": counts[np.ix_(kept, kept)].tolist(),
        "is_part": len(kept) < len(rows),
    }


def _curves(rows: Sequence[dict[str, Any]]) -> Figure | None:
    """Loss and accuracy over the steps; None where nothing was logged."""
    if not rows:
        return None
    figure = Figure(figsize=(9, 3), layout="constrained")
    for axes, name in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        for split, style in (("train", "-"), ("validation", ".-")):
            points = [(row["step"], row[name]) for row in rows if row["split"] == split and row.get(name) is not None]
            if points:
                axes.plot(*zip(*points, strict=True), style, label=split)
        axes.set(title=name, xlabel="step")
        axes.grid(alpha=0.3)
        axes.legend()
    return figure


def _reliability(evaluation: Evaluation) -> Figure:
    figure = Figure(figsize=(4.6, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="0.6", linestyle="--", linewidth=1)
    temperature = f"scaled, temperature {evaluation.calibration.temperature:.2f}"
    for bins, name in (
        (evaluation.metrics.reliability, "as trained"),
        (evaluation.calibration.reliability, temperature),
    ):
        axes.plot(*_points(bins), "o-", label=name, markersize=4)
    axes.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left")
    return figure


def _points(bins: Iterable[ReliabilityBin]) -> tuple[list[float], list[float]]:
    found = list(bins)
    return [row.confidence for row in found], [row.accuracy for row in found]
