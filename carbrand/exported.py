"""What an exported folder holds: `model.json`, written last, and the numbered SavedModel that TensorFlow Serving wants.

model/model.json                brands, input, fingerprints (the manifest)
model/1/saved_model.pb …        the graph and its variables
"""

import dataclasses
import json
import os
import pathlib
from typing import Any

from carbrand import files
from carbrand.errors import DataError

MANIFEST = "model.json"
FORMAT_VERSION = 1
VERSION = "1"  # TensorFlow Serving loads the highest numbered folder


@dataclasses.dataclass(frozen=True)
class Exported:
    """The manifest of an exported model.

    Attributes:
      brands: The classes, in the order of the probabilities.
      model: Fields of `training.model.ModelSpec`.
      preprocess: Fields of `data.preprocess.Preprocess`.
      resize_short_px: What photos are shrunk to before they reach the graph, as in the dataset build; None: not at all.
      jpeg_quality: Of the photos that have to be encoded again before they reach the graph.
      variables: Path of every model variable, in the order in which the SavedModel holds them.
      facts: Where the model comes from: run, step, dataset fingerprint, versions.
      temperature: By which the logits are to be divided for honest probabilities; the graph's are as trained.
    """

    brands: tuple[str, ...]
    model: dict[str, Any]
    preprocess: dict[str, Any]
    resize_short_px: int | None
    jpeg_quality: int
    variables: tuple[str, ...]
    facts: dict[str, Any]
    temperature: float = 1.0
    format_version: int = FORMAT_VERSION


def load(folder: str | os.PathLike[str]) -> Exported:
    """Reads the manifest of an exported folder.

    Raises:
      DataError: No such folder, no complete export, or one of another format version.
    """
    path = pathlib.Path(folder) / MANIFEST
    if not path.exists():
        what = "not a complete export" if path.parent.is_dir() else "no such folder"
        raise DataError(f"{folder}: {what}. Make it with `carbrand export --run RUN --output {folder}`.")
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise DataError(f"{path}: damaged ({error}). Export the run again.") from error
    if content.get("format_version") != FORMAT_VERSION:
        raise DataError(
            f"{path}: has format version {content.get('format_version')}, this carbrand reads version "
            f"{FORMAT_VERSION}. Export the run again."
        )
    return Exported(**{**content, "brands": tuple(content["brands"]), "variables": tuple(content["variables"])})


def write(folder: str | os.PathLike[str], exported: Exported) -> None:
    """Completes an exported folder."""
    files.write_json(pathlib.Path(folder) / MANIFEST, dataclasses.asdict(exported))


def saved_model(folder: str | os.PathLike[str]) -> pathlib.Path:
    """The SavedModel inside an exported folder."""
    return pathlib.Path(folder) / VERSION
