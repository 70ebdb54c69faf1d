"""One output tree, byte for byte, whatever runs the build: processes, a Dask cluster, other runners, other orders."""

import contextlib
import csv
import random
import shutil
import threading

import numpy as np
import processes
import pytest
from PIL import Image
from small_photos import contents, jsonl

from beam_jobs import build_dataset, checking
from beam_jobs.build_output import Choices
from carbrand import files

CHOICES = Choices(near_duplicates="keep_group", group_by="model", resize_short_px=96)  # the most steps
BUNDLES = {"beam_args": ["--runner=BundleBasedDirectRunner"]}


def draw(path, seed, size=(240, 180), box=None):
    """A picture of large soft shapes, or a part of it: a near copy."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), np.uint8)
    image = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)
    image.crop(box or (0, 0, *size)).save(path, quality=92)


def tree(folder):
    """The hash of every file."""
    return {name: files.sha256(content) for name, content in contents(folder).items()}


@contextlib.contextmanager
def most_worker_processes(monkeypatch):
    """Yields a list, to which it appends the largest number of worker processes that ran at once."""
    monkeypatch.setenv("CARBRAND_TEST", mark := f"engines-{random.getrandbits(64)}")
    most, found, ended = 0, [], threading.Event()

    def watch():
        nonlocal most
        while not ended.wait(timeout=0.1):
            most = max(most, len(processes.with_mark(mark)))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield found
    finally:
        ended.set()
        thread.join()
        found.append(most)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Three brands of four models, with copies of all kinds within and across models and brands, and broken files."""
    root = tmp_path_factory.mktemp("engines") / "photos"
    for number in range(72):
        draw(root / ("audi", "bmw", "fiat")[number % 3] / f"m{number // 18}" / f"{number:03d}.jpg", number)
    draw(root / "audi/m1/near_of_000.jpg", 0, box=(4, 3, 236, 177))
    draw(root / "audi/m3/small_of_003.jpg", 3, size=(160, 120))
    draw(root / "bmw/m2/contradicts_006.jpg", 6, box=(2, 2, 238, 178))
    shutil.copy(root / "bmw/m0/001.jpg", root / "bmw/m3/copy.jpg")
    shutil.copy(root / "fiat/m0/002.jpg", root / "audi/m0/stolen.jpg")
    (root / "fiat/m0/page.jpg").write_bytes(b"<html>")
    (root / "fiat/m0/empty.jpg").write_bytes(b"")
    (root / "bmw/m0/torn.jpg").write_bytes((root / "bmw/m0/001.jpg").read_bytes()[:900])
    return root


@pytest.fixture(scope="module")
def expected(photos, tmp_path_factory):
    """The tree that one process makes."""
    return tree(build(photos, tmp_path_factory.mktemp("expected") / "out", workers=1))


@pytest.fixture(scope="module")
def more_photos(photos, tmp_path_factory):
    """A new brand, new photos of an old one, and copies of old photos."""
    root = tmp_path_factory.mktemp("more") / "photos"
    for number in range(12):
        draw(root / ("audi", "seat")[number % 2] / f"m{number % 5}" / f"{number:03d}.jpg", 1000 + number)
    draw(root / "audi/m9/near_of_000.jpg", 0, box=(6, 2, 234, 178))
    shutil.copy(photos / "bmw/m0/001.jpg", root / "seat/m0/stolen.jpg")
    shutil.copy(photos / "audi/m0/003.jpg", root / "audi/m0/copy.jpg")
    (root / "seat/m0/page.jpg").write_bytes(b"<html>")
    return root


@pytest.fixture(scope="module")
def old(photos, tmp_path_factory):
    """A dataset to append to."""
    return build(photos, tmp_path_factory.mktemp("old") / "out", workers=1)


@pytest.fixture(scope="module")
def dask():
    """The options for a cluster of two processes."""
    distributed = pytest.importorskip("distributed", reason="Dask is not installed: pip install 'carbrand[dask]'")
    with distributed.LocalCluster(n_workers=2, processes=True, threads_per_worker=1, dashboard_address=None) as cluster:
        yield {"beam_args": ["--runner=DaskRunner", f"--dask_client_address={cluster.scheduler_address}"]}


def build(source, out, choices=CHOICES, **engine):
    build_dataset.run(source, out, choices, num_shards=3, **engine)
    return out


def write_shuffled_table(root, path):
    """A table of the photos below root/BRAND/MODEL or root/BRAND, in a random order."""
    found = sorted(file for file in root.rglob("*") if file.is_file())
    random.Random(5).shuffle(found)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["model", "path", "brand"])
        for photo in found:
            brand, *model = photo.relative_to(root).parent.parts
            writer.writerow([model[0] if model else "", photo, brand])
    return path


def forbid_work_in_this_process(monkeypatch):
    monkeypatch.setattr(checking.images, "normalise", None)


def test_the_drawn_photos_hold_copies_conflicts_and_rejects(photos, tmp_path):
    counts = build_dataset.run(photos, tmp_path / "out", CHOICES).counts
    rejected = {"empty": 1, "not_an_image": 1, "truncated": 1}
    assert counts == {"seen": 80, "kept": 72, "duplicate": 1, "conflict": 4, "rejected": rejected}
    kinds = {row["name"]: row["kind"] for row in jsonl(tmp_path / "out/duplicates.jsonl")}
    assert kinds == {"audi/m1/near_of_000.jpg": "near", "audi/m3/small_of_003.jpg": "near", "bmw/m3/copy.jpg": "exact"}


@pytest.mark.parametrize("workers", [2, 3])
def test_worker_processes_write_the_same_tree(photos, expected, tmp_path, monkeypatch, workers):
    forbid_work_in_this_process(monkeypatch)
    with most_worker_processes(monkeypatch) as most:
        build(photos, tmp_path / "out", workers=workers)
    assert most == [workers]
    assert tree(tmp_path / "out") == expected


def test_photos_that_are_checked_ahead_give_the_same_tree(photos, expected, tmp_path):
    assert tree(build(photos, tmp_path / "out")) == expected


def test_a_shuffled_table_gives_the_same_tree(photos, expected, tmp_path):
    table = write_shuffled_table(photos, tmp_path / "photos.csv")
    assert tree(build(table, tmp_path / "out", workers=1)) == expected


def test_the_bundle_based_runner_writes_the_same_tree(photos, expected, tmp_path):
    assert tree(build(photos, tmp_path / "out", **BUNDLES)) == expected


@pytest.mark.slow
def test_dask_writes_the_same_tree(photos, expected, dask, tmp_path, monkeypatch):
    forbid_work_in_this_process(monkeypatch)
    table = write_shuffled_table(photos, tmp_path / "photos.csv")
    assert tree(build(table, tmp_path / "out", **dask)) == expected


@pytest.mark.slow
def test_every_engine_appends_the_same(old, more_photos, dask, tmp_path):
    expected = tree(build(more_photos, tmp_path / "one", None, append_to=old, workers=1))
    for name, engine in {"two": {"workers": 2}, "bundles": BUNDLES, "dask": dask}.items():
        assert tree(build(more_photos, tmp_path / name, None, append_to=old, **engine)) == expected, name


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["keep_one", "keep_group"])
def test_every_engine_writes_the_same_tree_of_real_photos(real_data, dask, tmp_path, policy):
    source, choices = real_data / "cars6", Choices(near_duplicates=policy)
    table = write_shuffled_table(source, tmp_path / "photos.csv")
    expected = tree(build(source, tmp_path / "one", choices, workers=1))
    for name, engine in {"two": {"workers": 2}, "three": {"workers": 3}, "bundles": BUNDLES, "dask": dask}.items():
        assert tree(build(table, tmp_path / name, choices, **engine)) == expected, name


@pytest.mark.slow
def test_every_engine_appends_the_same_real_photos(real_data, dask, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    for number, photo in enumerate(sorted((real_data / "cars6").rglob("*.jpg"))):
        folder = (first if number % 3 else second) / photo.parent.name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / photo.name).symlink_to(photo)
    old = build(first, tmp_path / "old", Choices(), workers=1)
    expected = tree(build(second, tmp_path / "one", None, append_to=old, workers=1))
    for name, engine in {"two": {"workers": 2}, "dask": dask}.items():
        assert tree(build(second, tmp_path / name, None, append_to=old, **engine)) == expected, name
