"""What a pipeline tells the process that started it: rows of some kinds, through sorted files, not through metrics.

Metrics differ between runners, and count a step twice that ran twice; files that are written under fixed names do not.
"""

import hashlib
import heapq
import json
import os
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

from beam_jobs import packed, runners
from carbrand import files

beam = runners.beam  # not imported here: runners keeps it quiet

Row = tuple[str, dict[str, Any]]  # a kind, and a JSON object with a "name"

_PARTS = 256  # per kind, so that no step holds all rows


class WriteRows(beam.PTransform):
    """PCollection[Pack[Row]] -> PCollection[None]; `read` gives the rows back."""

    def __init__(self, folder: str, shuffle_dir: str) -> None:
        """Sets the folder, and that for rows that wait, on a disk that all workers share."""
        super().__init__()
        self._folder = folder
        self._shuffle_dir = shuffle_dir

    def expand(self, rows: beam.PCollection) -> beam.PCollection:
        """The steps."""
        return (
            rows
            | "WithPart" >> packed.Map(_with_part)  # Pack[(part name, JSON object)]
            | "GroupPart" >> packed.GroupApart(self._shuffle_dir)  # (part name, [JSON object])
            | "WritePart" >> beam.Map(_write_part, self._folder)  # None
        )


def read(folder: str, kind: str) -> Iterator[dict[str, Any]]:
    """All rows of one kind, sorted by name; only one of each part is held at a time."""
    parts = (files.read_jsonl(path) for path in sorted(pathlib.Path(folder).glob(f"{kind}-*.jsonl")))
    yield from heapq.merge(*parts, key=order)


def order(row: dict[str, Any]) -> tuple[str, str]:
    """The order of rows: by name, and total."""
    return row["name"], json.dumps(row, sort_keys=True)


def _with_part(row: Row) -> tuple[str, dict[str, Any]]:
    kind, content = row
    part = hashlib.sha256(content["name"].encode()).digest()[0] % _PARTS
    return f"{kind}-{part:03d}.jsonl", content


def _write_part(element: tuple[str, Iterable[dict[str, Any]]], folder: str | os.PathLike[str]) -> None:
    name, rows = element
    files.write_jsonl(pathlib.Path(folder, name), sorted(rows, key=order))
