"""Pretrained weights from Keras's download, a file, a run or an export, by layer name, with a coverage report."""

import dataclasses
import logging
import pathlib
import tempfile
import zipfile

import gin
import h5py
import keras
import numpy as np
import tensorflow as tf

from carbrand import exported
from carbrand.errors import ConfigError, WeightsError
from carbrand.training import checkpoint

MIN_BACKBONE_COVERAGE = 0.99  # of the backbone's parameters
IMAGENET_FILE = "resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5"
_HEAD_LAYERS = ("head_", "logits")

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Coverage:
    """What became of a model's variables and of a file's arrays, by variable path.

    Attributes:
      loaded: Variables that got their value from the file.
      new: Variables that the file has nothing for; they keep their initial values.
      unmatched: Arrays of the file that fit no variable, by name or by shape.
      backbone_fraction: Share of the backbone's parameters that were loaded, 0 to 1.
    """

    loaded: tuple[str, ...]
    new: tuple[str, ...]
    unmatched: tuple[str, ...]
    backbone_fraction: float

    def __str__(self) -> str:
        return (
            f"{self.backbone_fraction:.1%} of the backbone's parameters loaded ({len(self.loaded)} arrays); "
            f"new: {_some(self.new)}; unmatched in the file: {_some(self.unmatched)}"
        )


@gin.configurable("weights", module="carbrand")
@dataclasses.dataclass(frozen=True)
class Weights:
    """Where the backbone's first weights come from.

    Attributes:
      path: "imagenet" (Keras's download, variant "v1"); a `.weights.h5`, legacy `.h5` or `.keras` file with the layer
        names of keras.applications.ResNet50; the folder of a run or of an export; or None: random weights. "random" is
        the same, and allowed for frozen stages too.
    """

    path: str | None = None

    def __post_init__(self) -> None:
        if self.path is not None and not isinstance(self.path, str):
            raise ConfigError(f"weights.path={self.path!r}: give a path or a name in quotes.")


def load(model: keras.Model, path: str | None, variant: str) -> Coverage | None:
    """Loads pretrained weights into `model`, as `build_model` makes it, by layer name; None and "random": does nothing.

    The head stays new, even if the file has one: its brands may be others.

    Raises:
      ConfigError: The weights belong to the other variant.
      WeightsError: The file is missing or of an unknown kind, or covers less than 99 % of the backbone.
    """
    if path in (None, "random"):
        return None
    arrays = {name: array for name, array in read(path, variant).items() if not name.startswith(_HEAD_LAYERS)}
    coverage = assign(model, arrays)
    log.info("%s: %s", path, coverage)
    if coverage.backbone_fraction < MIN_BACKBONE_COVERAGE:
        raise WeightsError(
            f"weights.path={path!r} fits {coverage.backbone_fraction:.1%} of the backbone's parameters, "
            f"{MIN_BACKBONE_COVERAGE:.0%} are needed; new: {_some(coverage.new)}; "
            f"unmatched: {_some(coverage.unmatched)}. Use the weights of a ResNet-50 with Keras's layer names."
        )
    return coverage


def read(path: str, variant: str) -> dict[str, np.ndarray]:
    """All arrays of a weights file, run or export, by variable path such as "conv1_conv/kernel"."""
    if path == "imagenet":
        _check_variant(path, "v1", variant)
        return _by_path(_download())
    file = pathlib.Path(path)
    if file.is_dir():
        return _read_folder(file, variant)
    if not file.exists():
        raise WeightsError(
            f"weights.path={path!r}: no such file. Give a weights file, a run, an export, or 'imagenet'."
        )
    if file.suffix == ".keras":
        return _read_keras(file)
    return _read_h5(file)


def assign(model: keras.Model, arrays: dict[str, np.ndarray]) -> Coverage:
    """Gives each variable of `model` the array of the same path and shape."""
    variables = {variable.path: variable for variable in model.variables}
    loaded = [name for name, v in variables.items() if name in arrays and arrays[name].shape == tuple(v.shape)]
    for name in loaded:
        variables[name].assign(arrays[name])
    backbone = {name: int(np.prod(v.shape)) for name, v in variables.items() if not name.startswith(_HEAD_LAYERS)}
    return Coverage(
        loaded=tuple(loaded),
        new=tuple(sorted(variables.keys() - set(loaded))),
        unmatched=tuple(sorted(arrays.keys() - set(loaded))),
        backbone_fraction=sum(backbone.get(name, 0) for name in loaded) / sum(backbone.values()),
    )


def _download() -> keras.Model:
    try:
        return keras.applications.ResNet50(weights="imagenet", include_top=False)
    except Exception as error:  # Keras raises a bare Exception when a download fails
        raise WeightsError(
            f"weights.path='imagenet': the download failed ({error}). Fetch {IMAGENET_FILE} elsewhere and put it into "
            "~/.keras/models, or give its path as weights.path."
        ) from error


def _read_folder(folder: pathlib.Path, variant: str) -> dict[str, np.ndarray]:
    if exported.is_export(folder):
        _check_variant(str(folder), exported.load(folder).model["variant"], variant)
        return _read_export(folder)
    state = checkpoint.load_run(folder)
    _check_variant(str(folder), state.meta["config"]["model"]["variant"], variant)
    return state.best_model


def _read_export(folder: pathlib.Path) -> dict[str, np.ndarray]:
    reader = tf.train.load_checkpoint(str(exported.find(folder) / "variables" / "variables"))
    paths = exported.load(folder).variables
    return {path: reader.get_tensor(f"weights/{i}/.ATTRIBUTES/VARIABLE_VALUE") for i, path in enumerate(paths)}


def _read_keras(file: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        return _by_path(keras.saving.load_model(file, compile=False))
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise WeightsError(
            f"weights.path={str(file)!r}: Keras cannot load it: {str(error).splitlines()[0]} Save the model again."
        ) from error


def _read_h5(file: pathlib.Path) -> dict[str, np.ndarray]:
    """Either layout of Keras, told apart by content: Keras itself goes by the file's name."""
    try:
        with h5py.File(file) as content:
            is_legacy, is_keras_3 = "layer_names" in content.attrs, "layers" in content
            if is_legacy:
                return {k: v for name in content for k, v in _legacy_arrays(content[name]).items()}
    except OSError as error:
        raise WeightsError(
            f"weights.path={str(file)!r}: not a weights file: {error}. Give .weights.h5, .h5 or .keras."
        ) from error
    if not is_keras_3:
        raise WeightsError(f"weights.path={str(file)!r}: neither of Keras's weight layouts: no layers inside.")
    return _by_path(_load_into_reference(file))


def _legacy_arrays(layer: h5py.Group) -> dict[str, np.ndarray]:
    names = [name.decode() if isinstance(name, bytes) else name for name in layer.attrs["weight_names"]]
    return {"/".join(name.removesuffix(":0").split("/")[-2:]): np.asarray(layer[name]) for name in names}


def _load_into_reference(file: pathlib.Path) -> keras.Model:
    # Keras 3 numbers the layers of a weights file by class, not by name: only a model of the same build order reads it.
    # A head in the file is left out.
    reference = keras.applications.ResNet50(weights=None, include_top=False)
    with tempfile.TemporaryDirectory() as folder:
        link = pathlib.Path(folder) / "link.weights.h5"
        link.symlink_to(file.resolve())
        try:
            reference.load_weights(link)
        except ValueError as error:
            raise WeightsError(
                f"weights.path={str(file)!r}: not the weights of keras.applications.ResNet50: "
                f"{str(error).splitlines()[0]} Save the model as .keras instead, which holds its layer names."
            ) from error
    return reference


def _by_path(model: keras.Model) -> dict[str, np.ndarray]:
    return {variable.path: variable.numpy() for variable in model.variables}


def _check_variant(path: str, theirs: str, ours: str) -> None:
    if theirs != ours:
        raise ConfigError(
            f"weights.path={path!r} was trained as variant {theirs!r}, model.variant is {ours!r}. "
            f"Set model.variant = {theirs!r}."
        )


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "") if names else "none"
