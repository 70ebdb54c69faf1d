import itertools
import random

import cv2
import imagehash
import numpy as np
import pytest
from benchmarks import near_duplicates as benchmark
from PIL import Image

from carbrand.data import near_duplicates

KINDS = ("resize", "quality", "mirror", "crop", "brightness")


def scene(seed, height=256, width=400):
    """Smooth random colours, like no other seed's."""
    coarse = np.random.default_rng(seed).integers(0, 256, (12, 18, 3), np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def member(name, pixels):
    return name, near_duplicates.signature(pixels)


def thumbnail(pixels):
    size = (near_duplicates.THUMBNAIL_PX, near_duplicates.THUMBNAIL_PX)
    return cv2.resize(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), size, interpolation=cv2.INTER_AREA)


def read_folder(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.jpg"))}


@pytest.fixture(scope="module")
def makes20(real_data):
    return read_folder(real_data / "makes20")


@pytest.fixture(scope="module")
def makes20_normalised(makes20):
    return benchmark.normalise(makes20)


@pytest.mark.parametrize(("height", "width"), [(16, 16), (33, 500), (256, 400), (1200, 900)])
def test_signatures_of_all_sizes_are_equally_long(height, width):
    assert len(near_duplicates.signature(scene(0, height, width))) == near_duplicates.SIGNATURE_BYTES


def test_a_photo_has_few_short_keys():
    keys = near_duplicates.bucket_keys(near_duplicates.signature(scene(0)))
    assert 1 < len(keys) <= 16
    assert {len(key) for key in keys} == {4}
    assert keys == sorted(set(keys))


def test_a_photo_of_one_colour_meets_no_other():
    blank = near_duplicates.signature(np.full((256, 400, 3), 200, np.uint8))
    assert near_duplicates.bucket_keys(blank) == []
    assert near_duplicates.candidate_pairs([("a", blank), ("b", blank)]) == []


def test_a_photo_with_a_single_spot_finds_its_copy():
    pixels = np.full((256, 256, 3), 30, np.uint8)
    cv2.circle(pixels, (110, 120), 10, (220, 200, 180), -1)
    members = [member("a", pixels), member("b", np.ascontiguousarray(pixels[::2, ::-2]))]
    assert near_duplicates.candidate_pairs(members) == [("a", "b")]


def test_a_mirror_image_has_the_same_keys():
    keys, mirrored = (
        set(near_duplicates.bucket_keys(near_duplicates.signature(pixels)))
        for pixels in (scene(0), np.ascontiguousarray(scene(0)[:, ::-1]))
    )
    assert keys == mirrored


def test_candidates_are_ordered_pairs_whatever_the_order_of_the_members():
    copies = {"b": scene(0), "a": scene(0)[:, ::-1], "c": scene(0)[::2, ::2], "d": scene(1)}
    members = [member(name, np.ascontiguousarray(pixels)) for name, pixels in copies.items()]
    for order in itertools.permutations(members):
        assert near_duplicates.candidate_pairs(order) == [("a", "b"), ("a", "c"), ("b", "c")]


def test_a_bucket_of_one_member_has_no_candidates():
    assert near_duplicates.candidate_pairs([member("a", scene(0))]) == []
    assert near_duplicates.candidate_pairs([]) == []


def test_a_crowded_bucket_still_finds_its_copies(monkeypatch):
    monkeypatch.setattr(near_duplicates, "MAX_BUCKET", 10)
    members = [member(f"{seed:03}", scene(seed)) for seed in range(60)]
    members += [member(f"{seed:03}-copy", scene(seed)[3:-3, 5:-5]) for seed in range(60)]
    random.Random(0).shuffle(members)
    found = near_duplicates.candidate_pairs(members)
    assert found == near_duplicates.candidate_pairs(sorted(members))
    assert sum((f"{seed:03}", f"{seed:03}-copy") in found for seed in range(60)) >= 57


def test_a_thousand_equal_signatures_stay_connected_with_few_pairs():
    _, signature = member("", scene(0))
    names = [f"{number:04}" for number in range(1000)]
    pairs = near_duplicates.candidate_pairs((name, signature) for name in names)
    assert set(itertools.pairwise(names)) <= set(pairs)
    assert len(pairs) <= near_duplicates.WINDOW * len(names)


def test_similarity_is_the_same_both_ways():
    a, b = thumbnail(scene(0)), thumbnail(scene(1))
    assert near_duplicates.similarity(a, b) == near_duplicates.similarity(b, a)


@pytest.mark.parametrize("window", [np.s_[13:, 20:], np.s_[:-13], np.s_[:, 20:], np.s_[6:-6, 10:-10]])
@pytest.mark.parametrize("step", [1, -1])
def test_crops_of_5_percent_are_copies_mirrored_or_not(window, step):
    assert near_duplicates.are_copies(thumbnail(scene(0)), thumbnail(np.ascontiguousarray(scene(0)[window][:, ::step])))


def test_other_scenes_are_no_copies():
    assert not any(near_duplicates.are_copies(thumbnail(scene(0)), thumbnail(scene(seed))) for seed in range(1, 20))


def test_a_thumbnail_of_another_size_raises():
    with pytest.raises(ValueError, match=r"a thumbnail is \[64, 64\] uint8, not \[32, 32\] uint8"):
        near_duplicates.are_copies(np.zeros((32, 32), np.uint8), np.zeros((64, 64), np.uint8))


def test_photos_of_one_colour_are_no_copies():
    blank = thumbnail(np.full((256, 400, 3), 200, np.uint8))
    assert not near_duplicates.are_copies(blank, blank)
    assert not near_duplicates.are_copies(blank, thumbnail(scene(0)))


def test_altered_copies_of_real_photos_are_found(makes20, makes20_normalised):
    rng = random.Random(0)
    chosen = rng.sample(sorted(makes20), 40 * len(KINDS))
    planted = {
        f"{name}#{kind}": benchmark.altered(makes20[name], kind, rng)
        for name, kind in zip(chosen, itertools.cycle(KINDS), strict=False)
    }
    found = benchmark.find_copies(makes20_normalised | benchmark.normalise(planted))
    missed = [name for name in planted if (benchmark.original_of(name), name) not in found]
    assert len(missed) <= 0.05 * len(planted)
    for kind in KINDS:
        assert sum(name.endswith(f"#{kind}") for name in missed) <= 0.05 * 40


def test_what_is_taken_for_copies_among_different_photos_are_copies(makes20, makes20_normalised):
    found = benchmark.find_copies(makes20_normalised)
    assert found
    assert [pair for pair in found if not keypoints_agree(*(makes20[name] for name in pair))] == []


def keypoints_agree(a, b):
    """Whether SIFT keypoints of one file lie on those of the other or its mirror image, moved and stretched."""
    a, b = (cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_GRAYSCALE) for content in (a, b))
    return max(share_of_equal_keypoints(a, b), share_of_equal_keypoints(a, np.ascontiguousarray(b[:, ::-1]))) > 0.2


def share_of_equal_keypoints(a, b):
    sift = cv2.SIFT_create(500)
    (points_a, features_a), (points_b, features_b) = (sift.detectAndCompute(image, None) for image in (a, b))
    matches = [m for m, n in cv2.BFMatcher().knnMatch(features_a, features_b, k=2) if m.distance < 0.75 * n.distance]
    if len(matches) < 10:
        return 0.0
    source = np.float32([points_a[match.queryIdx].pt for match in matches])
    target = np.float32([points_b[match.trainIdx].pt for match in matches])
    _, is_inlier = cv2.estimateAffine2D(source, target, ransacReprojThreshold=3)
    return is_inlier.sum() / min(len(points_a), len(points_b))


def test_copies_that_other_hashes_find_are_all_found(real_data):
    photos = benchmark.normalise(read_folder(real_data / "cars6"))
    expected = pairs_alike_by_imagehash({name: benchmark.as_image(photo.encoded) for name, photo in photos.items()})
    assert len(expected) > 40
    assert expected - benchmark.find_copies(photos) == set()


def pairs_alike_by_imagehash(opened):
    """Pairs near by two hashes whose 32 × 32 px correlate above 0.985."""
    names = sorted(opened)
    phash, dhash = (
        np.array([function(opened[name]).hash.ravel() for name in names])
        for function in (imagehash.phash, imagehash.dhash)
    )
    grey = np.array(
        [np.asarray(opened[name].convert("L").resize((32, 32), Image.Resampling.BOX)).ravel() for name in names]
    )
    pairs = set()
    for i, j in itertools.combinations(range(len(names)), 2):
        is_near = (phash[i] != phash[j]).sum() <= 8 and (dhash[i] != dhash[j]).sum() <= 8
        if is_near and np.corrcoef(grey[i], grey[j])[0, 1] > 0.985:
            pairs.add((names[i], names[j]))
    return pairs
