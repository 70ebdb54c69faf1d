"""What a split's evaluation looks like on disk: metrics and per-photo predictions in, one folder out.

report.txt             for the terminal: headline numbers, every brand, the most confused pairs
predictions.csv        one row per photo
confusion_matrix.png   who is taken for whom
confusion_matrix.txt   the same in numbers
report.json            everything but the predictions; written last, so its presence marks a complete report
"""

import codecs
import csv
import dataclasses
import json
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypedDict

import matplotlib
import matplotlib.colors
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from carbrand import files
from carbrand.errors import DataError
from carbrand.evaluation.metrics import Average, BrandMetrics, Metrics

FORMAT_VERSION = 1
NUM_CONFUSED_PAIRS = 10
MAX_BRANDS_WITH_COUNTS = 25  # in the picture; more would not fit into the cells
MAX_NAME_CHARACTERS = 24  # in the picture


class PhotoRow(TypedDict):
    """One photo of the split. `brand` is the true one; `probabilities` [C] float, in label order."""

    filename: str
    sha256: str
    brand: str
    probabilities: Sequence[float] | NDArray[np.floating]


def write(
    folder: str | os.PathLike[str], *, metrics: Metrics, rows: Iterable[PhotoRow], facts: Mapping[str, Any]
) -> None:
    """Writes a report into `folder`, over an older one if there is one.

    Args:
        folder: made if missing.
        metrics: of the same photos as `rows`.
        rows: the photos, in the order wanted in predictions.csv.
        facts: what was evaluated: JSON values by name, such as run, dataset fingerprint, split, checkpoint step.
    """
    folder = pathlib.Path(folder)
    (folder / "report.json").unlink(missing_ok=True)
    files.write_text(folder / "report.txt", text(metrics, facts))
    _write_predictions(folder / "predictions.csv", rows, [row.brand for row in metrics.per_brand])
    files.write_text(folder / "confusion_matrix.txt", confusion_text(metrics))
    with files.atomic_writer(folder / "confusion_matrix.png") as file:
        confusion_figure(metrics).savefig(file, format="png", bbox_inches="tight")
    report = {"format_version": FORMAT_VERSION, "facts": dict(facts), "metrics": dataclasses.asdict(metrics)}
    files.write_json(folder / "report.json", report)


def load(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads report.json: {"format_version", "facts", "metrics"}, metrics as `dataclasses.asdict` gives them.

    Raises:
        DataError: there is no complete report in `folder`, or it has another format version.
    """
    path = pathlib.Path(folder) / "report.json"
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"{path}: not there, so {folder} holds no complete report. Run `carbrand evaluate`.") from None
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error}). Run `carbrand evaluate` again.") from None
    version = report.get("format_version") if isinstance(report, dict) else None
    if version != FORMAT_VERSION:
        raise DataError(
            f"{path}: format version {version}, not {FORMAT_VERSION}. Run this version's `carbrand evaluate`."
        )
    return report


def text(metrics: Metrics, facts: Mapping[str, Any]) -> str:
    """The report for a terminal; ends with a newline. Brands stand worst F1 first, those without examples last."""
    sections = [
        _aligned([[name, str(value)] for name, value in facts.items()], left=2),
        _aligned(_headline(metrics), left=2),
        "Brands, worst F1 first, in %\n" + _aligned(_brand_table(metrics), left=1),
        _confused_section(metrics),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def confused_pairs(metrics: Metrics) -> list[tuple[str, str, int]]:
    """(true brand, predicted brand, photos), most photos first, then in label order; only pairs that occur."""
    brands = [row.brand for row in metrics.per_brand]
    pairs = [
        (brands[true], brands[predicted], count)
        for true, row in enumerate(metrics.confusion_matrix)
        for predicted, count in enumerate(row)
        if count and true != predicted
    ]
    return sorted(pairs, key=lambda pair: -pair[2])


def confusion_text(metrics: Metrics) -> str:
    """The confusion matrix in columns: a row per true brand, a column per predicted one; ends with a newline."""
    brands = [row.brand for row in metrics.per_brand]
    rows = [[brand, *map(str, counts)] for brand, counts in zip(brands, metrics.confusion_matrix, strict=True)]
    return _aligned([["true \\ predicted", *brands], *rows], left=1) + "\n"


def confusion_figure(metrics: Metrics) -> Figure:
    """Draws the confusion matrix: colours are shares of each true brand; up to 25 brands, counts stand in the cells.

    The figure belongs to no pyplot state, so it needs no display and no closing.
    """
    counts = np.array(metrics.confusion_matrix)
    has_counts = len(counts) <= MAX_BRANDS_WITH_COUNTS
    side_inches = max(2.5 + len(counts) * (0.45 if has_counts else 0.17), 5)
    figure = Figure(figsize=(side_inches, side_inches), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    _draw_shares(axes, counts, color_bar_share=min(3.5 / side_inches, 0.7))
    _label_axes(axes, [row.brand for row in metrics.per_brand], font_points=9 if has_counts else 7)
    axes.set_title(_title(metrics))
    if has_counts:
        _write_counts(axes, counts)
    return figure


def _write_predictions(path: pathlib.Path, rows: Iterable[PhotoRow], brands: Sequence[str]) -> None:
    with files.atomic_writer(path) as file:
        writer = csv.writer(codecs.getwriter("utf-8")(file), lineterminator="\n")
        writer.writerow(
            ["filename", "sha256", "brand", "predicted", "probability", "correct"]
            + [f"probability_{brand}" for brand in brands]
        )
        writer.writerows(_prediction(row, brands) for row in rows)


def _prediction(row: PhotoRow, brands: Sequence[str]) -> list[str]:
    best = int(np.argmax(row["probabilities"]))
    predicted = brands[best]
    # Nine significant digits give every float32 back unchanged.
    probabilities = [f"{probability:.9g}" for probability in row["probabilities"]]
    is_correct = "true" if predicted == row["brand"] else "false"
    return [row["filename"], row["sha256"], row["brand"], predicted, probabilities[best], is_correct, *probabilities]


def _headline(metrics: Metrics) -> list[list[str]]:
    low, high = metrics.accuracy_interval.low, metrics.accuracy_interval.high
    return [
        ["photos", str(metrics.examples)],
        ["accuracy", f"{_percent(metrics.accuracy)} %  (95 % interval {_percent(low)} to {_percent(high)} %)"],
        *(
            [f"{name.replace('_', '-')} accuracy", f"{_percent(value)} %"]
            for name, value in metrics.top_k_accuracy.items()
            if name != "top_1"
        ),
        ["log loss", f"{metrics.log_loss:.4f} nats"],
        ["calibration error", f"{_percent(metrics.expected_calibration_error)} %"],
    ]


def _brand_table(metrics: Metrics) -> list[list[str]]:
    rows = sorted(metrics.per_brand, key=lambda row: (row.f1 is None, row.f1 or 0.0, row.brand))
    return [
        ["brand", "photos", "precision", "recall", "F1"],
        *([row.brand, str(row.support), *_scores(row)] for row in rows),
        ["(macro mean)", "", *_scores(metrics.macro)],
        ["(micro mean)", "", *_scores(metrics.micro)],
        ["(weighted mean)", "", *_scores(metrics.weighted)],
    ]


def _confused_section(metrics: Metrics) -> str:
    pairs = confused_pairs(metrics)
    if not pairs:
        return "No photo was taken for another brand."
    support = {row.brand: row.support for row in metrics.per_brand}
    table = [["true brand", "predicted", "photos", "% of true"]]
    for true, predicted, count in pairs[:NUM_CONFUSED_PAIRS]:
        table.append([true, predicted, str(count), _percent(count / support[true])])
    return f"Most confused, {len(table) - 1} of {len(pairs)} pairs\n" + _aligned(table, left=2)


def _scores(of: BrandMetrics | Average) -> list[str]:
    return ["-" if score is None else _percent(score) for score in (of.precision, of.recall, of.f1)]


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _aligned(table: Sequence[Sequence[str]], left: int) -> str:
    """Columns two spaces apart; the first `left` flush left, the others flush right."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    )


def _title(metrics: Metrics) -> str:
    title = f"{metrics.examples} photos, accuracy {_percent(metrics.accuracy)} %"
    return title + ("\ngrey: no photos of the brand" if metrics.brands_without_examples else "")


def _draw_shares(axes: Axes, counts: NDArray[np.integer], color_bar_share: float) -> None:
    # Darker is more at any colour vision. The square root lifts rare confusions out of the white.
    colors = matplotlib.colormaps["Blues"].with_extremes(bad="0.85")
    image = axes.imshow(_shares(counts), cmap=colors, norm=matplotlib.colors.PowerNorm(0.5, 0, 1))
    label = "share of the true brand's photos"
    axes.figure.colorbar(image, ax=axes, label=label, shrink=color_bar_share, aspect=25, pad=0.02)


def _shares(counts: NDArray[np.integer]) -> np.ma.MaskedArray:
    """Each row's counts over their sum, [C, C] in [0, 1]; rows without photos masked."""
    support = np.broadcast_to(counts.sum(axis=1, keepdims=True), counts.shape)
    return np.ma.masked_where(support == 0, counts / np.maximum(support, 1))


def _label_axes(axes: Axes, brands: Sequence[str], font_points: int) -> None:
    names = [brand if len(brand) <= MAX_NAME_CHARACTERS else brand[: MAX_NAME_CHARACTERS - 1] + "…" for brand in brands]
    # parse_math: a "$" in a name is no formula.
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=font_points, parse_math=False)
    axes.set_yticks(range(len(names)), names, fontsize=font_points, parse_math=False)
    axes.set_xlabel("predicted brand")
    axes.set_ylabel("true brand")
    # Lines between the cells lead the eye from a cell to its names.
    borders = np.arange(len(names) + 1) - 0.5
    axes.set_xticks(borders, minor=True)
    axes.set_yticks(borders, minor=True)
    axes.grid(which="minor", color="0.88", linewidth=0.5)
    axes.tick_params(which="minor", length=0)
    has_far_ends = len(names) > MAX_BRANDS_WITH_COUNTS
    axes.tick_params(labeltop=has_far_ends, labelright=has_far_ends)


def _write_counts(axes: Axes, counts: NDArray[np.integer]) -> None:
    shares = _shares(counts)
    for true, predicted in zip(*np.nonzero(counts), strict=True):
        color = "white" if shares[true, predicted] > 0.3 else "black"  # past the middle of the square-root scale
        label = str(counts[true, predicted])
        axes.text(predicted, true, label, ha="center", va="center", color=color, fontsize=8)
