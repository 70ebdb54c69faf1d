import itertools
import tracemalloc

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from carbrand.data import order
from carbrand.data.order import Blocks, Order

SIZES = [1, 2, 3, 10, 1597, 65537]
KEYS = st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=3)


def epoch(ours, size, number=0):
    return ours(np.arange(number * size, (number + 1) * size))


def labels_of(*counts):
    """So many records of each brand, shuffled."""
    return np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))


@pytest.mark.parametrize("size", SIZES)
def test_each_epoch_is_a_permutation_of_all_records(size):
    ours = Order(np.zeros(size, np.int32), seed=5)
    for number in (0, 1, 10**6):
        np.testing.assert_array_equal(np.sort(epoch(ours, size, number)), np.arange(size))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("blocks", [Blocks(1, 1), Blocks(3, 7), Blocks(10, 80), Blocks(1000, 8000)])
def test_each_epoch_in_windows_is_a_permutation_too(size, blocks):
    ours = Order(np.zeros(size, np.int32), seed=5, blocks=blocks)
    for number in (0, 3):
        np.testing.assert_array_equal(np.sort(epoch(ours, size, number)), np.arange(size))


def test_the_order_is_fixed_for_ever():
    # Written down once: another order would break the resumption of every run.
    eight = np.zeros(8, np.int32)
    assert epoch(Order(eight, seed=0), 8).tolist() == [2, 5, 0, 4, 3, 6, 1, 7]
    assert epoch(Order(eight, seed=0, blocks=Blocks(2, 4)), 8).tolist() == [4, 5, 3, 2, 1, 6, 7, 0]
    six_and_two = np.repeat([0, 1], [6, 2])
    assert epoch(Order(six_and_two, seed=0, sampling="balanced"), 8).tolist() == [1, 7, 5, 6, 0, 7, 2, 6]


def test_epochs_and_seeds_differ():
    ours, other = (Order(np.zeros(100, np.int32), seed) for seed in (5, 6))
    orders = {tuple(epoch(ours, 100)), tuple(epoch(ours, 100, 1)), tuple(epoch(other, 100))}
    assert len(orders) == 3


@pytest.mark.parametrize("size", [2, 3, 4, 5])
def test_all_permutations_of_a_handful_are_about_equally_likely(size):
    drawn = 200 * len(list(itertools.permutations(range(size))))
    orders = Order(np.zeros(size, np.int32), seed=1)(np.arange(drawn * size)).reshape(-1, size)
    _, counts = np.unique(orders, axis=0, return_counts=True)
    assert len(counts) * 200 == drawn
    assert scipy.stats.chisquare(counts).pvalue > 1e-3


def test_each_record_is_about_equally_likely_at_each_place():
    places = Order(np.zeros(20, np.int32), seed=2)(np.arange(20 * 4000)).reshape(-1, 20)
    counts = np.stack([np.bincount(column, minlength=20) for column in places.T])
    # Rows and columns have fixed sums: 19 x 19 degrees of freedom.
    assert scipy.stats.chi2.sf(((counts - 200) ** 2 / 200).sum(), 19 * 19) > 1e-3


@settings(max_examples=50, deadline=None)
@given(size=st.integers(1, 3000) | st.sampled_from([2**16, 2**16 + 1, 2**31, 2**40 + 1]), keys=KEYS)
def test_invert_undoes_permute(size, keys):
    places = np.unique(np.linspace(0, size - 1, 100).astype(np.int64))
    sizes = np.full(len(places), size)
    for key in keys:
        keyed = np.full(len(places), key, np.uint64)
        there = order.permute(places, sizes, keyed)
        assert there.min() >= 0
        assert there.max() < size
        np.testing.assert_array_equal(order.invert(there, sizes, keyed), places)


def test_places_of_different_sizes_and_keys_are_permuted_at_once():
    sizes, keys = np.array([3, 1000, 3, 1]), np.array([7, 8, 7, 9], np.uint64)
    together = order.permute(np.array([2, 999, 2, 0]), sizes, keys)
    alone = [order.permute(np.array([p]), sizes[[n]], keys[[n]])[0] for n, p in enumerate([2, 999, 2, 0])]
    assert together.tolist() == alone


def test_neighbours_in_an_epoch_are_not_correlated():
    records = epoch(Order(np.zeros(50_000, np.int32), seed=3), 50_000)
    ranks = records / 50_000 - 0.5
    for lag in (1, 2, 8, 4096):
        assert abs((ranks[lag:] * ranks[:-lag]).mean() * 12) < 4.5 / np.sqrt(50_000)  # standard deviations


def test_places_in_two_epochs_are_not_correlated():
    epochs = np.stack([epoch(Order(np.zeros(20_000, np.int32), seed=3), 20_000, n) for n in range(5)])
    matrix = np.corrcoef(epochs)
    assert np.abs(matrix[~np.eye(5, dtype=bool)]).max() < 4.5 / np.sqrt(20_000)


def test_an_epoch_has_as_few_fixed_points_and_steps_of_one_as_a_shuffle():
    ours = Order(np.zeros(1000, np.int32), seed=4)
    epochs = np.stack([epoch(ours, 1000, number) for number in range(400)])
    # Both counts are about Poisson with mean 1 per epoch; so 400 of each, of standard deviation 20.
    assert abs((epochs == np.arange(1000)).sum() - 400) < 90
    assert abs((np.diff(epochs) == 1).sum() - 400) < 90


OPTIONS = [{}, {"sampling": "balanced"}, {"sampling": "sqrt"}, {"blocks": Blocks(5, 64)}]


@pytest.mark.parametrize("options", OPTIONS)
def test_any_slicing_gives_the_same_order(options):
    ours, other = (Order(labels_of(60, 30, 7), seed=1, **options) for _ in range(2))
    whole = ours(np.arange(20_000))  # five of the chunks that are computed at once
    for start, stop in [(0, 1), (4095, 4097), (90, 12_345), (19_999, 20_000), (7, 7)]:
        np.testing.assert_array_equal(other(np.arange(start, stop)), whole[start:stop])
    every_other = np.arange(4000, 9000, 2)
    np.testing.assert_array_equal(other(every_other), whole[every_other])


@pytest.mark.parametrize("options", OPTIONS)
def test_the_stream_begins_anywhere_at_once(options):
    ours = Order(labels_of(60, 30, 7), seed=1, **options)
    far = ours(np.arange(2**61, 2**61 + 97 * 2))  # a walk there would never end
    assert set(far.tolist()) <= set(range(97))
    np.testing.assert_array_equal(far, Order(labels_of(60, 30, 7), 1, **options)(np.arange(2**61, 2**61 + 97 * 2)))


def test_a_shuffle_takes_no_memory_that_grows_with_the_records():
    ours = Order(np.broadcast_to(np.int32(0), 10**12), seed=0)
    tracemalloc.start()
    ours(np.arange(10**11, 10**11 + 64))
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_blocks_are_read_in_whole():
    ours = Order(np.zeros(96, np.int32), seed=0, blocks=Blocks(block=8, window=32))
    for window in range(3):
        records = ours.window_records((0, window))
        blocks, counts = np.unique(records // 8, return_counts=True)
        assert (len(blocks), set(counts)) == (4, {8})


def test_the_last_block_may_be_short():
    ours = Order(np.zeros(37, np.int32), seed=0, blocks=Blocks(block=8, window=16))
    for number in range(20):  # in most epochs the short block is not the last one to be read
        records = np.concatenate([ours.window_records((number, window)) for window in range(3)])
        assert [len(ours.window_records((number, window))) for window in range(3)] == [16, 16, 5]
        np.testing.assert_array_equal(np.sort(records), np.arange(37))


@pytest.mark.parametrize("blocks", [Blocks(8, 24), Blocks(8, 30), Blocks(1, 5), Blocks(50, 200)])
def test_the_records_of_a_window_are_those_of_its_examples(blocks):
    ours, place = Order(np.zeros(101, np.int32), seed=7, blocks=blocks), (0, 0)
    seen, windows = {}, [place]
    for number, record in enumerate(ours(np.arange(3 * 101)).tolist()):
        place, share = ours.window_of(number)
        assert 0 <= share < 1
        seen.setdefault(place, []).append(record)
    while len(windows) < len(seen):
        windows.append(ours.next_window(windows[-1]))
    assert list(seen) == windows
    for window in windows:
        assert sorted(seen[window]) == ours.window_records(window).tolist()


def test_the_share_of_a_window_that_is_done_grows_to_its_end():
    ours = Order(np.zeros(10, np.int32), seed=0, blocks=Blocks(2, 8))
    assert [ours.window_of(number) for number in (0, 4, 7)] == [((0, 0), 0), ((0, 0), 0.5), ((0, 0), 7 / 8)]


def test_the_share_of_a_short_last_window_grows_to_its_end_too():
    ours = Order(np.zeros(10, np.int32), seed=0, blocks=Blocks(2, 8))
    assert [ours.window_of(number) for number in (8, 9, 10)] == [((0, 1), 0), ((0, 1), 0.5), ((1, 0), 0)]


def test_blocks_change_from_epoch_to_epoch():
    ours = Order(np.zeros(800, np.int32), seed=0, blocks=Blocks(8, 80))
    assert ours.window_records((0, 0)).tolist() != ours.window_records((1, 0)).tolist()


def test_examples_are_mixed_within_their_window():
    ours = Order(np.zeros(10_000, np.int32), seed=0, blocks=Blocks(100, 5000))
    records = ours(np.arange(5000))
    ranks = np.argsort(np.argsort(records))
    assert abs(np.corrcoef(ranks[1:], ranks[:-1])[0, 1]) < 4.5 / np.sqrt(5000)


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        ("natural", [64, 16, 0, 4]),
        # By hand: 84 in three; roots 8, 4, 2 of a sum of 14, so 48, 24, 12.
        ("balanced", [28, 28, 0, 28]),
        ("sqrt", [48, 24, 0, 12]),
    ],
)
def test_an_epoch_holds_each_brands_share_exactly(sampling, expected):
    labels = labels_of(64, 16, 0, 4)
    assert order.examples_per_brand(labels, sampling).tolist() == expected
    ours = Order(labels, seed=0, sampling=sampling)
    for number in (0, 1, 1000):
        assert np.bincount(labels[epoch(ours, 84, number)], minlength=4).tolist() == expected


def test_shares_that_do_not_divide_are_rounded_to_the_sum():
    # By hand: 100 / 3 each, and one more for one of them.
    counts = order.examples_per_brand(labels_of(90, 9, 1), "balanced")
    assert (counts.sum(), sorted(counts)) == (100, [33, 33, 34])


@settings(max_examples=100, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 300), min_size=1, max_size=30).filter(any),
    sampling=st.sampled_from(list(order.SAMPLING)),
)
def test_shares_add_up_and_are_within_one_of_the_exact_ones(sizes, sampling):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    counts = order.examples_per_brand(labels, sampling)
    sizes = np.array(sizes)[: labels.max() + 1]
    weights = np.where(sizes > 0, sizes ** {"natural": 1, "sqrt": 0.5, "balanced": 0.0}[sampling], 0)
    assert counts.sum() == len(labels)
    assert (np.abs(counts - weights / weights.sum() * len(labels)) < 1 + 1e-9).all()
    assert (counts[sizes == 0] == 0).all()


@pytest.mark.parametrize("sampling", ["balanced", "sqrt"])
def test_each_record_of_a_brand_is_seen_equally_often(sampling):
    labels = labels_of(64, 17, 0, 5)
    ours = Order(labels, seed=0, sampling=sampling)
    for epochs in (1, 7, 50):
        seen = np.bincount(ours(np.arange(86 * epochs)), minlength=86)
        for brand in (0, 1, 3):
            assert np.ptp(seen[labels == brand]) <= 1


def test_brands_are_mixed_throughout_a_balanced_epoch():
    labels = labels_of(6000, 2000, 500)
    drawn = labels[epoch(Order(labels, seed=0, sampling="balanced"), 8500)]
    tenths = np.stack([np.bincount(part, minlength=3) for part in np.split(drawn, 10)])
    assert scipy.stats.chi2_contingency(tenths).pvalue > 1e-3


def test_windows_are_mixed_each_in_its_own_way():
    ours = Order(np.zeros(4000, np.int32), seed=0, blocks=Blocks(1000, 1000))  # a window is one block
    ranks = ours(np.arange(4000)).reshape(4, 1000) % 1000
    matrix = np.corrcoef(ranks)
    assert np.abs(matrix[~np.eye(4, dtype=bool)]).max() < 4.5 / np.sqrt(1000)


def test_brands_and_passes_are_mixed_each_in_its_own_way():
    labels = np.repeat([0, 1], 1000)
    records = Order(labels, seed=0, sampling="balanced")(np.arange(6000))
    # Slots are handed out at random, so the order of a brand's pass shows in which record goes to which slot.
    slots = Order(labels, seed=0)(np.arange(6000)).reshape(3, 2000)
    by_slot = np.take_along_axis(records.reshape(3, 2000), np.argsort(slots, 1), 1).reshape(6, 1000) % 1000
    matrix = np.corrcoef(by_slot)
    assert np.abs(matrix[~np.eye(6, dtype=bool)]).max() < 4.5 / np.sqrt(1000)


def test_blocks_take_about_a_mebibyte_and_two_windows_the_memory_asked_for():
    # By hand: 512 MiB are two windows of 256 MiB, each of 2**28 / 2**15 = 8192 records; a MiB is 32 of them.
    assert order.make_blocks(512 * 2**20, 2**15) == Blocks(block=32, window=8192)


def test_a_small_window_still_mixes_eight_blocks():
    # By hand: 2**19 / 2**15 = 16 records in a window; a MiB would be 32.
    assert order.make_blocks(2**20, 2**15) == Blocks(block=2, window=16)


def test_records_larger_than_the_memory_are_read_one_by_one():
    assert order.make_blocks(2**20, 2**24) == Blocks(block=1, window=1)
