"""Rows of a manifest file, in CSV, TSV, JSON lines or Parquet -> text by column, the same for every kind of file."""

import csv
import dataclasses
import functools
import itertools
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

from carbrand import errors

_PARQUET_ROWS_PER_BATCH = 1_000  # in memory at a time


@dataclasses.dataclass(frozen=True)
class Row:
    """One row: where it stands, for errors, and its text by column; what is null is ''."""

    where: str
    values: Mapping[str, str]


def is_table(uri: str) -> bool:
    """Whether `uri` names a manifest, by the end of its name."""
    return _suffix(uri) in _READERS


def read(uri: str, file: BinaryIO) -> Iterator[Row]:
    """The rows of the manifest `file`, in their order; the end of `uri` decides how to read it.

    Columns without a name, to which pandas writes its row numbers, are left out. Numbers keep the digits they have in
    the file, so that a manifest is the same in CSV and JSON.

    Raises:
        DataError: if the file is not what its name says, or a row is damaged.
        ConfigError: if the package that reads Parquet is missing.
    """
    return _READERS[_suffix(uri)](uri, file)


def _suffix(uri: str) -> str:
    return uri.lower().rpartition(".")[2]


def _read_delimited(uri: str, file: BinaryIO) -> Iterator[Row]:
    lines = _lines(uri, file)
    first = next(lines, "")
    offset = 0
    delimiter = _delimiter(first, default="\t" if _suffix(uri) == "tsv" else ",")
    if named := re.fullmatch(r'"?sep=(.)"?\s*', first):  # which Excel writes above the header
        first, offset, delimiter = next(lines, ""), 1, named[1]
    reader = csv.reader(
        itertools.chain([first], lines),
        delimiter=delimiter,
        strict=True,  # otherwise a quote that is not closed swallows the rest of the file
        skipinitialspace=f"{delimiter} " in first,  # "path, brand"; otherwise a space may begin a path
    )
    try:
        header = _header(uri, next(reader, []))
        for cells in reader:
            if cells:
                where = f"{uri}:{reader.line_num + offset}"
                yield Row(where, _by_column(where, header, cells))
    except csv.Error as error:
        raise errors.DataError(
            f"{uri}:{reader.line_num + offset}: damaged ({error}). Put a cell that holds a quote or the delimiter "
            "into quotes, and double its quotes."
        ) from error


def _read_json_lines(uri: str, file: BinaryIO) -> Iterator[Row]:
    for number, line in enumerate(_lines(uri, file), start=1):
        if line.strip():
            where = f"{uri}:{number}"
            yield Row(where, {name: text(value) for name, value in _json_object(line, where).items()})


def _read_parquet(uri: str, file: BinaryIO) -> Iterator[Row]:
    try:
        # Here and not at the top: it takes 0.2 s, and only a build from such a file needs it.
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise errors.ConfigError(f"{uri}: reading Parquet needs a package. Run: pip install pyarrow") from error
    try:
        table = parquet.ParquetFile(file)
        _check_names(uri, table.schema_arrow.names)
        rows = (row for batch in table.iter_batches(_PARQUET_ROWS_PER_BATCH) for row in batch.to_pylist())
        for number, row in enumerate(rows, start=1):
            yield Row(f"{uri}: row {number}", {name: text(row[name]) for name in row if _is_named(name)})
    except (pyarrow.ArrowException, OSError) as error:
        raise errors.DataError(
            f"{uri}: not a Parquet file, or damaged ({_first_line(error)}). Write it again."
        ) from error
    except (ValueError, OverflowError, KeyError) as error:  # a time or a text that Python cannot hold
        raise errors.DataError(
            f"{uri}: holds a value that cannot be read ({_first_line(error)}). Write its column as text."
        ) from error


_READERS = {
    "csv": _read_delimited,
    "tsv": _read_delimited,
    "jsonl": _read_json_lines,
    "ndjson": _read_json_lines,
    "parquet": _read_parquet,
}


def _lines(uri: str, file: BinaryIO) -> Iterator[str]:
    """The lines of a UTF-8 file, with or without a byte-order mark."""
    for number, line in enumerate(file, start=1):
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise errors.DataError(f"{uri}:{number}: not UTF-8 ({error.reason}). Save the file as UTF-8.") from error


def _delimiter(header_line: str, default: str) -> str:
    unquoted = re.sub(r'"[^"]*"', "", header_line)
    return max([default, ",", ";", "\t"], key=unquoted.count)


def _header(uri: str, cells: list[str]) -> list[str]:
    names = [cell.strip() for cell in cells]
    if not any(names):
        raise errors.DataError(f"{uri}: no header. Begin it with a line of column names, such as path,brand.")
    _check_names(uri, names)
    return names


def _check_names(uri: str, names: list[str]) -> None:
    twice = sorted({name for name in names if name and names.count(name) > 1})
    if twice:
        raise errors.DataError(f"{uri}: two columns are named {twice[0]!r}. Rename one.")


def _by_column(where: str, header: list[str], cells: list[str]) -> dict[str, str]:
    if len(cells) != len(header):
        raise errors.DataError(
            f"{where}: {len(cells)} cells, but the header has {len(header)}. Put a cell that holds the delimiter into "
            "quotes."
        )
    return {name: cell for name, cell in zip(header, cells, strict=True) if name}


def _json_object(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(
            line, parse_float=str, parse_int=str, object_pairs_hook=functools.partial(_without_repeats, where)
        )
    except (ValueError, RecursionError) as error:
        raise errors.DataError(f"{where}: broken JSON ({_first_line(error)}). Write one object per line.") from error
    if not isinstance(row, dict):
        raise errors.DataError(f"{where}: a JSON {type(row).__name__}, not an object. Write one object per line.")
    if r"\ud" in line.lower() and not _is_unicode(row):
        raise errors.DataError(f"{where}: half a surrogate pair, which is no text. Write the file again as UTF-8.")
    return row


def _without_repeats(where: str, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    _check_names(where, [name for name, _ in pairs])  # of two values Python would keep the last
    return dict(pairs)


def _is_unicode(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def text(value: Any) -> str:
    """A value of JSON or Parquet as CSV would have it."""
    if value is None or value != value:  # NaN, by which pandas writes that there is nothing
        return ""
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    if isinstance(value, bool | list | dict):
        return json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return str(value)


def _is_named(column: str) -> bool:
    return re.fullmatch(r"__index_level_\d+__", column) is None  # how pandas calls its row numbers in Parquet


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
