"""Photos in folders, ROOT/BRAND/MODEL/…/FILE with any number of folders for the model -> what their folders say."""

import logging
import os
import pathlib
from collections.abc import Iterable, Iterator

from carbrand import errors
from carbrand.data import brands, local_files, paths
from carbrand.data.columns import Fields

_LOG = logging.getLogger(__name__)


def read(root: str, uris: Iterable[str]) -> Iterator[Fields]:
    """The photos at `uris`, which lie below `root`; those directly in it belong to no brand.

    They are left out, with a warning.
    """
    prefix = paths.prefix_of(root)
    num_left_out = 0
    for uri in uris:
        label, *model = paths.shown(uri.removeprefix(prefix)).split("/")[:-1] or [""]
        if label:
            yield Fields(uri=uri, label=label, model="/".join(model))
        else:
            num_left_out += 1
    if num_left_out:
        _LOG.warning("%s: left out %d files that lie in no brand folder", root, num_left_out)


def read_local(path: str) -> Iterator[Fields]:
    """The photos of a folder on this machine, or of a pattern, whose root is what lies before the first wildcard.

    Raises:
        DataError: if there is no such folder, it cannot be listed, or the folder of a brand is empty.
    """
    if paths.has_wildcard(path) and not pathlib.Path(path).exists():
        pattern = paths.parse_pattern(path)
        yield from read(pattern.root, local_files.walk(pattern))
        return
    _check_folder(path)
    found = set()
    for fields in read(path, local_files.walk(paths.Pattern(path))):
        found.add(fields.label)
        yield fields
    if found:
        _check_no_brand_is_empty(path, {brands.normalise(label) for label in found})


def _check_folder(path: str) -> None:
    if pathlib.Path(path).is_dir():
        return
    problem = "neither a folder nor a manifest" if pathlib.Path(path).exists() else "no such folder"
    raise errors.DataError(
        f"{path}: {problem}. Name a folder that holds one folder of photos per brand, or a manifest: .csv, .tsv, "
        ".jsonl, .ndjson or .parquet."
    )


def _check_no_brand_is_empty(root: str, with_photos: set[str]) -> None:
    real = pathlib.Path(root).resolve()
    for folder in sorted(path for path in pathlib.Path(root).iterdir() if path.is_dir()):
        name = paths.shown(os.fspath(folder.name))
        if real.is_relative_to(folder.resolve()):
            continue  # a link that leads back, which has been told
        if not name.startswith(".") and brands.normalise(name) not in with_photos:
            raise errors.DataError(f"{folder}: a brand's folder without a file. Put photos into it, or remove it.")
