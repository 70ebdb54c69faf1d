"""Paths, here or in a bucket, read the same way for every source: which files fit a pattern, and how to show one."""

import dataclasses
import fnmatch
import os
import posixpath
import re
from collections.abc import Sequence

from carbrand import errors


@dataclasses.dataclass(frozen=True)
class Pattern:
    """Which files below `root` to take: one wildcard pattern per level; `**` stands for any number of folders.

    `*`, `?` and `[…]` stay within a level. Names that begin with '.' never fit.
    """

    root: str
    levels: tuple[str, ...] = ("**",)

    def fits(self, name: str) -> bool:
        """Whether to take the file `name`, relative to `root`."""
        names = name.split("/")
        return not any(part.startswith(".") for part in names) and _fit(names, self.levels)

    def may_hold(self, folder: str) -> bool:
        """Whether a file in or below `folder`, relative to `root`, can fit."""
        names = folder.split("/")
        for name, level in zip(names, self.levels, strict=False):
            if level == "**":
                return True
            if not fnmatch.fnmatchcase(name, level):
                return False
        return len(names) < len(self.levels)


def parse_pattern(path: str) -> Pattern:
    """Cuts a path before the first level with a wildcard; a path without any, before its last level.

    What is a folder on this machine, such as `set[1]`, is no wildcard.
    """
    levels = path.split("/")
    wild = (i for i, level in enumerate(levels) if has_wildcard(level))
    first = next((i for i in wild if not os.path.isdir("/".join(levels[: i + 1]))), len(levels) - 1)  # noqa: PTH112
    return Pattern("/".join(levels[:first]) or "/", tuple(levels[first:]))


def has_wildcard(path: str) -> bool:
    """Whether `path` is a pattern, not one file or folder."""
    return any(mark in path for mark in "*?[")


def is_remote(uri: str) -> bool:
    """Whether `uri` has a scheme, as gs://bucket/photo.jpg has, and so is no path on this machine."""
    return re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*://", uri) is not None


def prefix_of(folder: str) -> str:
    """What the paths of all files below `folder` begin with: `folder` and one '/'; '' for ''."""
    return folder if not folder or folder.endswith("/") else f"{folder}/"


def joined(folder: str, path: str, where: str) -> str:
    """`path` as it stands in a manifest in `folder` -> an absolute path without '..', or a remote URI.

    Raises:
        DataError: if it is a path of Windows, or no path at all.
    """
    if "\0" in path or re.match(r"[A-Za-z]:[\\/]", path) or ("\\" in path and "/" not in path):
        raise errors.DataError(f"{where}: {path!r} is no path on this machine. Write it with /, relative to {folder}.")
    if is_remote(path):
        return path
    scheme, colon, base = folder.rpartition("://") if is_remote(folder) else ("", "", folder)
    path = posixpath.expanduser(path)
    absolute = posixpath.normpath(posixpath.join(base, path))
    return absolute.replace("//", "/") if path.startswith("/") else scheme + colon + absolute


def shown(path: str) -> str:
    r"""`path` as text that can be written to any file: bytes that are no UTF-8 as \xNN."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def printable(text: str) -> str:
    """`text` on one line: ends of lines, and what would control the terminal, are escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _fit(names: Sequence[str], levels: Sequence[str]) -> bool:
    if not levels:
        return not names
    if levels[0] == "**":
        return len(levels) == 1 or any(_fit(names[i:], levels[1:]) for i in range(len(names) + 1))
    return bool(names) and fnmatch.fnmatchcase(names[0], levels[0]) and _fit(names[1:], levels[1:])
