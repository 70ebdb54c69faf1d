"""How often a split was looked at: each look at test photos that leads to another model makes its numbers rosier."""

import contextlib
import datetime
import fcntl
import json
import logging
import os
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

from carbrand import files
from carbrand.data import manifest

log = logging.getLogger(__name__)


def add(data: str | os.PathLike[str], split: str, records: str, entry: dict[str, Any]) -> int | None:
    """Adds an evaluation to the ledger of a records folder.

    Args:
        data: the folder.
        split: of it.
        records: its fingerprint.
        entry: JSON values: which model, and what came out.

    Returns:
        How many evaluations of this split there have been, this one included; None where nothing can be written.
    """
    path = pathlib.Path(data) / manifest.LEDGER
    time = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    row = {"time": time, "split": split, "records": records, **entry}
    try:
        with _opened(path) as file:
            _append(file, [row])
            rows = list(files.read_log(path))
    except OSError as error:
        log.warning("%s: cannot be written (%s), so nobody will know that %s was evaluated.", path, error, split)
        return None
    return sum((row.get("split"), row.get("records")) == (split, records) for row in rows)


def carry(old_data: str | os.PathLike[str], old_records: str, data: str | os.PathLike[str], records: str) -> None:
    """Notes the looks at a dataset in that of one which was appended to it: the old test photos are in it too.

    Args:
        old_data: the folder of the one.
        old_records: its fingerprint.
        data: the folder of the other, whose ledger keeps what it holds.
        records: its fingerprint.
    """
    rows = files.read_log(pathlib.Path(old_data) / manifest.LEDGER)
    looks = [row | {"records": records} for row in rows if row.get("records") == old_records]
    path = pathlib.Path(data) / manifest.LEDGER
    if looks:
        with _opened(path) as file:
            known = list(files.read_log(path))
            _append(file, [row for row in looks if row not in known])


@contextlib.contextmanager
def _opened(path: pathlib.Path) -> Iterator[BinaryIO]:
    with path.open("a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file


def _append(file: BinaryIO, rows: Iterable[dict[str, Any]]) -> None:
    file.seek(max(file.tell() - 1, 0))
    end_of_half = b"" if file.read(1) in (b"", b"\n") else b"\n"
    file.write(end_of_half + b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows))
    file.flush()
