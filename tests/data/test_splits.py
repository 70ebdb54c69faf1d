import collections

import pytest

from carbrand import errors
from carbrand.data import splits

FRACTIONS = (0.8, 0.1, 0.1)


def keys(count):
    return [f"photo{number}" for number in range(count)]


def assign(groups, fractions=FRACTIONS, seed=0, given=(), rule_given=()):
    """The split of each group of a brand, one photo each, after the floors are met."""
    rule = splits.Rule(fractions, seed, rule_given)
    given = dict(given)
    found = {group: given[group] if rule.is_fixed(given.get(group, "")) else rule.split_of(group) for group in groups}
    members = [
        splits.Member(rule.position(group), group, split, not rule.is_fixed(given.get(group, "")))
        for group, split in found.items()
    ]
    return found | splits.moves(members, rule)


def counts(assigned):
    found = collections.Counter(assigned.values())
    return found["train"], found["validation"], found["test"]


def test_large_brands_come_close_to_the_fractions():
    train, validation, test = counts(assign(keys(10_000)))
    assert train == pytest.approx(8000, abs=150)
    assert validation == pytest.approx(1000, abs=120)
    assert test == pytest.approx(1000, abs=120)


def test_adding_photos_moves_none():
    before = assign(keys(500))
    after = assign(keys(1000))
    assert {key: after[key] for key in before} == before


def test_the_order_of_the_keys_does_not_matter():
    for count in (3, 9, 100):
        assert assign(keys(count), seed=5) == assign(reversed(keys(count)), seed=5)


def test_another_seed_gives_other_splits():
    assert assign(keys(500)) != assign(keys(500), seed=1)


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize(
    ("count", "train", "held_out"), [(0, 0, 0), (1, 1, 0), (2, 1, 0), (3, 1, 1), (4, 1, 1), (5, 1, 2), (12, 1, 2)]
)
def test_small_brands_reach_the_floors(count, train, held_out, seed):
    found = counts(assign(keys(count), seed=seed))
    assert sum(found) == count
    assert found[0] >= train
    assert min(found[1:]) >= held_out


@pytest.mark.parametrize("seed", range(10))
def test_a_split_with_fraction_0_gets_nothing(seed):
    _, validation, test = counts(assign(keys(9), (0.9, 0.1, 0), seed))
    assert test == 0
    assert validation >= 2


def test_missing_photos_come_from_train_next_to_the_threshold():
    # With a tiny fraction, no position lies below the thresholds: the lowest positions fill validation, then test.
    assigned = assign(keys(20), (0.999998, 0.000001, 0.000001))
    ordered = sorted(keys(20), key=splits.Rule(FRACTIONS, 0).position)
    assert [assigned[key] for key in ordered] == ["validation"] * 2 + ["test"] * 2 + ["train"] * 16


def test_a_group_moves_whole_and_leaves_its_donor_its_floor():
    rule = splits.Rule((0.999998, 0.000001, 0.000001), 0)
    sizes = {"large": 9, "two": 2, "three": 3}
    members = [
        splits.Member(rule.position(group), group, "train", True) for group, size in sizes.items() for _ in range(size)
    ]
    found = splits.moves(members, rule)
    assert len(found) == 2
    assert set(found.values()) == {"validation", "test"}


def test_one_large_group_stays_in_train():
    member = splits.Member(0.5, "all", "train", True)
    assert splits.moves([member] * 50, splits.Rule(FRACTIONS, 0)) == {}


def test_splits_that_the_source_gives_are_kept():
    given = {"photo1": "test", "photo2": "train", "photo3": "validation"}
    found = assign(keys(100), given=given, rule_given=("test", "train", "validation"))
    assert {key: found[key] for key in given} == given


def test_validation_is_cut_from_train_when_the_source_has_none():
    given = {key: "test" if number < 300 else "train" for number, key in enumerate(keys(3000))}
    found = assign(keys(3000), given=given, rule_given=("test", "train"))
    assert {key for key, split in found.items() if split == "test"} == set(keys(300))
    assert counts(found)[1] == pytest.approx(2700 / 9, abs=50)  # 0.1 of 0.8 + 0.1


def test_nothing_is_added_to_the_splits_that_the_source_gives():
    given = dict.fromkeys(keys(100), "test")
    found = assign(keys(1000), given=given, rule_given=("test",))
    assert {key for key, split in found.items() if split == "test"} == set(keys(100))
    assert counts(found)[1] == pytest.approx(900 / 9, abs=30)


def test_test_matters_most():
    assert splits.first_held_out({"train", "validation"}) == "validation"
    assert splits.first_held_out({"train", "test", "validation"}) == "test"


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
