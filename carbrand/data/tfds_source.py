"""A TFDS dataset, prepared on disk -> its photos as stored, one file each in a spool folder, and a row on each.

Beam workers need files: they must neither load TensorFlow nor read a dataset from its start. Reading goes on where it
was stopped, and a complete spool is read again without TensorFlow.
"""

import functools
import json
import operator
import pathlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from carbrand import errors, files
from carbrand.data import paths, tables

# Names of a feature with the photo's file name, in datasets of the TFDS catalogue.
_FILENAMES = ("image/filename", "filename", "image/file_name", "file_name")
_SPLITS = ("train", "validation", "test")
Path = tuple[str, ...]  # of a feature: its names, from the outermost

_DATASET, _ROWS = "dataset.json", "rows.jsonl"  # in the spool: what is spooled there, and, once complete, its rows


def read(name: str, columns: Mapping[str, str], spool_dir: pathlib.Path) -> Iterator[tables.Row]:
    """The rows of all splits, in their order, once their photos are in `spool_dir`.

    Columns are the scalar features, nested names joined with '/', and `uri` (tfds:NAME/VERSION/, then the file name, or
    split and number where there is none or another photo has it), `split` (of train, validation and test) and `brand`
    (the text of the only ClassLabel).

    Args:
        name: of the dataset, as NAME, NAME:VERSION or NAME/CONFIG:VERSION, or its folder.
        columns: our name -> the feature's; with `brand`, the dataset may have any number of ClassLabels.
        spool_dir: emptied when it holds another dataset.

    Raises:
        ConfigError: if TFDS is not installed, the dataset is not prepared, or has no image or label.
        DataError: if the dataset is damaged.
    """
    builder = _builder(name)
    _claim({"dataset": _identity(builder), "columns": dict(columns)}, spool_dir)
    rows = spool_dir / _ROWS
    if not rows.exists():
        with files.atomic_writer(rows) as file:
            for row in _spool(builder, columns, spool_dir):
                file.write(json.dumps([row.where, row.values]).encode() + b"\n")
    with rows.open(encoding="ascii") as lines:
        for line in lines:
            yield tables.Row(*json.loads(line))


def spooled_path(uri: str, spool_dir: pathlib.Path) -> pathlib.Path:
    """Where the bytes of the photo at `uri` are."""
    key = files.sha256(uri.encode())
    return spool_dir / key[:2] / key  # 256 folders: none grows too large to list


def _builder(name: str) -> Any:
    try:
        # Here and not at the top: TFDS is an extra, and loads TensorFlow.
        import tensorflow_datasets as tfds
        from tensorflow_datasets.core import read_only_builder
    except ImportError as error:
        raise errors.ConfigError(f"tfds:{name}: TFDS is not installed. Run: pip install 'carbrand[tfds]'") from error
    try:
        if _is_folder(name):
            return tfds.builder_from_directory(name if paths.is_remote(name) else pathlib.Path(name).expanduser())
        return read_only_builder.builder_from_files(name)  # unlike tfds.builder, does not ask a server
    except (tfds.core.DatasetNotFoundError, OSError, ValueError) as error:
        raise errors.ConfigError(
            f"tfds:{name}: no such dataset is prepared on this machine. Prepare it with TFDS, or name the folder that "
            "holds its dataset_info.json: tfds:FOLDER"
        ) from error


def _is_folder(name: str) -> bool:
    if name.startswith(("/", ".", "~")) or paths.is_remote(name):
        return True
    return pathlib.Path(name, "dataset_info.json").exists()


def _identity(builder: Any) -> dict[str, Any]:
    splits = {name: [list(map(int, info.shard_lengths)), info.num_bytes] for name, info in builder.info.splits.items()}
    return {"name": builder.info.full_name, "splits": splits}


def _claim(identity: dict[str, Any], spool_dir: pathlib.Path) -> None:
    """Empties the spool of another dataset, and notes for which one it is."""
    marker = spool_dir / _DATASET
    if marker.exists() and json.loads(marker.read_text(encoding="utf-8")) != identity:
        shutil.rmtree(spool_dir)
    if not marker.exists():
        files.write_json(marker, identity)


def _spool(builder: Any, columns: Mapping[str, str], spool_dir: pathlib.Path) -> Iterator[tables.Row]:
    """Writes all photos, except those that are there, and yields their rows."""
    import tensorflow as tf
    import tensorflow_datasets as tfds

    name = builder.info.full_name
    features = _flat(builder.info.features, tfds.features.FeaturesDict)
    image = _image(name, [path for path, feature in features.items() if isinstance(feature, tfds.features.Image)])
    labels = [path for path, feature in features.items() if isinstance(feature, tfds.features.ClassLabel)]
    label = "" if "brand" in columns or ("brand",) in features else _label(name, labels, features)
    scalars = {path: feature for path, feature in features.items() if feature.shape == ()}
    decoders = tfds.decode.PartialDecoding(
        _nested(dict.fromkeys([image, *scalars], True)), _nested({image: tfds.decode.SkipDecoding()})
    )
    config = tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False)
    for split in builder.info.splits:
        examples = builder.as_dataset(split=split, decoders=decoders, read_config=config)
        try:
            for number, example in enumerate(tfds.as_numpy(examples)):
                values = {"/".join(path): _text(feature, _at(example, path)) for path, feature in scalars.items()}
                place = f"tfds:{name}/{split}/{number:06d}"
                values["uri"] = _write(_at(example, image), place, _filename(values), name, spool_dir)
                values["split"] = split if split in _SPLITS else ""
                if label:
                    values["brand"] = values.pop(label)
                yield tables.Row(place, values)
        except tf.errors.DataLossError as error:
            raise errors.DataError(f"tfds:{name}: its split {split} is damaged. Prepare it again.") from error


def _write(content: bytes, place: str, filename: str, name: str, spool_dir: pathlib.Path) -> str:
    """Writes a photo unless it is there; returns its URI, by its file name unless another photo has it already."""
    for uri in [f"tfds:{name}/{filename}", place] if filename else [place]:
        path = spooled_path(uri, spool_dir)
        if not path.exists():
            files.write_bytes(path, content)
        elif path.read_bytes() != content:
            continue
        return uri
    files.write_bytes(path, content)  # over what a crash of the machine left
    return place


def _filename(values: dict[str, str]) -> str:
    """Takes the photo's file name out of `values`; '' if it has none."""
    return next((values.pop(name) for name in _FILENAMES if values.get(name)), "").lstrip("/")


def _image(name: str, images: Sequence[Path]) -> Path:
    if ("image",) in images:
        return ("image",)
    if len(images) != 1:
        raise errors.ConfigError(f"tfds:{name}: has {len(images)} images per example. Use a dataset with one.")
    return images[0]


def _label(name: str, labels: Sequence[Path], features: Mapping[Path, Any]) -> str:
    if len(labels) != 1:
        names = ", ".join(sorted("/".join(path) for path in labels or features))
        raise errors.ConfigError(f"tfds:{name}: which feature is the brand? Say it: --column brand=NAME, of {names}.")
    return "/".join(labels[0])


def _flat(features: Any, nested: type) -> dict[Path, Any]:
    """The features of a dataset by their path, through those of type `nested`."""
    if not issubclass(type(features), nested):
        return {(): features}
    return {(key, *path): leaf for key in features for path, leaf in _flat(features[key], nested).items()}


def _nested(values: Mapping[Path, Any]) -> dict[str, Any]:
    """The inverse of `_flat`."""
    tree: dict[str, Any] = {}
    for path, value in values.items():
        branch = tree
        for key in path[:-1]:
            branch = branch.setdefault(key, {})
        branch[path[-1]] = value
    return tree


def _at(example: Mapping[str, Any], path: Path) -> Any:
    return functools.reduce(operator.getitem, path, example)


def _text(feature: Any, value: Any) -> str:
    """A scalar as a manifest would have it: the name of a class, not its number; '' for the class -1, unlabelled."""
    if hasattr(feature, "int2str"):
        return feature.int2str(int(value)) if value >= 0 else ""
    return tables.text(value.item() if hasattr(value, "item") else value)
