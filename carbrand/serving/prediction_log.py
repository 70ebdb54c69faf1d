"""What a server answered, for monitoring: one line of JSON per photo, in files that are changed by size."""

import dataclasses
import datetime
import json
import logging
import pathlib
import queue
import threading
import uuid
from collections.abc import Mapping
from typing import Any

from carbrand import files

_MAX_WAITING = 10_000  # rows; beyond, a disk that hangs costs rows and not answers
PHOTOS = "photos"

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class _Row:
    fields: Mapping[str, Any]
    photo: bytes | None


class PredictionLog:
    """Writes in a thread of its own, so that no request waits for the disk."""

    def __init__(self, folder: pathlib.Path, *, max_file_bytes: int = 100 * 2**20, keep_photos: bool = False) -> None:
        """Begins a new file in `folder`.

        Args:
          folder: May hold older files.
          max_file_bytes: After which the next file is begun.
          keep_photos: Whether the photos themselves are kept, in `folder`/photos, named by their SHA-256.
        """
        self._folder = folder
        self._max_file_bytes = max_file_bytes
        self._keep_photos = keep_photos
        folder.mkdir(parents=True, exist_ok=True)
        self._rows: queue.Queue[_Row | None] = queue.Queue(_MAX_WAITING)
        self.lost = 0
        self._thread = threading.Thread(target=self._write_all, name="prediction-log", daemon=True)
        self._thread.start()

    def add(self, fields: Mapping[str, Any], photo: bytes) -> None:
        """Notes one answer: JSON values; adds the time, and the photo's SHA-256 and size."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        facts = {"time": now, "sha256": files.sha256(photo), "bytes": len(photo)}
        try:
            self._rows.put_nowait(_Row({**facts, **fields}, photo if self._keep_photos else None))
        except queue.Full:
            self.lost += 1

    def close(self) -> None:
        """Waits until all rows are on disk."""
        self._rows.put(None)
        self._thread.join()

    def _write_all(self) -> None:
        is_last = False
        while not is_last:
            try:
                is_last = self._write_file()
            except OSError as error:  # the answers go on
                self.lost += 1
                log.error("%s: the prediction log cannot be written (%s); rows are lost", self._folder, error.strerror)

    def _write_file(self) -> bool:
        """Fills one file; whether it was the last one."""
        row = self._rows.get()
        if row is None:
            return True
        name = datetime.datetime.now(datetime.UTC).strftime(f"predictions-%Y%m%dT%H%M%S-{uuid.uuid4().hex[:6]}.jsonl")
        with (self._folder / name).open("ab") as file:
            while row is not None:
                if row.photo is not None:
                    self._keep(row.fields["sha256"], row.photo)
                file.write(json.dumps(row.fields, ensure_ascii=False).encode() + b"\n")
                if self._rows.empty():
                    file.flush()
                if file.tell() >= self._max_file_bytes:
                    return False
                row = self._rows.get()
        return True

    def _keep(self, sha256: str, photo: bytes) -> None:
        path = self._folder / PHOTOS / sha256[:2] / sha256
        if not path.exists():
            files.write_bytes(path, photo)
