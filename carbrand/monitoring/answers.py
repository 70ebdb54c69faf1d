"""A prediction log -> columns: what was answered for each photo, and what is known of the photo."""

import collections
import dataclasses
import datetime
import gzip
import json
import os
import pathlib
import re
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from carbrand.data.paths import printable
from carbrand.errors import ConfigError, DataError

_LOGS = (".jsonl", ".jsonl.gz")
_SHA256 = re.compile("[0-9a-f]{64}")
_MAX_SIDE_PX = 2**31 - 1
_MAX_TEXT = 200  # characters of a name; a guess


@dataclasses.dataclass(frozen=True)
class Answers:
    """The answers of one version of a model, one for each different photo: the first one in the files.

    Attributes:
      time: [N] when, UTC; not a time where the row does not say it.
      sha256: [N] of the photo, str.
      brand: [N] that was predicted, str.
      probability: [N] of that brand, calibrated, 0 to 1.
      is_unknown: [N] bool, whether the photo was called unknown.
      width: [N] pixels, as it was sent.
      height: [N] pixels.
      mean_rgb: [N, 3] mean colour, 0 to 255.
      label: [N] true brands, str, "" where it is not known.
      days: Answers and failures by day, repeated photos included.
      failures: Photos without a prediction, by the code of the reason.
      repeated: Answers for photos that had been seen before.
      other_versions: Answers of other versions of the model.
      unreadable: Lines that are no answers.
    """

    time: NDArray[np.datetime64]
    sha256: NDArray[np.object_]
    brand: NDArray[np.object_]
    probability: NDArray[np.floating]
    is_unknown: NDArray[np.bool_]
    width: NDArray[np.integer]
    height: NDArray[np.integer]
    mean_rgb: NDArray[np.floating]
    label: NDArray[np.object_]
    days: dict[str, collections.Counter[str]]
    failures: dict[str, int]
    repeated: int
    other_versions: int
    unreadable: int

    def __len__(self) -> int:
        return len(self.brand)


# Texts as objects: an array of fixed width would be as wide as the longest one.
_DTYPES: dict[str, Any] = {
    "time": "datetime64[ms]",
    "sha256": object,
    "brand": object,
    "probability": float,
    "is_unknown": bool,
    "width": int,
    "height": int,
    "mean_rgb": float,
    "label": object,
}


@dataclasses.dataclass(frozen=True)
class Period:
    """From `since` on, before `until`; None: without such an end."""

    since: datetime.datetime | None = None
    until: datetime.datetime | None = None

    @classmethod
    def parse(cls, since: str | None, until: str | None) -> "Period":
        """Dates or times in ISO 8601, in UTC where they name no zone; ConfigError if they are none."""
        period = cls(_time("--since", since), _time("--until", until))
        if period.since and period.until and period.since >= period.until:
            raise ConfigError(f"--since={since} --until={until}: no time lies between. Name an earlier one first.")
        return period

    def __str__(self) -> str:
        ends = [f"{word} {told(time)}" for word, time in (("from", self.since), ("before", self.until)) if time]
        return " ".join(ends)

    def __contains__(self, time: datetime.datetime | None) -> bool:
        if time is None:
            return self.since is None and self.until is None
        return (self.since is None or time >= self.since) and (self.until is None or time < self.until)


def read(log: str | os.PathLike[str], *, version: int | None, period: Period) -> Answers:
    """The answers in a log.

    Args:
      log: A folder of .jsonl or .jsonl.gz files as `PredictionLog` writes them, or one such file.
      version: Of the model; rows that do not name theirs count too. None: any.
      period: Of which rows are taken.

    Raises:
      DataError: There is no log, or neither an answer nor a failure in it.
    """
    columns: dict[str, list[Any]] = {name: [] for name in _DTYPES}
    seen: set[str] = set()
    counts: collections.Counter[str] = collections.Counter()
    failures: collections.Counter[str] = collections.Counter()
    days: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    first = last = None
    for line in _lines(log):
        try:
            row = _object(line)
            time = _utc(row["time"]) if "time" in row else None  # a reference does not say it
            if time is not None:
                first, last = min(first or time, time), max(last or time, time)
            if time not in period:
                continue
            if version is not None and row.get("model_version") not in (None, version):
                counts["other_versions"] += 1
                continue
            answer = None if "error" in row else _answer(row, time)
        except (KeyError, TypeError, ValueError, OverflowError, RecursionError):
            counts["unreadable"] += 1
            continue
        day = days[time.date().isoformat() if time else ""]
        if answer is None:
            day["failures"] += 1
            failures[printable(str(row["error"]).partition(":")[0][:_MAX_TEXT])] += 1
            continue
        day["answers"] += 1
        if answer["sha256"] in seen:
            counts["repeated"] += 1
            continue
        seen.add(answer["sha256"])
        for name, values in columns.items():
            values.append(answer[name])
    if not seen and not failures:
        covered = Period(first, last) if first else None
        raise DataError(f"{log}: {_why_empty(counts, version, period, covered)}")
    return Answers(
        **{name: np.array(values, _DTYPES[name]) for name, values in columns.items()},
        days=dict(sorted(days.items())),
        failures=dict(failures.most_common()),
        repeated=counts["repeated"],
        other_versions=counts["other_versions"],
        unreadable=counts["unreadable"],
    )


def files_of(log: str | os.PathLike[str]) -> list[pathlib.Path]:
    """The files of a log, in the order in which they were begun.

    Raises:
      DataError: There is no such log.
    """
    path = pathlib.Path(log)
    if not path.exists():
        raise DataError(f"{log}: no such log. Write one with `carbrand serve --log {log}`.")
    return sorted(file for file in path.iterdir() if file.name.endswith(_LOGS)) if path.is_dir() else [path]


def _lines(log: str | os.PathLike[str]) -> Iterator[bytes]:
    """All whole lines of a log: the last one may still be being written, or was when a server was killed."""
    for path in files_of(log):
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            try:
                yield from (line for line in file if line.endswith(b"\n"))
            except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                raise DataError(f"{path}: damaged ({error}). Write it anew, or move it away.") from error


def _object(line: bytes) -> dict[str, Any]:
    row = json.loads(line)
    if not isinstance(row, dict):
        raise TypeError("no object")
    return row


def _answer(row: dict[str, Any], time: datetime.datetime | None) -> dict[str, Any]:
    """The columns of a row; KeyError, TypeError or ValueError if it is no answer."""
    answer: dict[str, Any] = {
        "time": time and time.replace(tzinfo=None),
        "sha256": _text(row["sha256"]),
        "brand": _text(row["brand"]),
        "probability": _number(row["probability"], 0, 1),
        "is_unknown": _truth(row["is_unknown"]),
        "width": int(_number(row["width"], 1, _MAX_SIDE_PX)),
        "height": int(_number(row["height"], 1, _MAX_SIDE_PX)),
        "mean_rgb": [_number(level, 0, 255) for level in row["mean_rgb"]],
        "label": str(row.get("label", "")),
    }
    if not _SHA256.fullmatch(answer["sha256"]) or len(answer["mean_rgb"]) != 3:
        raise ValueError("no SHA-256, or no colour")
    return answer


def _text(value: Any) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= _MAX_TEXT:
        raise TypeError("no text, or too long")
    return printable(value)


def _truth(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError("neither true nor false")
    return value


def _number(value: Any, least: float, most: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise ValueError("no number, or out of range")
    return value


def _why_empty(counts: collections.Counter[str], version: int | None, period: Period, covered: Period | None) -> str:
    asked = f" {period}" if str(period) else ""
    if counts["other_versions"]:
        return (
            f"holds no answer of version {version}{asked}, but {counts['other_versions']} of others. "
            "Name the folder of a version, such as model/1, or a log of this one."
        )
    if covered and asked:
        ends = f"{told(covered.since)} to {told(covered.until)}"
        return f"holds no answer{asked}: its answers are from {ends}. Name another time, or another log."
    if counts["unreadable"]:
        return f"holds {counts['unreadable']} lines that are no answers of `carbrand serve --log`. Name such a log."
    return "holds no answer. Name what `carbrand serve --log` wrote."


def told(time: datetime.datetime | None) -> str:
    """A time for people: ISO 8601, UTC, to the second."""
    return f"{time:%Y-%m-%dT%H:%M:%SZ}" if time else ""


def _utc(text: str) -> datetime.datetime:
    """A time in ISO 8601, which is UTC where it names no zone; ValueError if it is none."""
    time = datetime.datetime.fromisoformat(text)
    return time.astimezone(datetime.UTC) if time.tzinfo else time.replace(tzinfo=datetime.UTC)


def _time(name: str, text: str | None) -> datetime.datetime | None:
    if text is None:
        return None
    try:
        return _utc(text)
    except (ValueError, OverflowError):
        raise ConfigError(f"{name}={text}: is no date or time. Write 2026-11-30, or 2026-11-30T18:00+01:00.") from None
