"""Where a model is worse than elsewhere: photos by what else is known of them, with the accuracy of each part."""

import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from carbrand.data import catalogue
from carbrand.evaluation import bootstrap
from carbrand.evaluation.bootstrap import Interval

MIN_PHOTOS = 10  # of a part; a guess. Rarer values form a part of their own.
MAX_PARTS = 50  # of a column; one with more values, as names and addresses have, says nothing about groups of photos
NUM_RANGES = 4  # of a column of numbers, with about as many photos each
RARER = "(rarer)"
BRAND = "brand"  # the column that the gate adds
_MIN_DIGITS, _MAX_DIGITS = 6, 17  # of an edge that is no whole number; 17 tell any two floats apart
_DATE = re.compile(r"(\d{4})-\d\d(-\d\d)?([T ].*)?")
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


@dataclasses.dataclass(frozen=True)
class Slice:
    """The photos whose `column` has a value, or a range of them; accuracy in [0, 1]."""

    column: str
    value: str
    photos: int
    accuracy: float
    interval: Interval | None


def columns_of(rows: Sequence[catalogue.Row]) -> dict[str, list[str]]:
    """What photos can be divided by: column -> the part that each photo is in; "" is no part.

    Columns are `model`, `size` (short side of the original), `brightness`, `source split`, and the source's own.
    One of the source's own that is named as one of these, or `brand`, gets " (column)" behind its name. Numbers become
    ranges, dates years. A column with one part, or with more than 50, is left out.
    """
    extra = sorted({name for row in rows for name in row.extra})
    columns: dict[str, list[str]] = {
        "model": [row.model for row in rows],
        "size": _ranges([min(row.original_height, row.original_width) for row in rows], " px"),
        "brightness": _ranges([round(float(np.dot(_LUMA, row.mean_rgb))) for row in rows]),
        "source split": [row.source_split for row in rows],
    }
    for name in extra:
        is_taken = name in columns or name == BRAND
        columns[f"{name} (column)" if is_taken else name] = _parts([row.extra.get(name) for row in rows])
    merged = {name: _merged(parts) for name, parts in columns.items()}
    return {name: parts for name, parts in merged.items() if 1 < len({*parts} - {""}) <= MAX_PARTS}


def compute(columns: Mapping[str, Sequence[str]], is_correct: NDArray[np.bool_], groups: Sequence[str]) -> list[Slice]:
    """The accuracy of each part of `columns`, lowest first.

    Args:
        columns: from `columns_of`.
        is_correct: [N].
        groups: [N] which photos belong together; see `metrics.compute`.
    """
    parts = members(columns)
    if not parts:
        return []
    is_member = np.array(list(parts.values()))
    samples = np.concatenate(
        [accuracies(is_member, is_correct, drawn) for drawn in bootstrap.resamples(groups)], axis=1
    )
    values = accuracies(is_member, is_correct, np.ones((len(is_correct), 1)))[:, 0]
    found = []
    for (column, value), among, accuracy, drawn in zip(parts, is_member, values, samples, strict=True):
        num_groups = len(np.unique(np.asarray(groups)[among]))
        interval = bootstrap.share_interval(float(accuracy), drawn, num_groups)
        found.append(Slice(column, value, int(among.sum()), float(accuracy), interval))
    return sorted(found, key=lambda part: (part.accuracy, -part.photos, part.column, part.value))


def members(columns: Mapping[str, Sequence[str]]) -> dict[tuple[str, str], NDArray[np.bool_]]:
    """(column, value) -> which photos are of that part, [N]."""
    return {
        (column, value): np.array([part == value for part in parts])
        for column, parts in columns.items()
        for value in sorted({*parts} - {""})
    }


def accuracies(
    is_member: NDArray[np.bool_], is_correct: NDArray[np.bool_], weights: NDArray[np.floating]
) -> NDArray[np.floating]:
    """Of parts [S, N], by weights [N, R] of the photos: [S, R], NaN where no photo of a part counts."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return ((is_member & is_correct) @ weights) / (is_member @ weights)


def _parts(values: Sequence[object]) -> list[str]:
    """The values of one of the source's columns as parts: numbers by ranges, dates by years."""
    texts = ["" if value is None else str(value).strip() for value in values]
    given = [text for text in texts if text]
    if given and all(_DATE.fullmatch(text) for text in given):
        return [text[:4] for text in texts]
    try:
        numbers = [_number(text) for text in texts]
    except ValueError:
        return texts
    return _ranges(numbers) if len({*numbers} - {None}) > 2 * NUM_RANGES else texts


def _number(text: str) -> float | None:
    """None of "", "nan" and "inf"; ValueError of what is no number."""
    value = float(text or "nan")
    return value if np.isfinite(value) else None


def _ranges(values: Sequence[float | None], unit: str = "") -> list[str]:
    """Numbers as ranges that hold about as many photos each; "" where there is none."""
    given = np.array([value for value in values if value is not None], np.float64)
    if not len(given):
        return [""] * len(values)
    inner = np.unique(np.quantile(given, np.arange(1, NUM_RANGES) / NUM_RANGES, method="higher"))
    edges = [edge for edge in inner if edge > given.min()]
    texts = _edge_texts(edges)
    names = [f"< {edge}{unit}" for edge in texts[:1]]
    names += [f"{low} to {high}{unit}" for low, high in itertools.pairwise(texts)]
    names += [f">= {edge}{unit}" for edge in texts[-1:]] or ["all"]
    return ["" if value is None else names[int(np.searchsorted(edges, value, side="right"))] for value in values]


def _edge_texts(edges: Sequence[float]) -> list[str]:
    """Plain decimals, of whole numbers with all digits, of others with as many as tell the edges apart."""
    first = _MAX_DIGITS if all(edge.is_integer() for edge in edges) else _MIN_DIGITS
    tried = ([_decimal(edge, digits) for edge in edges] for digits in range(first, _MAX_DIGITS + 1))
    return next(texts for texts in tried if len(set(texts)) == len(edges))


def _decimal(value: float, digits: int) -> str:
    return np.format_float_positional(value, digits, fractional=False, trim="-")


def _merged(parts: Sequence[str]) -> list[str]:
    names, counts = np.unique(parts, return_counts=True)
    rare = {name for name, count in zip(names, counts, strict=True) if count < MIN_PHOTOS and name}
    return [RARER if part in rare else part for part in parts]
