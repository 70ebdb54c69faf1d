"""What an exported folder holds: numbered versions, each whole from the moment it appears, as TensorFlow Serving wants.

model/1/saved_model.pb, variables/   the graph
model/1/model.json                   brands, input, calibration, fingerprints, parity of all formats (the manifest)
model/1/reference.jsonl              what it answers for held-out photos of its records, in the form of a prediction log
model/1/float16.tflite, int8.tflite  where they were asked for
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

from carbrand import checks, files
from carbrand.errors import ConfigError, DataError

MANIFEST = "model.json"
REFERENCE = "reference.jsonl"
_UNFINISHED = ".unfinished-"  # versions that are being written, or were when their export was killed
FORMAT_VERSION = 2
EXAMPLE_FEATURE = "image/encoded"  # of a tf.Example that the graph classifies


@dataclasses.dataclass(frozen=True)
class Format:
    """One way in which a version is stored, held against the run that it was made from.

    Attributes:
      name: "saved_model", "float16" or "int8".
      size_bytes: On disk.
      max_difference: Largest difference of a probability.
      agreement: Share of photos with the same most probable brand, 0 to 1.
    """

    name: str
    size_bytes: int
    max_difference: float
    agreement: float


@dataclasses.dataclass(frozen=True)
class Exported:
    """The manifest of one version of an exported model.

    Attributes:
      brands: The classes, in the order of the probabilities.
      model: Fields of `training.model.ModelSpec`.
      preprocess: Fields of `data.preprocess.Preprocess`.
      resize_short_px: What photos are shrunk to before they reach the graph, as in the dataset build; None: not at all.
      jpeg_quality: Of the photos that have to be encoded again before they reach the graph.
      variables: Path of every model variable, in the order in which the SavedModel holds them.
      temperature: By which the graph divides its logits for honest probabilities.
      unknown_above: Unknown-brand scores above it mean: probably none of `brands`.
      facts: Where the model comes from: run, step, dataset fingerprint, versions.
      formats: What is in the folder.
    """

    brands: tuple[str, ...]
    model: dict[str, Any]
    preprocess: dict[str, Any]
    resize_short_px: int | None
    jpeg_quality: int
    variables: tuple[str, ...]
    temperature: float
    unknown_above: float
    facts: dict[str, Any]
    formats: tuple[Format, ...] = ()
    format_version: int = FORMAT_VERSION


def versions(folder: str | os.PathLike[str]) -> list[int]:
    """The versions in an exported folder, in ascending order."""
    return [number for number in _numbers(folder) if (pathlib.Path(folder) / str(number) / MANIFEST).exists()]


def _numbers(folder: str | os.PathLike[str]) -> list[int]:
    """The numbers that are taken, in ascending order; TensorFlow Serving reads 0007 as none of them."""
    names = (path.name for path in pathlib.Path(folder).glob("*"))
    return sorted(int(name) for name in names if name.isascii() and name.isdecimal() and str(int(name)) == name)


def is_export(folder: str | os.PathLike[str]) -> bool:
    """Whether `folder` is an exported model, or one version of it."""
    return (pathlib.Path(folder) / MANIFEST).exists() or bool(versions(folder))


def find(folder: str | os.PathLike[str]) -> pathlib.Path:
    """The folder of the newest version of an exported model; `folder` itself, if it is that of a version.

    Raises:
      DataError: There is no such folder, or no version in it.
    """
    folder = pathlib.Path(folder)
    if (folder / MANIFEST).exists():
        return folder
    found = versions(folder)
    if not found and folder.name.isdecimal() and versions(folder.parent):
        there = ", ".join(map(str, versions(folder.parent)))
        raise DataError(f"{folder}: no such version; {folder.parent} has {there}. Name one of these.")
    if not found:
        what = "holds no exported model" if folder.is_dir() else "no such folder"
        raise DataError(f"{folder}: {what}. Make it with `carbrand export --run RUN --data RECORDS --output {folder}`.")
    return folder / str(found[-1])


def number_of(version_folder: pathlib.Path) -> int | None:
    """The number of a version; None if its folder has another name."""
    name = version_folder.resolve().name
    return int(name) if name.isdecimal() else None


def load(folder: str | os.PathLike[str]) -> Exported:
    """Reads the manifest of the version that `find` finds.

    Raises:
      DataError: No such folder, no complete export, or one of another format version.
    """
    path = find(folder) / MANIFEST
    try:
        content = json.loads(path.read_text())
        version = content["format_version"]
        if version == FORMAT_VERSION:
            lists = {name: tuple(content[name]) for name in ("brands", "variables")}
            return Exported(**{**content, **lists, "formats": tuple(Format(**row) for row in content["formats"])})
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: damaged ({error}). Export the run again.") from error
    raise DataError(
        f"{path}: has format version {version}, this carbrand reads version {FORMAT_VERSION}. Export the run again."
    )


def load_graph(folder: str | os.PathLike[str]) -> Any:
    """The SavedModel of a version, whose folder it is, or of the newest one.

    Raises:
      DataError: It is damaged.
    """
    import tensorflow as tf  # here and not at the top: it takes seconds

    path = find(folder)
    try:
        with _without_wildcards(path) as plain:
            return tf.saved_model.load(str(plain))
    except (OSError, tf.errors.OpError, IndexError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path}: the graph cannot be loaded ({reason}). Export the run again.") from error


@contextlib.contextmanager
def _without_wildcards(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Another name for a folder in whose path TensorFlow would find a pattern: it restores no variables from m[1]."""
    if not any(mark in str(path.absolute()) for mark in "*?[\\"):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        link = pathlib.Path(folder, "model")
        link.symlink_to(path.absolute())
        yield link


def fingerprint(version_folder: str | os.PathLike[str]) -> str:
    """Another text for a version that answers otherwise."""
    paths = [pathlib.Path(version_folder) / MANIFEST, *pathlib.Path(version_folder).glob("variables/*")]
    return files.fingerprint({path.name: files.sha256_of_file(path) for path in paths})


def write(version_folder: str | os.PathLike[str], exported: Exported) -> None:
    """Writes the manifest of a version."""
    files.write_json(pathlib.Path(version_folder) / MANIFEST, dataclasses.asdict(exported))


def check_elsewhere(output: str | os.PathLike[str], version_folder: pathlib.Path) -> None:
    """Raises ConfigError if `output` is the model, lies in a version, or would look like one beside it."""
    path, version = pathlib.Path(output).resolve(), version_folder.resolve()
    root = version.parent
    if path.is_relative_to(version) or path == root or (path.parent == root and path.name.isdecimal()):
        raise ConfigError(f"--output={output}: lies in the model. Name another place.")


def check_output(folder: str | os.PathLike[str]) -> None:
    """Raises ConfigError unless a version can be added to `folder`: it is new, empty or holds versions."""
    folder = pathlib.Path(folder)
    checks.folder("--output", folder)
    others = folder.exists() and any(not path.name.startswith(_UNFINISHED) for path in folder.iterdir())
    if others and not versions(folder):
        raise ConfigError(f"--output={folder}: holds something else than exported models. Give another folder.")


@contextlib.contextmanager
def new_version(folder: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """A folder to be filled in the block, which becomes the next version when the block ends without an error."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = pathlib.Path(tempfile.mkdtemp(dir=folder, prefix=_UNFINISHED))
    try:
        yield unfinished
        unfinished.chmod(0o777 & ~files.umask())
        unfinished.rename(folder / str(max(_numbers(folder), default=0) + 1))
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
