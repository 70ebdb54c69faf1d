"""Columns of a manifest, under its own names -> the fields of a photo."""

import dataclasses
import difflib
import json
from collections.abc import Iterable, Iterator, Mapping

from carbrand import errors
from carbrand.data import paths, tables

NAMES = ("path", "uri", "brand", "model", "group", "split")

_OTHER_NAMES = {  # what manifests call ours; only to suggest one in errors
    "path": ("file", "filename", "file_name", "filepath", "image", "image_path", "photo", "url"),
    "brand": ("make", "label", "class", "manufacturer"),
}
_SPLITS = {
    "": "",
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "val", "valid", "dev", "eval"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}


@dataclasses.dataclass(frozen=True)
class Fields:
    """What a source says of one photo; see `sources.Photo`."""

    uri: str
    label: str
    model: str = ""
    group: str = ""
    split: str = ""
    extra: str = ""


def check(columns: Mapping[str, str]) -> None:
    """Raises ConfigError unless each key of `columns` is one of `NAMES`, and not both `path` and `uri` are."""
    for ours, theirs in columns.items():
        if ours not in NAMES:
            hint = "".join(f" Did you mean {name}?" for name in difflib.get_close_matches(ours, NAMES, n=1))
            raise errors.ConfigError(f"--column {ours}={theirs}: {ours!r} is none of {', '.join(NAMES)}.{hint}")
    if {"path", "uri"} <= columns.keys():
        raise errors.ConfigError("--column path=… and --column uri=… name the same thing. Leave one out.")


def read(rows: Iterable[tables.Row], columns: Mapping[str, str], where: str, folder: str = "") -> Iterator[Fields]:
    """The fields of each row.

    Args:
        rows: of a manifest.
        columns: our name -> the manifest's, where it differs. What it calls otherwise is no longer ours: with
            {"split": "original_split"} a column `split` is just one of the others.
        where: the manifest, for errors.
        folder: to which paths in the rows are relative; '' if they are URIs.

    Raises:
        DataError: if a column is missing, a photo's path or brand is empty, a path is one of Windows, or a split none.
    """
    theirs = {name: columns.get(name, name) for name in NAMES}
    unseen = set(columns.values())  # not every line of JSON has every column
    row = None
    for row in rows:
        if unseen:
            unseen.difference_update(row.values)
        yield _fields(row, theirs, _location(row, columns), folder)
    if row and unseen:
        missing = next(ours for ours, name in columns.items() if name in unseen)
        raise _no_column(where, theirs[missing], missing, row.values)


def _fields(row: tables.Row, theirs: Mapping[str, str], location: str, folder: str) -> Fields:
    for ours in (location, "brand"):
        if theirs[ours] not in row.values:
            raise _no_column(row.where, theirs[ours], ours, row.values)
        if not row.values[theirs[ours]].strip():
            raise errors.DataError(f"{row.where}: {theirs[ours]!r} is empty. Fill it in, or remove the row.")
    path = row.values[theirs[location]]
    used = {theirs[name] for name in (location, "brand", "model", "group", "split")}
    extra = {name: value for name, value in row.values.items() if value and name not in used}
    return Fields(
        uri=paths.joined(folder, path, row.where) if folder else path,
        label=row.values[theirs["brand"]].strip(),
        model=row.values.get(theirs["model"], "").strip(),
        group=row.values.get(theirs["group"], "").strip(),
        split=_split(row, theirs["split"]),
        extra=json.dumps(extra, sort_keys=True, ensure_ascii=False) if extra else "",
    )


def _location(row: tables.Row, columns: Mapping[str, str]) -> str:
    """Which of our two names for the photo's place counts in this row."""
    if "path" in columns or "uri" in columns:
        return "path" if "path" in columns else "uri"
    return "uri" if "uri" in row.values else "path"


def _no_column(where: str, theirs: str, ours: str, found: Iterable[str]) -> errors.DataError:
    columns = list(found)
    near = [name for name in columns if name.lower() in _OTHER_NAMES.get(ours, ())]
    near += difflib.get_close_matches(theirs, columns, n=1, cutoff=0.5)
    return errors.DataError(
        f"{where}: no column {theirs!r}, only {', '.join(columns) or 'none'}. "
        f"Say which it is: --column {ours}={(near or ['NAME'])[0]}"
    )


def _split(row: tables.Row, column: str) -> str:
    text = row.values.get(column, "").strip()
    split = _SPLITS.get(text.lower())
    if split is None:
        raise errors.DataError(
            f"{row.where}: {column} {text!r} is none of train, validation and test. Correct it, or rename the column "
            "if it means something else."
        )
    return split
