"""Files on this machine: those that fit a pattern, and their content; one way to be `sources.Files`.

A tree may have any number of files: nothing holds more of it than one open folder per level.
"""

import collections
import errno
import logging
import os
import pathlib
import stat
from collections.abc import Iterator
from typing import BinaryIO

from carbrand import errors
from carbrand.data import paths

_LOG = logging.getLogger(__name__)

_NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EISDIR, errno.ENXIO)
_LOOP = "links that lead back to a folder they lie in"
_NO_FILE = "entries that are no regular files (broken links, pipes, sockets or devices)"


def match(pattern: str) -> Iterator[tuple[str, int]]:
    """Path and size in bytes of every file that fits `pattern`, in no order; see `paths.Pattern` and `walk`.

    Raises:
        DataError: if a folder cannot be listed.
    """
    for path in walk(paths.parse_pattern(pattern)):
        yield path, pathlib.Path(path).stat().st_size


def walk(pattern: paths.Pattern) -> Iterator[str]:
    """The path of every regular file that fits `pattern`, in no order; none where its root is no folder.

    Follows links to files and folders, but none that leads back to a folder it lies in. Broken links, pipes, sockets
    and devices are left out with a warning: to open one of them may wait for ever.

    Raises:
        DataError: if a folder cannot be listed.
    """
    root = pathlib.Path(pattern.root)
    if not root.is_dir():
        return
    left_out: collections.Counter[str] = collections.Counter()
    yield from _walk(pattern.root, "", pattern, (_identity(root.stat()),), left_out)
    for what, count in sorted(left_out.items()):
        _LOG.warning("%s: left out %d %s", root, count, what)


def open(path: str) -> BinaryIO:
    """Opens a regular file for reading.

    Raises:
        NotFoundError: if there is no such regular file.
        DataError: if it may not be read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe would block until someone writes to it
    except PermissionError as error:
        raise errors.DataError(f"{path}: no permission to read it. Make it readable.") from error
    except OSError as error:
        if error.errno not in _NOT_THERE:
            raise
        raise errors.NotFoundError(f"{path}: no such file. Correct the path.") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise errors.NotFoundError(f"{path}: not a regular file. Name a file.")
    return os.fdopen(descriptor, "rb")


def read(path: str, max_bytes: int) -> bytes:
    """The first `max_bytes` of a regular file.

    Raises:
        NotFoundError: if there is no such regular file.
        DataError: if it may not be read.
        BuildError: if it cannot be read now.
    """
    try:
        with open(path) as file:
            size = os.fstat(file.fileno()).st_size  # else Python would make room for max_bytes
            return file.read(min(max_bytes, size + 1) if size else max_bytes)  # some file systems state none
    except OSError as error:
        raise errors.BuildError(f"{path}: cannot be read ({error.strerror}). Run the same command again.") from error


def _walk(
    folder: str,
    prefix: str,
    pattern: paths.Pattern,
    ancestors: tuple[tuple[int, int], ...],
    left_out: collections.Counter[str],
) -> Iterator[str]:
    """`prefix` is what the names in `folder` begin with, relative to the root: '' or 'bmw/old/'."""
    for entry in _entries(folder):
        name = prefix + entry.name
        kind = _kind(entry)
        if kind == "folder":
            identity = _identity(entry.stat())
            if identity in ancestors:
                left_out[_LOOP] += 1
            elif pattern.may_hold(name):
                yield from _walk(entry.path, f"{name}/", pattern, (*ancestors, identity), left_out)
        elif pattern.fits(name):
            if kind == "file":
                yield entry.path
            else:
                left_out[_NO_FILE] += 1


def _entries(folder: str) -> Iterator[os.DirEntry[str]]:
    """Everything in `folder` that is not hidden."""
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if not entry.name.startswith("."):
                    yield entry
    except OSError as error:
        raise errors.DataError(f"{folder}: cannot list this folder ({error.strerror}). Make it readable.") from error


def _kind(entry: os.DirEntry[str]) -> str:
    """'folder', 'file' or 'other', seen through links."""
    try:
        if entry.is_dir():
            return "folder"
        return "file" if entry.is_file() else "other"
    except OSError as error:
        if error.errno == errno.ELOOP:  # a link to itself
            return "other"
        raise errors.DataError(f"{entry.path}: cannot be looked at ({error.strerror}). Make it readable.") from error


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
