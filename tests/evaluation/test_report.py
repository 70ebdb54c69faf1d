import csv
import dataclasses
import json
import re

import evaluations
import numpy as np
import PIL.Image
import pytest

from carbrand.errors import DataError
from carbrand.evaluation import report, text

BRANDS = evaluations.BRANDS


def write_small(folder):
    report.write(folder, evaluations.small(), evaluations.small_rows(), {"report.html": "<!doctype html>"})


def read_csv(folder):
    with (folder / "predictions.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_report_is_six_files(tmp_path):
    write_small(tmp_path / "report")
    names = {path.name for path in (tmp_path / "report").iterdir()}
    assert names == {
        *("confusion_matrix.png", "confusion_matrix.txt", "predictions.csv"),
        *("report.html", "report.json", "report.txt"),
    }
    assert (tmp_path / "report" / "report.html").read_text() == "<!doctype html>"
    assert (tmp_path / "report" / "report.txt").read_text(encoding="utf-8") == text.render(evaluations.small())
    with PIL.Image.open(tmp_path / "report" / "confusion_matrix.png") as picture:
        assert picture.format == "PNG"


@pytest.mark.parametrize("path", ["", "report.json"])
def test_load_gives_what_was_written(tmp_path, path):
    write_small(tmp_path)
    expected = {"format_version": 2, **dataclasses.asdict(evaluations.small())}
    assert report.load(tmp_path / path) == expected
    assert report.load_predictions(tmp_path / path) == read_csv(tmp_path)


def test_two_writes_are_equal_to_the_byte(tmp_path):
    for name in ("a", "b"):
        write_small(tmp_path / name)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_report_that_fails_halfway_is_not_complete(tmp_path):
    write_small(tmp_path)
    with pytest.raises(KeyError):
        report.write(tmp_path, evaluations.small(), [{}], {})
    assert not (tmp_path / "report.json").exists()


def test_predictions_hold_one_row_per_photo(tmp_path):
    write_small(tmp_path)
    rows = read_csv(tmp_path)
    assert len(rows) == 6
    assert rows[2] == {
        "filename": "photo, 2.jpg",
        "sha256": f"{2:064x}",
        "group": "group 2",
        "brand": "Audi",
        "predicted": "BMW",
        "probability": "0.400000006",
        "correct": "false",
        "probability_Audi": "0.200000003",
        "probability_BMW": "0.400000006",
        "probability_Kia": "0.200000003",
        "probability_Škoda": "0.200000003",
    }
    assert [row["correct"] for row in rows] == ["true", "true", "false", "false", "false", "true"]


def test_float32_probabilities_come_back_unchanged(tmp_path):
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.full(4, 0.05), size=500).astype(np.float32)
    rows = [{**evaluations.small_rows()[0], "probabilities": row} for row in probabilities]
    report.write(tmp_path, evaluations.small(), rows, {})
    read = [[np.float32(row[f"probability_{brand}"]) for brand in BRANDS] for row in read_csv(tmp_path)]
    np.testing.assert_array_equal(np.array(read), probabilities)


@pytest.mark.parametrize("load", [report.load, report.load_predictions])
def test_load_without_a_report_raises(tmp_path, load):
    with pytest.raises(DataError, match=r"report\.json: not there, so .* holds no complete report\. Run `carbrand"):
        load(tmp_path)


def test_a_report_without_its_predictions_is_no_baseline(tmp_path):
    write_small(tmp_path)
    (tmp_path / "predictions.csv").unlink()
    with pytest.raises(DataError, match=r"predictions\.csv: not there\. Keep it beside report\.json, or run"):
        report.load_predictions(tmp_path / "report.json")


@pytest.mark.parametrize("content", [b"\xff\xfe", b"", b"a,b\n1,2\n"])
def test_damaged_predictions_are_no_baseline(tmp_path, content):
    write_small(tmp_path)
    (tmp_path / report.PREDICTIONS).write_bytes(content)
    with pytest.raises(DataError, match=r"predictions\.csv: damaged \(.*Run `carbrand evaluate` again"):
        report.load_predictions(tmp_path)


def test_load_of_a_damaged_report_raises(tmp_path):
    (tmp_path / "report.json").write_text('{"format_version": 1')
    with pytest.raises(DataError, match=r"report\.json: not JSON \(.*\)\. Run `carbrand evaluate` again\."):
        report.load(tmp_path)


@pytest.mark.parametrize(("content", "version"), [({"format_version": 1}, "1"), ({}, "None"), ([], "None")])
def test_load_of_another_version_raises(tmp_path, content, version):
    (tmp_path / "report.json").write_text(json.dumps(content))
    message = re.escape(f"report.json: format version {version}, not 2. Run this version's `carbrand evaluate`.")
    with pytest.raises(DataError, match=message):
        report.load(tmp_path)
