"""Files, folders, patterns and lists, here or in a bucket -> the path of each photo, for what needs no brands."""

import os
import pathlib
import sys
from collections.abc import Iterable, Iterator

from carbrand.data import paths, tables
from carbrand.data.sources import Files
from carbrand.errors import DataError

STDIN = "-"


def expand(given: Iterable[str], files: Files) -> Iterator[str]:
    """The files that `given` stands for: in its order, those of a folder or pattern sorted; "-" stays.

    Raises:
      DataError: There is no such file or folder, or nothing fits a pattern.
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
        yield from sys.stdin.read().splitlines()
        return
    with files.open(path) as file:
        if not tables.is_table(path):
            yield from filter(None, os.fsdecode(file.read()).splitlines())
            return
        folder = path.rpartition("/")[0] or "."
        for row in tables.read(path, file):
            photo = row.values.get("uri") or row.values.get("path")
            if not photo:
                raise DataError(
                    f"{row.where}: has no 'path' or 'uri', only {', '.join(row.values)}. Name the column so."
                )
            yield paths.joined(folder, photo, row.where)


def _matching(path: str, files: Files) -> list[str]:
    if paths.has_wildcard(path):
        patterns, what = [path], "no file fits this pattern"
    elif paths.is_remote(path):
        patterns, what = [path, f"{path.rstrip('/')}/**"], "no such file, and no files below it"
    elif pathlib.Path(path).is_dir():
        patterns, what = [f"{path.rstrip('/')}/**"], "no files in there"
    else:
        patterns, what = [], "no such file or folder"
    found = sorted(uri for pattern in patterns for uri, _ in files.match(pattern))
    if not found:
        raise DataError(f"{path}: {what}. Give photos, folders of photos, or patterns.")
    return found
