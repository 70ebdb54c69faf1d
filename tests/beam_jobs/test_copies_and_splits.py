"""Copies, groups and splits, through whole builds: what one module decides must arrive in the records."""

import csv

import numpy as np
import pytest
from PIL import Image, ImageDraw
from small_photos import contents, jsonl, rows, write_photos

from beam_jobs import assign_splits, build_dataset, checking
from beam_jobs.build_output import Choices
from carbrand import errors
from carbrand.data import sources, splits


def scene(seed):
    """A picture of shapes with edges, as photos have them."""
    randomness = np.random.default_rng(seed)
    image = Image.new("RGB", (320, 240), tuple(randomness.integers(0, 256, 3).tolist()))
    draw = ImageDraw.Draw(image)
    for number in range(40):
        left, top, width, height = randomness.integers([0, 0, 10, 10], [300, 220, 110, 90]).tolist()
        shape = (draw.ellipse, draw.rectangle)[number % 2]
        shape((left, top, left + width, top + height), fill=tuple(randomness.integers(0, 256, 3).tolist()))
    return image


def near_copies(image):
    width, height = image.size
    return {
        "small": image.resize((width * 2 // 3, height * 2 // 3), Image.Resampling.LANCZOS),
        "mirrored": image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        "cropped": image.crop((8, 6, width - 8, height - 6)),
    }


@pytest.fixture
def table(tmp_path):
    """Writes rows with the columns path, brand, group and split, and the pictures that they name."""

    def write(described):
        with (tmp_path / "photos.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, ["path", "brand", "group", "split"], restval="")
            writer.writeheader()
            for row, image in described:
                image.save(tmp_path / row["path"], quality=90)
                writer.writerow(row)
        return tmp_path / "photos.csv"

    return write


def plain(count=24, **columns):
    """Different photos of two brands."""
    return [({"path": f"p{n}.jpg", "brand": ("audi", "bmw")[n % 2], **columns}, scene(n)) for n in range(count)]


def with_copies(columns):
    """The photos of `plain`, and of the first audi three near copies, with the columns given for each."""
    copies = near_copies(scene(0))
    described = [({"path": f"{name}.jpg", "brand": "audi", **columns.get(name, {})}, copies[name]) for name in copies]
    return [*plain(), *described]


def by_name(folder):
    return {row.name: (split, row) for split, row in rows(folder).values()}


def test_of_near_copies_the_largest_is_kept(table, tmp_path):
    described = [(row, image) for row, image in with_copies({}) if row["path"] != "mirrored.jpg"]  # of equal size
    built = build_dataset.run(table(described), tmp_path / "out")
    assert built.counts["duplicate"] == 2
    assert {row["name"]: (row["kept"], row["kind"]) for row in jsonl(tmp_path / "out/duplicates.jsonl")} == {
        "cropped.jpg": ("p0.jpg", "near"),
        "small.jpg": ("p0.jpg", "near"),
    }


@pytest.mark.parametrize("seed", range(3))
def test_near_copies_can_stay_in_one_split(table, tmp_path, seed):
    built = build_dataset.run(
        table(with_copies({})), tmp_path / "out", Choices(near_duplicates="keep_group", seed=seed)
    )
    assert built.counts["duplicate"] == 0
    found = by_name(tmp_path / "out")
    four = [found[name] for name in ("p0.jpg", "small.jpg", "mirrored.jpg", "cropped.jpg")]
    assert len({split for split, _ in four}) == 1
    assert len({row.group for _, row in four}) == 1
    assert [row["dropped"] for row in jsonl(tmp_path / "out/duplicates.jsonl")] == [False] * 3


def test_copies_join_the_groups_that_they_lie_in(table, tmp_path):
    described = with_copies({"small": {"group": "x"}, "cropped": {"group": "y"}})
    described += [({"path": f"x{n}.jpg", "brand": "audi", "group": "x"}, scene(100 + n)) for n in range(3)]
    described += [({"path": f"y{n}.jpg", "brand": "bmw", "group": "y"}, scene(200 + n)) for n in range(3)]
    build_dataset.run(table(described), tmp_path / "out", Choices(near_duplicates="keep_group"))
    found = by_name(tmp_path / "out")
    joined = [found[name] for name in found if name[0] in "xysmc" or name == "p0.jpg"]
    assert len(joined) == 10
    assert len({(split, row.group) for split, row in joined}) == 1


def test_near_copies_are_not_looked_for_when_off(table, tmp_path):
    built = build_dataset.run(table(with_copies({})), tmp_path / "out", Choices(near_duplicates="off"))
    assert built.counts["kept"] == 27


def test_a_photo_under_two_brands_can_be_kept_in_one_split(table, tmp_path):
    described = with_copies({"small": {"brand": "bmw"}, "cropped": {"brand": "bmw"}})
    kept_out = build_dataset.run(table(described), tmp_path / "a")
    assert (kept_out.counts["conflict"], kept_out.counts["kept"]) == (4, 23)
    built = build_dataset.run(tmp_path / "photos.csv", tmp_path / "b", Choices(conflicts="keep"))
    assert (built.counts["conflict"], built.counts["duplicate"]) == (0, 2)
    found = by_name(tmp_path / "b")
    both = [found[name] for name in ("p0.jpg", "mirrored.jpg", "small.jpg", "cropped.jpg") if name in found]
    assert [row.brand for _, row in both] == ["audi", "bmw"]
    assert len({split for split, _ in both}) == 1


def test_photos_of_one_group_stay_together(table, tmp_path):
    described = [(row | {"group": str(n // 4)}, image) for n, (row, image) in enumerate(plain(48))]
    for choices, together in ((Choices(), True), (Choices(group_by="none"), False)):
        folder = tmp_path / choices.group_by
        build_dataset.run(table(described), folder, choices)
        splits = {}
        for split, row in rows(folder).values():
            splits.setdefault(row.source_group, set()).add(split)
        assert all(len(found) == 1 for found in splits.values()) == together


def test_models_can_stay_together(tmp_path):
    source = tmp_path / "photos"
    for number in range(48):
        path = source / ("audi", "bmw")[number % 2] / f"m{number // 8}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        scene(number).save(path)
    build_dataset.run(source, tmp_path / "out", Choices(group_by="model"))
    splits = {}
    for split, row in rows(tmp_path / "out").values():
        assert row.model in row.name
        splits.setdefault((row.brand, row.model), set()).add(split)
    assert len(splits) == 12
    assert all(len(found) == 1 for found in splits.values())


def test_splits_of_the_source_are_kept_and_what_crosses_them_is_reported(table, tmp_path, capsys):
    described = with_copies({"small": {"split": "test"}, "mirrored": {"split": "train"}, "cropped": {"split": "val"}})
    described = [({"split": ("train", "val", "test")[n % 3]} | row, image) for n, (row, image) in enumerate(described)]
    build_dataset.run(table(described), tmp_path / "out")
    for split, row in rows(tmp_path / "out").values():
        assert split == row.source_split
    crossing = jsonl(tmp_path / "out/duplicates.jsonl")
    assert {row["kept"] for row in crossing} == {"small.jpg"}  # the copy that is held out for testing
    assert sorted(row["split"] for row in crossing) == ["train", "train", "validation"]
    assert "3 copies lie in other splits of the source than the photo that was kept" in capsys.readouterr().out


def test_validation_is_cut_from_train_when_the_source_has_none(table, tmp_path):
    described = [(row | {"split": "test" if n < 12 else "train"}, image) for n, (row, image) in enumerate(plain(60))]
    built = build_dataset.run(table(described), tmp_path / "out")
    assert built.splits["test"].num_examples == 12
    assert min(built.splits["validation"].brand_counts) >= 2
    for split, row in rows(tmp_path / "out").values():
        assert (split == "test") == (row.source_split == "test")


def test_a_group_that_the_source_tears_apart_fails_the_gate(table, tmp_path):
    described = [(row | {"split": ("train", "test")[n % 2], "group": "g" if n < 4 else ""}, image)
                 for n, (row, image) in enumerate(plain())]  # fmt: skip
    with pytest.raises(errors.GateError, match=r"groups lie in several splits \(.* times\), for example group:g: p"):
        build_dataset.run(table(described), tmp_path / "out")
    assert not (tmp_path / "out/manifest.json").exists()
    assert build_dataset.run(tmp_path / "photos.csv", tmp_path / "out", Choices(group_by="none")).counts["kept"] == 24


def test_other_columns_are_kept(tmp_path):
    source = write_photos(tmp_path / "photos", 3, ("audi", "bmw"))
    lines = ["path,brand,year,colour"] + [f"{p},{p.parent.name},2012,grün" for p in sorted(source.rglob("*.jpg"))]
    (tmp_path / "photos.csv").write_text("\n".join(lines))
    build_dataset.run(tmp_path / "photos.csv", tmp_path / "out")
    assert {tuple(row.extra.items()) for _, row in rows(tmp_path / "out").values()} == {
        (("colour", "grün"), ("year", "2012"))
    }


def test_a_folder_and_tables_in_any_order_give_the_same_bytes(tmp_path):
    source = write_photos(tmp_path / "photos", 30)
    (source / "audi/copy.jpg").write_bytes((source / "audi/001.jpg").read_bytes())
    (source / "audi/page.jpg").write_bytes(b"<html>")
    build_dataset.run(source, tmp_path / "folder", num_shards=3)
    paths = sorted(source.rglob("*.jpg"))
    np.random.default_rng(0).shuffle(paths)
    lines = [f"{path.relative_to(tmp_path)},{path.parent.name}" for path in paths]
    (tmp_path / "photos.csv").write_text("\n".join(["path,brand", *lines]))
    lines = [f'{{"brand": "{path.parent.name}", "uri": "{path}"}}' for path in reversed(paths)]
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/photos.jsonl").write_text("\n".join(lines))
    for table in (tmp_path / "photos.csv", tmp_path / "elsewhere/photos.jsonl", f"{source}/*/*.jpg"):
        build_dataset.run(table, tmp_path / "out", num_shards=3, overwrite=True)
        assert contents(tmp_path / "out") == contents(tmp_path / "folder")


def test_brand_names_that_are_alike_are_reported(tmp_path, capsys):
    source = write_photos(tmp_path / "photos", 3, ("Mercedes", "mercedes-benz", "audi"))
    built = build_dataset.run(source, tmp_path / "out")
    assert built.near_misses == [["mercedes", "mercedes_benz"]]
    assert "Are these one brand? mercedes, mercedes_benz. See --aliases." in capsys.readouterr().out
    (tmp_path / "names.csv").write_text("name,brand\nMercedes Benz,Mercedes\n")
    built = build_dataset.run(source, tmp_path / "one", aliases=tmp_path / "names.csv")
    assert built.brands == ("audi", "mercedes")
    assert built.labels["mercedes"] == ["Mercedes", "mercedes-benz"]


@pytest.mark.parametrize("policy", ["keep_one", "keep_group", "off"])
def test_a_copy_that_is_left_out_still_links_its_group(table, tmp_path, policy):
    described = []
    for pair in range(8):  # of each pair of groups, one photo is in both
        for group in "ab":
            for number in range(3):
                row = {
                    "path": f"{pair}{group}{number}.jpg",
                    "brand": ("audi", "bmw")[pair % 2],
                    "group": f"{pair}{group}",
                }
                described.append((row, scene(100 * pair + (number if group == "a" or number == 0 else 10 + number))))
    build_dataset.run(table(described), tmp_path / "out", Choices((0.4, 0.3, 0.3), near_duplicates=policy))
    splits = {}
    for split, row in rows(tmp_path / "out").values():
        splits.setdefault(row.name[0], set()).add((split, row.group))
    assert len(splits) == 8
    assert all(len(found) == 1 for found in splits.values())


def test_one_file_under_two_descriptions_gives_the_same_bytes_in_any_order(tmp_path):
    source = write_photos(tmp_path / "photos", 6, ("audi", "bmw"))
    lines = [f"{path},{path.parent.name},m{number % 2},g{number}" for number, path in enumerate(source.rglob("*.jpg"))]
    lines += [f"{path},{path.parent.name},other,h{number}" for number, path in enumerate(source.rglob("*.jpg"))]
    found = []
    for order in (lines, lines[::-1]):
        (tmp_path / "photos.csv").write_text("\n".join(["path,brand,model,group", *order]))
        build_dataset.run(tmp_path / "photos.csv", tmp_path / "out", overwrite=True)
        found.append(contents(tmp_path / "out"))
    assert found[0] == found[1]


def test_photos_without_a_split_are_kept_out_of_those_that_the_source_gives(table, tmp_path):
    described = [(row | {"split": "test" if n < 12 else ""}, image) for n, (row, image) in enumerate(plain(60))]
    built = build_dataset.run(table(described), tmp_path / "out")
    assert built.splits["test"].num_examples == 12
    assert min(built.splits["validation"].brand_counts) >= 2


def test_groups_that_the_source_binds_do_not_count_as_movable(tmp_path):
    source = write_photos(tmp_path / "photos", 20, ("audi", "bmw"))
    lines = []
    for path in sorted(source.rglob("*.jpg")):
        number, brand = int(path.stem), path.parent.name
        bound, split = number < 8, "test" if number < 4 else ""  # four groups of one in test and one without a split
        group = f"{brand}-bound{number % 4}" if bound else f"{brand}-{number // 2}"
        lines.append(f"{path},{brand},{group},{split}")
    (tmp_path / "photos.csv").write_text("\n".join(["path,brand,group,split", *lines]))
    for seed in range(3):
        built = build_dataset.run(tmp_path / "photos.csv", tmp_path / "out", Choices(seed=seed), overwrite=True)
        assert min(built.splits["validation"].brand_counts) >= 2


def test_groups_of_several_brands_do_not_move_for_one_of_them():
    photos = [checking.Checked(str(n), sources.Photo("", brand, ""), "", "", group="g") for n, brand in enumerate("ab")]
    shared = assign_splits._members(("g", photos), splits.Rule((0.8, 0.1, 0.1), 0))
    alone = assign_splits._members(("g", photos[:1]), splits.Rule((0.8, 0.1, 0.1), 0))
    assert [member.is_movable for _, member in (*shared, *alone)] == [False, False, True]


def test_a_source_that_gives_no_photo_to_train_raises(table, tmp_path):
    with pytest.raises(errors.DataError, match="no photo is left to train on"):
        build_dataset.run(table(plain(split="test")), tmp_path / "out")
