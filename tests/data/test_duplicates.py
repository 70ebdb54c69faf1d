import itertools

import pytest

from carbrand import errors
from carbrand.data.duplicates import Copy, Policy, components, resolve


def copy(name, brand="bmw", sha256=None, num_pixels=100, split="", is_old=False):
    return Copy(name, brand, sha256 or name, num_pixels, split, is_old)


def names(copies):
    return [copy.name for copy in copies]


def outcome(resolution):
    left_out = [(copy.name, kept.name) for copy, kept in resolution.left_out]
    return names(resolution.kept), left_out, names(resolution.conflicts)


SMALL, LARGE, EXACT = copy("s"), copy("l", num_pixels=400), copy("x", sha256="l", num_pixels=400)


@pytest.mark.parametrize("order", list(itertools.permutations([SMALL, LARGE, EXACT])))
def test_the_largest_copy_is_kept_whatever_the_order(order):
    assert outcome(resolve(order, Policy())) == (["l"], [("x", "l"), ("s", "l")], [])


@pytest.mark.parametrize("order", list(itertools.permutations([SMALL, LARGE, EXACT])))
def test_a_group_keeps_its_near_copies_but_not_its_exact_ones(order):
    assert outcome(resolve(order, Policy("keep_group"))) == (["l", "s"], [("x", "l")], [])


def test_a_photo_without_copies_is_kept():
    assert outcome(resolve([SMALL], Policy())) == (["s"], [], [])


def test_a_photo_under_two_brands_is_not_kept():
    for order in itertools.permutations([SMALL, LARGE, copy("a", "audi")]):
        assert outcome(resolve(order, Policy())) == ([], [], ["l", "a", "s"])


def test_a_photo_under_two_brands_is_kept_once_for_each_when_asked():
    found = resolve([SMALL, LARGE, copy("a", "audi")], Policy(conflicts="keep"))
    assert outcome(found) == (["l", "a"], [("s", "l")], [])


def test_the_copy_that_the_source_holds_out_is_kept():
    held_out = [copy("a", split="train", num_pixels=900), copy("b", split="test"), copy("c", split="validation")]
    assert outcome(resolve(held_out, Policy())) == (["b"], [("c", "b"), ("a", "b")], [])


def test_what_is_part_of_a_dataset_stays():
    old = [copy("o1", is_old=True), copy("o2", is_old=True)]
    found = resolve([*old, copy("n", num_pixels=900), copy("a", "audi")], Policy())
    assert outcome(found) == (["o1", "o2"], [("n", "o1")], ["a"])


def test_an_unknown_policy_raises():
    with pytest.raises(
        errors.ConfigError, match="--near_duplicates='all' is not one of 'keep_one', 'keep_group', 'off'"
    ):
        Policy("all")
    with pytest.raises(errors.ConfigError, match="--conflicts='drop' is not one of 'keep_out', 'keep'"):
        Policy(conflicts="drop")


def test_components_are_named_after_their_smallest_member():
    links = [("d", "c"), ("a", "b"), ("e", "f"), ("c", "b")]
    for order in itertools.permutations(links):
        assert components(order) == {"a": "a", "b": "a", "c": "a", "d": "a", "e": "e", "f": "e"}
