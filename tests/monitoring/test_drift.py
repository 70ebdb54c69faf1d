import dataclasses
import math

import logs
import numpy as np
import pytest
import scipy.stats

from carbrand.monitoring import answers, drift
from carbrand.monitoring.answers import Period


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Answers for 4,000 photos that are alike, but for chance."""
    rng = np.random.default_rng(0)
    rows = (
        logs.row(
            number,
            brand=str(rng.choice(["audi", "bmw", "tata"], p=[0.6, 0.3, 0.1])),
            probability=float(rng.beta(5, 2)),
            is_unknown=bool(rng.random() < 0.05),
            width=int(rng.integers(200, 900)),
            height=int(rng.choice([200, 300, 600])),
            mean_rgb=rng.integers(0, 256, 3).tolist(),
        )
        for number in range(4000)
    )
    return answers.read(logs.write(tmp_path_factory.mktemp("log"), rows), version=1, period=Period())


def some(photos, numbers, **changes):
    columns = {
        field.name: getattr(photos, field.name)[numbers]
        for field in dataclasses.fields(photos)
        if isinstance(getattr(photos, field.name), np.ndarray)
    }
    return dataclasses.replace(photos, **columns | changes)


def test_shift_of_classes_by_hand():
    before, now = np.array(["a"] * 6 + ["b"] * 4), np.array(["a"] * 2 + ["b"] * 2 + ["c"] * 4)
    size, p_value, _ = drift.total_variation(before, now, np.random.default_rng(0))
    assert size == pytest.approx(0.5)  # 0.6, 0.4, 0 against 0.25, 0.25, 0.5
    # Of the C(18, 8) ways to draw 8 of the 18, counted one by one, so many are at least 0.5 apart.
    exact = sum(
        scipy.stats.multivariate_hypergeom.pmf((a, b, 8 - a - b), (8, 6, 4), 8)
        for a in range(9)
        for b in range(9 - a)
        if max(a - 8, b - 6, 8 - a - b - 4) <= 0
        and (abs((8 - a) / 10 - a / 8) + abs((6 - b) / 10 - b / 8) + abs((a + b - 4) / 10 - (8 - a - b) / 8)) / 2
        >= 0.5 - 1e-9
    )
    assert p_value == pytest.approx(exact, abs=0.01)


def test_equal_photos_have_no_shift(photos):
    found = drift.shifts(photos, photos)
    assert [shift.size for shift in found] == [0.0] * drift.NUM_SIGNALS
    assert not any(shift.has_drifted for shift in found)


def test_chance_alone_is_hardly_ever_called_a_drift(photos):
    rng = np.random.default_rng(1)
    alarms = 0
    for seed in range(60):
        numbers = rng.permutation(len(photos))[:250]
        found = drift.shifts(some(photos, numbers[:150]), some(photos, numbers[150:]), 0.0, seed=seed)
        alarms += any(shift.has_drifted for shift in found)
    assert alarms <= 8  # of 3 that are expected at most


@pytest.mark.parametrize(
    ("signal", "change"),
    [
        ("brand", lambda part: {"brand": np.where(np.arange(len(part)) % 4 == 0, "tata", part.brand)}),
        ("unknown", lambda part: {"is_unknown": np.arange(len(part)) % 4 == 0}),
        ("confidence", lambda part: {"probability": part.probability * 0.8}),
        ("brightness", lambda part: {"mean_rgb": part.mean_rgb * 0.7}),
        ("red less blue", lambda part: {"mean_rgb": part.mean_rgb + np.array([60, 0, -60])}),
        ("short side, px", lambda part: {"width": part.width // 2, "height": part.height // 2}),
        ("width / height", lambda part: {"width": part.height, "height": part.width}),
    ],
)
def test_a_change_of_one_signal_is_found(photos, signal, change):
    rng = np.random.default_rng(2)
    numbers = rng.permutation(len(photos))
    part = some(photos, numbers[:1000])
    found = {
        shift.signal: shift for shift in drift.shifts(some(photos, numbers[1000:2000]), some(part, ..., **change(part)))
    }
    assert found[signal].has_drifted
    assert found[signal].size == max(shift.size for shift in found.values())


def test_a_shift_that_is_small_does_not_count_however_sure_it_is(photos):
    darker = some(photos, ..., mean_rgb=photos.mean_rgb * 0.95)
    of = {shift.signal: shift for shift in drift.shifts(photos, darker, min_shift=0.1)}
    assert of["brightness"].p_value < 1e-4
    assert not of["brightness"].has_drifted
    assert {s.signal: s for s in drift.shifts(photos, darker, min_shift=0.02)}["brightness"].has_drifted


@pytest.mark.parametrize("num_brands", [2, 20, 100])
def test_one_of_140_comparisons_of_equal_brands_goes_beyond_chance(num_brands):
    rng = np.random.default_rng(3)
    found = [
        drift.total_variation(rng.integers(0, num_brands, 300), rng.integers(0, num_brands, 200), rng)
        for _ in range(200)
    ]
    assert all((size >= limit) == (p_value <= drift.ALPHA / drift.NUM_SIGNALS) for size, p_value, limit in found)
    assert sum(size >= limit for size, _, limit in found) <= 6  # of 1.4 expected


@pytest.mark.parametrize(("before", "now"), [(3, 3), (1, 50), (10, 10), (40, 3000)])
def test_few_photos_are_judged_as_exactly_as_many(before, now):
    rng = np.random.default_rng(4)
    found = [drift.kolmogorov_smirnov(rng.normal(size=before), rng.normal(size=now), rng)[1] for _ in range(60)]
    assert sum(p_value <= drift.ALPHA / drift.NUM_SIGNALS for p_value in found) <= 4  # of 0.4 expected at most
    shifted = drift.kolmogorov_smirnov(np.arange(before) - before, np.arange(now), rng)
    exact = min(1, 2 / math.comb(before + now, before))  # of the two orders of which none overlaps
    assert shifted[0] == 1
    assert shifted[1] == pytest.approx(exact, abs=0.02)
    assert (shifted[2] is None) == (exact > drift.ALPHA / drift.NUM_SIGNALS)


def test_equal_values_count_together():
    before, now = np.repeat([0.0, 1.0], [30, 10]), np.repeat([0.0, 1.0], [10, 30])
    size, p_value, _ = drift.kolmogorov_smirnov(before, now, np.random.default_rng(5))
    assert size == 0.5
    assert p_value == pytest.approx(scipy.stats.fisher_exact([[30, 10], [10, 30]]).pvalue, abs=1e-3)


def test_many_photos_get_the_p_value_of_few():
    rng = np.random.default_rng(6)
    before, now = rng.normal(size=900), rng.normal(size=1150) + 0.08
    permuted = drift.kolmogorov_smirnov(before, now[:1100], rng)
    asymptotic = drift.kolmogorov_smirnov(before, now[:1101], rng)
    assert permuted[1] == pytest.approx(asymptotic[1], rel=0.2)
    assert permuted[2] == pytest.approx(asymptotic[2], rel=0.05)


def test_each_signal_has_its_median_or_share(photos):
    found = drift.shifts(photos, photos)
    assert {shift.signal for shift in found} == {*drift.CLASSES, *drift.MEASURES}
    middles = {shift.signal: shift.before for shift in found}
    assert middles["brand"] is None
    assert middles["unknown"] == pytest.approx(0.05, abs=0.01)
    assert middles["short side, px"] == np.median(np.minimum(photos.width, photos.height))
