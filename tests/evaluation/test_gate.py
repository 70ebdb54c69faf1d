import numpy as np
import pytest

from carbrand.errors import DataError
from carbrand.evaluation import gate

NUM_BRANDS, PER_BRAND = 10, 60
BRANDS = [f"brand {number}" for number in range(NUM_BRANDS)]


def model(seed, accuracy=0.8):
    """Labels, and what a model predicts that is right on so many of each brand's photos."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(NUM_BRANDS), PER_BRAND)
    is_right = rng.permuted(np.tile(np.arange(PER_BRAND) < accuracy * PER_BRAND, (NUM_BRANDS, 1)), axis=1).ravel()
    return labels, np.where(is_right, labels, (labels + rng.integers(1, NUM_BRANDS, len(labels))) % NUM_BRANDS)


def compare(labels, before, now, seed=0, **options):
    year = ["2024", "2025"] * (len(labels) // 2)
    options = {"columns": {"year": year}, "groups": [*map(str, range(len(labels)))], **options}
    return gate.compare(labels, before, now, brands=BRANDS, seed=seed, **options)


def worse(differences):
    return [row.what for row in differences if row.is_worse]


@pytest.mark.parametrize("seed", range(20))
def test_an_unchanged_model_passes(seed):
    labels, predicted = model(seed)
    assert worse(compare(labels, predicted, predicted, seed)) == []


@pytest.mark.parametrize("seed", range(20))
def test_an_equally_good_model_with_other_errors_passes(seed):
    labels, before = model(seed)
    assert worse(compare(labels, before, model(seed + 100)[1], seed)) == []


@pytest.mark.parametrize("seed", range(20))
def test_a_brand_that_lost_20_points_fails(seed):
    labels, before = model(seed)
    right = np.flatnonzero((labels == 3) & (before == labels))
    now = before.copy()
    now[np.random.default_rng(seed).choice(right, PER_BRAND // 5, replace=False)] = 4
    differences = compare(labels, before, now, seed)
    assert "brand: brand 3" in worse(differences)
    found = next(row for row in differences if row.what == "brand: brand 3")
    assert (found.photos, found.before, found.now) == (60, pytest.approx(0.8), pytest.approx(0.6))


def test_a_part_of_the_photos_that_got_worse_fails():
    labels, before = model(0)
    now = before.copy()
    now[np.arange(0, len(labels), 20)] = (labels[::20] + 1) % NUM_BRANDS  # all of them are of 2024
    assert worse(compare(labels, before, now))[0] in ("year: 2024", "macro F1")
    assert "year: 2025" not in worse(compare(labels, before, now))


def test_copies_of_few_photos_are_no_evidence():
    labels, before = model(0)
    now = np.where(labels == 3, 4, before)
    assert "brand: brand 3" in worse(compare(labels, before, now))
    groups = [f"{label}, {number % 9}" for number, label in enumerate(labels)]
    found = compare(labels, before, now, groups=groups)
    assert sorted(row.what for row in found) == ["macro F1", "year: 2024", "year: 2025"]


@pytest.mark.parametrize(("num_groups", "found"), [(1, []), (9, []), (10, ["macro F1"])])
def test_few_groups_are_not_judged_at_all(num_groups, found):
    labels = np.repeat(np.arange(NUM_BRANDS), 2)[: 2 * num_groups]
    groups = [str(number // 2) for number in range(len(labels))]
    assert worse(compare(labels, labels, (labels + 1) % NUM_BRANDS, columns={}, groups=groups)) == found


def test_photos_are_paired_by_content():
    assert gate.common(["a", "b", "c"], ["c", "x", "a"], "old") == ([2, 0], [0, 2])
    with pytest.raises(DataError, match="^old: 1 of its 3 photos are among the 3 evaluated now. Evaluate the old"):
        gate.common(["a", "b", "c"], ["c", "x", "y"], "old")
