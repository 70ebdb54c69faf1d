"""What a records folder holds: its splits, brands, shards and how it was made, in manifest.json and as TFDS metadata.

A folder is complete only when manifest.json is there: it is written last. What is known of each photo stands in the
catalogue, one file per shard; see `catalogue.py`.
"""

import dataclasses
import io
import json
import os
import pathlib
from typing import Any

import numpy as np

from carbrand import errors, files
from carbrand.data import catalogue, records

FILE_NAME = "manifest.json"
# What was left out and why, photos that are in another split than before, and a page to look at.
REPORTS = REJECTS, DUPLICATES, CONFLICTS, MOVED = "rejects.jsonl", "duplicates.jsonl", "conflicts.jsonl", "moved.jsonl"
PAGE = "dataset.html"
LEDGER = "evaluations.jsonl"  # to which evaluations add later: no part of what is built
SPLITS = ("train", "validation", "test")

# Where TFDS looks for the names of the nested ClassLabel; without it the brands are shown as '0', '1', …
_TFDS_FILES = ("image-class-label.labels.txt", "features.json", "dataset_info.json")
_TFDS_FEATURES = "tensorflow_datasets.core.features"


@dataclasses.dataclass(frozen=True)
class Shard:
    """One TFRecord file: its name, how many records and bytes it holds, and the SHA-256 of its content."""

    name: str
    records: int
    bytes: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class Split:
    """The shards of one split, in dataset order, and its number of photos per brand, in the order of the brands."""

    shards: tuple[Shard, ...]
    brand_counts: tuple[int, ...]

    @property
    def num_examples(self) -> int:
        """How many records all shards hold together."""
        return sum(shard.records for shard in self.shards)


@dataclasses.dataclass(frozen=True)
class Manifest:
    """A complete records folder.

    Attributes:
        format_version: of the records; `records.FORMAT_VERSION` when written.
        carbrand_version: that built the folder.
        version: of the dataset: 1, or one more than that of the dataset it was appended to.
        ancestors: the fingerprints of the dataset it was appended to, of the one which that was appended to, and so on.
        brands: in the order of the labels.
        labels: of each brand, as the source writes them, sorted.
        aliases: other names of brands, normalised: name -> brand.
        near_misses: pairs of brands whose names are so alike that they may be one.
        splits: of "train", "validation" and "test"; a split without photos has no shards.
        resize_short_px: the longest short side stored, or None for photos stored at their own size.
        jpeg_quality: of photos that had to be encoded again.
        seed: of the splits and of the order of the records.
        fractions: asked of train, validation and test.
        near_duplicates: what was done with them: "keep_one", "keep_group" or "off".
        conflicts: what was done with a photo under several brands: "keep_out" or "keep".
        group_by: the source's column whose photos stay in one split: "group", "model" or "none".
        given_splits: those that the source's own column names, sorted.
        counts: of photos: "seen", "kept", "duplicate", "conflict" and, by reason, "rejected".
        statistics: of the kept photos; see `catalogue.statistics`.
        source: "root", the folder that holds all photos, and "fingerprint", of their names and labels.
        files: the SHA-256 of every file of the folder but the shards and manifest.json.
        fingerprint: of the content; see `fingerprint_of`.
        command: the options that decide on the content. Others, such as --workers, are left out: equal datasets have
            equal manifests.
    """

    format_version: int
    carbrand_version: str
    version: int
    ancestors: tuple[str, ...]
    brands: tuple[str, ...]
    labels: dict[str, list[str]]
    aliases: dict[str, str]
    near_misses: list[list[str]]
    splits: dict[str, Split]
    resize_short_px: int | None
    jpeg_quality: int
    seed: int
    fractions: tuple[float, float, float]
    near_duplicates: str
    conflicts: str
    group_by: str
    given_splits: tuple[str, ...]
    counts: dict[str, Any]
    statistics: dict[str, Any]
    source: dict[str, str]
    files: dict[str, str]
    fingerprint: str
    command: str

    @property
    def previous(self) -> str:
        """The fingerprint of the dataset it was appended to, or ""."""
        return self.ancestors[0] if self.ancestors else ""


def fingerprint_of(brands: tuple[str, ...], splits: dict[str, Split]) -> str:
    """A hash that is equal for two folders exactly if they hold the same records in the same order."""
    hashes = {name: [shard.sha256 for shard in split.shards] for name, split in splits.items()}
    return files.fingerprint({"format_version": records.FORMAT_VERSION, "brands": brands, "shards": hashes})


def load(folder: str | os.PathLike[str]) -> Manifest:
    """Reads the manifest of `folder`.

    Raises:
        DataError: if `folder` does not exist, is not a complete records folder, or was written by another version.
    """
    path = pathlib.Path(folder) / FILE_NAME
    if not path.parent.is_dir():
        raise errors.DataError(
            f"{folder}: no such folder. Make it with `carbrand build --input PHOTOS --output {folder}`."
        )
    if not path.exists():
        raise errors.DataError(
            f"{folder}: not a complete records folder: it has no {FILE_NAME}. If a build was stopped here, "
            "run `carbrand build` again with the same arguments."
        )
    return _from_json(_parse(path), path)


def load_photos(folder: str | os.PathLike[str], split: str) -> list[catalogue.Row]:
    """What the catalogue knows of the photos of a split, in the order of its records.

    Raises:
        DataError: the folder is not complete, or its catalogue is gone, damaged or of other records.
    """
    rows = []
    for shard in load(folder).splits[split].shards:
        path = pathlib.Path(folder) / catalogue.name_of(shard.name)
        try:
            found = list(catalogue.read(path))
        except OSError as error:
            raise errors.DataError(f"{path}: cannot be read ({error.strerror}). Run `carbrand build` again.") from error
        except (ValueError, TypeError, KeyError) as error:
            raise errors.DataError(f"{path}: damaged ({error}). Run `carbrand build` again.") from error
        if len(found) != shard.records:
            raise errors.DataError(
                f"{path}: has {len(found)} rows, its shard has {shard.records} records. Run `carbrand build` again."
            )
        rows += found
    return rows


def load_index(folder: str | os.PathLike[str], split: str) -> np.ndarray:
    """Where each record of `split` is: one row of `records.INDEX_DTYPE` per record, in dataset order.

    Raises:
        DataError: if there is no such split, or its index is missing or does not fit the manifest.
    """
    manifest = load(folder)
    if split not in manifest.splits:
        raise errors.DataError(f"{folder}: no split named {split!r}. Use one of: {', '.join(manifest.splits)}.")
    path = pathlib.Path(folder) / index_name(split)
    try:
        index = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise errors.DataError(f"{path}: cannot read the index ({error}). Run `carbrand build` again.") from error
    if index.dtype != records.INDEX_DTYPE or len(index) != manifest.splits[split].num_examples:
        raise errors.DataError(f"{path}: does not fit {FILE_NAME}: {len(index)} rows. Run `carbrand build` again.")
    return index


def index_name(split: str) -> str:
    """The name of the index file of `split` in a records folder."""
    return f"index-{split}.npy"


def index_part(split: str, number: int) -> str:
    """The name of the file with the index rows of one shard, before they are joined."""
    return f"{split}-{number:05d}.npy"


def index_bytes(index: np.ndarray) -> bytes:
    """`index` as the content of a .npy file."""
    buffer = io.BytesIO()  # np.save to a real file hides the cause when the disk is full
    np.save(buffer, index, allow_pickle=False)
    return buffer.getvalue()


def index_header(num_records: int) -> dict[str, Any]:
    """What the header of the index file of so many records says."""
    empty = np.zeros(0, records.INDEX_DTYPE)
    return np.lib.format.header_data_from_array_1_0(empty) | {"shape": (num_records,)}


def write(folder: str | os.PathLike[str], manifest: Manifest) -> Manifest:
    """Makes `folder`, where all other files already are, a complete one: TFDS metadata, then manifest.json.

    Returns:
        The manifest, with the hashes of all files that `manifest.files` lacked.
    """
    folder = pathlib.Path(folder)
    labels, features, info = (folder / name for name in _TFDS_FILES)
    files.write_text(labels, "".join(f"{brand}\n" for brand in manifest.brands))
    files.write_json(features, _tfds_features(len(manifest.brands)))
    files.write_json(info, _tfds_info(manifest))
    complete = dataclasses.replace(manifest, files=_hashes(folder, manifest))
    content = dataclasses.asdict(complete)
    files.write_json(folder / FILE_NAME, content | {"checksum": files.fingerprint(content)})
    return complete


def _hashes(folder: pathlib.Path, manifest: Manifest) -> dict[str, str]:
    """Of what a build writes: other files may lie there too."""
    known = manifest.files
    catalogues = (catalogue.name_of(shard.name) for split in manifest.splits.values() for shard in split.shards)
    names = {*catalogues, *map(index_name, manifest.splits), *REPORTS, PAGE, *_TFDS_FILES}
    return {
        name: known.get(name) or files.sha256_of_file(folder / name)
        for name in sorted(names)
        if (folder / name).is_file()
    }


def _parse(path: pathlib.Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        raise errors.DataError(f"{path}: cannot be read ({error}). Restore it, or build again.") from error
    version = content.get("format_version") if isinstance(content, dict) else None
    if version != records.FORMAT_VERSION:
        raise errors.DataError(
            f"{path}: has format version {version}, this carbrand reads version {records.FORMAT_VERSION}. "
            "Build the dataset again, or install the carbrand that wrote it."
        )
    return content


def _from_json(content: dict[str, Any], path: pathlib.Path) -> Manifest:
    is_sound = content.pop("checksum", None) == files.fingerprint(content)
    try:
        if "previous" in content:  # as older versions of carbrand wrote it
            previous = content.pop("previous")
            content["ancestors"] = [previous] if previous else []
        splits = {name: _split_from_json(split) for name, split in content["splits"].items()}
        brands = tuple(content["brands"])
        tuples = {name: tuple(content[name]) for name in ("ancestors", "brands", "fractions", "given_splits")}
        manifest = Manifest(**{**content, **tuples, "splits": splits})
    except (KeyError, TypeError, AttributeError) as error:
        raise errors.DataError(f"{path}: damaged ({error}). Run `carbrand build` again.") from error
    if not is_sound or manifest.fingerprint != fingerprint_of(brands, splits):
        raise errors.DataError(f"{path}: changed since it was written. Restore it, or run `carbrand build` again.")
    return manifest


def _split_from_json(split: dict[str, Any]) -> Split:
    return Split(tuple(Shard(**shard) for shard in split["shards"]), tuple(split["brand_counts"]))


def _tfds_info(manifest: Manifest) -> dict[str, Any]:
    splits = [
        {
            "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
            "name": name,
            "numBytes": str(sum(shard.bytes for shard in split.shards)),
            "shardLengths": [str(shard.records) for shard in split.shards],
        }
        for name, split in manifest.splits.items()
        if split.shards
    ]
    return {
        "description": f"Car photos by brand, built by carbrand {manifest.carbrand_version}.",
        "fileFormat": "tfrecord",
        "name": "carbrand",
        "splits": splits,
        "version": f"{manifest.format_version}.0.0",
    }


def _tfds_features(num_brands: int) -> dict[str, Any]:
    """Of `records.FEATURES`: TFDS joins nested names with '/'."""
    text = {"pythonClassName": f"{_TFDS_FEATURES}.text_feature.Text", "text": {}}
    integer = {
        "pythonClassName": f"{_TFDS_FEATURES}.tensor_feature.Tensor",
        "tensor": {"dtype": "int64", "encoding": "none", "shape": {}},
    }
    label = {
        "pythonClassName": f"{_TFDS_FEATURES}.class_label_feature.ClassLabel",
        "classLabel": {"numClasses": str(num_brands)},
    }
    encoded = {
        "pythonClassName": f"{_TFDS_FEATURES}.image_feature.Image",
        "image": {"dtype": "uint8", "encodingFormat": "jpeg", "shape": {"dimensions": ["-1", "-1", "3"]}},
    }
    image = {
        "class": _tfds_dict({"label": label, "text": text}),
        "encoded": encoded,
        "filename": text,
        "group": text,
        "hash": _tfds_dict({"perceptual": text}),
        "height": integer,
        "key": _tfds_dict({"sha256": text}),
        "model": text,
        "source": _tfds_dict({"height": integer, "label": text, "width": integer}),
        "width": integer,
    }
    return _tfds_dict({"image": _tfds_dict(image)})


def _tfds_dict(features: dict[str, Any]) -> dict[str, Any]:
    return {
        "pythonClassName": f"{_TFDS_FEATURES}.features_dict.FeaturesDict",
        "featuresDict": {"features": features},
    }
