"""A dataset to which photos are added: a new version that keeps the old one's decisions."""

import json
import shutil

import pytest
from small_photos import contents, jsonl, photo, rows, write_photos

from beam_jobs import build_dataset
from beam_jobs.build_output import Choices
from carbrand import errors
from carbrand.data import manifest


@pytest.fixture
def old(tmp_path):
    """Twelve photos of each of three brands, as a dataset."""
    source = write_photos(tmp_path / "old_photos")
    (source / "audi/empty.jpg").write_bytes(b"")
    build_dataset.run(source, tmp_path / "old", Choices(seed=7, resize_short_px=32), num_shards=3)
    return tmp_path / "old"


@pytest.fixture
def new_photos(tmp_path):
    """Three new photos of each of two brands, one of them new, and a copy of an old photo."""
    source = write_photos(tmp_path / "new_photos", 3, ("Alfa Romeo", "audi"))
    for number in range(3):  # write_photos draws photos by number and brand
        (source / f"audi/{number:03d}.jpg").write_bytes(photo([100 + number, 3]))
    (source / "audi/copy.jpg").write_bytes((tmp_path / "old_photos/audi/004.jpg").read_bytes())
    (source / "audi/page.jpg").write_bytes(b"<html>")
    return source


def test_the_old_photos_keep_their_splits_labels_and_bytes(old, new_photos, tmp_path):
    before = contents(old)
    built = build_dataset.run(new_photos, tmp_path / "new", append_to=old)
    assert contents(old) == before
    old_rows, new_rows = rows(old), rows(tmp_path / "new")
    assert {sha256: new_rows[sha256] for sha256 in old_rows} == old_rows
    assert built.brands == ("aston_martin", "audi", "bmw", "alfa_romeo")
    assert (built.version, built.previous) == (2, manifest.load(old).fingerprint)
    assert (built.seed, built.resize_short_px) == (7, 32)
    assert built.counts == {
        "seen": 37 + 8,
        "kept": 36 + 6,
        "duplicate": 1,
        "conflict": 0,
        "rejected": {"empty": 1, "not_an_image": 1},
    }
    assert [row["name"] for row in jsonl(tmp_path / "new/rejects.jsonl")] == ["audi/empty.jpg", "audi/page.jpg"]
    assert [(row["name"], row["kept"]) for row in jsonl(tmp_path / "new/duplicates.jsonl")] == [
        ("audi/copy.jpg", "audi/004.jpg")
    ]


def test_the_old_source_is_not_needed_any_more(old, new_photos, tmp_path):
    build_dataset.run(new_photos, tmp_path / "a", append_to=old)
    shutil.rmtree(tmp_path / "old_photos")
    build_dataset.run(new_photos, tmp_path / "b", append_to=old, workers=2)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_a_new_photo_that_contradicts_an_old_one_is_left_out(old, tmp_path):
    source = write_photos(tmp_path / "new", 3, ("Fiat", "Seat"))
    (source / "Fiat/stolen.jpg").write_bytes((tmp_path / "old_photos/audi/004.jpg").read_bytes())
    built = build_dataset.run(source, tmp_path / "out", append_to=old)
    assert built.counts["conflict"] == 1
    assert [(row["name"], row["other_brands"]) for row in jsonl(tmp_path / "out/conflicts.jsonl")] == [
        ("Fiat/stolen.jpg", ["audi"])
    ]
    assert "audi/004.jpg" in {row.name for _, row in rows(tmp_path / "out").values()}


def test_one_more_brand_is_enough_to_append(old, tmp_path):
    source = write_photos(tmp_path / "new", 3, ("Fiat",))
    assert build_dataset.run(source, tmp_path / "out", append_to=old).brands[-1] == "fiat"


def test_versions_can_be_appended_to_again(old, new_photos, tmp_path):
    build_dataset.run(new_photos, tmp_path / "v2", append_to=old)
    built = build_dataset.run(write_photos(tmp_path / "more", 3, ("Seat",)), tmp_path / "v3", append_to=tmp_path / "v2")
    assert built.version == 3
    assert built.ancestors == (manifest.load(tmp_path / "v2").fingerprint, manifest.load(old).fingerprint)
    assert built.counts["seen"] == 45 + 3


def test_looks_at_the_old_test_photos_count(old, new_photos, tmp_path):
    fingerprint = manifest.load(old).fingerprint
    rows = [{"split": "test", "records": fingerprint, "run": "a"}, {"split": "test", "records": "of another dataset"}]
    (old / manifest.LEDGER).write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    built = build_dataset.run(new_photos, tmp_path / "new", append_to=old)
    assert jsonl(tmp_path / "new" / manifest.LEDGER) == [{"split": "test", "records": built.fingerprint, "run": "a"}]


def test_a_group_stays_in_the_split_that_it_had(tmp_path):
    lines = ["path,brand,group"]
    source = write_photos(tmp_path / "photos", 12, ("audi", "bmw"))
    lines += [
        f"{path},{path.parent.name},{int(path.stem) // 3}-{path.parent.name}" for path in sorted(source.rglob("*.jpg"))
    ]
    (tmp_path / "first.csv").write_text("\n".join(lines))
    build_dataset.run(tmp_path / "first.csv", tmp_path / "v1")
    more = write_photos(tmp_path / "more", 4, ("fiat",))
    lines = ["path,brand,group", *(f"{more}/fiat/{n:03d}.jpg,audi,{n}-audi" for n in range(4))]
    (tmp_path / "second.csv").write_text("\n".join(lines))
    build_dataset.run(tmp_path / "second.csv", tmp_path / "v2", append_to=tmp_path / "v1")
    old, new = rows(tmp_path / "v1"), rows(tmp_path / "v2")
    splits_of_groups = {row.group: split for split, row in old.values()}
    added = {sha256: found for sha256, found in new.items() if sha256 not in old}
    assert len(added) == 4
    assert all(split == splits_of_groups[row.group] for split, row in added.values())


def test_a_copy_that_was_left_out_still_links_its_group(tmp_path):
    source = write_photos(tmp_path / "photos", 36, ("audi", "bmw"))
    lines = []
    for brand in ("audi", "bmw"):
        for number in range(12):
            copy = source / brand / f"copy{number}.jpg"
            copy.write_bytes((source / brand / f"{number:03d}.jpg").read_bytes())
            lines += [
                f"{source}/{brand}/{number:03d}.jpg,{brand},a{number}-{brand},",
                f"{copy},{brand},z{number}-{brand},",
            ]
    build_dataset.run(table(tmp_path / "a.csv", lines), tmp_path / "v1", Choices((0.4, 0.3, 0.3)))
    lines = [f"{source}/{b}/{n + 12:03d}.jpg,{b},z{n % 12}-{b}," for b in ("audi", "bmw") for n in range(24)]
    build_dataset.run(table(tmp_path / "b.csv", lines), tmp_path / "v2", append_to=tmp_path / "v1")
    found = {}
    for split, row in rows(tmp_path / "v2").values():
        found.setdefault(row.group, set()).add(split)
    assert len(found) == 24
    assert all(len(splits) == 1 for splits in found.values())


def test_looks_at_a_dataset_outlive_its_replacement(old, new_photos, tmp_path):
    fingerprint = manifest.load(old).fingerprint
    (old / manifest.LEDGER).write_text(json.dumps({"split": "test", "records": fingerprint}) + "\n")
    built = build_dataset.run(new_photos, tmp_path / "new", append_to=old)
    own = {"split": "test", "records": built.fingerprint, "run": "a"}
    with (tmp_path / "new" / manifest.LEDGER).open("a") as file:
        file.write(json.dumps(own) + "\n")
    build_dataset.run(new_photos, tmp_path / "new", append_to=old, overwrite=True)
    assert jsonl(tmp_path / "new" / manifest.LEDGER) == [{"split": "test", "records": built.fingerprint}, own]


def test_choices_are_not_given_again(old, new_photos, tmp_path):
    with pytest.raises(
        errors.ConfigError, match=r"--append=.*old: keeps its own choices \(--split .*\)\. Leave them out"
    ):
        build_dataset.run(new_photos, tmp_path / "out", Choices(), append_to=old)


def test_a_dataset_is_not_appended_to_in_place(old, new_photos):
    with pytest.raises(errors.ConfigError, match="is the dataset that is appended to, which stays as it is"):
        build_dataset.run(new_photos, old, append_to=old, overwrite=True)


def test_a_damaged_dataset_is_not_appended_to(old, new_photos, tmp_path):
    shard = next(iter(sorted(old.glob("carbrand-train*"))))
    content = bytearray(shard.read_bytes())
    content[1000] ^= 1
    shard.write_bytes(content)
    with pytest.raises(errors.DataError, match="carbrand-train.*: damaged record at byte"):
        build_dataset.run(new_photos, tmp_path / "out", append_to=old)


@pytest.mark.parametrize("name", manifest.REPORTS)
def test_a_list_that_is_missing_or_damaged_is_noticed(old, new_photos, tmp_path, name):
    with (old / name).open("a") as file:
        file.write("{}\n")
    with pytest.raises(errors.DataError, match=f"{name}: its SHA-256 is"):
        build_dataset.run(new_photos, tmp_path / "new", append_to=old)
    (old / name).unlink()
    with pytest.raises(errors.DataError, match=f"{name}: is missing"):
        build_dataset.run(new_photos, tmp_path / "new", append_to=old)


def test_a_catalogue_of_other_photos_is_noticed(old, new_photos, tmp_path):
    path = sorted(old.glob("photos-train*"))[0]
    path.write_text("".join(reversed(path.read_text().splitlines(keepends=True))))
    with pytest.raises(errors.DataError, match="carbrand-train.*: is not what was written, or its catalogue is not"):
        build_dataset.run(new_photos, tmp_path / "out", append_to=old)


def table(path, lines):
    path.write_text("\n".join(["path,brand,group,split", *lines]))
    return path


def test_another_path_to_the_same_folder_is_not_appended_to(old, new_photos, tmp_path):
    (tmp_path / "link").symlink_to(old)
    for same in (tmp_path / "link", tmp_path / "new_photos/../old"):
        with pytest.raises(errors.ConfigError, match="is the dataset that is appended to"):
            build_dataset.run(new_photos, same, append_to=old, overwrite=True)
    assert build_dataset.run(new_photos, tmp_path / "out", append_to=tmp_path / "link").version == 2


def test_a_photo_that_was_kept_out_stays_out(tmp_path):
    source = write_photos(tmp_path / "photos", 6, ("audi", "bmw"))
    (source / "bmw/stolen.jpg").write_bytes((source / "audi/003.jpg").read_bytes())
    build_dataset.run(source, tmp_path / "v1")
    more = write_photos(tmp_path / "more", 3, ("fiat",))
    (more / "bmw").mkdir()
    (more / "bmw/again.jpg").write_bytes((source / "audi/003.jpg").read_bytes())
    built = build_dataset.run(more, tmp_path / "v2", append_to=tmp_path / "v1")
    assert built.counts["conflict"] == 3
    assert [
        row["other_brands"] for row in jsonl(tmp_path / "v2/conflicts.jsonl") if row["name"] == "bmw/again.jpg"
    ] == [["audi"]]


def test_aliases_are_passed_on(tmp_path):
    (tmp_path / "names.csv").write_text("name,brand\nBMW AG,bmw\n")
    source = write_photos(tmp_path / "photos", 6, ("audi", "BMW AG"))
    build_dataset.run(source, tmp_path / "v1", aliases=tmp_path / "names.csv")
    more = write_photos(tmp_path / "more", 9, ("BMW AG",))
    built = build_dataset.run(more, tmp_path / "v2", append_to=tmp_path / "v1")
    assert built.brands == ("audi", "bmw")
    (tmp_path / "names.csv").write_text("name,brand\nbmw,audi\n")
    with pytest.raises(errors.ConfigError, match="'bmw' means another brand in .*v1"):
        build_dataset.run(more, tmp_path / "v3", append_to=tmp_path / "v1", aliases=tmp_path / "names.csv")
    (tmp_path / "names.csv").write_text("name,brand\nbeemer,BMW AG\n")
    with pytest.raises(errors.ConfigError, match="v1: beemer stands for bmw_ag, which stands for bmw."):
        build_dataset.run(more, tmp_path / "v3", append_to=tmp_path / "v1", aliases=tmp_path / "names.csv")


def test_nothing_is_added_to_a_test_split_that_the_source_gave(tmp_path):
    source = write_photos(tmp_path / "photos", 40, ("audi", "bmw"))
    paths = sorted(source.rglob("*.jpg"))
    split = {path: "test" if int(path.stem) < 3 else "train" for path in paths}
    lines = [f"{path},{path.parent.name},,{split[path]}" for path in paths if int(path.stem) < 10]
    build_dataset.run(table(tmp_path / "a.csv", lines), tmp_path / "v1")
    lines = [f"{path},{path.parent.name},,train" for path in paths if int(path.stem) >= 10]
    built = build_dataset.run(table(tmp_path / "b.csv", lines), tmp_path / "v2", append_to=tmp_path / "v1")
    assert built.splits["test"].num_examples == 6


def test_photos_that_must_follow_their_group_are_listed(tmp_path, capsys):
    source = write_photos(tmp_path / "photos", 30, ("audi", "bmw"))
    paths = sorted(source.rglob("*.jpg"))
    lines = [f"{path},{path.parent.name},g{int(path.stem) % 10},train" for path in paths if int(path.stem) < 20]
    lines += [f"{path},{path.parent.name},h,test" for path in paths[20:22]]
    build_dataset.run(table(tmp_path / "a.csv", lines), tmp_path / "v1")
    lines = [f"{path},{path.parent.name},g{int(path.stem) % 10},test" for path in paths if int(path.stem) >= 22]
    build_dataset.run(table(tmp_path / "b.csv", lines), tmp_path / "v2", append_to=tmp_path / "v1")
    moved = jsonl(tmp_path / "v2/moved.jsonl")
    assert {row["from"] for row in moved} == {"test"}
    assert len(moved) == 16
    assert "16 photos left the split that they had" in capsys.readouterr().out


def test_a_page_does_not_depend_on_what_else_lies_in_the_cache(tmp_path):
    source = write_photos(tmp_path / "photos", 6, ("audi", "bmw"))
    (source / "audi/copy.jpg").write_bytes((source / "audi/003.jpg").read_bytes())
    build_dataset.run(source, tmp_path / "v1", cache_dir=tmp_path / "cache")
    more = write_photos(tmp_path / "more", 3, ("fiat",))
    build_dataset.run(more, tmp_path / "a", append_to=tmp_path / "v1", cache_dir=tmp_path / "cache")
    build_dataset.run(more, tmp_path / "b", append_to=tmp_path / "v1")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
