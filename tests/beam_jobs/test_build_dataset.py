import os
import pathlib
import re
import signal
import subprocess
import sys
import textwrap
import time

import pytest
from small_photos import contents, jsonl, photo, rows, write_photos

from beam_jobs import build_dataset, build_output, checking, finish_build
from beam_jobs.build_output import Choices
from carbrand import errors
from carbrand.data import cache, manifest, records, verify


def read_records(folder, split):
    """All records of a split, read through the index, as dicts."""
    import tensorflow as tf

    shards = manifest.load(folder).splits[split].shards
    decoded = []
    for row in manifest.load_index(folder, split):
        with (folder / shards[row["shard"]].name).open("rb") as file:
            payload = records.read(file.fileno(), int(row["offset"]), int(row["length"]))
        decoded.append({name: value.numpy() for name, value in records.decode(tf.constant(payload)).items()})
    return decoded


@pytest.fixture
def source(tmp_path):
    return write_photos(tmp_path / "photos")


def test_a_build_holds_each_photo_once_with_its_brand(source, tmp_path):
    built = build_dataset.run(source, tmp_path / "out", num_shards=3)
    assert built == manifest.load(tmp_path / "out")
    assert built.brands == ("aston_martin", "audi", "bmw")
    assert built.counts == {"seen": 36, "kept": 36, "duplicate": 0, "conflict": 0, "rejected": {}}
    assert len(built.splits["train"].shards) == 3
    found = [record for split in manifest.SPLITS for record in read_records(tmp_path / "out", split)]
    by_name = {record["image/filename"].decode(): record for record in found}
    assert len(by_name) == len(found) == 36
    record = by_name["BMW/003.jpg"]
    assert record["image/encoded"] == (source / "BMW/003.jpg").read_bytes()
    assert record["image/class/text"] == b"bmw"
    assert record["image/class/label"] == 2
    assert (record["image/height"], record["image/width"]) == (40, 48)


def test_every_brand_is_in_every_split(source, tmp_path):
    built = build_dataset.run(source, tmp_path / "out")
    for split in built.splits.values():
        assert min(split.brand_counts) >= 2
        assert sum(split.brand_counts) == split.num_examples


def test_tfds_reads_a_build(source, tmp_path):
    tfds = pytest.importorskip("tensorflow_datasets")
    built = build_dataset.run(source, tmp_path / "out", num_shards=2)
    builder = tfds.builder_from_directory(tmp_path / "out")
    assert tuple(builder.info.features["image"]["class"]["label"].names) == built.brands
    assert len(list(builder.as_dataset(split="train"))) == built.splits["train"].num_examples


def test_one_and_two_workers_give_the_same_bytes(source, tmp_path):
    (source / "audi/copy.jpg").write_bytes((source / "audi/001.jpg").read_bytes())
    (source / "audi/text.jpg").write_bytes(b"no image")
    for workers in (1, 2):
        build_dataset.run(source, tmp_path / str(workers), workers=workers, num_shards=2)
    assert contents(tmp_path / "1") == contents(tmp_path / "2")


def test_copies_conflicts_and_rejects_are_left_out_and_listed(source, tmp_path):
    (source / "audi/copy.png").write_bytes(photo([1, *b"audi"], file_format="PNG"))
    (source / "audi/copy.bmp").write_bytes(photo([1, *b"audi"], file_format="BMP"))
    (source / "BMW/stolen.jpg").write_bytes((source / "audi/005.jpg").read_bytes())
    (source / "BMW/empty.jpg").write_bytes(b"")
    built = build_dataset.run(source, tmp_path / "out")
    assert built.counts == {"seen": 40, "kept": 35, "duplicate": 2, "conflict": 2, "rejected": {"empty": 1}}
    (row,) = jsonl(tmp_path / "out/rejects.jsonl")
    assert (row["name"], row["brand"], row["reason"], row["detail"]) == ("BMW/empty.jpg", "bmw", "empty", "0 bytes")
    assert row["uri"] == str(source / "BMW/empty.jpg")
    duplicates = jsonl(tmp_path / "out/duplicates.jsonl")
    assert {name for row in duplicates for name in (row["name"], row["kept"])} == {
        "audi/001.jpg",
        "audi/copy.png",
        "audi/copy.bmp",
    }
    assert [(row["kind"], row["dropped"]) for row in duplicates] == [("near", True)] * 2
    conflicts = jsonl(tmp_path / "out/conflicts.jsonl")
    assert [(row["name"], row["brand"], row["other_brands"]) for row in conflicts] == [
        ("BMW/stolen.jpg", "bmw", ["audi"]),
        ("audi/005.jpg", "audi", ["bmw"]),
    ]


def test_photos_are_shrunk(source, tmp_path):
    (source / "audi/large.jpg").write_bytes(photo(9, size=(640, 320)))
    build_dataset.run(source, tmp_path / "out", Choices(resize_short_px=32))
    found = [record for split in manifest.SPLITS for record in read_records(tmp_path / "out", split)]
    assert {(record["image/height"], record["image/width"]) for record in found} == {(32, 38), (32, 64)}


def test_adding_photos_moves_none_between_splits(source, tmp_path):
    small = Choices((0.6, 0.2, 0.2))
    build_dataset.run(write_photos(tmp_path / "few", per_brand=60), tmp_path / "a", small)
    build_dataset.run(write_photos(tmp_path / "more", per_brand=90), tmp_path / "b", small)
    before, after = (
        {record["image/filename"]: split for split in manifest.SPLITS for record in read_records(folder, split)}
        for folder in (tmp_path / "a", tmp_path / "b")
    )
    assert {name: after[name] for name in before} == before


def test_a_tiny_dataset_has_one_photo_of_each_brand_in_each_split(tmp_path):
    built = build_dataset.run(write_photos(tmp_path / "photos", 3, ("a", "b")), tmp_path / "out")
    assert [split.brand_counts for split in built.splits.values()] == [(1, 1)] * 3


def test_one_photo_per_brand_goes_to_train(tmp_path):
    built = build_dataset.run(write_photos(tmp_path / "photos", 1, ("a", "b")), tmp_path / "out")
    assert [split.num_examples for split in built.splits.values()] == [2, 0, 0]
    assert len(manifest.load_index(tmp_path / "out", "test")) == 0


def test_nothing_but_the_dataset_is_left(source, tmp_path, capsys):
    build_dataset.run(source, tmp_path / "out", num_shards=1)
    assert sorted(contents(tmp_path / "out")) == [
        *(f"carbrand-{split}.tfrecord-00000-of-00001" for split in sorted(manifest.SPLITS)),
        "conflicts.jsonl",
        "dataset.html",
        "dataset_info.json",
        "duplicates.jsonl",
        "features.json",
        "image-class-label.labels.txt",
        *(f"index-{split}.npy" for split in sorted(manifest.SPLITS)),
        "manifest.json",
        "moved.jsonl",
        *(f"photos-{split}-00000-of-00001.jsonl" for split in sorted(manifest.SPLITS)),
        "rejects.jsonl",
    ]
    assert "36 files: 36 kept, 0 duplicates, 0 under several brands, 0 rejected\n" in capsys.readouterr().out


def test_a_complete_dataset_is_replaced_only_when_asked(source, tmp_path):
    build_dataset.run(source, tmp_path / "out", num_shards=5)
    before = contents(tmp_path / "out")
    with pytest.raises(errors.ConfigError, match=r"already holds a complete dataset\. Choose another folder, or add"):
        build_dataset.run(source, tmp_path / "out")
    assert contents(tmp_path / "out") == before
    build_dataset.run(source, tmp_path / "out", num_shards=1, overwrite=True)
    build_dataset.run(source, tmp_path / "fresh", num_shards=1)
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


def test_a_dataset_stays_until_the_one_that_replaces_it_is_complete(source, tmp_path, monkeypatch):
    build_dataset.run(source, tmp_path / "out", num_shards=5)
    before = contents(tmp_path / "out")

    def assert_it_is_there():
        assert {name: content for name, content in contents(tmp_path / "out").items() if name in before} == before
        assert verify.run(tmp_path / "out") == []

    (source / "audi/empty.jpg").touch()
    with pytest.raises(errors.GateError, match=r"1 of 37 files .* see (.*/rejects\.jsonl)\.") as failure:
        build_dataset.run(source, tmp_path / "out", num_shards=1, max_reject_fraction=0, overwrite=True)
    assert_it_is_there()
    assert len(jsonl(pathlib.Path(re.search(r"see (\S+)\. ", str(failure.value))[1]))) == 1
    monkeypatch.setattr(finish_build, "_page", None)
    with pytest.raises(TypeError):
        build_dataset.run(source, tmp_path / "out", num_shards=1, overwrite=True)
    assert_it_is_there()
    monkeypatch.undo()
    monkeypatch.setattr(checking.images, "normalise", None)  # all is in the cache
    build_dataset.run(source, tmp_path / "out", num_shards=1, overwrite=True)
    monkeypatch.undo()
    build_dataset.run(source, tmp_path / "fresh", num_shards=1)
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


def test_a_build_that_is_complete_already_is_left_as_it_is(source, tmp_path, capsys):
    built = build_dataset.run(source, tmp_path / "out")
    before = contents(tmp_path / "out")
    (tmp_path / "out" / build_output.WORK_FOLDER).mkdir()  # as after a kill at the very end
    assert build_dataset.run(source, tmp_path / "out") == built
    assert contents(tmp_path / "out") == before
    assert "is complete already" in capsys.readouterr().out


def test_a_build_that_is_complete_already_passes_the_gate_of_today(source, tmp_path):
    next(source.iterdir()).joinpath("empty.jpg").touch()
    build_dataset.run(source, tmp_path / "out")
    with pytest.raises(errors.GateError, match="1 of 37 files are rejected .*--max_reject_fraction=0;"):
        build_dataset.run(source, tmp_path / "out", max_reject_fraction=0)


def test_photos_of_another_folder_are_another_dataset(source, tmp_path):
    build_dataset.run(source, tmp_path / "out")
    source.rename(tmp_path / "other")
    with pytest.raises(errors.ConfigError, match="already holds a complete dataset"):
        build_dataset.run(tmp_path / "other", tmp_path / "out")


def test_files_that_others_put_into_a_dataset_are_no_part_of_it(source, tmp_path):
    build_dataset.run(source, tmp_path / "out")
    before = contents(tmp_path / "out")
    (tmp_path / "out" / "evaluations.jsonl").write_text("{}\n")
    build_dataset.run(source, tmp_path / "out", overwrite=True)
    (tmp_path / "out" / "evaluations.jsonl").unlink()
    assert contents(tmp_path / "out") == before
    assert verify.run(tmp_path / "out") == []


def test_a_folder_may_have_any_name(source, tmp_path):
    odd = source.rename(tmp_path / os.fsdecode(b"odd \xff"))
    assert build_dataset.run(odd, tmp_path / "out").source["root"] == f"{tmp_path}/odd \\xff"


def test_a_source_that_cannot_be_read_leaves_a_complete_dataset_alone(source, tmp_path):
    build_dataset.run(source, tmp_path / "out")
    before = contents(tmp_path / "out")
    with pytest.raises(errors.DataError):
        build_dataset.run(tmp_path / "nowhere", tmp_path / "out", overwrite=True)
    assert contents(tmp_path / "out") == before


def test_a_folder_with_other_files_is_not_written_to(source, tmp_path):
    (tmp_path / "photos-all.jsonl").touch()
    with pytest.raises(errors.ConfigError, match="holds other files, and is no dataset. Name a new or an empty folder"):
        build_dataset.run(source / "audi", tmp_path)


@pytest.mark.parametrize("workers", [1, 2])
def test_names_that_are_no_utf_8_are_shown_in_bytes(source, tmp_path, workers):
    for name, content in ((b"bad\xff.jpg", photo(77)), (b"page\xff.jpg", b"<html>")):
        with open(os.fsencode(source / "audi") + b"/" + name, "wb") as file:  # noqa: PTH123
            file.write(content)
    build_dataset.run(source, tmp_path / "out", workers=workers)
    assert "audi/bad\\xff.jpg" in {row.name for _, row in rows(tmp_path / "out").values()}
    assert [row["name"] for row in jsonl(tmp_path / "out/rejects.jsonl")] == ["audi/page\\xff.jpg"]


@pytest.mark.parametrize("kind", ["folder", "pipe", "long"])
def test_a_row_that_names_no_file_is_rejected(source, tmp_path, kind):
    path = {"folder": source / "audi", "pipe": tmp_path / "pipe", "long": source / ("x" * 300)}[kind]
    if kind == "pipe":
        os.mkfifo(path)
    lines = [f"{path},{path.parent.name}" for path in sorted(source.rglob("*.jpg"))]
    (tmp_path / "photos.csv").write_text("\n".join(["path,brand", f"{path},audi", *lines]))
    built = build_dataset.run(tmp_path / "photos.csv", tmp_path / "out")
    assert built.counts["rejected"] == {"not_found": 1}


def test_a_cache_folder_is_kept_and_used(source, tmp_path, monkeypatch):
    build_dataset.run(source, tmp_path / "a", cache_dir=tmp_path / "cache")
    monkeypatch.setattr(checking.images, "normalise", None)
    build_dataset.run(source, tmp_path / "b", cache_dir=tmp_path / "cache")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def start(source, out, before=""):
    code = textwrap.dedent(f"""
        import sys
        from beam_jobs import build_dataset, checking
        from carbrand import errors
        {before}
        try:
            build_dataset.run({str(source)!r}, {str(out)!r}, num_shards=2)
        except errors.CarbrandError as error:
            sys.exit(f"{{type(error).__name__}}: {{error}}")
        print("tensorflow" in sys.modules)
    """)
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_build_loads_no_tensorflow(source, tmp_path):
    output, error = start(source, tmp_path / "out").communicate(timeout=60)
    assert output.splitlines()[-1] == "False", error
    assert error == ""


def test_few_photos_are_checked_by_threads_before_beam_is_loaded(source, tmp_path):
    note = (
        "import atexit, threading; seen, inner = [], checking.check; "
        "is_main = lambda: threading.current_thread() is threading.main_thread(); "
        "checking.check = lambda *a: (seen.append((is_main(), 'apache_beam' in sys.modules)), inner(*a))[1]; "
        "atexit.register(lambda: print(len(seen), set(seen)))"
    )
    output, error = start(source, tmp_path / "out", note).communicate(timeout=60)
    assert output.splitlines()[-1] == "36 {(False, False)}", error


def test_what_a_stopped_build_knew_of_a_photo_is_not_believed(source, tmp_path, monkeypatch):
    monkeypatch.setattr(build_dataset, "_run_pipeline", None)
    with pytest.raises(TypeError):  # after all photos were checked
        build_dataset.run(source, tmp_path / "out")
    monkeypatch.undo()
    (source / "audi/000.jpg").write_bytes(b"<html>")
    assert build_dataset.run(source, tmp_path / "out").counts["rejected"] == {"not_an_image": 1}


def test_a_killed_build_goes_on_and_gives_the_same_bytes(source, tmp_path):
    write_photos(source, per_brand=150, brands=("fiat", "seat"))
    slow = (
        "import time; inner = checking.images.normalise; "
        "checking.images.normalise = lambda *a, **k: (time.sleep(0.02), inner(*a, **k))[1]"
    )
    process = start(source, tmp_path / "out", slow)
    progress = tmp_path / "out/.carbrand-build/progress"
    while not (progress.exists() and progress.stat().st_size >= 20):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    with pytest.raises(errors.DataError, match="not a complete records folder"):
        manifest.load(tmp_path / "out")
    assert sum(path.is_file() for path in (tmp_path / "out/.carbrand-build/cache").rglob("*")) >= 20
    build_dataset.run(source, tmp_path / "out", num_shards=2)
    build_dataset.run(source, tmp_path / "fresh", num_shards=2)
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


@pytest.mark.parametrize("limit", [100, 10_000])
def test_a_full_disk_is_one_line_and_the_build_goes_on(source, tmp_path, limit):
    # In the cache or in a shard, by the limit. Python ignores SIGXFSZ, so that writing fails with EFBIG.
    full = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, resource.RLIM_INFINITY))"
    process = start(source, tmp_path / "out", full)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 1
    assert error.startswith(f"BuildError: disk full while building in {tmp_path}/out: ")
    assert error.endswith("then run the same command again; what was done is kept in the cache.\n")
    assert not (tmp_path / "out/manifest.json").exists()
    assert build_dataset.run(source, tmp_path / "out").counts["kept"] == 36


def test_a_full_disk_may_be_that_of_the_cache(source, tmp_path, monkeypatch):
    def fails(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache, "store", fails)
    free = r"\d+ MiB free"
    with pytest.raises(errors.BuildError, match=rf" in {tmp_path}/out: {free}, or in {tmp_path}/cache: {free}\. Free"):
        build_dataset.run(source, tmp_path / "out", cache_dir=tmp_path / "cache")


def test_a_second_build_in_the_same_folder_is_refused(source, tmp_path):
    with (
        build_output.locked(tmp_path / "out"),
        pytest.raises(errors.ConfigError, match="another build is writing here"),
    ):
        build_dataset.run(source, tmp_path / "out")


def test_too_many_rejects_fail_the_gate(source, tmp_path):
    for number in range(9):
        (source / f"audi/bad{number}.jpg").write_bytes(b"<html>")
    message = r"9 of 45 files are rejected \(9 not_an_image\), more than --max_reject_fraction=0.1; see .*rejects.jsonl"
    with pytest.raises(errors.GateError, match=message):
        build_dataset.run(source, tmp_path / "out")
    assert len(jsonl(tmp_path / "out/rejects.jsonl")) == 9
    assert not list((tmp_path / "out").glob("carbrand-*"))
    assert build_dataset.run(source, tmp_path / "out", max_reject_fraction=0.2).counts["kept"] == 36


def test_a_brand_with_no_usable_photo_raises(source, tmp_path):
    (source / "Fiat").mkdir()
    (source / "Fiat/1.jpg").write_bytes(b"")
    with pytest.raises(errors.DataError, match=r"^fiat: no photo of this brand can be used \(1 empty\); see rejects"):
        build_dataset.run(source, tmp_path / "out")
    assert not (tmp_path / "out/manifest.json").exists()


def test_a_photo_that_is_gone_is_rejected(source, tmp_path):
    table = tmp_path / "photos.csv"
    table.write_text("path,brand\n" + "".join(f"{path},{path.parent.name}\n" for path in sorted(source.rglob("*.jpg"))))
    (source / "audi/003.jpg").unlink()
    built = build_dataset.run(table, tmp_path / "out")
    assert built.counts["rejected"] == {"not_found": 1}
    assert jsonl(tmp_path / "out/rejects.jsonl")[0]["name"] == "audi/003.jpg"


def test_a_photo_that_cannot_be_read_stops_the_build(source, tmp_path, monkeypatch):
    def fail(path):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(checking.local_files, "open", fail)
    message = r"two/.*/00.\.jpg: cannot be read \(Input/output error\)\. Run the same command again"
    with pytest.raises(errors.BuildError, match=message):
        build_dataset.run(write_photos(tmp_path / "two", 2, ("audi", "zz")), tmp_path / "out")


def test_a_file_that_is_too_large_is_rejected(source, tmp_path, monkeypatch):
    monkeypatch.setattr(checking.images, "MAX_FILE_BYTES", 5000)
    (source / "audi/video.mp4").write_bytes(bytes(6000))
    build_dataset.run(source, tmp_path / "out")
    (row,) = jsonl(tmp_path / "out/rejects.jsonl")
    assert (row["name"], row["reason"], row["detail"]) == ("audi/video.mp4", "too_large", "over 5000 bytes")


def test_lost_photos_are_noticed():
    counts = {"seen": 5, "kept": 2, "duplicate": 1, "conflict": 0, "rejected": {"empty": 1}}
    with pytest.raises(errors.BuildError, match="the pipeline lost photos: 5 files seen, 4 accounted for"):
        finish_build._check_sum(counts)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_shards": 0}, "--num_shards=0: give a whole number at least 1"),
        ({"shard_mib": 0.5}, "--shard_mib=0.5: give a whole number at least 1"),
        ({"num_shards": 3, "readers": 2}, "--num_shards=3: 2 readers need at least 4"),
        ({"max_reject_fraction": 1.5}, "--max_reject_fraction=1.5: give a number at least 0 and at most 1"),
    ],
)
def test_arguments_that_cannot_work_raise(source, tmp_path, arguments, message):
    with pytest.raises(errors.ConfigError, match=message):
        build_dataset.run(source, tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"resize_short_px": 8}, "--resize_short=8: give a whole number at least 16"),
        ({"jpeg_quality": 100}, "--jpeg_quality=100: give a whole number at least 1 and at most 95"),
        ({"fractions": (0.5, 0.1, 0.1)}, "sums up to 0.7"),
        ({"near_duplicates": "drop"}, "--near_duplicates='drop' is not one of"),
        ({"group_by": "year"}, "--group_by='year' is not one of 'group', 'model', 'none'"),
    ],
)
def test_choices_that_cannot_work_raise(arguments, message):
    with pytest.raises(errors.ConfigError, match=message):
        Choices(**arguments)


@pytest.mark.parametrize("pattern", ["", "**", "*/*", "rec*/*.html"])
def test_an_output_in_the_input_raises(source, pattern):
    with pytest.raises(errors.ConfigError, match="records: lies in the input .*Choose a folder outside"):
        build_dataset.run(source / pattern, source / "records")


def test_a_cache_in_the_input_raises(source, tmp_path):
    with pytest.raises(errors.ConfigError, match="--cache_dir=.*/cache: lies in the input .*Choose a folder outside"):
        build_dataset.run(source, tmp_path / "records", cache_dir=source / "cache")


def test_an_output_that_is_a_link_to_itself_raises(source, tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(errors.ConfigError, match=r"loop: Too many levels of symbolic links"):
        build_dataset.run(source, tmp_path / "loop")


def test_records_in_a_folder_whose_name_is_no_utf_8_raise(source, tmp_path):
    odd = tmp_path / os.fsdecode(b"odd \xff")
    with pytest.raises(errors.ConfigError, match=r"--output=.*/odd \\xff: is not UTF-8, which Beam needs\. Rename"):
        build_dataset.run(source, odd)
    build_dataset.run(source, tmp_path / "old")
    (tmp_path / "old").rename(odd)
    with pytest.raises(errors.ConfigError, match=r"--append=.*/odd \\xff: is not UTF-8, which Beam needs\. Rename"):
        build_dataset.run(source, tmp_path / "new", append_to=odd)


def test_an_output_that_a_pattern_does_not_take_in_is_none_in_the_input(source):
    assert not build_dataset._is_input(source / "*" / "*.jpg", source / "records")
    assert not build_dataset._is_input(source / "**", source.parent / "records")


def test_a_file_as_output_raises(source, tmp_path):
    (tmp_path / "out").touch()
    with pytest.raises(errors.ConfigError, match="out: is a file"):
        build_dataset.run(source, tmp_path / "out")


def test_the_43_copies_among_1016_real_photos_are_found(real_data, tmp_path):
    built = build_dataset.run(real_data / "cars6", tmp_path / "out", workers=1)
    counts = built.counts
    assert (counts["seen"], counts["rejected"]) == (1016, {})
    assert counts["kept"] + counts["duplicate"] + counts["conflict"] == 1016
    off = build_dataset.run(real_data / "cars6", tmp_path / "off", Choices(near_duplicates="off"), workers=1)
    assert off.counts == {"seen": 1016, "kept": 973, "duplicate": 43, "conflict": 0, "rejected": {}}
    assert len({row["kept"] for row in jsonl(tmp_path / "off/duplicates.jsonl")}) == 42
    assert 0 < off.counts["kept"] - counts["kept"] < 30  # near copies


def test_odd_files_become_records_unless_they_are_no_images(real_data, source, tmp_path):
    (source / "odd").symlink_to((real_data / "odd_files").resolve())
    built = build_dataset.run(source, tmp_path / "out")
    assert built.counts["rejected"] == {"not_an_image": 4}
    assert built.counts["kept"] == 36 + 20
