"""The build on real photos: what it keeps, what it leaves out, and that no copy of a photo lies in another split."""

import itertools
import pathlib
import random

import imagehash
import numpy as np
import pytest
from benchmarks import near_duplicates as benchmark
from PIL import Image, ImageOps
from small_photos import jsonl, rows

from beam_jobs import build_dataset
from beam_jobs.build_output import Choices


def near_pairs(paths):
    """Pairs whose difference and DCT hashes are close and whose 32 × 32 grey pixels correlate above 0.985."""
    opened = {path: Image.open(path).convert("RGB") for path in paths}
    views = list(opened.items())
    views += [(path, ImageOps.mirror(image)) for path, image in opened.items()]
    hashes = np.array([[h(image).hash.ravel() for h in (imagehash.phash, imagehash.dhash)] for _, image in views])
    small = np.array([np.asarray(image.convert("L").resize((32, 32)), float).ravel() for _, image in views])
    small -= small.mean(1, keepdims=True)
    small /= np.linalg.norm(small, axis=1, keepdims=True) + 1e-9
    found = set()
    for first in range(len(paths)):
        distances = (hashes[first] != hashes[first + 1 :]).sum(2).max(1)
        for second in first + 1 + np.flatnonzero((distances <= 8) & (small[first + 1 :] @ small[first] > 0.985)):
            a, b = views[first][0], views[second][0]
            if a != b:
                found.add((min(a, b), max(a, b)))
    return found


@pytest.fixture(scope="module")
def cars6(real_data):
    """All photos, and the pairs of near copies among them, found without our own code."""
    paths = sorted((real_data / "cars6").rglob("*.jpg"))
    return real_data / "cars6", near_pairs(paths)


@pytest.mark.parametrize("policy", ["keep_one", pytest.param("keep_group", marks=pytest.mark.slow)])
def test_no_near_copy_of_a_photo_lies_in_another_split(cars6, tmp_path, policy):
    folder, pairs = cars6
    assert len(pairs) > 40
    build_dataset.run(folder, tmp_path / "out", Choices(near_duplicates=policy))
    splits = {pathlib.Path(row.uri): split for split, row in rows(tmp_path / "out").values()}
    both = [(splits[a], splits[b]) for a, b in pairs if a in splits and b in splits]
    assert all(a == b for a, b in both)
    assert bool(both) == (policy == "keep_group")


@pytest.mark.slow
def test_copies_across_the_original_splits_are_reported(cars6, real_data, tmp_path):
    folder, pairs = cars6
    build_dataset.run(
        real_data / "cars6.tsv",
        tmp_path / "out",
        columns={"path": "file", "split": "original_split"},
        paths_from=str(folder),
    )
    reported = jsonl(tmp_path / "out/duplicates.jsonl")
    kept_for = {row["name"]: row["kept"] for row in reported} | {row["kept"]: row["kept"] for row in reported}
    crossing = {
        tuple(str(path.relative_to(folder)) for path in pair)
        for pair in pairs
        if len({path.name.partition("__")[0] for path in pair}) == 2
    }
    assert len(crossing) >= 22
    assert all(kept_for[first] == kept_for[second] for first, second in crossing)
    assert sum(row["split"] != row["kept_split"] for row in reported) >= 22
    for split, row in rows(tmp_path / "out").values():
        assert (split == "test") == (row.source_split == "test")


@pytest.mark.slow
def test_200_altered_copies_among_1600_photos_are_left_out(real_data, tmp_path):
    rng = random.Random(0)
    originals = sorted((real_data / "makes20").rglob("*.jpg"))
    chosen = rng.sample(originals, 200)
    kinds = itertools.cycle(("resize", "quality", "mirror", "crop", "brightness"))
    for path in originals:
        target = tmp_path / "photos" / path.relative_to(real_data / "makes20")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(path)
    for path, kind in zip(chosen, kinds, strict=False):
        target = tmp_path / "photos" / path.parent.name / f"{path.stem}#{kind}.jpg"
        target.write_bytes(benchmark.altered(path.read_bytes(), kind, rng))
    build_dataset.run(tmp_path / "photos", tmp_path / "out")
    left_out = jsonl(tmp_path / "out/duplicates.jsonl")
    names = [{row["name"], row["kept"]} for row in left_out]
    planted = [pair for pair in names if any("#" in name for name in pair)]
    assert len(planted) >= 0.95 * len(chosen)
    wrong = [pair for pair in planted if len({name.partition("#")[0].removesuffix(".jpg") for name in pair}) > 1]
    assert len(wrong) + len(names) - len(planted) <= 5  # three pairs of the originals are copies
