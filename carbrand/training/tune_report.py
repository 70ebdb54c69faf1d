"""What a study has found so far: its trials as a table, CSV and picture, and the best one as a recipe."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from carbrand import files
from carbrand.training.search_space import Parameter

BEST = "best.gin"
CSV = "trials.csv"
PICTURE = "study.png"
NUM_SHOWN = 5
_COLUMNS = 3  # of the picture


@dataclasses.dataclass(frozen=True)
class TrialRow:
    """A trial that ended.

    Attributes:
      number: Also the name of its folder.
      state: "complete", "pruned" or "failed".
      loss: Of its last validation.
      accuracy: Of its last validation, 0 to 1.
      validations: How many it had.
      seconds: How long it took since it was last started.
      values: By parameter; of a choice, as gin reads them.
      reason: Why it failed.
    """

    number: int
    state: str
    loss: float | None
    accuracy: float | None
    validations: int
    seconds: float | None
    values: dict[str, Any]
    reason: str

    def value(self, metric: str) -> float | None:
        """The loss or the accuracy."""
        return self.loss if metric == "loss" else self.accuracy


def ranked(rows: Sequence[TrialRow], metric: str) -> list[TrialRow]:
    """The complete trials, best first; of equal ones, the earlier."""
    sign = 1 if metric == "loss" else -1
    complete = [
        (sign * value, row) for row in rows if row.state == "complete" and (value := row.value(metric)) is not None
    ]
    return [row for _, row in sorted(complete, key=lambda pair: (pair[0], pair[1].number))]


def best(rows: Sequence[TrialRow], metric: str) -> TrialRow | None:
    """The best complete trial, if there is one."""
    return next(iter(ranked(rows, metric)), None)


def figures(loss: float | None, accuracy: float | None) -> str:
    """A validation in words; a figure that is not finite is None."""
    parts = [
        "loss -" if loss is None else f"loss {loss:.4g}",
        "accuracy -" if accuracy is None else f"accuracy {accuracy:.1%}",
    ]
    return ", ".join(parts)


def best_gin(recipe: str, row: TrialRow, bindings: Sequence[str]) -> str:
    """A recipe that repeats a trial."""
    what = f"trial {row.number}: validation {figures(row.loss, row.accuracy)}"
    return f"{recipe}\n# Found by `carbrand tune`, {what}. These win over the above.\n" + "\n".join(bindings) + "\n"


def csv_text(rows: Sequence[TrialRow]) -> str:
    """One line a trial, in the order given, and one column a parameter."""
    names = list(dict.fromkeys(name for row in rows for name in row.values))
    table: list[list[object]] = [["trial", "state", "loss", "accuracy", "validations", "seconds", *names, "reason"]]
    for row in rows:
        facts = [row.number, row.state, row.loss, row.accuracy, row.validations, row.seconds]
        table.append([*facts, *(row.values.get(name) for name in names), row.reason])
    return files.csv_text(table)


def table(rows: Sequence[TrialRow], metric: str) -> str:
    """The best trials, and how many of each kind there are."""
    shown = ranked(rows, metric)[:NUM_SHOWN]
    names = list(shown[0].values) if shown else []
    lines = [["trial", "loss", "accuracy", *names]]
    lines += [
        [str(row.number), f"{row.loss:.4f}", f"{row.accuracy:.1%}", *(_short(row.values[name]) for name in names)]
        for row in shown
    ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = "".join("  ".join(map(str.rjust, line, widths)) + "\n" for line in lines)
    counts = {state: sum(row.state == state for row in rows) for state in ("complete", "pruned", "failed")}
    return text + ", ".join(f"{number} {state}" for state, number in counts.items()) + "\n"


def draw(
    path: pathlib.Path,
    rows: Sequence[TrialRow],
    parameters: Sequence[Parameter],
    importances: Mapping[str, float],
    metric: str,
) -> None:
    """Writes a picture: the metric by trial, by each parameter, and the importance of each if there are any."""
    num_panels = 1 + len(parameters) + bool(importances)
    columns = min(_COLUMNS, num_panels)
    lines = -(-num_panels // columns)
    figure = Figure(figsize=(4.2 * columns, 3.2 * lines), layout="constrained")
    panels = list(figure.subplots(lines, columns, squeeze=False).flat)
    _draw_history(panels[0], rows, metric)
    for panel, parameter in zip(panels[1:], parameters, strict=False):
        _draw_slice(panel, rows, parameter, metric)
    values = [value for row in rows if (value := row.value(metric)) is not None]
    if metric == "loss" and values and max(values) > 10 * min(values) > 0:  # one that diverged would hide all others
        for panel in panels[: 1 + len(parameters)]:
            panel.set_yscale("log")
    if importances:
        _draw_importances(panels[num_panels - 1], importances)
    for panel in panels[num_panels:]:
        panel.set_axis_off()
    with files.atomic_writer(path) as file:
        figure.savefig(file, format="png", dpi=120)


def _draw_history(panel: Axes, rows: Sequence[TrialRow], metric: str) -> None:
    _draw_points(panel, rows, metric, [row.number for row in rows])
    bests = [(row.number, best(rows[: i + 1], metric)) for i, row in enumerate(rows)]
    line = [(number, value) for number, row in bests if row is not None and (value := row.value(metric)) is not None]
    panel.plot([n for n, _ in line], [v for _, v in line], drawstyle="steps-post", color="C1", label="best so far")
    panel.set_xlabel("trial")
    panel.set_ylabel(f"validation {metric}")
    panel.legend(fontsize=7)


def _draw_slice(panel: Axes, rows: Sequence[TrialRow], parameter: Parameter, metric: str) -> None:
    rows = [row for row in rows if parameter.name in row.values]
    values = [row.values[parameter.name] for row in rows]
    if parameter.kind == "choice":
        _draw_points(panel, rows, metric, [parameter.values.index(value) for value in values])
        panel.set_xticks(range(len(parameter.values)), parameter.values, parse_math=False)
    else:
        _draw_points(panel, rows, metric, values)
        if parameter.kind == "log":
            low, high = parameter.values
            panel.set_xlim(low / 1.1, high * 1.1)  # where no trial has a value, there would be none
            panel.set_xscale("log")
    panel.set_xlabel(parameter.name)


def _draw_points(panel: Axes, rows: Sequence[TrialRow], metric: str, places: Sequence[float]) -> None:
    for state, fill, edge in (("complete", "C0", "C0"), ("pruned", "none", "0.6")):
        points = [
            (place, value)
            for place, row in zip(places, rows, strict=True)
            if row.state == state and (value := row.value(metric)) is not None
        ]
        panel.scatter(
            [x for x, _ in points], [y for _, y in points], s=16, label=state, facecolors=fill, edgecolors=edge
        )


def _draw_importances(panel: Axes, importances: Mapping[str, float]) -> None:
    names = list(importances)[::-1]
    panel.barh(range(len(names)), [importances[name] for name in names], color="C0")
    panel.set_yticks(range(len(names)), names, fontsize=7, parse_math=False)
    panel.set_xlabel("importance")


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
