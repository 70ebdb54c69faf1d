"""What a pipeline tells the process that started it: rows of some kinds, through sorted files, not through metrics.

Metrics differ between runners, and count a step twice that ran twice; files that are written under fixed names do not.
`write_rows.WriteRows` writes them.
"""

import hashlib
import heapq
import json
import os
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

from carbrand import files

Row = tuple[str, dict[str, Any]]  # the file that it goes to, and a JSON object; see `row`

_PARTS = 256  # per kind, so that no step holds all rows


def row(kind: str, content: dict[str, Any]) -> Row:
    """A row of one kind; `content` is a JSON object with a "name"."""
    part = hashlib.sha256(content["name"].encode()).digest()[0] % _PARTS
    return f"{kind}-{part:03d}.jsonl", content


def read(folder: str, kind: str) -> Iterator[dict[str, Any]]:
    """All rows of one kind, sorted by name; only one of each part is held at a time."""
    parts = (files.read_jsonl(path) for path in sorted(pathlib.Path(folder).glob(f"{kind}-*.jsonl")))
    yield from heapq.merge(*parts, key=order)


def order(row: dict[str, Any]) -> tuple[str, str]:
    """The order of rows: by name, and total."""
    return row["name"], json.dumps(row, sort_keys=True)


def write_part(element: tuple[str, Iterable[dict[str, Any]]], folder: str | os.PathLike[str]) -> None:
    """Writes the rows of one file."""
    name, rows = element
    files.write_jsonl(pathlib.Path(folder, name), sorted(rows, key=order))
