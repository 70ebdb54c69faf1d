"""Checked and normalised photos on disk, one file per photo: a build that was stopped goes on where it was.

A file holds a checksum, a line of JSON and then the JPEG. A damaged or half-written one counts as missing.
"""

import dataclasses
import json
import os
import pathlib
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
        checksum, _, content = _path(folder, key).read_bytes().partition(b"\n")
    except FileNotFoundError:
        return None
    if checksum != _checksum(content):
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
    path = _path(folder, key)
    # Not files.atomic_writer: its fsync costs more than all else here, and the checksum finds what a crash tore.
    # A random name, because machines that share the folder may share process IDs too.
    temporary = path.with_name(f"{key}.{os.urandom(8).hex()}.tmp")
    content = json.dumps(header).encode() + b"\n" + body
    content = _checksum(content) + b"\n" + content
    try:
        try:
            temporary.write_bytes(content)
        except FileNotFoundError:  # the first one in its folder
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(content)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _checksum(content: bytes) -> bytes:
    return b"%08x" % zlib.crc32(content)


def _path(folder: str | os.PathLike[str], key: str) -> pathlib.Path:
    return pathlib.Path(folder, key[:2], key)  # 256 folders: none grows too large to list
