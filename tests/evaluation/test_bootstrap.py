import numpy as np
import pytest
import scipy.stats

from carbrand.evaluation import bootstrap
from carbrand.evaluation.bootstrap import Interval


def all_resamples(groups, **options):
    return np.concatenate(list(bootstrap.resamples(groups, **options)), axis=1)


def test_a_group_is_drawn_whole_and_as_many_as_there_are():
    weights = all_resamples(["a", "b", "a", "c", "b"])
    assert weights.shape == (5, 1000)
    assert (weights[0] == weights[2]).all()
    assert (weights[1] == weights[4]).all()
    assert (weights[[0, 1, 3]].sum(axis=0) == 3).all()
    assert weights[[0, 1, 3]].mean(axis=1) == pytest.approx(np.ones(3), abs=0.1)


def test_a_seed_draws_the_same_in_blocks(monkeypatch):
    monkeypatch.setattr(bootstrap, "_MAX_WEIGHTS", 70)
    blocks = list(bootstrap.resamples(range(10), 20))
    assert [block.shape for block in blocks] == [(10, 7), (10, 7), (10, 6)]
    again = all_resamples(range(10), num_resamples=20)
    np.testing.assert_array_equal(np.concatenate(blocks, axis=1), again)
    assert (all_resamples(range(10), num_resamples=20, seed=1) != again).any()


def test_the_mean_of_single_photos_has_the_interval_of_scipy():
    values = np.random.default_rng(0).exponential(size=200)
    weights = all_resamples(range(200))
    found = bootstrap.interval(values.mean(), values @ weights / weights.sum(axis=0))
    theirs = scipy.stats.bootstrap((values,), np.mean, method="percentile", random_state=0, n_resamples=1000)
    width = theirs.confidence_interval.high - theirs.confidence_interval.low
    assert found.low == pytest.approx(theirs.confidence_interval.low, abs=width / 20)
    assert found.high == pytest.approx(theirs.confidence_interval.high, abs=width / 20)


def test_groups_make_intervals_wider_as_fewer_independent_photos_do():
    values = np.random.default_rng(0).normal(size=100)
    alone, tenfold = np.arange(100), np.repeat(np.arange(100), 10)

    def width(values, groups):
        weights = all_resamples(groups)
        found = bootstrap.interval(values.mean(), values @ weights / weights.sum(axis=0))
        return found.high - found.low

    assert width(np.repeat(values, 10), tenfold) == pytest.approx(width(values, alone))
    assert width(np.repeat(values, 10), np.arange(1000)) < width(values, alone) / 2


def test_resamples_without_a_value_are_left_out():
    samples = np.array([np.nan, *np.linspace(0, 1, 41)])
    assert bootstrap.interval(0.5, samples) == Interval(pytest.approx(0.025), pytest.approx(0.975))
    assert bootstrap.interval(0.5, np.array([np.nan])) is None
    assert bootstrap.interval(np.nan, samples) is None


def test_shares_that_never_change_have_an_interval_of_wilson():
    assert bootstrap.share_interval(1.0, np.ones(9), 5) == bootstrap.wilson_interval(5, 5)
    assert bootstrap.share_interval(0.0, np.array([0.0, np.nan]), 5) == bootstrap.wilson_interval(0, 5)
    assert bootstrap.share_interval(1.0, np.linspace(0, 1, 41), 5) == Interval(*map(pytest.approx, (0.025, 0.975)))


def test_samples_are_moved_by_their_bias_and_none_below_0():
    assert bootstrap.unbiased(0.2, np.array([0.1, 0.3, 0.5])) == pytest.approx(np.array([0.0, 0.2, 0.4]))
    assert bootstrap.unbiased(0.1, np.array([0.1, 0.3, 0.5])).min() == 0


def test_a_single_group_says_nothing():
    assert bootstrap.interval(0.7, np.full(9, 0.7)) is None
    assert bootstrap.share_interval(0.7, np.array([0.7, 0.7 + 1e-16]), 1) == Interval(0.0, 1.0)
    assert bootstrap.share_interval(np.nan, np.full(9, np.nan), 1) is None


def test_wilson_interval_by_hand():
    # p = 0.8, n = 10, z² = 3.841459: centre (8 + z²/2) / (10 + z²) = 0.716740,
    # half width z / (10 + z²) * sqrt(10 * 0.8 * 0.2 + z²/4) = 0.226578.
    assert bootstrap.wilson_interval(8, 10) == Interval(
        pytest.approx(0.490162, abs=1e-6), pytest.approx(0.943318, abs=1e-6)
    )
