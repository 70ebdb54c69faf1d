"""What a server answered, for monitoring: one line of JSON per photo, in files that are changed by size."""

import dataclasses
import datetime
import errno
import io
import json
import logging
import os
import pathlib
import queue
import threading
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from carbrand import files

# What may wait for a disk that hangs; beyond, it costs rows or photos, and not answers.
_MAX_WAITING = 10_000  # rows
_MAX_PHOTO_BYTES = 256 * 2**20
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
        self._photo_bytes = 0  # of those that wait
        self._lock = threading.Lock()
        self._file: io.FileIO | None = None
        self._failing: set[str] = set()  # of "rows" and "photos": what has been told, until it works again
        self.lost = 0  # rows, and photos that were to be kept
        self._thread = threading.Thread(target=self._write_all, name="prediction-log", daemon=True)
        self._thread.start()

    def add(self, fields: Mapping[str, Any], photo: bytes) -> None:
        """Notes one answer: JSON values; adds the time, and the photo's SHA-256 and size."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        facts = {"time": now, "sha256": files.sha256(photo), "bytes": len(photo)}
        kept = photo if self._keep_photos and self._has_room(len(photo)) else None
        try:
            self._rows.put_nowait(_Row({**facts, **fields}, kept))
        except queue.Full:
            self._lose()
            if kept is not None:
                self._make_room(len(kept))

    def close(self) -> None:
        """Waits until all rows are on disk."""
        self._rows.put(None)
        self._thread.join()

    def _write_all(self) -> None:
        while (row := self._rows.get()) is not None:
            line = json.dumps(row.fields, ensure_ascii=False).encode() + b"\n"
            self._try("rows", self._write, line)
            if row.photo is not None:
                self._try("photos", self._keep, row.fields["sha256"], row.photo)
                self._make_room(len(row.photo))
        if self._file:
            self._file.close()

    def _try(self, what: str, write: Callable[..., None], *arguments: Any) -> None:
        """Does so, or counts what is lost: the answers go on."""
        try:
            write(*arguments)
            self._failing.discard(what)
        except OSError as error:
            self._lose()
            if what not in self._failing:
                log.error(
                    "%s: the prediction log cannot be written (%s); %s are lost", self._folder, error.strerror, what
                )
            self._failing.add(what)

    def _write(self, line: bytes) -> None:
        """Appends a line, whole or not at all."""
        file = self._open()
        end = file.tell()
        if file.write(line) != len(line):  # the disk is full
            file.truncate(end)
            file.seek(end)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _open(self) -> io.FileIO:
        """The file that is open, or the next one if that is full, or was moved or deleted."""
        if self._file and (self._file.tell() >= self._max_file_bytes or not _is_there(self._file)):
            self._file.close()
            self._file = None
        if self._file is None:
            now = datetime.datetime.now(datetime.UTC)
            name = now.strftime(f"predictions-%Y%m%dT%H%M%S-{uuid.uuid4().hex[:6]}.jsonl")
            self._file = io.FileIO(self._folder / name, "a")
        return self._file

    def _keep(self, sha256: str, photo: bytes) -> None:
        path = self._folder / PHOTOS / sha256[:2] / sha256
        if not path.exists():
            files.write_bytes(path, photo)

    def _has_room(self, num_bytes: int) -> bool:
        """Takes room in memory for a photo to be kept, if there is some; else the photo is lost."""
        with self._lock:
            has_room = self._photo_bytes + num_bytes <= _MAX_PHOTO_BYTES
            self._photo_bytes += num_bytes if has_room else 0
        if not has_room:
            self._lose()
        return has_room

    def _make_room(self, num_bytes: int) -> None:
        with self._lock:
            self._photo_bytes -= num_bytes

    def _lose(self) -> None:
        with self._lock:
            self.lost += 1


def _is_there(file: io.FileIO) -> bool:
    """Whether the name of an open file still leads to it."""
    try:
        return os.path.samestat(pathlib.Path(file.name).stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False
