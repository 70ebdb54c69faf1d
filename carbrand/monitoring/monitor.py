"""A prediction log against what its model answers for held-out photos: a folder with a report, and what has drifted.

monitor.html   to look at: see `page`
monitor.txt    the same for the terminal
monitor.json   the numbers; written last, so its presence marks a complete report
"""

import collections
import dataclasses
import logging
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from carbrand import checks, exported, files
from carbrand.data import brands as brand_names
from carbrand.data import local_files, tables
from carbrand.data.paths import shown
from carbrand.errors import ConfigError, DataError
from carbrand.evaluation.bootstrap import wilson_interval
from carbrand.monitoring import answers, drift, page, selection, text
from carbrand.monitoring.answers import Answers, Period
from carbrand.monitoring.results import Accuracy, BrandShare, Day, Monitoring

FORMAT_VERSION = 1
REPORT, TEXT, FILE_NAME = "monitor.html", "monitor.txt", "monitor.json"

OTHERS = "(other brands)"

_LOG = logging.getLogger(__name__)


def run(
    model_dir: str | os.PathLike[str],
    log: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    since: str | None = None,
    until: str | None = None,
    reference: str | os.PathLike[str] | None = None,
    labels: str | os.PathLike[str] | None = None,
    min_shift: float = drift.MIN_SHIFT,
) -> Monitoring:
    """Compares the answers of a model in production with those for held-out photos of its own records.

    Args:
      model_dir: An exported model; the answers of its newest version, or of the version whose folder it is, count.
      log: What `carbrand serve --log` wrote.
      output: The folder for the report.
      since: Only answers from this date or time on (ISO 8601; UTC if it names no zone).
      until: Only answers before it.
      reference: A log to compare with instead; of the same one, what lies before `since`.
      labels: A table with the columns sha256 and brand: the true brands of photos in the log, as `review` asks for.
      min_shift: From which on a shift counts, 0 to 1; see `drift`.

    Returns:
      What was found; `drifted` says what has changed.

    Raises:
      ConfigError: `output` is no folder, or lies in the model; `since` or `until` is no time, `min_shift` no share,
        `labels` no table; or `reference` is `log`, and there is no `since`.
      DataError: The model, the log or the reference is not there, or holds no prediction; or `labels` names no photo
        of the log.
    """
    checks.folder("--output", output)
    version = exported.find(model_dir)
    exported.check_elsewhere(output, version)
    checks.number("--min_shift", min_shift, at_least=0, at_most=1)
    period = Period.parse(since, until)
    description = exported.load(version)
    now = _of_photos(answers.read(log, version=exported.number_of(version), period=period), log, description.brands)
    before = _of_photos(_reference(version, log, reference, period), reference or version, description.brands)
    truth, about = ({}, {}) if labels is None else _labels(labels, now, log, description.brands)
    found = Monitoring(
        facts=_facts(version, description.facts, log, reference, period) | _counts(now, before) | about,
        shifts=drift.shifts(before, now, min_shift),
        min_shift=min_shift,
        expected_accuracy=float(now.probability.mean()),
        reference_confidence=float(before.probability.mean()),
        reference_accuracy=_accuracy(before, dict(zip(before.sha256, before.label, strict=True))),
        accuracy=_accuracy(now, truth),
        brands=_brands(description.brands, before, now),
        days=_days(now),
        failures=now.failures,
    )
    _write(pathlib.Path(output), found, before, now)
    return found


def _reference(
    version: pathlib.Path,
    log: str | os.PathLike[str],
    reference: str | os.PathLike[str] | None,
    period: Period,
) -> Answers:
    if reference is None:
        path = version / exported.REFERENCE
        if not path.exists():
            raise DataError(
                f"{path}: not there: the records had no test or validation photos, or an older carbrand exported it. "
                "Export the run again, or give --reference."
            )
        return answers.read(path, version=None, period=Period())
    number = exported.number_of(version)
    ours, theirs = ({path.resolve() for path in answers.files_of(place)} for place in (log, reference))
    if not ours & theirs:
        return answers.read(reference, version=number, period=Period())
    if period.since is None:
        raise ConfigError(f"--reference={reference}: is the log itself. Give --since: before it is the reference.")
    return answers.read(reference, version=number, period=Period(until=period.since))


def _of_photos(found: Answers, where: str | os.PathLike[str], brands: Sequence[str]) -> Answers:
    """`found`, with one name for all brands that are none of `brands`."""
    if not len(found):
        raise DataError(f"{where}: holds {sum(found.failures.values())} failures, no prediction. Its rows say why.")
    is_other = ~np.isin(found.brand, brands)
    if is_other.any():
        example = found.brand[is_other][0]
        _LOG.warning("%s: %d answers name brands that the model does not know, as %s", where, is_other.sum(), example)
    return dataclasses.replace(found, brand=np.where(is_other, OTHERS, found.brand))


def _labels(
    path: str | os.PathLike[str], now: Answers, log: str | os.PathLike[str], brands: Sequence[str]
) -> tuple[dict[str, str], dict[str, Any]]:
    """The true brands of photos in the log, by SHA-256; and what the report says of the table, in JSON values."""
    truth, num_hard = _truth(path)
    if not truth:
        hard = f", but {num_hard} that were chosen as hard ones" if num_hard else ""
        raise DataError(f"{path}: has no row with a brand{hard}. Name some in review.html, and the table it saves.")
    known = {photo: truth[photo] for photo in now.sha256 if photo in truth}
    if not known:
        raise DataError(f"{path}: none of its {len(truth)} photos is in {log}. Name the labels of photos in this log.")
    others = sorted(set(known.values()) - set(brands))
    if others:
        _LOG.warning("%s: the model does not know %s, so these photos count as errors", path, ", ".join(others))
    told = {
        "labels": shown(str(path)),
        "labelled photos left out, as they were chosen as hard ones": num_hard,
        "labels that the model does not know, which count as errors": ", ".join(others) or None,
    }
    return known, told


def _truth(path: str | os.PathLike[str]) -> tuple[dict[str, str], int]:
    """The brands in a table, by SHA-256; of a review only of those chosen by chance, and the number of the others."""
    if not tables.is_table(str(path)):
        raise ConfigError(f"--labels={path}: is no table. Name a .csv, .tsv, .jsonl or .parquet file.")
    truth: dict[str, str] = {}
    num_hard = 0
    with local_files.open(str(path)) as file:
        for row in tables.read(str(path), file):
            if not {"sha256", "brand"} <= row.values.keys():
                raise DataError(f"{row.where}: has no columns sha256 and brand. Name a table that has both.")
            photo, brand = row.values["sha256"].strip().lower(), brand_names.normalise(row.values["brand"])
            if not brand:
                continue
            if row.values.get("chosen", selection.BY_CHANCE) != selection.BY_CHANCE:
                num_hard += 1
            elif truth.setdefault(photo, brand) != brand:
                raise DataError(f"{row.where}: says {brand!r} of {photo}, a row above {truth[photo]!r}. Keep one.")
    return truth, num_hard


def _accuracy(found: Answers, truth: Mapping[str, str]) -> Accuracy | None:
    """Over the photos whose true brand is known; None if none is."""
    right = [truth[photo] == brand for photo, brand in zip(found.sha256, found.brand, strict=True) if truth.get(photo)]
    if not right:
        return None
    return Accuracy(sum(right) / len(right), wilson_interval(sum(right), len(right)), len(right))


def _brands(names: Sequence[str], before: Answers, now: Answers) -> list[BrandShare]:
    counts = [collections.Counter(found.brand.tolist()) for found in (before, now)]
    rows = [
        BrandShare(name, counts[0][name] / len(before), counts[1][name] / len(now), counts[1][name])
        for name in (*names, OTHERS)
        if name != OTHERS or any(count[OTHERS] for count in counts)
    ]
    return sorted(rows, key=lambda row: -abs(row.now - row.before))


def _days(now: Answers) -> list[Day]:
    dates = np.datetime_as_string(now.time, "D")
    days = []
    for date, counts in now.days.items():
        are_of = dates == (date or "NaT")
        means = [float(values[are_of].mean()) if are_of.any() else None for values in (now.probability, now.is_unknown)]
        days.append(Day(date, counts["answers"], counts["failures"], *means))
    return days


def _facts(
    version: pathlib.Path,
    trained: dict[str, Any],
    log: str | os.PathLike[str],
    reference: str | os.PathLike[str] | None,
    period: Period,
) -> dict[str, Any]:
    """What was compared, in JSON values."""
    return {
        "model": shown(str(version)),
        **{name: trained.get(name) for name in ("run", "step")},
        "log": shown(str(log)),
        "reference": shown(str(reference or version / exported.REFERENCE)),
        "since": answers.told(period.since) or None,
        "until": answers.told(period.until) or None,
    }


def _counts(now: Answers, before: Answers) -> dict[str, Any]:
    """How much there was to compare, in JSON values."""
    return {
        "photos": len(now),
        "answered from": _span(now),
        "photos of the reference": len(before),
        "reference answered from": _span(before),
        "repeated answers left out": now.repeated,
        "answers of other versions left out": now.other_versions,
        "rows that are no answers": now.unreadable,
    }


def _span(found: Answers) -> str | None:
    """When the photos were answered; None where the rows do not say it, as those of an export."""
    known = found.time[~np.isnat(found.time)]
    return f"{answers.told(known.min().item())} to {answers.told(known.max().item())}" if len(known) else None


def _write(output: pathlib.Path, found: Monitoring, before: Answers, now: Answers) -> None:
    (output / FILE_NAME).unlink(missing_ok=True)
    files.write_text(output / REPORT, page.render(found, before, now))
    files.write_text(output / TEXT, text.render(found))
    files.write_json(output / FILE_NAME, {"format_version": FORMAT_VERSION, **dataclasses.asdict(found)})
