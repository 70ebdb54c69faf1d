"""The page, made from a real evaluation of drawn photos, and looked at by a browser."""

import contextlib
import json
import pathlib
import re
import types

import evaluations
import jsonschema
import numpy as np
import pytest
import simplejpeg

import carbrand.evaluation
from carbrand.data import manifest, overlay
from carbrand.evaluation import evaluate, page, report, slices


@pytest.fixture(scope="module")
def folder(tiny_run, drawn_records, tmp_path_factory):
    """A report with a comparison, so that every part of the page is there."""
    first, second = tmp_path_factory.mktemp("first"), tmp_path_factory.mktemp("second")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slices, "MIN_PHOTOS", 2)
        evaluate.run(drawn_records, run_dir=tiny_run, split="train", output=first)
        evaluate.run(drawn_records, run_dir=tiny_run, split="train", output=second, baseline=first / "report.json")
    return second


@contextlib.contextmanager
def opened(browser, folder, width, **options):
    """The page in a window so wide; afterwards it must have asked for nothing, and complained of nothing."""
    told, asked = [], []
    context = browser.new_context(viewport={"width": width, "height": 900}, **options)
    shown = context.new_page()
    shown.on("console", lambda message: told.append(message.text))
    shown.on("pageerror", lambda error: told.append(str(error)))
    shown.on("request", lambda request: asked.append(request.url))
    shown.goto((folder / "report.html").as_uri())
    yield shown
    context.close()
    assert told == []
    assert [url for url in asked if not url.startswith("data:")] == [(folder / "report.html").as_uri()]


def test_the_page_holds_all_that_it_shows(folder):
    html = (folder / "report.html").read_text()
    assert re.findall(r'(?:src|href)="(?!data:)[^"]*', html) == []
    assert "url(" not in html
    assert len(html) < 3 * 2**20


def test_the_report_has_the_form_of_its_schema(folder):
    schema = pathlib.Path(carbrand.evaluation.__file__).parent / "templates" / "report.schema.json"
    validator = jsonschema.Draft202012Validator(json.loads(schema.read_text()))
    found = json.loads((folder / "report.json").read_text())
    validator.validate(found)
    assert found["format_version"] == report.FORMAT_VERSION
    found["metrics"]["accuracy"] = 1.5
    assert not validator.is_valid(found)


@pytest.mark.parametrize("width", [390, 1400])
@pytest.mark.parametrize("color_scheme", ["light", "dark"])
def test_a_browser_shows_it_without_complaint(browser, folder, width, color_scheme):
    with opened(browser, folder, width, color_scheme=color_scheme) as shown:
        assert shown.evaluate("document.documentElement.scrollWidth") <= width
        assert shown.evaluate("[...document.images].every(image => image.naturalWidth > 0)")
        sections = shown.eval_on_selector_all("section", "found => found.map(section => section.id)")
        assert sections == ["comparison", "confusion", "pairs", "errors", "brands", "calibration", "slices", "curves"]


def test_it_can_be_printed(browser, folder):
    with opened(browser, folder, 1400) as shown:
        assert shown.pdf().startswith(b"%PDF")


def test_the_matrix_can_be_sorted_and_tells_what_a_cell_means(browser, folder, drawn_records):
    found = report.load(folder)["metrics"]
    brands = [row["brand"] for row in found["per_brand"]]
    counts = np.array(found["confusion_matrix"])
    with opened(browser, folder, 1400) as shown:
        shown.get_by_role("button", name="F1").first.click()
        order = shown.eval_on_selector_all("#matrix tbody th", "found => found.map(head => head.textContent)")
        assert order == sorted(brands, key=lambda brand: found["per_brand"][brands.index(brand)]["f1"])
        columns = shown.eval_on_selector_all("#matrix thead th", "found => found.map(head => head.textContent.trim())")
        assert columns == order
        for row, column in ((0, 0), (2, 4)):
            true, predicted = brands.index(order[row]), brands.index(order[column])
            cell = shown.locator(f"#matrix tbody tr:nth-child({row + 1}) td:nth-of-type({column + 1})")
            cell.hover()
            assert (cell.inner_text() or "0") == str(counts[true, predicted])
            support = manifest.load(drawn_records).splits["train"].brand_counts[true]
            told = shown.locator("#told").inner_text()
            assert told.startswith(f"{counts[true, predicted]} of {support} photos of {order[row]} (")
            assert told.endswith(f"are taken for {order[column]}.")


def test_tables_can_be_sorted(browser, folder):
    found = report.load(folder)["metrics"]["per_brand"]
    with opened(browser, folder, 1400) as shown:
        for expected in (
            sorted(row["recall"] for row in found),
            sorted((row["recall"] for row in found), reverse=True),
        ):
            shown.get_by_role("button", name="recall").click()
            values = shown.eval_on_selector_all(
                "#brands tbody tr", "found => found.map(row => Number(row.cells[3].dataset.value))"
            )
            assert values == pytest.approx(expected)


def test_photos_are_those_of_the_errors(folder, drawn_records):
    html = (folder / "report.html").read_text()
    photos = report.load_predictions(folder)
    wrong = {photo["filename"] for photo in photos if photo["brand"] != photo["predicted"]}
    assert f"{min(len(wrong), page.NUM_ERRORS)} of {len(wrong)}. The second picture" in html
    assert len(photos) == manifest.load(drawn_records).splits["train"].num_examples
    shown = set(re.findall(r'<span class="soft">(\S+\.jpg)</span></figcaption>', html))
    assert shown == wrong


class NoisyPictures:
    """Photos of noise, which take the most bytes."""

    def photo(self, number):
        noise = np.random.default_rng(number).integers(0, 256, (256, 384, 3), np.uint8)
        return simplejpeg.encode_jpeg(noise, quality=90)

    def heat(self, numbers, labels):
        noise = np.random.default_rng(0).integers(0, 256, (224, 224, 3), np.uint8)
        return [overlay.jpeg(noise, np.ones((7, 7), np.float32))] * len(numbers)


@pytest.mark.slow
def test_the_page_of_10_000_photos_of_80_brands_is_small(tmp_path):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 80, 10_000)
    probabilities = rng.dirichlet(np.full(80, 0.1), 10_000)
    evaluation = evaluations.evaluate(labels, probabilities, [f"brand {label}" for label in range(80)])
    photos = [types.SimpleNamespace(name=f"{number}.jpg") for number in range(10_000)]
    html = page.render(evaluation, labels, probabilities, photos, run=tmp_path, pictures=NoisyPictures())
    assert html.count("<figure>") == page.NUM_PAIRS * page.NUM_PHOTOS_OF_PAIR + page.NUM_ERRORS
    assert len(html) < 15 * 2**20
