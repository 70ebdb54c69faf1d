import dataclasses
import hashlib
import itertools
import os
import random
import struct

import numpy as np
import pytest

from carbrand import errors, files
from carbrand.data import catalogue, frames, leakage, manifest, records, verify, verify_shard

BRANDS = ("aston_martin", "škoda")
SHARDS = {"train": 3, "validation": 1, "test": 2}
RECORDS_PER_SHARD = 4


def photo_row(split, number, **values):
    sha256 = hashlib.sha256(f"{split} {number}".encode()).hexdigest()
    brand = BRANDS[number % 2]
    row = catalogue.Row(
        name=f"{brand}/{split}-{number}.jpg",
        uri=f"/photos/{brand}/{split}-{number}.jpg",
        brand=brand,
        label=brand.title(),
        model="",
        group=f"group of {split} {number // 2}",
        source_group="",
        source_split="",
        sha256=sha256,
        perceptual_hash="00ff",
        height=60 + number,
        width=80,
        original_height=600,
        original_width=800,
        mean_rgb=(1, 2, 3),
        bytes=100 + number % 2,
        extra={},
    )
    return dataclasses.replace(row, **values)


def record_of(row):
    return {
        "image/class/label": BRANDS.index(row.brand),
        "image/class/text": row.brand.encode(),
        "image/encoded": b"\xff\xd8\xff" + random.Random(row.sha256).randbytes(row.bytes - 3),
        "image/filename": row.name.encode(),
        "image/group": row.group.encode(),
        "image/hash/perceptual": row.perceptual_hash.encode(),
        "image/height": row.height,
        "image/key/sha256": row.sha256.encode(),
        "image/model": row.model.encode(),
        "image/source/height": row.original_height,
        "image/source/label": row.label.encode(),
        "image/source/width": row.original_width,
        "image/width": row.width,
    }


def write_dataset(folder, change=lambda split, number, row: row, encode=record_of, conflicts="keep_out"):
    """Six shards of four records; `change` may replace a row, `encode` makes its record."""
    splits = {split: write_split(folder, split, change, encode) for split in SHARDS}
    files.write_jsonl(folder / "rejects.jsonl", [{"name": "škoda/x.txt", "reason": "empty"}])
    num_records = RECORDS_PER_SHARD * sum(SHARDS.values())
    built = manifest.Manifest(
        format_version=records.FORMAT_VERSION,
        carbrand_version="0.1.0",
        version=1,
        ancestors=(),
        brands=BRANDS,
        labels={brand: [brand.title()] for brand in BRANDS},
        near_misses=[],
        splits=splits,
        resize_short_px=256,
        jpeg_quality=95,
        seed=0,
        fractions=(0.8, 0.1, 0.1),
        near_duplicates="keep_one",
        conflicts=conflicts,
        group_by="none",
        given_splits=(),
        aliases={},
        counts={"seen": num_records, "kept": num_records, "duplicate": 0, "conflict": 0, "rejected": {}},
        statistics={},
        source={},
        files={},
        fingerprint=manifest.fingerprint_of(BRANDS, splits),
        command="",
    )
    return manifest.write(folder, built)


def write_split(folder, split, change, encode):
    shards, index = [], []
    for shard in range(SHARDS[split]):
        numbers = range(shard * RECORDS_PER_SHARD, (shard + 1) * RECORDS_PER_SHARD)
        rows = [change(split, number, photo_row(split, number)) for number in numbers]
        payloads = [records.encode(encode(row)) for row in rows]
        offset = 0
        for row, payload in zip(rows, payloads, strict=True):
            index.append((shard, offset, len(payload), BRANDS.index(row.brand)))
            offset += len(payload) + records.FRAME_BYTES
        content = b"".join(map(records.frame, payloads))
        name = files.shard_name(split, shard, SHARDS[split])
        files.write_bytes(folder / name, content)
        catalogue.write(folder / catalogue.name_of(name), rows)
        shards.append(manifest.Shard(name, len(rows), len(content), files.sha256(content)))
    index = np.array(index, records.INDEX_DTYPE)
    files.write_bytes(folder / manifest.index_name(split), manifest.index_bytes(index))
    return manifest.Split(tuple(shards), tuple(np.bincount(index["label"], minlength=2).tolist()))


@pytest.fixture
def dataset(tmp_path):
    write_dataset(tmp_path)
    return tmp_path


def flip(path, byte, bits=1):
    content = bytearray(path.read_bytes())
    content[byte] ^= bits
    path.write_bytes(content)


def shown(folder):
    return [str(problem) for problem in verify.run(folder)]


SHARD = "carbrand-train.tfrecord-00001-of-00003"
CATALOGUE = "photos-train-00001-of-00003.jsonl"


def offsets_of(folder):
    """Where the records of SHARD start, and where it ends."""
    index = manifest.load_index(folder, "train")[RECORDS_PER_SHARD : 2 * RECORDS_PER_SHARD]
    return [*index["offset"].tolist(), (folder / SHARD).stat().st_size]


def test_a_folder_as_it_was_written_has_no_problems(dataset):
    assert verify.run(dataset) == []
    assert verify.check_quickly(dataset) is None


@pytest.mark.parametrize(
    ("byte", "what"),
    [
        (0, "it begins with the length"),
        (7, "it begins with the length"),
        (8, "the checksum of its length is damaged"),
        (12, "its content and its checksum do not match"),
        (200, "its content and its checksum do not match"),
        (-1, "its content and its checksum do not match"),
    ],
)
@pytest.mark.parametrize("has_index", [True, False])
@pytest.mark.parametrize("record", [0, 2, 3])
def test_a_flipped_byte_is_named_by_record_offset_and_photo(dataset, byte, what, has_index, record):
    offsets = offsets_of(dataset)
    flip(dataset / SHARD, offsets[record] + byte if byte >= 0 else offsets[record + 1] - 1)
    if not has_index:
        (dataset / "index-train.npy").unlink()
    found = [problem for problem in verify.run(dataset) if problem.file != "index-train.npy"]
    assert len(found) == 1
    assert (found[0].file, found[0].record, found[0].offset) == (SHARD, record, offsets[record])
    assert found[0].photo == f"{BRANDS[record % 2]}/train-{4 + record}.jpg"
    assert found[0].what.startswith(what)


def test_random_flips_in_any_file_are_named_without_naming_anything_else(dataset):
    offsets = {split: manifest.load_index(dataset, split) for split in SHARDS}
    randomness = random.Random(7)
    paths = sorted(dataset.iterdir())
    for _ in range(400):
        path = randomness.choice(paths)
        before = path.read_bytes()
        byte = randomness.randrange(len(before))
        flip(path, byte, 1 << randomness.randrange(8))
        found = verify.run(dataset)
        path.write_bytes(before)
        assert {problem.file for problem in found} == {path.name}
        if ".tfrecord-" in path.name:
            split, shard = path.name.split("-")[1].partition(".")[0], int(path.name.split("-")[2])
            starts = [row["offset"] for row in offsets[split] if row["shard"] == shard]
            (problem,) = found
            assert problem.record == np.searchsorted(starts, byte, side="right") - 1
            assert problem.offset == starts[problem.record]


@pytest.mark.parametrize("has_index", [True, False])
def test_all_damaged_records_are_named_and_no_sound_one(dataset, has_index):
    offsets = offsets_of(dataset)
    for record in (0, 1, 3):
        flip(dataset / SHARD, offsets[record] + 20)
    if not has_index:
        flip(dataset / "index-train.npy", -RECORDS_PER_SHARD * 20 - 9)  # in the last row of SHARD
    found = [problem for problem in verify.run(dataset) if problem.file == SHARD]
    assert [problem.record for problem in found] == [0, 1, 3]


def test_a_damaged_index_is_named_without_naming_records(dataset):
    flip(dataset / "index-train.npy", -1)
    assert {(problem.file, problem.record) for problem in verify.run(dataset)} <= {
        ("index-train.npy", None),
        ("index-train.npy", 11),
    }


def test_a_shard_cut_short_names_what_is_cut_and_what_is_missing(dataset):
    offsets = offsets_of(dataset)
    os.truncate(dataset / SHARD, offsets[1] + 40)
    length = offsets[2] - offsets[1]
    assert shown(dataset) == [
        f"{SHARD}: has {offsets[1] + 40} bytes instead of {offsets[-1]}",
        f"{SHARD}: records 2 to 3 are missing",
        f"{SHARD}: record 1 at byte {offsets[1]} (škoda/train-5.jpg): the file ends after 40 of its {length} bytes",
    ]


def test_bytes_after_the_last_record_are_named(dataset):
    size = offsets_of(dataset)[-1]
    with (dataset / SHARD).open("ab") as file:
        file.write(b"12345")
    assert shown(dataset) == [
        f"{SHARD}: 5 bytes follow its last record",
        f"{SHARD}: has {size + 5} bytes instead of {size}",
    ]


@pytest.mark.parametrize("name", [SHARD, CATALOGUE, "index-test.npy", "rejects.jsonl", "features.json"])
def test_a_missing_file_is_named(dataset, name):
    (dataset / name).unlink()
    assert shown(dataset) == [f"{name}: is missing"]


def test_an_empty_shard_is_named(dataset):
    size = offsets_of(dataset)[-1]
    (dataset / SHARD).write_bytes(b"")
    assert shown(dataset) == [
        f"{SHARD}: has 0 bytes instead of {size}",
        f"{SHARD}: records 0 to 3 are missing",
    ]


def test_swapped_records_are_both_named(dataset):
    offsets = offsets_of(dataset)
    content = (dataset / SHARD).read_bytes()
    parts = [content[start:end] for start, end in itertools.pairwise(offsets)]
    (dataset / SHARD).write_bytes(parts[2] + parts[1] + parts[0] + parts[3])
    found = verify.run(dataset)
    assert [problem.record for problem in found] == [0, 2]
    assert found[0].what.startswith("has the sha256 '")


def test_an_edited_record_with_new_checksums_is_found(dataset):
    content = bytearray((dataset / SHARD).read_bytes())
    second = offsets_of(dataset)[1]
    payload = content[12 : second - 4]
    payload[payload.index(b"\xff\xd8\xff") + 50] ^= 1
    (dataset / SHARD).write_bytes(records.frame(bytes(payload)) + content[second:])
    what = "its SHA-256 is not the manifest's, although every record is whole: it is of another build"
    assert shown(dataset) == [f"{SHARD}: {what}"]


def accept(folder, **values):
    """Makes the manifest accept all files as they are now, and changes its fields."""
    manifest.write(folder, dataclasses.replace(manifest.load(folder), files={}, **values))


def test_an_edited_catalogue_is_named_by_row_even_if_the_manifest_accepts_it(dataset):
    rows = [*catalogue.read(dataset / CATALOGUE)]
    rows[2] = dataclasses.replace(rows[2], height=61)
    catalogue.write(dataset / CATALOGUE, rows)
    accept(dataset)
    what = "(aston_martin/train-6.jpg): has the height 66, the catalogue has 61"
    assert shown(dataset) == [f"{CATALOGUE}: record 2 {what}"]


@pytest.mark.parametrize("rows", ["{}\n", "[]\n", "{", ""])
def test_a_catalogue_that_is_none_is_named(dataset, rows):
    (dataset / CATALOGUE).write_text(rows)
    accept(dataset)
    assert [problem.file for problem in verify.run(dataset)] == [CATALOGUE]


def test_an_edited_index_is_named_by_row_even_if_the_manifest_accepts_it(dataset):
    flip(dataset / "index-train.npy", -4)  # the last label
    accept(dataset)
    assert shown(dataset) == [
        "index-train.npy: its photos per brand are not those of the manifest",
        "index-train.npy: record 11: has the label 0, its record has 1",
    ]


@pytest.mark.parametrize(
    ("byte", "value", "what"),
    [
        (-20 * 12, 1, "its rows for carbrand-train.tfrecord-00000-of-00003 do not fit that shard"),
        (-4, 7, "a label for carbrand-train.tfrecord-00002-of-00003 lies outside 0 to 1"),
    ],
)
def test_an_index_that_fits_no_dataset_is_named_even_if_the_manifest_accepts_it(dataset, byte, value, what):
    content = bytearray((dataset / "index-train.npy").read_bytes())
    content[byte] = value
    (dataset / "index-train.npy").write_bytes(content)
    accept(dataset)
    assert shown(dataset)[0] == f"index-train.npy: {what}"


def test_a_file_that_the_manifest_does_not_know_is_named(dataset):
    (problem,) = verify_shard.check_file(dataset, "index-train.npy", None)
    assert str(problem) == "index-train.npy: has no hash in the manifest"


def test_a_wrong_count_in_the_manifest_is_named(dataset):
    accept(dataset, counts={"kept": 25})
    assert shown(dataset) == ["manifest.json: says that 25 photos were kept, its shards hold 24"]


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ({"image/class/label": 2}, "has the label 2, which lies outside 0 to 1"),
        ({"image/class/label": 0}, "has the label 0, which is 'aston_martin', and the brand 'škoda'"),
        ({"image/encoded": b"GIF89a..."}, "holds no JPEG: it starts with b'GIF89a..'"),
    ],
)
def test_a_record_that_contradicts_itself_is_named(tmp_path, values, what):
    def encode(row):
        return record_of(row) | (values if row.name == "škoda/train-5.jpg" else {})

    write_dataset(tmp_path, encode=encode)
    assert [str(item) for item in verify.run(tmp_path) if item.file == SHARD] == [
        f"{SHARD}: record 1 at byte {offsets_of(tmp_path)[1]} (škoda/train-5.jpg): {what}"
    ]


def test_a_record_of_another_format_is_named(dataset):
    payload = b"\x0a\x00"
    content = (dataset / SHARD).read_bytes()
    (dataset / SHARD).write_bytes(records.frame(payload) + content[offsets_of(dataset)[1] :])
    (dataset / "index-train.npy").unlink()
    (problem,) = (item for item in verify.run(dataset) if item.record == 0)
    assert problem.what.startswith("cannot be understood (")


def test_a_photo_in_two_places_leaks(tmp_path):
    sha256 = photo_row("train", 5).sha256
    write_dataset(
        tmp_path,
        change=lambda split, number, row: (
            dataclasses.replace(row, sha256=sha256) if (split, number) == ("train", 9) else row
        ),
    )
    what = f"(škoda/train-9.jpg): is the same photo as record 1 of {SHARD} (škoda/train-5.jpg)"
    assert shown(tmp_path) == [f"carbrand-train.tfrecord-00002-of-00003: record 1 {what}"]


def same_photo(split, number, row):
    """A photo of train, a second time, under its other brand."""
    sha256 = photo_row("train", 4).sha256
    return dataclasses.replace(row, sha256=sha256) if (split, number) == ("train", 5) else row


def test_a_photo_under_two_brands_is_no_leak_where_those_are_kept(tmp_path):
    write_dataset(tmp_path, change=same_photo, conflicts="keep")
    assert verify.run(tmp_path) == []


def test_a_group_in_two_splits_leaks_once(tmp_path):
    def change(split, number, row):
        is_planted = (split, number) in (("train", 4), ("train", 8), ("test", 7))
        return dataclasses.replace(row, group="planted") if is_planted else row

    write_dataset(tmp_path, change=change)
    what = "(škoda/test-7.jpg): is of the same group as record 0 of carbrand-train.tfrecord-00002-of-00003"
    assert shown(tmp_path) == [
        f"carbrand-test.tfrecord-00001-of-00002: record 3 {what} (aston_martin/train-8.jpg)",
    ]


def test_a_leak_is_found_without_the_index_too(tmp_path):
    write_dataset(tmp_path, change=same_photo)
    (tmp_path / "index-train.npy").unlink()
    assert shown(tmp_path) == [
        f"{SHARD}: record 1: is the same photo as record 0 of {SHARD}",
        "index-train.npy: is missing",
    ]


def test_many_leaks_are_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(verify, "MAX_LEAKS", 2)
    write_dataset(tmp_path, change=lambda split, number, row: dataclasses.replace(row, sha256="0" * 64, group=""))
    found = verify.run(tmp_path)
    assert len(found) == 2
    assert sum("; and so on for 21 more" in problem.what for problem in found) == 1


def test_leaks_do_not_depend_on_the_order_of_the_keys():
    keys = np.zeros(6, leakage.KEY_DTYPE)
    keys["high"], keys["low"], keys["record"] = [1, 1, 1, 2, 2, 3], [5, 5, 6, 7, 7, 7], range(6)
    pairs = leakage.find(keys)
    assert pairs["record"].tolist() == [[1, 0], [4, 3]]
    assert (leakage.find(keys[[4, 0, 3, 5, 1, 2]]) == pairs).all()


def test_a_shard_of_another_dataset_is_named(dataset):
    (dataset / "carbrand-train.tfrecord-00003-of-00004").write_bytes(b"")
    assert shown(dataset) == ["carbrand-train.tfrecord-00003-of-00004: is no part of this dataset"]


@pytest.mark.parametrize(("old", "new"), [(b"}\n", b"}\n "), (b"\n", b"\r\n")])
def test_a_reformatted_manifest_is_named(dataset, old, new):
    path = dataset / manifest.FILE_NAME
    path.write_bytes(path.read_bytes().replace(old, new))
    assert shown(dataset) == ["manifest.json: was reformatted since it was written"]


def test_a_damaged_manifest_is_a_problem(dataset):
    path = dataset / manifest.FILE_NAME
    path.write_text(path.read_text().replace('"aston_martin"', '"aston_mortin"', 1))
    assert len(shown(dataset)) == 1
    assert shown(dataset)[0].startswith("manifest.json: ")


def test_a_folder_without_manifest_raises(tmp_path):
    with pytest.raises(errors.DataError, match="not a complete records folder"):
        verify.run(tmp_path)


def test_an_unreadable_file_is_named(dataset):
    (dataset / SHARD).unlink()
    (dataset / SHARD).mkdir()
    assert shown(dataset) == [f"{SHARD}: cannot be read (Is a directory)"]


def test_a_record_is_found_behind_a_damaged_length(tmp_path):
    payloads = [bytes(50), b"second", b""]
    framed = [records.frame(payload) for payload in payloads]
    path = tmp_path / "shard"
    path.write_bytes(b"".join(framed))
    expected = [(0, 50), (66, 6), (88, 0)]
    assert list(frames.find_all(path)) == expected
    flip(path, 0)
    flip(path, 66 + 9)
    assert list(frames.find_all(path)) == [(0, 72), (88, 0)]  # two in a row count as one


def test_a_file_without_frames_has_none(tmp_path):
    (tmp_path / "shard").write_bytes(b"short")
    assert list(frames.find_all(tmp_path / "shard")) == []


def test_the_report_ends_in_one_line_if_all_is_well(dataset, capsys):
    verify.report(dataset, [], 1.25)
    out = capsys.readouterr().out
    assert out.startswith(f"{dataset}: OK, 24 photos in 6 shards, 0.0 MiB, 1.2 s, fingerprint ")
    assert len(out.splitlines()) == 1


def test_the_report_shows_the_first_problems_and_fails(capsys):
    problems = [verify.Problem(f"shard-{number % 4}", "is missing", record=number) for number in range(23)]
    with pytest.raises(errors.GateError, match=r"^records: 23 problems in 4 files\. Restore what is damaged"):
        verify.report("records", problems, 1.0)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "shard-0: record 0: is missing"
    assert lines[-1] == "… and 3 more"
    assert len(lines) == 21


@pytest.mark.parametrize("name", [SHARD, "index-validation.npy"])
def test_the_quick_check_finds_a_flipped_byte(dataset, name):
    flip(dataset / name, -1)
    with pytest.raises(errors.DataError, match=rf"{name}: its SHA-256 is .*`carbrand verify"):
        verify.check_quickly(dataset)


def test_the_quick_check_finds_a_wrong_size_without_reading(dataset):
    with (dataset / SHARD).open("ab") as file:
        file.write(struct.pack("<I", 0))
    with pytest.raises(errors.DataError, match=rf"{SHARD}: has \d+ bytes instead of \d+\. Restore the file"):
        verify.check_quickly(dataset, max_hash_bytes=0)


def test_the_quick_check_reads_the_first_shards_of_each_split_within_its_budget(dataset):
    sizes = [part.shards[0].bytes for part in manifest.load(dataset).splits.values()]
    flip(dataset / SHARD, -1)
    verify.check_quickly(dataset, max_hash_bytes=sum(sizes))
    flip(dataset / "carbrand-test.tfrecord-00000-of-00002", -1)
    with pytest.raises(errors.DataError, match="carbrand-test.tfrecord-00000-of-00002: its SHA-256 is"):
        verify.check_quickly(dataset, max_hash_bytes=sum(sizes))


def test_the_quick_check_finds_a_missing_shard(dataset):
    (dataset / SHARD).unlink()
    with pytest.raises(errors.DataError, match=rf"{SHARD}: is missing\. Restore the file"):
        verify.check_quickly(dataset)
