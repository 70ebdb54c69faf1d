"""Checked and normalised photos on disk, one file per photo: a build that was stopped goes on where it was.

A file holds one line of JSON and then the JPEG. A damaged or half-written one counts as missing.
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
        header_line, _, body = _path(folder, key).read_bytes().partition(b"\n")
    except FileNotFoundError:
        return None
    try:
        header = json.loads(header_line)
        if header.pop("crc32") != zlib.crc32(body):
            return None
        if "reason" in header:
            return Rejection(**header)
        return images.NormalisedImage(encoded=body, mean_rgb=tuple(header.pop("mean_rgb")), **header)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def store(folder: str | os.PathLike[str], key: str, entry: Entry) -> None:
    """Writes `entry` so that no reader sees half of it, even when two writers store the same key."""
    header = dict(vars(entry))
    body = header.pop("encoded", b"")
    header["crc32"] = zlib.crc32(body)
    path = _path(folder, key)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not files.atomic_writer: its fsync costs more than all else here, and the checksum finds what a crash tore.
    # A random name, because machines that share the folder may share process IDs too.
    temporary = path.with_name(f"{key}.{os.urandom(8).hex()}.tmp")
    try:
        temporary.write_bytes(json.dumps(header).encode() + b"\n" + body)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _path(folder: str | os.PathLike[str], key: str) -> pathlib.Path:
    return pathlib.Path(folder, key[:2], key)  # 256 folders: none grows too large to list
