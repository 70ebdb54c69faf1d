"""Where the photos are: a folder with one folder per brand -> a sorted list of photos with their brand."""

import dataclasses
import logging
import os
import pathlib
import re

from carbrand import errors

_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Photo:
    r"""A labelled photo that may or may not be readable.

    Attributes:
        uri: where to open it: an absolute path.
        name: its path relative to the source folder, with '/'; bytes that are no UTF-8 are shown as \xNN.
        brand: normalised, see `normalise_brand`.
    """

    uri: str
    name: str
    brand: str


def list_folder(root: str | os.PathLike[str]) -> list[Photo]:
    """Every file below the brand folders of `root`, at any depth, sorted by name, except hidden files and folders.

    Files that lie directly in `root` belong to no brand: they are left out, with a warning.

    Raises:
        DataError: if `root` is not a folder, holds no photos, photos of fewer than two brands, or an empty folder.
    """
    root = pathlib.Path(root).absolute()
    _check_folder(root)
    paths = _visible_files(root)
    photos = [_photo(path, root) for path in paths if path.parent != root]
    _warn_about_files_without_brand(root, len(paths) - len(photos))
    _check_brands(root, {photo.brand for photo in photos})
    _check_no_brand_is_empty(root, photos)
    return sorted(photos, key=lambda photo: (photo.name, photo.uri))


def _check_no_brand_is_empty(root: pathlib.Path, photos: list[Photo]) -> None:
    brands = {photo.brand for photo in photos}
    for folder in sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")):
        if normalise_brand(folder.name) not in brands:
            raise errors.DataError(f"{folder}: a brand's folder without a file. Put photos into it, or remove it.")


def normalise_brand(folder_name: str) -> str:
    """The brand that a folder's name stands for: lower case, with each run of spaces, '-' and '_' as one '_'.

    'Aston Martin', 'aston-martin' and 'ASTON_MARTIN ' are one brand, aston_martin.
    """
    return re.sub(r"[\s_-]+", "_", folder_name).strip("_").lower()


def _check_folder(root: pathlib.Path) -> None:
    if not root.exists():
        raise errors.DataError(f"{root}: no such folder. Name a folder that holds one folder of photos per brand.")
    if not root.is_dir():
        raise errors.DataError(f"{root}: not a folder. Name a folder that holds one folder of photos per brand.")


def _visible_files(root: pathlib.Path) -> list[pathlib.Path]:
    paths = []
    for folder, subfolders, names in os.walk(root, onerror=_raise, followlinks=True):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        paths += [pathlib.Path(folder, name) for name in names if not name.startswith(".")]
    return paths


def _raise(error: OSError) -> None:
    # os.walk leaves out folders that it cannot list, unless told otherwise.
    raise errors.DataError(
        f"{error.filename}: cannot list this folder ({error.strerror}). Make it readable."
    ) from error


def _photo(path: pathlib.Path, root: pathlib.Path) -> Photo:
    relative = path.relative_to(root)
    name = os.fsencode(relative.as_posix()).decode("utf-8", "backslashreplace")
    return Photo(uri=str(path), name=name, brand=normalise_brand(name.partition("/")[0]))


def _warn_about_files_without_brand(root: pathlib.Path, count: int) -> None:
    if count:
        _LOG.warning("%s: left out %d files that lie in no brand folder", root, count)


def _check_brands(root: pathlib.Path, brands: set[str]) -> None:
    if not brands:
        raise errors.DataError(f"{root}: no photos. Put the photos of each brand in a folder named after the brand.")
    if "" in brands:
        raise errors.DataError(f"{root}: holds a folder whose name has no letters or digits. Name it after its brand.")
    if len(brands) == 1:
        raise errors.DataError(
            f"{root}: a classifier needs at least two brands, found only {next(iter(brands))!r}. "
            f"{root} must hold one folder per brand."
        )
