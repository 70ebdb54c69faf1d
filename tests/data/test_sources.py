import csv
import json
import os
import pathlib
import random

import pyarrow
import pytest
from pyarrow import parquet

from carbrand import errors
from carbrand.data import brands, local_files, sources

PLAIN = brands.Names()


def touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def read(source, names=PLAIN, columns=None, spool_dir=None):
    return list(
        sources.read(str(source), brand_names=names, columns=columns or {}, files=local_files, spool_dir=spool_dir)
    )


def listed(tmp_path, photos):
    return sources.write_listing(photos, tmp_path / "listing")


def facts(photos, root):
    return sorted((sources.name_of(photo.uri, str(root)), photo.brand, photo.label, photo.model) for photo in photos)


def test_the_folders_of_a_photo_are_its_brand_and_its_model(tmp_path):
    touch(tmp_path, "BMW/2.jpg", "BMW/X5/2012/1", "BMW/.hidden.jpg", ".git/x.jpg", "audi/.cache/y.jpg", "audi/a.png")
    photos = read(f"{tmp_path}/")
    assert facts(photos, tmp_path) == [
        ("BMW/2.jpg", "bmw", "BMW", ""),
        ("BMW/X5/2012/1", "bmw", "BMW", "X5/2012"),
        ("audi/a.png", "audi", "audi", ""),
    ]
    assert all(pathlib.Path(photo.uri).exists() for photo in photos)


def test_a_folder_may_be_relative_to_the_home(tmp_path, monkeypatch):
    touch(tmp_path, "photos/a/1.jpg", "photos/b/1.jpg")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert {photo.uri for photo in read("~/photos")} == {f"{tmp_path}/photos/{brand}/1.jpg" for brand in "ab"}


def test_a_label_is_read_as_the_names_of_brands_say(tmp_path):
    touch(tmp_path, "Acura TL 2012/side/1.jpg", "VW Golf/1.jpg")
    names = brands.Names({"vw": "volkswagen"}, brands.parse_pattern(r"(?P<brand>\w+) (?P<model>.+)"))
    assert facts(read(tmp_path, names), tmp_path) == [
        ("Acura TL 2012/side/1.jpg", "acura", "Acura TL 2012", "TL 2012"),
        ("VW Golf/1.jpg", "volkswagen", "VW Golf", "Golf"),
    ]


def test_files_outside_brand_folders_are_left_out_with_a_warning(tmp_path, caplog):
    touch(tmp_path, "readme.txt", "a/1.jpg", "b/1.jpg")
    assert len(read(tmp_path)) == 2
    assert "left out 1 files that lie in no brand folder" in caplog.text


def test_a_name_that_is_no_utf8_is_shown_escaped_and_can_be_opened(tmp_path):
    touch(tmp_path, "a/1.jpg", "b/1.jpg")
    (tmp_path / os.fsdecode(b"a/\xff.jpg")).touch()
    listing = listed(tmp_path, read(tmp_path / "a/..", spool_dir=tmp_path))
    photos = [photo for path in listing.paths for photo in sources.read_chunk(path)]
    assert sorted(sources.name_of(photo.uri, listing.root) for photo in photos) == ["a/1.jpg", r"a/\xff.jpg", "b/1.jpg"]
    assert all(sources.local_path(photo.uri, tmp_path).exists() for photo in photos)


def test_a_missing_folder_raises(tmp_path):
    with pytest.raises(errors.DataError, match="cars: no such folder"):
        read(tmp_path / "cars")


def test_a_file_that_is_no_manifest_raises(tmp_path):
    touch(tmp_path, "cars.zip")
    with pytest.raises(errors.DataError, match=r"cars\.zip: neither a folder nor a manifest.*\.parquet"):
        read(tmp_path / "cars.zip")


@pytest.mark.parametrize("source", ["", "*.jpg", "*/*.png"])
def test_a_source_without_photos_raises(tmp_path, source):
    touch(tmp_path, "readme.txt", "bmw/1.txt" if source else "1.jpg")
    with pytest.raises(errors.DataError, match=r"no photos. Put the photos of each brand in a folder"):
        read(f"{tmp_path}/{source}")


def test_a_link_that_leads_back_is_no_brand(tmp_path, caplog):
    touch(tmp_path / "photos", "a/1.jpg")
    (tmp_path / "photos/all").symlink_to(tmp_path / "photos")
    (tmp_path / "photos/up").symlink_to(tmp_path)
    assert [photo.brand for photo in read(tmp_path / "photos")] == ["a"]
    assert "left out 2 links that lead back" in caplog.text


def test_an_empty_brand_folder_raises(tmp_path):
    touch(tmp_path, "a/1.jpg", "b/1.jpg")
    (tmp_path / "B").mkdir()  # the same brand as b
    assert len(read(tmp_path)) == 2
    (tmp_path / "c").mkdir()
    with pytest.raises(errors.DataError, match=r"/c: a brand's folder without a file"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("*/*.jpg", ["a/1.jpg", "b/1.jpg"]),
        ("*/**/*.jpg", ["a/1.jpg", "a/x/2.jpg", "b/1.jpg"]),
        ("[!b]/**", ["a/1.jpg", "a/3.png", "a/x/2.jpg"]),
        ("?/[0-9].p*", ["a/3.png"]),
        ("**/2.jpg", ["a/x/2.jpg"]),
    ],
)
def test_a_pattern_takes_what_fits(tmp_path, pattern, names):
    touch(tmp_path, "a/1.jpg", "a/x/2.jpg", "a/3.png", "b/1.jpg", "b/.h.jpg")
    photos = read(tmp_path / pattern)
    assert [name for name, *_ in facts(photos, tmp_path)] == names
    assert {photo.model for photo in photos if photo.uri.endswith("2.jpg")} <= {"x"}


def test_a_folder_whose_name_looks_like_a_pattern_is_a_folder(tmp_path):
    touch(tmp_path, "photos [2012]*/a/1.jpg", "photos [2012]*/b/1.jpg")
    assert len(read(tmp_path / "photos [2012]*")) == 2


def test_columns_for_a_folder_raise(tmp_path):
    touch(tmp_path, "a/1.jpg", "b/1.jpg")
    with pytest.raises(errors.ConfigError, match="has no columns"):
        read(tmp_path, columns={"brand": "make"})


ROWS = [
    {"path": "a/1 é.jpg", "brand": "A", "model": "T, x", "group": "g1", "split": "Val", "year": "1.50", "note": ""},
    {
        "path": "sub/../b/2.jpg",
        "brand": "B",
        "model": "",
        "group": "",
        "split": "train",
        "year": "2012",
        "note": 'a "q"',
    },
]


def write_manifest(tmp_path, suffix, rows):
    path = tmp_path / f"cars.{suffix}"
    if suffix == "parquet":
        table = pyarrow.Table.from_pylist([{**row, "__index_level_0__": 7} for row in rows])
        parquet.write_table(table, path)
    elif suffix == "jsonl":
        lines = [{**row, "year": "YEAR", "note": row["note"] or None} for row in rows]
        path.write_text("\n\n".join(json.dumps(row).replace('"YEAR"', rows[i]["year"]) for i, row in enumerate(lines)))
    else:
        with path.open("w", encoding="utf-8-sig", newline="") as file:
            writer = csv.DictWriter(file, ["", *rows[0]], delimiter={"csv": ";", "tsv": "\t"}[suffix])
            writer.writeheader()
            writer.writerows({"": i, **row} for i, row in enumerate(rows))
    return path


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
def test_every_kind_of_manifest_gives_the_same_photos(tmp_path, suffix):
    assert read(write_manifest(tmp_path, suffix, ROWS)) == [
        sources.Photo(f"{tmp_path}/a/1 é.jpg", "a", "A", "T, x", "g1", "validation", '{"year": "1.50"}'),
        sources.Photo(f"{tmp_path}/b/2.jpg", "b", "B", "", "", "train", '{"note": "a \\"q\\"", "year": "2012"}'),
    ]


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_a_number_that_is_none_is_an_empty_cell(tmp_path, suffix):
    path = tmp_path / f"cars.{suffix}"
    if suffix == "jsonl":
        path.write_text('{"path": "/x/1.jpg", "brand": "Kia", "group": NaN}\n')
    else:
        columns = {"path": ["/x/1.jpg"], "brand": ["Kia"], "group": [float("nan")]}
        parquet.write_table(pyarrow.table(columns), path)
    (photo,) = read(path)
    assert photo == sources.Photo("/x/1.jpg", "kia", "Kia")


def test_the_manifests_that_fit_a_pattern_are_read_together(tmp_path):
    for number, row in enumerate(ROWS):
        (tmp_path / f"part-{number}.jsonl").write_text(json.dumps(row))
    assert [photo.brand for photo in read(tmp_path / "part-*.jsonl")] == ["a", "b"]


def test_columns_can_have_other_names(tmp_path):
    path = tmp_path / "cars.csv"
    path.write_text("file,split,original_split,make\n/x/1.jpg,fold 7,TESTING,Kia\n")
    (photo,) = read(path, columns={"path": "file", "split": "original_split", "brand": "make"})
    assert photo == sources.Photo("/x/1.jpg", "kia", "Kia", split="test", extra='{"split": "fold 7"}')


def test_remote_uris_stay_as_they_are(tmp_path):
    path = tmp_path / "cars.csv"
    path.write_text("uri,brand\ngs://b/x/../1.jpg,kia\n~/2.jpg,bmw\n")
    assert [photo.uri for photo in read(path)] == ["gs://b/x/../1.jpg", str(pathlib.Path("~/2.jpg").expanduser())]


def test_a_path_may_begin_with_a_space(tmp_path):
    path = tmp_path / "cars.csv"
    path.write_text('path,brand\n a/1.jpg,kia\n" a/2.jpg", bmw\n')
    photos = read(path)
    assert [photo.uri for photo in photos] == [f"{tmp_path}/ a/1.jpg", f"{tmp_path}/ a/2.jpg"]
    assert photos[1].label == "bmw"


def test_a_manifest_may_have_a_space_after_each_delimiter(tmp_path):
    path = tmp_path / "cars.csv"
    path.write_text('brand, path, note\nkia, 1.jpg, "new, red"\n')
    assert read(path) == [sources.Photo(f"{tmp_path}/1.jpg", "kia", "kia", extra='{"note": "new, red"}')]


def test_rows_may_stand_twice(tmp_path):
    path = tmp_path / "cars.csv"
    path.write_text("path,brand\n1.jpg,kia\n1.jpg,kia\n")
    assert len(read(path)) == 2


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "c.csv",
            "file,brand\n1,a\n",
            r"c\.csv:2: no column 'path', only file, brand. Say which it is: --column path=file",
        ),
        ("c.csv", "path,Brand\n1,a\n", "no column 'brand', only path, Brand. Say which it is: --column brand=Brand"),
        ("c.csv", "path,brand\n1,a\n2,\n", r"c\.csv:3: 'brand' is empty. Fill it in"),
        ("c.csv", "path,brand\n ,a\n", r"c\.csv:2: 'path' is empty"),
        ("c.csv", "sep=;\npath;brand\n1;a;\n", r"c\.csv:3: 3 cells, but the header has 2"),
        ("c.csv", 'path,brand\n1,a\n"2,b\n3,c\n', r"c\.csv:4: damaged \(unexpected end of data\)"),
        ("c.csv", b"path,brand\n1,a\n\xe9.jpg,b\n", r"c\.csv:3: not UTF-8"),
        ("c.csv", "path,brand\n1,a\n".encode("utf-16"), r"c\.csv:1: not UTF-8"),
        ("c.csv", "path,brand,brand\n1,a,b\n", "two columns are named 'brand'"),
        ("c.csv", "", "no header"),
        ("c.csv", "path,brand\n", "no photos"),
        (
            "c.csv",
            "path,brand,split\n1,a,holdout\n",
            r"c\.csv:2: split 'holdout' is none of train, validation and test",
        ),
        ("c.csv", "path,brand\nC:\\cars\\1.jpg,a\n", r"c\.csv:2: .* is no path on this machine. Write it with /"),
        ("c.csv", "path,brand\nbmw\\1.jpg,a\n", r"c\.csv:2: .* is no path on this machine"),
        ("c.jsonl", '{"path": "1", "brand": "a"}\n{"path"\n', r"c\.jsonl:2: broken JSON"),
        ("c.jsonl", '{"path": "1", "brand": "a"}\n{"path": "2"}\n', r"c\.jsonl:2: no column 'brand', only path"),
        ("c.jsonl", '{"path": "1", "brand": "a", "brand": "b"}', r"c\.jsonl:1: two columns are named 'brand'"),
        ("c.jsonl", "[1]\n", r"c\.jsonl:1: a JSON list, not an object"),
        ("c.jsonl", '{"path": "\\ud800", "brand": "a"}', r"c\.jsonl:1: half a surrogate pair"),
        ("c.jsonl", '{"path": "1", "brand": null}', r"c\.jsonl:1: 'brand' is empty"),
        ("c.parquet", "PAR1 no", r"c\.parquet: not a Parquet file, or damaged"),
    ],
)
def test_a_manifest_that_cannot_be_used_raises(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(errors.DataError, match=message):
        read(path)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ([("brand", ["a"]), ("brand", ["b"])], "two columns are named 'brand'"),
        ([("taken", pyarrow.array([2**31 - 1], "int32").view("date32"))], "value that cannot be read"),
        ([("taken", pyarrow.array([0], pyarrow.timestamp("us", "Nowhere/Zone")))], "'Nowhere/Zone'.* as text"),
        ([("note", pyarrow.array([b"\xe9"]).view(pyarrow.utf8()))], "value that cannot be read"),
    ],
)
def test_parquet_that_python_cannot_hold_raises(tmp_path, columns, message):
    names, values = zip(("path", ["1.jpg"]), *columns, strict=True)
    parquet.write_table(pyarrow.table(list(map(pyarrow.array, values)), names=names), tmp_path / "c.parquet")
    with pytest.raises(errors.DataError, match=rf"c\.parquet: .*{message}"):
        read(tmp_path / "c.parquet")


def test_a_manifest_that_is_not_there_raises(tmp_path):
    with pytest.raises(errors.DataError, match=r"cars\.csv: no such file"):
        read(tmp_path / "cars.csv")


def test_a_renamed_column_that_no_row_has_raises(tmp_path):
    path = tmp_path / "cars.jsonl"
    path.write_text('{"path": "1", "brand": "a"}\n{"path": "2", "brand": "b", "fold": "train"}')
    assert read(path, columns={"split": "fold"})[1].split == "train"
    with pytest.raises(errors.DataError, match="no column 'folds', only path, brand, fold. .*--column split=fold"):
        read(path, columns={"split": "folds"})


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"brnad": "x"}, r"--column brnad=x: 'brnad' is none of path, uri, .*Did you mean brand"),
        ({"path": "x", "uri": "y"}, "name the same thing"),
    ],
)
def test_columns_that_cannot_work_raise(tmp_path, columns, message):
    with pytest.raises(errors.ConfigError, match=message):
        read(tmp_path, columns=columns)


def many_photos(root, count=2500):
    return [
        sources.Photo(f"{root}/{'ab'[i % 2]}/{i}.jpg", "ab"[i % 2], "AB"[i % 2], group=f"{i % 7}") for i in range(count)
    ]


def test_a_listing_says_what_is_in_its_source(tmp_path):
    photos = [
        sources.Photo("/x/a/1", "kia", "Kia", split="train"),
        sources.Photo("/x/b/1", "kia", "KIA", split="test", group="g"),
        sources.Photo("/x/b/2", "bmw", "BMW"),
    ]
    listing = listed(tmp_path, photos)
    assert listing.num_photos == 3
    assert list(listing.brand_counts.items()) == [("bmw", 1), ("kia", 2)]
    assert listing.labels == {"bmw": ("BMW",), "kia": ("KIA", "Kia")}
    assert listing.given_splits == ("test", "train")
    assert listing.has_groups
    assert [photo for path in listing.paths for photo in sources.read_chunk(path)] == photos


def test_chunks_are_enough_for_many_workers_and_never_large(tmp_path):
    listing = listed(tmp_path, many_photos("/x", 12_000))
    sizes = [sum(1 for _ in sources.read_chunk(path)) for path in listing.paths]
    assert sum(sizes) == 12_000
    assert sizes[:9] == [100] * 8 + [200]
    assert max(sizes) <= 5000


@pytest.mark.parametrize("size", [1, 3, 7, 100])
def test_the_slices_of_a_chunk_hold_its_photos_in_order(tmp_path, size):
    (path,) = listed(tmp_path, many_photos("/ü", 7)).paths
    slices = [list(sources.read_slice(place)) for place in sources.slices_of_chunk(path, size)]
    assert [photo for photos in slices for photo in photos] == list(sources.read_chunk(path))
    assert {len(photos) for photos in slices[:-1]} <= {size}
    assert len(slices) == -(-7 // size)


def test_a_new_listing_replaces_the_old_one(tmp_path):
    listed(tmp_path, many_photos("/x"))
    listing = listed(tmp_path, many_photos("/x", 2))
    assert [str(path) for path in (tmp_path / "listing").iterdir()] == list(listing.paths)


def test_the_fingerprint_depends_neither_on_the_order_nor_on_the_place(tmp_path):
    photos = many_photos("/x")
    fingerprint = listed(tmp_path, photos).fingerprint
    assert listed(tmp_path, random.Random(1).sample(photos, len(photos))).fingerprint == fingerprint
    assert listed(tmp_path, many_photos("gs://y/z")).fingerprint == fingerprint
    assert len(fingerprint) == 64


@pytest.mark.parametrize(
    "change", [{"uri": "/x/a/0"}, {"brand": "b"}, {"model": "m"}, {"split": "test"}, {"extra": "{}"}]
)
def test_the_fingerprint_depends_on_every_field(tmp_path, change):
    photos = many_photos("/x", 100)
    changed = [sources.Photo(**{**vars(photos[0]), **change}), *photos[1:]]
    assert listed(tmp_path, photos).fingerprint != listed(tmp_path, changed).fingerprint


def test_a_folder_and_its_manifest_give_equal_listings(tmp_path):
    touch(tmp_path, "in/a/1.jpg", "in/a/x/2.jpg", "in/b/1.jpg")
    (tmp_path / "cars.csv").write_text("path,brand,model\nin/b/1.jpg,b,\nin/a/1.jpg,a,\nin/a/x/2.jpg,a,x\n")
    folder, manifest = (listed(tmp_path, read(tmp_path / name)) for name in ("in", "cars.csv"))
    assert folder.root == manifest.root == str(tmp_path / "in")
    assert folder.fingerprint == manifest.fingerprint


@pytest.mark.parametrize(
    ("uris", "root", "name"),
    [
        (["/x/a/1", "/x/b/1"], "/x", "a/1"),
        (["/x/ab/1", "/x/a/1"], "/x", "ab/1"),
        (["/x/1", "/y/1"], "/", "x/1"),
        (["gs://b/x/1", "gs://b/y/1"], "gs://b", "x/1"),
        (["gs://b/1", "gs://c/1"], "gs://", "b/1"),
        (["/x/1", "gs://c/1"], "", "/x/1"),
        (["tfds:n/1.0.0/train/0", "tfds:n/1.0.0/test/0"], "tfds:n/1.0.0", "train/0"),
    ],
)
def test_the_root_is_the_longest_common_folder(tmp_path, uris, root, name):
    listing = listed(tmp_path, [sources.Photo(uri, brand, brand) for uri, brand in zip(uris, "ab", strict=True)])
    assert listing.root == root
    assert sources.name_of(uris[0], root) == name


def test_one_brand_raises_unless_others_are_known(tmp_path):
    photos = [sources.Photo("/x/bmw/1", "bmw", "bmw"), sources.Photo("/x/BMW/1", "bmw", "BMW")]
    with pytest.raises(errors.DataError, match="/x: a classifier needs at least two brands, found only 'bmw'"):
        listed(tmp_path, photos)
    assert sources.write_listing(photos, tmp_path / "listing", known_brands=["audi"]).num_photos == 2


def test_a_brand_without_letters_raises(tmp_path):
    with pytest.raises(errors.DataError, match=r"/x/1: the name of its brand, '_!', has no letters or digits"):
        listed(tmp_path, [sources.Photo("/x/1", "!", "_!")])


def test_real_photos_are_listed_alike_by_folder_and_manifest(tmp_path, real_data):
    columns = {"path": "file"}
    rows = (real_data / "makes20.tsv").read_text().replace("\n", "\nmakes20/").removesuffix("makes20/")
    (tmp_path / "makes20").symlink_to(real_data / "makes20")
    (tmp_path / "makes20.tsv").write_text(rows)
    folder = listed(tmp_path, read(tmp_path / "makes20"))
    manifest = listed(tmp_path, read(tmp_path / "makes20.tsv", columns=columns))
    assert folder.num_photos == manifest.num_photos == 1600
    assert (folder.root, folder.brand_counts) == (manifest.root, manifest.brand_counts)
