import collections

import pytest

from carbrand import errors
from carbrand.data import splits

FRACTIONS = (0.8, 0.1, 0.1)


def keys(count):
    return [f"photo{number}" for number in range(count)]


def counts(assigned):
    found = collections.Counter(assigned.values())
    return found["train"], found["validation"], found["test"]


def test_large_brands_come_close_to_the_fractions():
    train, validation, test = counts(splits.assign(keys(10_000), FRACTIONS, 0))
    assert train == pytest.approx(8000, abs=150)
    assert validation == pytest.approx(1000, abs=120)
    assert test == pytest.approx(1000, abs=120)


def test_adding_photos_moves_none():
    before = splits.assign(keys(500), FRACTIONS, 0)
    after = splits.assign(keys(1000), FRACTIONS, 0)
    assert {key: after[key] for key in before} == before


def test_the_order_of_the_keys_does_not_matter():
    for count in (3, 9, 100):
        assert splits.assign(keys(count), FRACTIONS, 5) == splits.assign(reversed(keys(count)), FRACTIONS, 5)


def test_another_seed_gives_other_splits():
    assert splits.assign(keys(500), FRACTIONS, 0) != splits.assign(keys(500), FRACTIONS, 1)


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize(
    ("count", "train", "held_out"), [(0, 0, 0), (1, 1, 0), (2, 1, 0), (3, 1, 1), (4, 1, 1), (5, 1, 2), (12, 1, 2)]
)
def test_small_brands_reach_the_floors(count, train, held_out, seed):
    found = counts(splits.assign(keys(count), FRACTIONS, seed))
    assert sum(found) == count
    assert found[0] >= train
    assert min(found[1:]) >= held_out


@pytest.mark.parametrize("seed", range(10))
def test_a_split_with_fraction_0_gets_nothing(seed):
    _, validation, test = counts(splits.assign(keys(9), (0.9, 0.1, 0), seed))
    assert test == 0
    assert validation >= 2


def test_missing_photos_come_from_train_next_to_the_threshold():
    # With a tiny fraction, no position lies below the thresholds: the lowest positions fill validation, then test.
    assigned = splits.assign(keys(20), (0.999998, 0.000001, 0.000001), 0)
    ordered = sorted(keys(20), key=lambda key: splits._position(key, 0))
    assert [assigned[key] for key in ordered] == ["validation"] * 2 + ["test"] * 2 + ["train"] * 16


def test_fractions_are_read():
    assert splits.parse_fractions("0.7, 0.2,0.1") == (0.7, 0.2, 0.1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0.8,0.2", "--split=0.8,0.2: not three numbers"),
        ("a,b,c", "not three numbers"),
        ("0.8,0.1,0.2", "sums up to 1.1"),
        ("1.2,-0.1,-0.1", "lie between 0 and 1"),
        ("0,0.5,0.5", "train's is above 0"),
        ("nan,0.5,0.5", "lie between 0 and 1"),
    ],
)
def test_bad_fractions_raise(text, message):
    with pytest.raises(errors.ConfigError, match=message):
        splits.parse_fractions(text)
