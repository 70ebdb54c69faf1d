"""The whole training state in one file, written atomically: weights, optimizer, loss scale, step, config.

An uncompressed .npz: arrays by variable path, plus the JSON of `meta`. Its zip checksums show a damaged file.
"""

import dataclasses
import json
import logging
import os
import pathlib
import zipfile
from typing import Any

import keras
import numpy as np

from carbrand import files
from carbrand.data.preprocess import Preprocess
from carbrand.errors import CheckpointError
from carbrand.training import hardware
from carbrand.training.model import ModelSpec, build_model

FORMAT_VERSION = 1
FOLDER = "checkpoints"
_META = "meta.json"

log = logging.getLogger(__name__)


class DamagedCheckpointError(CheckpointError):
    """A checkpoint that cannot be read."""


@dataclasses.dataclass(frozen=True)
class State:
    """A training state.

    Attributes:
      model: Every variable of the model, by path.
      optimizer: Every variable of the optimizer, by path.
      extra: Loss scaling, and the number of updates of the average.
      meta: JSON values: step, last validation, brands, dataset fingerprint, config, …; see `trainer.Trainer.meta`.
      average: The average of the weights, by path, where the run keeps one; see `averaging`.
    """

    model: dict[str, np.ndarray]
    optimizer: dict[str, np.ndarray]
    extra: dict[str, np.ndarray]
    meta: dict[str, Any]
    average: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

    @property
    def best_model(self) -> dict[str, np.ndarray]:
        """Every variable of the model as evaluation and export use it: with the averages, where there are some."""
        return {**self.model, **self.average}


def save(path: str | os.PathLike[str], state: State) -> None:
    """Writes `state` to `path` atomically."""
    parts = {"model": state.model, "optimizer": state.optimizer, "extra": state.extra, "average": state.average}
    arrays: dict[str, Any] = {f"{part}:{name}": array for part, group in parts.items() for name, array in group.items()}
    meta = json.dumps({"format_version": FORMAT_VERSION, **state.meta}).encode()
    arrays[_META] = np.frombuffer(meta, np.uint8)
    with files.atomic_writer(path) as file:
        np.savez(file, allow_pickle=False, **arrays)


def load(path: str | os.PathLike[str]) -> State:
    """Reads a state back.

    Raises:
      CheckpointError: The file is missing, damaged, or of another format version.
    """
    try:
        with np.load(path, allow_pickle=False) as content:
            arrays = {name: content[name] for name in content.files}
        meta = json.loads(arrays.pop(_META).tobytes())
        version = meta.pop("format_version")
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such checkpoint.") from None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise DamagedCheckpointError(f"{path}: damaged checkpoint ({error}).") from error
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: has checkpoint format {version}, this carbrand reads {FORMAT_VERSION}. "
            "Train with the carbrand that wrote it, or in another folder."
        )
    groups: dict[str, dict[str, np.ndarray]] = {"model": {}, "optimizer": {}, "extra": {}, "average": {}}
    for name, array in arrays.items():
        part, _, path_in_part = name.partition(":")
        groups[part][path_in_part] = array
    return State(**groups, meta=meta)


def save_latest(run: pathlib.Path, state: State, keep: int = 2) -> None:
    """Saves `state` as the run's newest checkpoint and removes all but the last `keep`."""
    save(run / FOLDER / f"step-{state.meta['step']:09d}.npz", state)
    for path in _checkpoints(run)[:-keep]:
        path.unlink()


def load_latest(run: pathlib.Path) -> State | None:
    """The newest checkpoint of `run` that is whole, or None where there is none yet.

    Raises:
      CheckpointError: All checkpoints are damaged, or the newest is of another format version.
    """
    paths = _checkpoints(run)
    for path in reversed(paths):
        try:
            return load(path)
        except DamagedCheckpointError as error:
            log.warning("%s Falling back to the checkpoint before it.", error)
    if paths:
        raise CheckpointError(f"{run}: all checkpoints are damaged. Train anew in another folder.")
    return None


def load_run(run: str | os.PathLike[str]) -> State:
    """The newest state of a run, as evaluation and export use it.

    Not the one with the best validation accuracy: on the tens of photos of many a validation split, that is a lucky
    epoch from before the learning rate has come down. With 86 of them it cost 5 points of test accuracy.

    Raises:
      CheckpointError: The folder is no run, or the run has no checkpoint yet.
    """
    state = load_latest(pathlib.Path(run))
    if state is None:
        what = "not a run with a checkpoint" if pathlib.Path(run).is_dir() else "no such folder"
        raise CheckpointError(f"{run}: {what}. Make it with `carbrand train --data RECORDS --run {run}`.")
    return state


def load_model(run: str | os.PathLike[str]) -> tuple[keras.Model, dict[str, Any]]:
    """The model of `load_run`, images -> probabilities, in float32 whatever it was trained in; and its `meta`."""
    state = load_run(run)
    with hardware.layers_in("float32"):
        model = build_model(
            state.meta["brands"],
            ModelSpec(**state.meta["config"]["model"]),
            image_size_px=Preprocess(**state.meta["config"]["preprocess"]).height_width,
        )
    restore(model.variables, state.best_model, "The model's variables")
    return model, state.meta


def restore(variables: list[Any], arrays: dict[str, np.ndarray], what: str) -> None:
    """Assigns `arrays` to Keras variables by path.

    Raises:
      CheckpointError: Paths or shapes differ.
    """
    expected = {variable.path: tuple(variable.shape) for variable in variables}
    found = {name: array.shape for name, array in arrays.items()}
    if expected != found:
        name = sorted(dict(expected.items() ^ found.items()))[0]
        raise CheckpointError(
            f"{what} do not fit the checkpoint: {name} has shape {expected.get(name, 'none')}, "
            f"{found.get(name, 'none')} in the checkpoint. Resume with the config the run was started with."
        )
    for variable in variables:
        variable.assign(arrays[variable.path])


def arrays_of(variables: list[Any]) -> dict[str, np.ndarray]:
    """Keras variables -> their values by path."""
    return {variable.path: np.asarray(variable.value.numpy()) for variable in variables}


def _checkpoints(run: pathlib.Path) -> list[pathlib.Path]:
    return sorted((run / FOLDER).glob("step-*.npz"))
