import re

import pytest

from carbrand import errors
from carbrand.data import brands


@pytest.mark.parametrize("name", ["Aston Martin", "aston-martin", " ASTON__MARTIN ", "aston _ martin"])
def test_spellings_of_one_brand_are_one_brand(name):
    assert brands.normalise(name) == "aston_martin"


def test_accents_are_the_same_however_unicode_writes_them():
    assert brands.normalise("Citroe\u0308n") == brands.normalise("citro\u00ebn") == "citro\u00ebn"


@pytest.mark.parametrize("name", ["BMW\u200b", "\ufeffBMW", "BM\u00adW", "\u200e BMW \u200f"])
def test_characters_that_nobody_sees_do_not_count(name):
    assert brands.normalise(name) == "bmw"


def test_a_label_is_the_brand_unless_a_pattern_says_otherwise():
    assert brands.Names().brand_and_model("Aston Martin") == ("aston_martin", "")


def test_a_pattern_finds_brand_and_model():
    names = brands.Names(pattern=brands.parse_pattern(r"(?P<brand>\w+) (?P<model>.+)"))
    assert names.brand_and_model("Acura TL Sedan 2012") == ("acura", "TL Sedan 2012")


def test_the_first_group_of_a_pattern_is_the_brand():
    assert brands.Names(pattern=brands.parse_pattern(r"(\w+)_")).brand_and_model("bmw_x5") == ("bmw", "")


def test_a_label_that_the_pattern_does_not_fit_raises():
    names = brands.Names(pattern=brands.parse_pattern(r"(?P<brand>[a-z]+) "))
    with pytest.raises(errors.DataError, match=r"'BMW X5': --brand_from=.* finds no brand in this label"):
        names.brand_and_model("BMW X5")


def test_a_pattern_that_is_no_expression_raises():
    with pytest.raises(errors.ConfigError, match=r"--brand_from=\(: not a regular expression"):
        brands.parse_pattern("(")


@pytest.mark.parametrize("text", [r"\w+", r"(?P<model>\w+)"])
def test_a_pattern_without_a_group_for_the_brand_raises(text):
    with pytest.raises(errors.ConfigError, match=f"--brand_from={re.escape(text)}: has no group for the brand"):
        brands.parse_pattern(text)


def write(tmp_path, text):
    path = tmp_path / "aliases.csv"
    path.write_text(text)
    return path


def test_an_alias_stands_for_its_brand(tmp_path):
    path = write(tmp_path, '\ufeffname,brand\nVW, Volkswagen\n\n"Benz",mercedes\nVW,volkswagen\n')
    aliases = brands.read_aliases(path)
    assert aliases == {"vw": "volkswagen", "benz": "mercedes"}
    assert brands.Names(aliases).brand_and_model("v-w") == ("v_w", "")
    assert brands.Names(aliases).brand_and_model("Vw") == ("volkswagen", "")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,brand\na,b\na,c\n", "line 3: a stands for c here and for b above. Keep one"),
        ("name,brand\na,b\nb,c\n", "a stands for b, which stands for c. Write a,c"),
        ("name,brand\na,b\nb,c\nc,d\n", "a stands for b, which stands for c. Write a,d"),
        ("name,brand\na,b\nb,a\n", "a,b,a lead in a circle. Remove one"),
        ("name,brand\na,b\nb,c\nc,b\n", "a,b,c,b lead in a circle. Remove one"),
        ("name,brand\na,b,c\n", "line 2: not a name and a brand"),
        ("name,brand\na,\n", "line 2: not a name and a brand"),
        ("vw,volkswagen\n", "the first line is not name,brand"),
        ("", "the first line is not name,brand"),
    ],
)
def test_aliases_that_cannot_work_raise(tmp_path, text, message):
    with pytest.raises(errors.ConfigError, match=message):
        brands.read_aliases(write(tmp_path, text))


def test_aliases_that_cannot_be_read_raise(tmp_path):
    with pytest.raises(errors.ConfigError, match="cannot be read as UTF-8 text"):
        brands.read_aliases(tmp_path / "none.csv")


@pytest.mark.parametrize(
    ("rare", "frequent"),
    [
        ("mercedes", "mercedes_benz"),
        ("volkswagon", "volkswagen"),
        ("hundai", "hyundai"),
        ("nisan", "nissan"),
        ("rollsroyce", "rolls_royce"),
        ("citroen", "citro\u00ebn"),
        ("vw_passat", "vw"),
    ],
)
def test_names_that_are_probably_one_brand_are_near_misses(rare, frequent):
    assert brands.near_misses({rare: 2, frequent: 90, "toyota": 10}) == [(rare, frequent)]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("audi", "mini"),
        ("kia", "kai"),
        ("tata", "tatra"),
        ("acura", "cupra"),
        ("dacia", "lancia"),
        ("rover", "land_rover"),
    ],
)
def test_short_or_different_names_are_no_near_misses(one, other):
    assert brands.near_misses({one: 1, other: 1}) == []


def test_near_misses_do_not_depend_on_the_order():
    counts = {"suzuky": 1, "suzuki": 1, "mercedes_benz": 3, "mercedes": 3}
    assert brands.near_misses(counts) == brands.near_misses(dict(reversed(counts.items())))
    assert brands.near_misses(counts) == [("mercedes", "mercedes_benz"), ("suzuki", "suzuky")]
