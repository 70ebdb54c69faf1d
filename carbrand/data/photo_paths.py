"""Files, folders, patterns and lists, here or in a bucket -> the path of each photo, for what needs no brands."""

import os
import pathlib
import re
import sys
from collections.abc import Iterable, Iterator

from carbrand.data import local_files, paths, tables
from carbrand.data.sources import Files
from carbrand.errors import DataError

STDIN = "-"


def expand(given: Iterable[str], files: Files) -> Iterator[str]:
    """The files that `given` stands for: in its order, those of a folder or pattern sorted; "-" stays.

    Raises:
      DataError: A path is empty, there is no such file or folder, or nothing fits a pattern.
    """
    for path in given:
        if path == STDIN or pathlib.Path(path).is_file():
            yield path
        else:
            yield from _matching(path, files)


def read_list(path: str, files: Files) -> Iterator[str]:
    """The paths in a list: each line of a text, or the column `path` or `uri` of a table; "-" is a text from stdin.

    Those of a table are relative to its folder.

    Raises:
      DataError: There is no such list, or a row of a table has no path.
    """
    if path == STDIN:
        yield from _lines(sys.stdin.read())
        return
    with files.open(path) as file:
        if not tables.is_table(path):
            yield from _lines(os.fsdecode(file.read()))
            return
        folder = path.rpartition("/")[0] or "."
        for row in tables.read(path, file):
            photo = row.values.get("uri") or row.values.get("path")
            if not photo:
                raise DataError(
                    f"{row.where}: has no 'path' or 'uri', only {', '.join(row.values)}. Name the column so."
                )
            yield paths.joined(folder, photo, row.where)


def _lines(text: str) -> Iterator[str]:
    """All that are not empty; some editors put a mark of the byte order before the first."""
    return filter(None, re.split(r"\r\n|\n|\r", text.removeprefix("\ufeff")))  # names may hold what else ends a line


def _matching(path: str, files: Files) -> list[str]:
    if not path:
        raise DataError("'': an empty path. Give photos, folders of photos, or patterns; '.' is this folder.")
    if pathlib.Path(path).is_dir():  # whatever its name looks like
        found, what = sorted(local_files.walk(paths.Pattern(path.rstrip("/") or "/"))), "no files in there"
    elif paths.has_wildcard(path):
        found, what = _found([path], files), "no file fits this pattern"
    elif paths.is_remote(path):
        found, what = _found([path, f"{path.rstrip('/')}/**"], files), "no such file, and no files below it"
    else:
        found, what = [], "no such file or folder"
    if not found:
        raise DataError(f"{path}: {what}. Give photos, folders of photos, or patterns.")
    return found


def _found(patterns: Iterable[str], files: Files) -> list[str]:
    return sorted(uri for pattern in patterns for uri, _ in files.match(pattern))
