import dataclasses
import io
import json

import numpy as np
import pytest
from PIL import Image

from carbrand import errors, files
from carbrand.data import catalogue, manifest, records

BRANDS = ("aston_martin", "škoda")


def write_dataset(folder):
    """Two records in train, none in validation, one in test."""
    splits = {
        "train": write_split(folder, "train", [0, 1]),
        "validation": manifest.Split((), (0, 0)),
        "test": write_split(folder, "test", [1]),
    }
    files.write_bytes(folder / "index-validation.npy", manifest.index_bytes(np.zeros(0, records.INDEX_DTYPE)))
    built = manifest.Manifest(
        format_version=records.FORMAT_VERSION,
        carbrand_version="0.1.0",
        version=1,
        ancestors=(),
        brands=BRANDS,
        labels={"aston_martin": ["Aston Martin"], "škoda": ["Škoda"]},
        near_misses=[["skoda", "škoda"]],
        splits=splits,
        resize_short_px=256,
        jpeg_quality=95,
        seed=0,
        fractions=(0.8, 0.1, 0.1),
        near_duplicates="keep_one",
        conflicts="keep_out",
        group_by="group",
        given_splits=(),
        aliases={},
        counts={"seen": 4, "kept": 3, "duplicate": 0, "conflict": 0, "rejected": {"empty": 1}},
        statistics={"mean_rgb": [1.0, 2.0, 3.0]},
        source={"root": "photos", "fingerprint": "0"},
        files={},
        fingerprint=manifest.fingerprint_of(BRANDS, splits),
        command="carbrand build …",
    )
    return manifest.write(folder, built)


def write_split(folder, split, labels):
    frames = [records.frame(records.encode(record(label))) for label in labels]
    offsets = np.cumsum([0, *map(len, frames)])
    rows = [(0, start, len(frame) - 16, label) for start, frame, label in zip(offsets, frames, labels, strict=False)]
    files.write_bytes(folder / f"index-{split}.npy", manifest.index_bytes(np.array(rows, records.INDEX_DTYPE)))
    content = b"".join(frames)
    name = files.shard_name(split, 0, 1)
    files.write_bytes(folder / name, content)
    shard = manifest.Shard(name, len(labels), len(content), files.sha256(content))
    return manifest.Split((shard,), tuple(np.bincount(labels, minlength=2).tolist()))


def record(label):
    buffer = io.BytesIO()
    Image.new("RGB", (20, 30), "red").save(buffer, "JPEG")
    return {
        "image/class/label": label,
        "image/class/text": BRANDS[label].encode(),
        "image/encoded": buffer.getvalue(),
        "image/filename": b"a/1.jpg",
        "image/group": b"0" * 64,
        "image/hash/perceptual": b"00",
        "image/height": 30,
        "image/key/sha256": b"0" * 64,
        "image/model": b"",
        "image/source/height": 300,
        "image/source/label": b"Aston Martin",
        "image/source/width": 200,
        "image/width": 20,
    }


def change(folder, **values):
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_load_gives_back_what_was_written(tmp_path):
    built = write_dataset(tmp_path)
    assert manifest.load(tmp_path) == built
    assert built.splits["train"].num_examples == 2
    assert built.splits["validation"].num_examples == 0


def test_load_index_finds_each_record(tmp_path):
    built = write_dataset(tmp_path)
    index = manifest.load_index(tmp_path, "train")
    with (tmp_path / built.splits["train"].shards[0].name).open("rb") as shard:
        payloads = [records.read(shard.fileno(), int(row["offset"]), int(row["length"])) for row in index]
    assert payloads == [records.encode(record(0)), records.encode(record(1))]
    assert index["label"].tolist() == [0, 1]


def test_tfds_reads_the_records_with_their_brand_names(tmp_path):
    tfds = pytest.importorskip("tensorflow_datasets")
    write_dataset(tmp_path)
    builder = tfds.builder_from_directory(tmp_path)
    assert builder.info.features["image"]["class"]["label"].names == list(BRANDS)
    assert {name: split.num_examples for name, split in builder.info.splits.items()} == {"train": 2, "test": 1}
    rows = list(tfds.as_numpy(builder.as_dataset(split="train")))
    assert [row["image"]["class"]["text"].decode() for row in rows] == list(BRANDS)
    assert rows[0]["image"]["encoded"].shape == (30, 20, 3)
    assert rows[1]["image"]["class"]["label"] == 1


def test_the_tfds_features_are_those_of_the_records(tmp_path):
    tfds = pytest.importorskip("tensorflow_datasets")
    write_dataset(tmp_path)
    specs = tfds.builder_from_directory(tmp_path).info.features.get_serialized_info()
    flat = {f"image/{'/'.join(path)}" for path in leaves(specs["image"])}
    assert flat == set(records.FEATURES)


def leaves(node):
    return [(k, *rest) for k, v in node.items() for rest in leaves(v)] if isinstance(node, dict) else [()]


def test_files_that_no_build_writes_are_no_part_of_the_dataset(tmp_path):
    (tmp_path / "notes.txt").touch()
    built = write_dataset(tmp_path)
    assert {"features.json", "index-train.npy"} < built.files.keys()
    assert "notes.txt" not in built.files


def test_a_missing_folder_raises(tmp_path):
    with pytest.raises(errors.DataError, match=r"cars: no such folder\. Make it with `carbrand build"):
        manifest.load(tmp_path / "cars")


def test_a_folder_without_manifest_raises(tmp_path):
    write_dataset(tmp_path)
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(errors.DataError, match=r"not a complete records folder.*run `carbrand build` again"):
        manifest.load(tmp_path)


def test_another_format_version_raises(tmp_path):
    write_dataset(tmp_path)
    change(tmp_path, format_version=99)
    with pytest.raises(errors.DataError, match="has format version 99, this carbrand reads version 2"):
        manifest.load(tmp_path)


@pytest.mark.parametrize(("previous", "ancestors"), [("", ()), ("ab12", ("ab12",))])
def test_a_manifest_that_names_only_its_predecessor_is_read(tmp_path, previous, ancestors):
    write_dataset(tmp_path)
    content = json.loads((tmp_path / "manifest.json").read_text())
    del content["checksum"], content["ancestors"]
    content["previous"] = previous
    files.write_json(tmp_path / "manifest.json", {**content, "checksum": files.fingerprint(content)})
    read = manifest.load(tmp_path)
    assert (read.ancestors, read.previous) == (ancestors, previous)


def test_a_manifest_that_is_no_json_raises(tmp_path):
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(errors.DataError, match=r"manifest.json: cannot be read \("):
        manifest.load(tmp_path)


def test_a_manifest_without_a_field_raises(tmp_path):
    (tmp_path / "manifest.json").write_text('{"format_version": 2}')
    with pytest.raises(errors.DataError, match=r"manifest.json: damaged \('splits'\)"):
        manifest.load(tmp_path)


def test_a_changed_manifest_raises(tmp_path):
    write_dataset(tmp_path)
    change(tmp_path, brands=["škoda", "aston_martin"])
    with pytest.raises(errors.DataError, match="changed since it was written"):
        manifest.load(tmp_path)


def test_an_unknown_split_raises(tmp_path):
    write_dataset(tmp_path)
    with pytest.raises(errors.DataError, match=r"no split named 'val'. Use one of: train, validation, test"):
        manifest.load_index(tmp_path, "val")


def test_a_missing_index_raises(tmp_path):
    write_dataset(tmp_path)
    (tmp_path / "index-test.npy").unlink()
    with pytest.raises(errors.DataError, match=r"index-test.npy: cannot read the index"):
        manifest.load_index(tmp_path, "test")


def test_an_index_of_another_dataset_raises(tmp_path):
    write_dataset(tmp_path)
    (tmp_path / "index-train.npy").write_bytes((tmp_path / "index-test.npy").read_bytes())
    with pytest.raises(errors.DataError, match=r"index-train.npy: does not fit manifest.json: 1 rows"):
        manifest.load_index(tmp_path, "train")


def test_a_catalogue_that_does_not_fit_its_records_raises(tmp_path):
    write_dataset(tmp_path)
    (shard,) = manifest.load(tmp_path).splits["test"].shards
    path = tmp_path / catalogue.name_of(shard.name)
    with pytest.raises(errors.DataError, match=f"{path.name}: cannot be read .*No such file.*. Run `carbrand build`"):
        manifest.load_photos(tmp_path, "test")
    for content in ("{}\n", '{"name": "a', "[]\n"):
        path.write_text(content)
        with pytest.raises(errors.DataError, match=f"{path.name}: damaged .*. Run `carbrand build` again"):
            manifest.load_photos(tmp_path, "test")
    path.write_text("")
    with pytest.raises(errors.DataError, match=f"{path.name}: has 0 rows, its shard has 1 records"):
        manifest.load_photos(tmp_path, "test")


def test_the_fingerprint_changes_with_a_shard(tmp_path):
    built = write_dataset(tmp_path)
    shard = dataclasses.replace(built.splits["test"].shards[0], sha256="0" * 64)
    changed = built.splits | {"test": manifest.Split((shard,), (0, 1))}
    assert manifest.fingerprint_of(BRANDS, changed) != built.fingerprint
