import itertools

import numpy as np
import pytest
import scipy.stats

from carbrand.data import draws

# Published outputs of SplitMix64 for seed 0, for example in the tests of Vigna's splitmix64.c and its ports.
REFERENCE = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


def splitmix64(state):
    """The generator as it is written down: one step after another, in Python's own whole numbers."""
    while True:
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        z = state
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        yield z ^ (z >> 31)


def test_words_are_those_of_splitmix64():
    assert draws.words(np.array([0], np.uint64), np.arange(3)).tolist() == REFERENCE
    assert list(itertools.islice(splitmix64(0), 3)) == REFERENCE


@pytest.mark.parametrize("seed", [0, 1, 2**63, 2**64 - 1])
def test_an_example_draws_from_the_generator_that_its_output_of_the_seed_starts(seed):
    numbers = [0, 1, 17, 999]
    expected = []
    for number in numbers:
        start = next(itertools.islice(splitmix64(seed), number, None))
        expected.append([(word >> 11) / 2**53 for word in itertools.islice(splitmix64(start), 5)])
    np.testing.assert_array_equal(draws.uniform(seed, np.array(numbers), 5), expected)


def test_draws_have_the_shape_and_type_asked_for():
    ours = draws.uniform(3, np.arange(4), 7)
    assert (ours.shape, ours.dtype) == ((4, 7), np.float64)
    assert draws.uniform(3, np.arange(0), 7).shape == (0, 7)


def test_the_largest_word_is_below_one(monkeypatch):
    monkeypatch.setattr(draws, "words", lambda starts, steps: np.array([[2**64 - 1]], np.uint64))
    assert draws.uniform(0, np.arange(1), 1) < 1


def test_a_row_depends_neither_on_its_block_nor_on_the_count():
    whole = draws.uniform(5, np.arange(100), 40)
    np.testing.assert_array_equal(draws.uniform(5, np.arange(37, 60), 40), whole[37:60])
    np.testing.assert_array_equal(draws.uniform(5, np.arange(100)[::-1], 3), whole[::-1, :3])


def test_large_numbers_and_negative_seeds_draw_too():
    ours = draws.uniform(-1, np.array([2**62, 2**62 + 1]), 3)
    np.testing.assert_array_equal(ours, draws.uniform(2**64 - 1, np.array([2**62, 2**62 + 1]), 3))
    assert len(np.unique(ours)) == 6


def test_seeds_and_numbers_and_columns_all_draw_differently():
    ours = np.concatenate([draws.uniform(seed, np.arange(500), 40) for seed in range(5)])
    assert len(np.unique(ours)) == ours.size


@pytest.mark.parametrize("seed", [0, 1, 12345])
def test_draws_are_uniform(seed):
    ours = draws.uniform(seed, np.arange(5000), 20)
    assert scipy.stats.kstest(ours.ravel(), "uniform").pvalue > 1e-3
    assert min(scipy.stats.kstest(column, "uniform").pvalue for column in ours.T) > 1e-4


def test_neighbours_are_not_correlated():
    ours, other_seed = (draws.uniform(seed, np.arange(20_000), 12) - 0.5 for seed in (0, 1))
    variance = 1 / 12
    limit = 4.5 * variance / np.sqrt(len(ours))  # 4.5 standard deviations of a mean product, for some 150 pairs
    between_columns = ours.T @ ours / len(ours)
    assert np.abs(between_columns[~np.eye(12, dtype=bool)]).max() < limit
    assert np.abs((ours[1:] * ours[:-1]).mean(0)).max() < limit
    assert np.abs((ours * other_seed).mean(0)).max() < limit
