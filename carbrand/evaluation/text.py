"""An evaluation as text for a terminal."""

from collections.abc import Sequence

from carbrand.evaluation import confusion, gate
from carbrand.evaluation.bootstrap import Interval
from carbrand.evaluation.calibration import Calibration
from carbrand.evaluation.gate import Difference
from carbrand.evaluation.metrics import Average, BrandMetrics, Metrics
from carbrand.evaluation.results import Evaluation
from carbrand.evaluation.slices import Slice

NUM_CONFUSED_PAIRS = 10
NUM_SLICES = 10
NUM_DIFFERENCES = 10


def render(evaluation: Evaluation) -> str:
    """The report for a terminal; ends with a newline. Brands stand worst F1 first, those without examples last."""
    metrics = evaluation.metrics
    sections = [
        aligned([[name, str(value)] for name, value in evaluation.facts.items() if value is not None], left=2),
        aligned(_headline(metrics, evaluation.calibration), left=2) + "\n(in brackets: 95 % intervals)",
        "Brands, worst F1 first, in %\n" + aligned(_brand_table(metrics), left=1),
        _confused_section(metrics),
        _slices_section(evaluation.slices),
        _comparison_section(evaluation.comparison),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def confusion_matrix(metrics: Metrics) -> str:
    """The confusion matrix in columns: a row per true brand, a column per predicted one; ends with a newline."""
    brands = [row.brand for row in metrics.per_brand]
    rows = [[brand, *map(str, counts)] for brand, counts in zip(brands, metrics.confusion_matrix, strict=True)]
    return aligned([["true \\ predicted", *brands], *rows], left=1) + "\n"


def _headline(metrics: Metrics, calibration: Calibration) -> list[list[str]]:
    top_k = [(f"{name.replace('_', '-')} accuracy", name, value) for name, value in metrics.top_k_accuracy.items()]
    shares = [("accuracy", "accuracy", metrics.accuracy), *top_k[1:], ("macro F1", "macro_f1", metrics.macro.f1)]
    rows = [[title, f"{percent(value)} %" + bracket(metrics.intervals.get(name))] for title, name, value in shares]
    error = percent(metrics.expected_calibration_error)
    interval = bracket(metrics.intervals.get("expected_calibration_error"))
    scaled, by_chance = percent(calibration.expected_calibration_error), percent(calibration.error_by_chance)
    return [
        ["photos", f"{metrics.examples} in {metrics.groups} groups"],
        *rows,
        ["log loss", f"{metrics.log_loss:.4f} nats; {calibration.log_loss:.4f} scaled"],
        ["Brier score", f"{metrics.brier_score:.4f}; {calibration.brier_score:.4f} scaled"],
        ["calibration error", f"{error} %{interval}; {scaled} % scaled, {by_chance} % by chance alone"],
        ["temperature", f"{calibration.temperature:.3g}, for scaling; fitted on the validation split"],
    ]


def bracket(interval: Interval | None) -> str:
    """An interval of a share behind the share itself, in percent; "" for none."""
    return "" if interval is None else f" ({percent(interval.low)} to {percent(interval.high)})"


def _brand_table(metrics: Metrics) -> list[list[str]]:
    rows = sorted(metrics.per_brand, key=lambda row: (row.f1 is None, row.f1 or 0.0, row.brand))
    return [
        ["brand", "photos", "precision", "recall", "F1", "F1, 95 %"],
        *([row.brand, str(row.support), *_scores(row), ends(row.intervals.get("f1"))] for row in rows),
        ["(macro mean)", "", *_scores(metrics.macro), ends(metrics.intervals.get("macro_f1"))],
        ["(micro mean)", "", *_scores(metrics.micro), ends(metrics.intervals.get("accuracy"))],
        ["(weighted mean)", "", *_scores(metrics.weighted), ends(metrics.intervals.get("weighted_f1"))],
    ]


def ends(interval: Interval | None) -> str:
    """An interval of a share in a column of its own, in percent."""
    return "-" if interval is None else f"{percent(interval.low)} to {percent(interval.high)}"


def _slices_section(slices: Sequence[Slice]) -> str:
    if not slices:
        return ""
    table = [["column", "value", "photos", "accuracy", "95 %"]]
    for part in slices[:NUM_SLICES]:
        table.append([part.column, part.value, str(part.photos), percent(part.accuracy), ends(part.interval)])
    return f"Slices, worst accuracy first, {len(table) - 1} of {len(slices)}, in %\n" + aligned(table, left=2)


def _comparison_section(differences: Sequence[Difference] | None) -> str:
    if differences is None:
        return ""
    if not differences:
        return f"Against the model before: {gate.TOO_FEW}"
    worse = [row for row in differences if row.is_worse]
    title = f"Against the model before: {len(worse)} of {len(differences)} numbers worse beyond chance, in points"
    table = [["", "photos", "before", "now", "difference, interval"]]
    for row in worse or differences[:NUM_DIFFERENCES]:
        change = (
            f"{100 * (row.now - row.before):+.1f} ({100 * row.interval.low:+.1f} to {100 * row.interval.high:+.1f})"
        )
        table.append([row.what, str(row.photos), percent(row.before), percent(row.now), change])
    return title + "\n" + aligned(table, left=1)


def _confused_section(metrics: Metrics) -> str:
    pairs = confusion.pairs(metrics)
    if not pairs:
        return "No photo was taken for another brand."
    support = {row.brand: row.support for row in metrics.per_brand}
    table = [["true brand", "predicted", "photos", "% of true"]]
    for true, predicted, count in pairs[:NUM_CONFUSED_PAIRS]:
        table.append([true, predicted, str(count), percent(count / support[true])])
    return f"Most confused, {len(table) - 1} of {len(pairs)} pairs\n" + aligned(table, left=2)


def _scores(of: BrandMetrics | Average) -> list[str]:
    return ["-" if score is None else percent(score) for score in (of.precision, of.recall, of.f1)]


def percent(share: float) -> str:
    """A share in percent, without the sign."""
    return f"{100 * share:.1f}"


def aligned(table: Sequence[Sequence[str]], left: int) -> str:
    """Columns two spaces apart; the first `left` flush left, the others flush right."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    )
