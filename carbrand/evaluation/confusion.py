"""Who is taken for whom: the pairs of brands, and a picture of the confusion matrix."""

from collections.abc import Sequence

import matplotlib
import matplotlib.colors
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from carbrand.evaluation.metrics import Metrics

MAX_BRANDS_WITH_COUNTS = 25  # in the picture; more would not fit into the cells
MAX_NAME_CHARACTERS = 24  # in the picture


def pairs(metrics: Metrics) -> list[tuple[str, str, int]]:
    """(true brand, predicted brand, photos), most photos first, then in label order; only pairs that occur."""
    brands = [row.brand for row in metrics.per_brand]
    found = [
        (brands[true], brands[predicted], count)
        for true, row in enumerate(metrics.confusion_matrix)
        for predicted, count in enumerate(row)
        if count and true != predicted
    ]
    return sorted(found, key=lambda pair: -pair[2])


def figure(metrics: Metrics) -> Figure:
    """Draws the confusion matrix: colours are shares of each true brand; up to 25 brands, counts stand in the cells.

    The figure belongs to no pyplot state, so it needs no display and no closing.
    """
    counts = np.array(metrics.confusion_matrix)
    has_counts = len(counts) <= MAX_BRANDS_WITH_COUNTS
    side_inches = max(2.5 + len(counts) * (0.45 if has_counts else 0.17), 5)
    drawn = Figure(figsize=(side_inches, side_inches), dpi=110, layout="constrained")
    axes = drawn.add_subplot()
    _draw_shares(axes, counts, color_bar_share=min(3.5 / side_inches, 0.7))
    _label_axes(axes, [row.brand for row in metrics.per_brand], font_points=9 if has_counts else 7)
    axes.set_title(_title(metrics))
    if has_counts:
        _write_counts(axes, counts)
    return drawn


def _title(metrics: Metrics) -> str:
    title = f"{metrics.examples} photos, accuracy {100 * metrics.accuracy:.1f} %"
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
