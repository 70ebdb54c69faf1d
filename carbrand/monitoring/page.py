"""What `monitor` found as one HTML file that needs no network."""

import datetime
from collections.abc import Callable

import numpy as np
from matplotlib.figure import Figure

from carbrand import templates
from carbrand.monitoring import drift, text
from carbrand.monitoring.answers import Answers
from carbrand.monitoring.results import Day, Monitoring

_NUM_BINS = 30


def render(found: Monitoring, before: Answers, now: Answers) -> str:
    """The page; equal for equal answers."""
    filters: dict[str, Callable[..., str]] = {
        "percent": lambda share: "–" if share is None else text.percent(share),
        "chance": text.probability,
        "limit": text.limit,
        "middle": lambda shift, value: text.middle(shift, value) or "–",
        "accuracy": text.accuracy,
    }
    return templates.load("carbrand.monitoring", "monitor.html", filters).render(
        found=found,
        verdict=text.verdict(found),
        days=templates.svg(_days([day for day in found.days if day.date])),
        histograms=templates.svg(_histograms(found, before, now)),
    )


def _days(days: list[Day]) -> Figure | None:
    """Answers, confidence and unknown photos over the days; None for less than two."""
    if len(days) < 2:
        return None
    figure = Figure(figsize=(9, 2.6), layout="constrained")
    dates = [datetime.date.fromisoformat(day.date) for day in days]
    for axes, (title, values) in zip(
        figure.subplots(1, 3),
        (
            ("answers", [float(day.answers) for day in days]),
            ("mean confidence, %", [_percent(day.confidence) for day in days]),
            ("unknown, %", [_percent(day.unknown) for day in days]),
        ),
        strict=True,
    ):
        axes.plot(dates, values, ".-")
        axes.set(title=title, ylim=(0, None))
        axes.grid(alpha=0.3)
        axes.tick_params(axis="x", rotation=45, labelsize=8)
    return figure


def _percent(share: float | None) -> float:
    return np.nan if share is None else 100 * share


def _histograms(found: Monitoring, before: Answers, now: Answers) -> Figure:
    """What is measured of the photos, in the reference and now."""
    num_rows = -(-len(drift.MEASURES) // 3)
    figure = Figure(figsize=(9, 2.3 * num_rows), layout="constrained")
    places = figure.subplots(num_rows, 3).ravel()
    drifted = {shift.signal for shift in found.drifted}
    for axes, (signal, values_of) in zip(places, drift.MEASURES.items(), strict=False):
        samples = values_of(before), values_of(now)
        low, high = np.percentile(np.concatenate(samples), [1, 99])
        edges = np.linspace(low, high if high > low else low + 1, _NUM_BINS + 1)
        for sample, name, style in zip(
            samples, ("reference", "now"), ({"color": "0.6", "fill": True}, {"color": "C0", "fill": False}), strict=True
        ):
            shares, _ = np.histogram(np.clip(sample, edges[0], edges[-1]), edges)
            axes.stairs(100 * shares / len(sample), edges, label=name, **style)
        axes.set_title(
            signal + (", drifted" if signal in drifted else ""), color="C3" if signal in drifted else "black"
        )
        axes.set_ylabel("% of photos")
    places[0].legend(fontsize=8)
    for axes in places[len(drift.MEASURES) :]:
        axes.set_axis_off()
    return figure
