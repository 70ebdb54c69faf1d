import builtins
import io
import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from carbrand import errors
from carbrand.data import brands, local_files, sources, tfds_source

tfds = pytest.importorskip("tensorflow_datasets")
file_utils = pytest.importorskip("tensorflow_datasets.core.utils.file_utils")
features = tfds.features


def photo(value, kind="jpeg"):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (value, 2 * value, 0)).save(buffer, kind)
    return buffer.getvalue()


def prepare(folder, kinds, **splits):
    """Writes the dataset cars, version 1.2.0, of splits with a list of examples each; returns its folder."""
    builder = tfds.dataset_builders.store_as_tfds_dataset(
        name="cars",
        version="1.2.0",
        features=features.FeaturesDict(kinds),
        split_datasets={name: list(enumerate(examples)) for name, examples in splits.items()},
        data_dir=folder,
        disable_shuffling=True,
    )
    return str(builder.data_dir)


LABEL = features.ClassLabel(names=["Kia", "BMW"])
SIMPLE = {"image": features.Image(), "label": LABEL}


def read(name, spool_dir, columns=None):
    return list(
        sources.read(
            f"tfds:{name}",
            brand_names=brands.Names(),
            columns=columns or {},
            files=local_files,
            spool_dir=spool_dir,
        )
    )


def simple(values, label=0):
    return [{"image": photo(value), "label": label} for value in values]


def test_every_photo_of_every_split_is_spooled_as_it_is_stored(tmp_path):
    folder = prepare(tmp_path / "data", SIMPLE, train=simple([1, 2]), test=simple([3], label=1), extra=simple([4]))
    photos = read(folder, tmp_path / "spool")
    assert sorted((photo.uri, photo.brand, photo.label, photo.split, photo.extra) for photo in photos) == [
        ("tfds:cars/1.2.0/extra/000000", "kia", "Kia", "", ""),
        ("tfds:cars/1.2.0/test/000000", "bmw", "BMW", "test", ""),
        ("tfds:cars/1.2.0/train/000000", "kia", "Kia", "train", ""),
        ("tfds:cars/1.2.0/train/000001", "kia", "Kia", "train", ""),
    ]
    content = {photo.uri: sources.local_path(photo.uri, tmp_path / "spool").read_bytes() for photo in photos}
    assert content["tfds:cars/1.2.0/train/000001"] == photo(2)
    assert content["tfds:cars/1.2.0/test/000000"] == photo(3)


def test_nested_and_scalar_features_are_columns(tmp_path):
    kinds = {
        "image": {"encoded": features.Image(), "filename": features.Text(), "width": np.int64},
        "model": features.Text(),
        "make": LABEL,
        "body": features.ClassLabel(names=["saloon"]),
        "is_new": np.bool_,
        "box": features.BBoxFeature(),
        "views": features.Sequence(features.Image()),
    }
    example = {
        "image": {"encoded": photo(1, "png"), "filename": "bmw/1 é.png", "width": 8},
        "model": "X5",
        "make": 1,
        "body": -1,
        "is_new": True,
        "box": features.BBox(0.0, 0.0, 1.0, 1.0),
        "views": [photo(9)],
    }
    folder = prepare(tmp_path / "data", kinds, train=[example])
    (found,) = read(folder, tmp_path / "spool", {"brand": "make"})
    assert (found.uri, found.label, found.model) == ("tfds:cars/1.2.0/bmw/1 é.png", "BMW", "X5")
    assert json.loads(found.extra) == {"image/width": "8", "is_new": "true"}
    assert sources.local_path(found.uri, tmp_path / "spool").read_bytes() == photo(1, "png")


def test_two_photos_with_one_file_name_are_told_apart(tmp_path):
    examples = [{**example, "filename": "1.jpg"} for example in simple([1, 2, 1])]
    folder = prepare(tmp_path / "data", {**SIMPLE, "filename": features.Text()}, train=examples)
    first = read(folder, tmp_path / "spool")
    assert [photo.uri.removeprefix("tfds:cars/1.2.0/") for photo in first] == ["1.jpg", "train/000001", "1.jpg"]
    (tmp_path / "spool/rows.jsonl").unlink()  # as if it had been stopped
    assert read(folder, tmp_path / "spool") == first
    assert sources.local_path(first[1].uri, tmp_path / "spool").read_bytes() == photo(2)


def test_reading_goes_on_where_it_was_stopped(tmp_path, monkeypatch):
    folder = prepare(tmp_path / "data", SIMPLE, train=simple(range(5)))
    write, written = tfds_source.files.write_bytes, []

    def write_three(path, content):
        if len(written) == 3:
            raise OSError(28, "No space left on device")
        written.append(path)
        write(path, content)

    monkeypatch.setattr(tfds_source.files, "write_bytes", write_three)
    with pytest.raises(OSError, match="No space left"):
        read(folder, tmp_path / "spool")
    stamps = {path: path.stat().st_mtime_ns for path in written}
    monkeypatch.undo()
    assert len(read(folder, tmp_path / "spool")) == 5
    assert {path: path.stat().st_mtime_ns for path in written} == stamps


def test_a_complete_spool_is_read_again_without_the_dataset(tmp_path, monkeypatch):
    folder = prepare(tmp_path / "data", SIMPLE, train=simple([1, 2]))
    first = read(folder, tmp_path / "spool")
    monkeypatch.setattr(tfds_source, "_spool", None)
    assert read(folder, tmp_path / "spool") == first


def test_the_spool_of_another_dataset_is_emptied(tmp_path):
    read(prepare(tmp_path / "old", SIMPLE, train=simple([1, 2])), tmp_path / "spool")
    photos = read(prepare(tmp_path / "new", SIMPLE, train=simple([3])), tmp_path / "spool")
    assert [sources.local_path(photo.uri, tmp_path / "spool").read_bytes() for photo in photos] == [photo(3)]
    assert len([path for path in (tmp_path / "spool").rglob("*") if path.is_file()]) == 3


def test_a_dataset_is_found_by_its_name(tmp_path):
    prepare(tmp_path / "data", SIMPLE, train=simple([1, 2]))
    tfds.core.add_data_dir(tmp_path / "data")
    try:
        assert read("cars", tmp_path / "spool") == read("cars:1.2.0", tmp_path / "other")
        assert len(read("cars", tmp_path / "spool")) == 2
    finally:
        file_utils.clear_registered_data_dirs()


def test_records_of_carbrand_can_be_a_source(tmp_path, drawn_records):
    photos = read(str(drawn_records), tmp_path / "spool")
    listing = sources.write_listing(photos, tmp_path / "listing")
    assert len(listing.brand_counts) == 6
    assert set(listing.given_splits) == {"train", "validation", "test"}
    names = {sources.name_of(photo.uri, listing.root) for photo in photos}
    assert all(name.partition("/")[0] in listing.brand_counts for name in names)


def test_a_folder_may_be_relative(tmp_path, monkeypatch):
    prepare(tmp_path / "data", SIMPLE, train=simple([1, 2]))
    monkeypatch.chdir(tmp_path / "data")
    assert read("cars/1.2.0", tmp_path / "spool") == read("./cars/1.2.0", tmp_path / "spool")


@pytest.mark.parametrize("name", ["no_such_cars", "/no/such/folder", "no_such_cars:1.0.0", "", "a b", "a:b:c"])
def test_a_dataset_that_is_not_prepared_raises(tmp_path, name):
    with pytest.raises(errors.ConfigError, match=f"tfds:{name}: no such dataset is prepared on this machine"):
        read(name, tmp_path / "spool")


@pytest.mark.parametrize(
    ("kinds", "example", "message"),
    [
        ({"image": features.Image()}, {"image": photo(1)}, "which feature is the brand.*--column brand=NAME, of image"),
        ({**SIMPLE, "body": LABEL}, {**simple([1])[0], "body": 0}, "which feature is the brand.*, of body, label"),
        ({"label": LABEL}, {"label": 0}, "has 0 images per example"),
    ],
)
def test_a_dataset_without_one_image_and_one_label_raises(tmp_path, kinds, example, message):
    folder = prepare(tmp_path / "data", kinds, train=[example])
    with pytest.raises(errors.ConfigError, match=message):
        read(folder, tmp_path / "spool")


def test_a_photo_without_a_label_raises(tmp_path):
    folder = prepare(tmp_path / "data", SIMPLE, train=simple([1], label=-1))
    with pytest.raises(errors.DataError, match="tfds:cars/1.2.0/train/000000: 'brand' is empty"):
        read(folder, tmp_path / "spool")


def test_a_damaged_dataset_raises(tmp_path):
    folder = prepare(tmp_path / "data", SIMPLE, train=simple([1]))
    shard = next((tmp_path / "data/cars/1.2.0").glob("*.tfrecord*"))
    shard.write_bytes(shard.read_bytes()[:-20])
    with pytest.raises(errors.DataError, match=r"tfds:cars/1\.2\.0: its split train is damaged"):
        read(folder, tmp_path / "spool")
    assert not (tmp_path / "spool/rows.jsonl").exists()


def test_missing_tfds_names_the_extra(tmp_path, monkeypatch):
    do_import = builtins.__import__

    def refuse(name, *args):
        if name == "tensorflow_datasets":
            raise ModuleNotFoundError(name)
        return do_import(name, *args)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(errors.ConfigError, match=r"pip install 'carbrand\[tfds\]'"):
        read("cars", tmp_path / "spool")


def test_a_spooled_path_is_found_without_tensorflow():
    code = """
import pathlib, sys
from carbrand.data import sources
sources.local_path("tfds:cars/1.2.0/train/000000", pathlib.Path("spool"))
print([name for name in ("tensorflow", "tensorflow_datasets", "pyarrow", "apache_beam") if name in sys.modules])
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
