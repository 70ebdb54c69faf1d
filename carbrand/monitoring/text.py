"""What `monitor` found, as text for a terminal."""

from collections.abc import Sequence

from carbrand.evaluation.text import aligned, bracket, percent
from carbrand.monitoring.drift import Shift
from carbrand.monitoring.results import Accuracy, Monitoring

NUM_BRANDS = 10


def render(found: Monitoring) -> str:
    """The report for a terminal; ends with a newline."""
    facts = [[name, str(value)] for name, value in found.told_facts.items()]
    sections = [aligned(facts, left=2), aligned(_headline(found), left=2), verdict(found), _signals(found.shifts)]
    if any(shift.signal == "brand" and shift.has_drifted for shift in found.shifts):
        sections.append(_brands(found))
    return "\n\n".join(sections) + "\n"


def verdict(found: Monitoring) -> str:
    """What has drifted, in one sentence."""
    names = ", ".join(f"{shift.signal} ({percent(shift.size)} %)" for shift in found.drifted)
    if names:
        return f"Drifted, {len(found.drifted)} of {len(found.shifts)} signals: {names}."
    return f"None of {len(found.shifts)} signals has drifted."


def accuracy(found: Accuracy | None) -> str:
    """A share of right predictions, with its interval."""
    if found is None:
        return "not known"
    return f"{percent(found.value)} %{bracket(found.interval)}, of {found.photos} photos"


def middle(shift: Shift, value: float | None) -> str:
    """The median of a measure, or the share of unknown photos."""
    if value is None:
        return ""
    if shift.signal in ("unknown", "confidence"):
        return f"{percent(value)} %"
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


def limit(beyond_chance: float | None) -> str:
    """The size from which on a shift is no chance."""
    return "never" if beyond_chance is None else percent(beyond_chance)


def probability(p_value: float) -> str:
    """Of a shift as large by chance."""
    return "< 0.001" if p_value < 0.001 else f"{p_value:.3f}"


def _headline(found: Monitoring) -> list[list[str]]:
    reasons = ", ".join(f"{reason} {count}" for reason, count in found.failures.items())
    of_all = f"of {found.failed + found.answered} answers, repeated ones included"
    return [
        ["expected accuracy", f"{percent(found.expected_accuracy)} %, by its confidence while that is calibrated"],
        ["of the reference", f"{percent(found.reference_confidence)} %; right: {accuracy(found.reference_accuracy)}"],
        ["accuracy", accuracy(found.accuracy)],
        ["failures", f"{found.failed} {of_all}" + (f": {reasons}" if reasons else "")],
    ]


def _signals(shifts: Sequence[Shift]) -> str:
    table = [["signal", "", "shift, %", "no chance from", "p-value", "reference", "now"]]
    for shift in shifts:
        middles = [middle(shift, value) for value in (shift.before, shift.now)]
        name = "DRIFTED" if shift.has_drifted else ""
        sizes = percent(shift.size), limit(shift.beyond_chance)
        table.append([shift.signal, name, *sizes, probability(shift.p_value), *middles])
    title = (
        "Shares of photos that would have to be others, largest first; from which share on that is no chance; "
        "medians of what is measured"
    )
    return f"{title}\n{aligned(table, left=2)}"


def _brands(found: Monitoring) -> str:
    table = [["predicted brand", "photos", "reference, %", "now, %"]]
    for row in found.brands[:NUM_BRANDS]:
        table.append([row.brand, str(row.photos), percent(row.before), percent(row.now)])
    return f"Brands, largest change first, {len(table) - 1} of {len(found.brands)}\n" + aligned(table, left=1)
