"""The whole training state in one file, written atomically: weights, optimizer, loss scale, step, config.

An uncompressed .npz: arrays by variable path, plus the JSON of `meta`. Its zip checksums show a damaged file.
"""

import dataclasses
import json
import logging
import math
import os
import pathlib
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from typing import Any

import keras
import numpy as np

from carbrand import checks, files
from carbrand.data.preprocess import Preprocess
from carbrand.errors import CheckpointError
from carbrand.training import hardware
from carbrand.training.model import ModelSpec, build_model

FORMAT_VERSION = 2
FOLDER = "checkpoints"
WHICH = ("latest", "best")
_META = "meta.json"

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Keeping:
    """When a run saves its state, and which checkpoints stay: the last ones, and those of the lowest validation losses.

    Attributes:
      every_s: Seconds between two checkpoints.
      last: How many of the newest.
      best: How many of those after the validations with the lowest losses.
    """

    every_s: float = 60.0
    last: int = 2
    best: int = 0

    def __post_init__(self) -> None:
        checks.number("train.run.checkpoint_every_s", self.every_s, at_least=0)
        checks.number("train.run.keep_last", self.last, at_least=1, whole=True)
        checks.number("train.run.keep_best", self.best, at_least=0, whole=True)

    def best_steps(self, validations: Iterable[Sequence[float]]) -> list[int]:
        """The steps whose checkpoints stay for the loss; `validations` are rows of `trainer.Validation`."""
        finite = [row for row in validations if math.isfinite(row[2])]
        return [int(row[0]) for row in sorted(finite, key=lambda row: row[2])[: self.best]]


# What numpy and zipfile raise, depending on which byte is another one.
_DAMAGE = (
    OSError,
    ValueError,
    KeyError,
    EOFError,
    TypeError,
    AttributeError,
    RuntimeError,  # NotImplementedError, too
    zlib.error,
    zipfile.BadZipFile,
)


class DamagedCheckpointError(CheckpointError):
    """A checkpoint that cannot be read."""


@dataclasses.dataclass(frozen=True)
class State:
    """A training state.

    Attributes:
      model: Every variable of the model, by path.
      optimizer: Every variable of the optimizer, by path.
      extra: Loss scaling, and the number of updates of the average.
      meta: JSON values: step, validations, totals, brands, dataset fingerprint, config, …; see `trainer.Trainer.meta`.
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
        groups: dict[str, dict[str, np.ndarray]] = {"model": {}, "optimizer": {}, "extra": {}, "average": {}}
        for name, array in arrays.items():
            part, _, path_in_part = name.partition(":")
            groups[part][path_in_part] = array
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such checkpoint.") from None
    except _DAMAGE as error:
        raise DamagedCheckpointError(f"{path}: damaged checkpoint ({error}).") from error
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: has checkpoint format {version}, this carbrand reads {FORMAT_VERSION}. "
            "Train with the carbrand that wrote it, or in another folder."
        )
    return State(**groups, meta=meta)


def save_latest(run: pathlib.Path, state: State, keeping: Keeping = Keeping()) -> None:
    """Makes `state` the run's newest checkpoint and removes those that need not be kept.

    Those of later steps go: they are damaged, or the run has gone back from them.
    """
    newest = _path(run, state.meta["step"])
    save(newest, state)
    paths = _checkpoints(run)
    kept = {_path(run, step) for step in keeping.best_steps(state.meta["validations"])}
    kept.update([path for path in paths if path <= newest][-keeping.last :])
    for path in paths:
        if path > newest or path not in kept:
            path.unlink()


def load_oldest(run: pathlib.Path) -> State:
    """The oldest of the run's checkpoints that is whole; CheckpointError if there is none."""
    return _first_whole(run, _checkpoints(run))


def load_latest(run: pathlib.Path) -> State | None:
    """The newest checkpoint of `run` that is whole, or None where there is none yet.

    Raises:
      CheckpointError: All checkpoints are damaged, or the newest is of another format version.
    """
    paths = _checkpoints(run)
    return _first_whole(run, paths[::-1]) if paths else None


def _first_whole(run: pathlib.Path, paths: Sequence[pathlib.Path]) -> State:
    for path in paths:
        try:
            return load(path)
        except DamagedCheckpointError as error:
            log.warning("%s Falling back to the checkpoint before it.", error)
    raise CheckpointError(f"{run}: all checkpoints are damaged. Train anew in another folder.")


def load_run(run: str | os.PathLike[str], which: str = "latest") -> State:
    """A state of a run, as evaluation and export use it.

    By default the newest, not the one with the lowest validation loss: on the tens of photos of many a validation
    split, that is a lucky epoch from before the learning rate has come down. With 86 of them it cost 5 points of test
    accuracy.

    Args:
      run: Its folder.
      which: "latest", or "best": of the checkpoints that are there, that of the lowest validation loss.

    Raises:
      CheckpointError: The folder is no run, or the run has no such checkpoint.
    """
    checks.choice("--checkpoint", which, WHICH)
    run = pathlib.Path(run)
    state = load_latest(run)
    if state is None:
        what = "not a run with a checkpoint" if run.is_dir() else "no such folder"
        raise CheckpointError(f"{run}: {what}. Make it with `carbrand train --data RECORDS --run {run}`.")
    if which == "best":
        kept = [row for row in state.meta["validations"] if _path(run, row[0]).exists()]
        best = Keeping(best=1).best_steps(kept)
        if not best:
            raise CheckpointError(f"{run}: no validated checkpoint was kept. Train with train.run.keep_best = 1.")
        state = load(_path(run, best[0]))
    if not state.meta["step"]:
        raise CheckpointError(f"{run}: has not trained a step yet. Go on with `carbrand train`, and the same options.")
    return state


def load_model(run: str | os.PathLike[str], which: str = "latest") -> tuple[keras.Model, dict[str, Any]]:
    """The model of `load_run`, images -> probabilities, in float32 whatever it was trained in; and its `meta`."""
    state = load_run(run, which)
    return model_of(state.meta["brands"], state.meta["config"], state.best_model), state.meta


def model_of(brands: Sequence[str], config: dict[str, dict[str, Any]], arrays: dict[str, np.ndarray]) -> keras.Model:
    """The model, images -> probabilities, in float32, with these values of its variables.

    Args:
      brands: The classes.
      config: Fields of `ModelSpec` and of `Preprocess`, as "model" and "preprocess".
      arrays: Every variable of the model, by path.
    """
    with hardware.layers_in("float32"):
        spec, preprocess = ModelSpec(**config["model"]), Preprocess(**config["preprocess"])
        model = build_model(brands, spec, image_size_px=preprocess.height_width)
    restore(model.variables, arrays, "The model's variables")
    return model


def temperature(meta: dict[str, Any]) -> float:
    """By which the logits of a state of `load_model` are divided for honest probabilities: of its last validation."""
    validations = [row for row in meta["validations"] if row[0] <= meta["step"]]
    return float(validations[-1][3]) if validations else 1.0


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


def _path(run: pathlib.Path, step: int) -> pathlib.Path:
    return run / FOLDER / f"step-{step:09d}.npz"


def _checkpoints(run: pathlib.Path) -> list[pathlib.Path]:
    return sorted((run / FOLDER).glob("step-*.npz"))
