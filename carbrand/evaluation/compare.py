"""Several evaluations of the same photos in one table and one picture."""

import dataclasses
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from carbrand import checks, files
from carbrand.errors import DataError
from carbrand.evaluation import gate, report, text
from carbrand.evaluation.bootstrap import Interval

TABLE, PICTURE = "comparison.csv", "comparison.png"
_SHARES = (
    ("accuracy", lambda metrics: metrics["accuracy"], "accuracy"),
    ("macro F1", lambda metrics: metrics["macro"]["f1"], "macro_f1"),
)


@dataclasses.dataclass(frozen=True)
class Compared:
    """An evaluation among others.

    Attributes:
        name: of the model.
        metrics: as in its report.json.
        difference: interval of its macro F1 less that of the best one, on the same resamples; None for the best.
    """

    name: str
    metrics: dict[str, Any]
    difference: Interval | None


def run(reports: Sequence[str | os.PathLike[str]], output: str | os.PathLike[str]) -> str:
    """Writes `comparison.csv` and `comparison.png` into the folder `output`.

    Args:
        reports: folders of reports of the same records and split.
        output: made if missing.

    Returns:
        The table as text, highest macro F1 first.

    Raises:
        DataError: a report is missing, or of other photos than the first.
    """
    output = pathlib.Path(output)
    checks.folder("--output", output)
    compared = compare(reports)
    table = _table(compared)
    files.write_text(output / TABLE, files.csv_text(table))
    with files.atomic_writer(output / PICTURE) as file:
        figure(compared).savefig(file, format="png", dpi=120)
    return text.aligned(table, left=1) + "\n"


def compare(reports: Sequence[str | os.PathLike[str]]) -> list[Compared]:
    """The reports, highest macro F1 first."""
    loaded = [(report.load(folder), report.load_predictions(folder)) for folder in reports]
    first = loaded[0][0]["facts"]
    for folder, (found, _) in zip(reports, loaded, strict=True):
        for name in ("records", "split"):
            if found["facts"][name] != first[name]:
                raise DataError(
                    f"{folder}: {name} {found['facts'][name]}, not {first[name]} as in {reports[0]}. "
                    "Evaluate all models on the same records and split."
                )
    loaded.sort(key=lambda pair: -pair[0]["metrics"]["macro"]["f1"])
    brands = [row["brand"] for row in loaded[0][0]["metrics"]["per_brand"]]
    labels, groups = _labels(loaded[0][1], "brand", brands), [row["group"] for row in loaded[0][1]]
    predicted = [_labels(rows, "predicted", brands) for _, rows in loaded]
    differences = [None, *(gate.macro_f1_difference(labels, predicted[0], other, groups) for other in predicted[1:])]
    return [
        Compared(found["facts"]["model"], found["metrics"], difference)
        for (found, _), difference in zip(loaded, differences, strict=True)
    ]


def figure(compared: Sequence[Compared]) -> Figure:
    """Accuracy and macro F1 of each model, with intervals."""
    drawn = Figure(figsize=(7, 1.2 + 0.5 * len(compared)), layout="constrained")
    axes = drawn.subplots()
    for shift, (name, value, interval) in zip((-0.12, 0.12), _SHARES, strict=True):
        places = [place + shift for place in range(len(compared))]
        values = [value(row.metrics) for row in compared]
        ends = [row.metrics["intervals"][interval] for row in compared]
        errors = np.array([[v - e["low"], e["high"] - v] for v, e in zip(values, ends, strict=True)]).clip(0).T
        axes.errorbar(values, places, xerr=errors, fmt="o", capsize=3, label=name)
    axes.set_yticks(range(len(compared)), [row.name for row in compared], parse_math=False)
    axes.invert_yaxis()
    axes.set_xlabel("with 95 % intervals")
    axes.grid(axis="x", alpha=0.3)
    axes.legend()
    return drawn


def _table(compared: Sequence[Compared]) -> list[list[str]]:
    rows = [["model", "accuracy, %", "macro F1, %", "less than the best, points", "log loss", "calibration error, %"]]
    for row in compared:
        shares = []
        for _, value, interval in _SHARES:
            ends = Interval(**row.metrics["intervals"][interval])
            shares.append(text.percent(value(row.metrics)) + text.bracket(ends))
        lost = row.difference and Interval(-row.difference.high, -row.difference.low)
        error = text.percent(row.metrics["expected_calibration_error"])
        rows.append([row.name, *shares, text.ends(lost), f"{row.metrics['log_loss']:.3f}", error])
    return rows


def _labels(rows: Sequence[dict[str, str]], column: str, brands: Sequence[str]) -> np.ndarray:
    return np.array([brands.index(row[column]) for row in rows])
