import itertools

from carbrand.data.duplicates import Copy, choose

FIRST, SECOND, THIRD = Copy("1a", "bmw/z.jpg", "bmw"), Copy("2b", "bmw/a.jpg", "bmw"), Copy("2b", "bmw/b.jpg", "bmw")


def test_the_smallest_hash_then_name_is_kept_whatever_the_order():
    for copies in itertools.permutations([FIRST, SECOND, THIRD]):
        assert choose(copies) == (FIRST, [SECOND, THIRD], [])


def test_a_photo_without_copies_is_kept():
    assert choose([SECOND]) == (SECOND, [], [])


def test_a_photo_under_two_brands_is_not_kept():
    other = Copy("0", "audi/1.jpg", "audi")
    for copies in itertools.permutations([FIRST, SECOND, other]):
        assert choose(copies) == (None, [], [other, FIRST, SECOND])
