"""How often a split was looked at: each look at test photos that leads to another model makes its numbers rosier."""

import datetime
import fcntl
import json
import logging
import os
import pathlib
from typing import Any

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
        with path.open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(max(file.tell() - 1, 0))
            end_of_half = b"" if file.read(1) in (b"", b"\n") else b"\n"
            file.write(end_of_half + json.dumps(row, ensure_ascii=False).encode() + b"\n")
            file.flush()
            rows = list(files.read_log(path))
    except OSError as error:
        log.warning("%s: cannot be written (%s), so nobody will know that %s was evaluated.", path, error, split)
        return None
    return sum((row.get("split"), row.get("records")) == (split, records) for row in rows)
