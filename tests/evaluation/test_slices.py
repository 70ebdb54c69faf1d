import numpy as np
import pytest

from carbrand.data import catalogue
from carbrand.evaluation import slices


def row(number, *, model="", side=100, gray=100, split="", **extra):
    size = {"height": 10, "width": 10, "original_height": side, "original_width": 2 * side}
    known = {"name": f"{number}.jpg", "uri": "", "brand": "audi", "label": "audi", "source_group": "", "bytes": 1}
    known |= {"sha256": f"{number:064x}", "perceptual_hash": "", "group": str(number), "mean_rgb": (gray,) * 3}
    return catalogue.Row(**known, **size, model=model, source_split=split, extra=extra)


def column(name, **values):
    """That of 40 photos of which each has the next of `values`."""
    rows = [row(number, **{key: value[number % len(value)] for key, value in values.items()}) for number in range(40)]
    return slices.columns_of(rows).get(name)


def test_photos_of_one_kind_have_no_parts():
    assert slices.columns_of([row(number) for number in range(40)]) == {}


def test_models_and_the_columns_of_the_source_are_parts():
    assert column("model", model=["a3", "q7"]) == ["a3", "q7"] * 20
    assert column("source split", split=["train", "test"]) == ["train", "test"] * 20
    assert column("dealer", dealer=["north", None]) is None
    assert column("dealer", dealer=["north", None, "south"])[:3] == ["north", "", "south"]
    assert column("model (column)", model=["a3"], colour=["red"]) is None


def test_a_column_named_brand_does_not_take_the_place_of_the_brands():
    assert column("brand (column)", brand=["audi", "AUDI"]) == ["audi", "AUDI"] * 20
    assert column(slices.BRAND, brand=["audi", "AUDI"]) is None


def test_sizes_are_ranges_of_as_many_photos():
    parts = column("size", side=[*range(100, 140)])
    assert parts[:10] == ["< 110 px"] * 10
    assert parts[10:20] == ["110 to 120 px"] * 10
    assert parts[20:30] == ["120 to 130 px"] * 10
    assert parts[30:] == [">= 130 px"] * 10


def test_brightness_of_two_levels_is_two_ranges():
    assert column("brightness", gray=[50, 200]) == ["< 200", ">= 200"] * 20


def test_numbers_of_the_source_are_ranges_and_few_are_values():
    assert set(column("price", price=[str(1000 * number) for number in range(40)])) == {
        *("< 10000", "10000 to 20000", "20000 to 30000", ">= 30000")
    }
    assert column("doors", doors=["3", "5"]) == ["3", "5"] * 20


@pytest.mark.parametrize(
    ("first", "step", "edges"),
    [
        (1_700_000_000, 1, ["1700000010", "1700000020", "1700000030"]),
        (1_234_560, 10, ["1234660", "1234760", "1234860"]),
        (1_700_000_000, 0.01, ["1700000000.1", "1700000000.2", "1700000000.3"]),
        (1e-3, 1e-7, ["0.001001", "0.001002", "0.001003"]),
        (0.0, 1 / 3, ["3.33333", "6.66667", "10"]),
    ],
)
def test_edges_are_decimals_that_tell_ranges_apart(first, step, edges):
    low, middle, high = edges
    assert sorted(set(column("taken", taken=[first + step * number for number in range(40)]))) == sorted(
        [f"< {low}", f"{low} to {middle}", f"{middle} to {high}", f">= {high}"]
    )


@pytest.mark.parametrize("word", ["nan", "inf", "-Infinity"])
def test_what_has_no_value_is_no_number(word):
    assert column("doors", doors=["3", "5", word, word]) == ["3", "5", word, word] * 10
    assert column("price", price=[*range(9), word])[8:10] == [">= 6", ""]


def test_dates_are_years():
    assert column("taken", taken=["2024-05-01", "2025-01-31 10:00"]) == ["2024", "2025"] * 20


def test_rare_values_are_one_part_and_names_are_none():
    parts = [row(number, model="a3" if number < 30 else f"rare {number}") for number in range(40)]
    assert slices.columns_of(parts)["model"] == ["a3"] * 30 + ["(rarer)"] * 10
    names = [row(number, owner=f"owner {number // 10}") for number in range(600)]
    assert "owner" not in slices.columns_of(names)


def test_a_value_that_is_no_number_makes_parts_of_texts():
    assert column("code", code=["1", "x"]) == ["1", "x"] * 20


def test_the_worst_part_stands_first_with_counts_and_interval():
    is_correct = np.array([True, False, True, True] * 10)
    columns = {"year": ["2024", "2025"] * 20, "place": ["a"] * 8 + [""] * 16 + ["b"] * 16}
    found = slices.compute(columns, is_correct, [str(number) for number in range(40)])
    assert [(part.column, part.value, part.photos, part.accuracy) for part in found] == [
        ("year", "2025", 20, 0.5),
        ("place", "b", 16, 0.75),
        ("place", "a", 8, 0.75),
        ("year", "2024", 20, 1.0),
    ]
    assert found[0].interval.low == pytest.approx(0.29, abs=0.05)  # Wilson's: 0.299 to 0.701
    assert found[0].interval.high == pytest.approx(0.71, abs=0.05)
    assert found[-1].interval.low == pytest.approx(0.839, abs=1e-3)  # Wilson's of 20 of 20


def test_copies_make_the_interval_of_a_part_wider():
    is_correct = np.array([True, False] * 20)
    columns = {"year": ["2024"] * 20 + ["2025"] * 20}
    alone, copies = (
        slices.compute(columns, is_correct, groups)[0].interval
        for groups in (
            [str(number) for number in range(40)],
            [str(number % 2 + number // 20 * 2) for number in range(40)],
        )
    )
    assert copies.high - copies.low > 2 * (alone.high - alone.low)


def test_no_columns_have_no_parts():
    assert slices.compute({}, np.array([True]), ["a"]) == []
