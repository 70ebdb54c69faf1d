"""Checked and normalised photos on disk, one file per photo: a build that was stopped goes on where it was.

A file holds a checksum, a line of JSON and then the JPEG. A damaged or half-written one counts as missing.
"""

import contextlib
import dataclasses
import json
import os
import zlib

from carbrand.data import images


@dataclasses.dataclass(frozen=True)
class Rejection:
    """Why a file is no photo; see `images.Rejected`."""

    reason: str
    detail: str


Entry = images.NormalisedImage | Rejection


def load(folder: str | os.PathLike[str], key: str) -> Entry | None:
    """The entry named `key`, or None if there is none or it is damaged."""
    try:
        with open(_path(folder, key), "rb", buffering=0) as file:  # noqa: PTH123
            checksum, _, content = file.read().partition(b"\n")
    except FileNotFoundError:
        return None
    if not content or checksum != _checksum(content):
        return None
    header_line, _, body = content.partition(b"\n")
    header = json.loads(header_line)
    if "reason" in header:
        return Rejection(**header)
    return images.NormalisedImage(encoded=body, mean_rgb=tuple(header.pop("mean_rgb")), **header)


def store(folder: str | os.PathLike[str], key: str, entry: Entry) -> None:
    """Writes `entry` so that no reader sees half of it, even when two writers store the same key."""
    header = dict(vars(entry))
    body = header.pop("encoded", b"")
    content = json.dumps(header).encode() + b"\n" + body
    # Not files.atomic_writer: its fsync costs more than all else here, and the checksum finds what a crash tore.
    # A random name, because machines that share the folder may share process IDs too.
    path = _path(folder, key)
    temporary = f"{path}.{os.urandom(8).hex()}.tmp"
    try:
        try:
            _write(temporary, _checksum(content) + b"\n" + content)
        except FileNotFoundError:  # the first one in its folder
            os.makedirs(os.path.dirname(path), exist_ok=True)  # noqa: PTH103, PTH120  pathlib takes twice as long
            _write(temporary, _checksum(content) + b"\n" + content)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def _write(path: str, content: bytes) -> None:
    with open(path, "wb") as file:  # noqa: PTH123
        file.write(content)


def _checksum(content: bytes) -> bytes:
    return b"%08x" % zlib.crc32(content)


def _path(folder: str | os.PathLike[str], key: str) -> str:
    return f"{os.fspath(folder)}/{key[:2]}/{key}"  # 256 folders: none grows too large to list
