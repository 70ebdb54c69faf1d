import csv
import dataclasses
import json
import re
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest

from carbrand.errors import DataError
from carbrand.evaluation import metrics, report

BRANDS = ["Audi", "BMW", "Kia", "Škoda"]
FACTS = {"run": "runs/a", "dataset fingerprint": "ab12", "split": "test", "checkpoint step": 4500}

TEXT = """\
run                  runs/a
dataset fingerprint  ab12
split                test
checkpoint step      4500

photos             6
accuracy           50.0 %  (95 % interval 18.8 to 81.2 %)
top-3 accuracy     100.0 %
log loss           1.2629 nats
calibration error  10.0 %

Brands, worst F1 first, in %
brand            photos  precision  recall     F1
BMW                   2        0.0     0.0    0.0
Audi                  3       50.0    66.7   57.1
Škoda                 1      100.0   100.0  100.0
Kia                   0          -       -      -
(macro mean)                  50.0    55.6   52.4
(micro mean)                  50.0    50.0   50.0
(weighted mean)               41.7    50.0   45.2

Most confused, 2 of 2 pairs
true brand  predicted  photos  % of true
BMW         Audi            2      100.0
Audi        BMW             1       33.3
"""


def probabilities_of(predicted, num_brands=4):
    """0.4 for the predicted brand, 0.2 for each other."""
    return (0.2 + 0.2 * np.eye(num_brands)[predicted]).astype(np.float32)


def small_case():
    labels, probabilities = [0, 0, 0, 1, 1, 3], probabilities_of([0, 0, 1, 0, 0, 3])
    rows = [
        {"filename": f"photo, {i}.jpg", "sha256": f"{i:064x}", "brand": BRANDS[label], "probabilities": probability}
        for i, (label, probability) in enumerate(zip(labels, probabilities, strict=True))
    ]
    return metrics.compute(labels, probabilities, BRANDS), rows


def metrics_of(num_brands):
    labels = np.arange(num_brands)
    return metrics.compute(labels, np.eye(num_brands)[labels[::-1]], [f"brand {label}" for label in labels])


def write_small(folder):
    small, rows = small_case()
    report.write(folder, metrics=small, rows=rows, facts=FACTS)


def read_csv(folder):
    with (folder / "predictions.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_report_is_four_files(tmp_path):
    write_small(tmp_path / "report")
    names = sorted(path.name for path in (tmp_path / "report").iterdir())
    assert names == ["confusion_matrix.png", "confusion_matrix.txt", "predictions.csv", "report.json", "report.txt"]


def test_load_gives_what_was_written(tmp_path):
    write_small(tmp_path)
    assert report.load(tmp_path) == {
        "format_version": 1,
        "facts": FACTS,
        "metrics": dataclasses.asdict(small_case()[0]),
    }


def test_two_writes_are_equal_to_the_byte(tmp_path):
    for name in ("a", "b"):
        write_small(tmp_path / name)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_report_that_fails_halfway_is_not_complete(tmp_path):
    write_small(tmp_path)
    small, _ = small_case()
    with pytest.raises(KeyError):
        report.write(tmp_path, metrics=small, rows=[{}], facts=FACTS)
    assert not (tmp_path / "report.json").exists()


def test_text_file_is_the_text_of_the_terminal(tmp_path):
    write_small(tmp_path)
    assert (tmp_path / "report.txt").read_text(encoding="utf-8") == report.text(small_case()[0], FACTS)


def test_text_by_hand():
    # Log loss: (3 × -ln 0.4 + 3 × -ln 0.2) / 6. Calibration: one bin, |0.4 - 0.5|.
    # Top-3: where the brand is wrong, the true one, tied with two others, has the lowest label of the three.
    assert report.text(small_case()[0], FACTS) == TEXT


def test_brands_of_equal_f1_stand_by_name_and_absent_ones_last():
    result = metrics.compute([0, 1], np.eye(4)[[0, 1]], ["Seat", "Audi", "Opel", "Kia"])
    lines = report.text(result, {}).splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("brand "))
    assert [line.split()[0] for line in lines[first + 1 : first + 5]] == ["Audi", "Seat", "Kia", "Opel"]


def test_text_without_mistakes_says_so():
    result = metrics.compute([0, 1], np.eye(4)[[0, 1]], BRANDS)
    assert report.text(result, FACTS).endswith("\n\nNo photo was taken for another brand.\n")


def test_text_lists_ten_confused_pairs():
    text = report.text(metrics_of(12), FACTS)
    assert "Most confused, 10 of 12 pairs\n" in text
    assert len(text.split("% of true\n")[1].splitlines()) == 10


def test_confused_pairs_stand_by_count_then_label():
    result = metrics.compute([3, 1, 2, 2, 0], np.eye(4)[[0, 0, 1, 1, 0]], BRANDS)
    assert report.confused_pairs(result) == [("Kia", "BMW", 2), ("BMW", "Audi", 1), ("Škoda", "Audi", 1)]


def test_predictions_hold_one_row_per_photo(tmp_path):
    write_small(tmp_path)
    rows = read_csv(tmp_path)
    assert len(rows) == 6
    assert rows[2] == {
        "filename": "photo, 2.jpg",
        "sha256": f"{2:064x}",
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
    rows = [{"filename": "a.jpg", "sha256": "0", "brand": "Kia", "probabilities": row} for row in probabilities]
    report.write(tmp_path, metrics=metrics.compute([2] * 500, probabilities, BRANDS), rows=rows, facts={})
    read = [[np.float32(row[f"probability_{brand}"]) for brand in BRANDS] for row in read_csv(tmp_path)]
    np.testing.assert_array_equal(np.array(read), probabilities)


@pytest.mark.parametrize(("num_brands", "least_px"), [(2, 400), (25, 1000), (26, 600), (100, 1500)])
def test_picture_grows_with_the_brands(tmp_path, num_brands, least_px):
    report.write(tmp_path, metrics=metrics_of(num_brands), rows=[], facts={})
    with PIL.Image.open(tmp_path / "confusion_matrix.png") as picture:
        picture.load()
        assert picture.format == "PNG"
        assert min(picture.size) >= least_px


@pytest.mark.parametrize(("num_brands", "num_counts"), [(25, 25), (26, 0)])
def test_counts_stand_in_the_cells_up_to_25_brands(num_brands, num_counts):
    axes = report.confusion_figure(metrics_of(num_brands)).axes[0]
    assert len(axes.texts) == num_counts


def test_colours_are_shares_of_the_true_brand():
    # Audi: 2 of 3 right, 1 taken for BMW; Kia has no photos.
    image = report.confusion_figure(small_case()[0]).axes[0].images[0].get_array()
    assert image[0].tolist() == pytest.approx([2 / 3, 1 / 3, 0, 0])
    assert image.mask.all(axis=1).tolist() == [False, False, True, False]


def test_names_in_the_picture_are_no_formulas_and_not_endless(tmp_path):
    brands = ["$\\frac$", "A" * 24, "B" * 25]
    result = metrics.compute([0, 1, 2], np.eye(3), brands)
    report.write(tmp_path, metrics=result, rows=[], facts={})
    names = [label.get_text() for label in report.confusion_figure(result).axes[0].get_yticklabels()]
    assert names == ["$\\frac$", "A" * 24, "B" * 23 + "…"]


def test_drawing_loads_no_pyplot():
    code = """
import io, sys
from carbrand.evaluation import metrics, report
report.confusion_figure(metrics.compute([0], [[1, 0]], ["Audi", "BMW"])).savefig(io.BytesIO(), format="png")
sys.exit("matplotlib.pyplot" in sys.modules or "tensorflow" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_load_without_a_report_raises(tmp_path):
    with pytest.raises(DataError, match=r"report\.json: not there, so .* holds no complete report\. Run `carbrand"):
        report.load(tmp_path)


def test_load_of_a_damaged_report_raises(tmp_path):
    (tmp_path / "report.json").write_text('{"format_version": 1')
    with pytest.raises(DataError, match=r"report\.json: not JSON \(.*\)\. Run `carbrand evaluate` again\."):
        report.load(tmp_path)


@pytest.mark.parametrize(("content", "version"), [({"format_version": 2}, "2"), ({}, "None"), ([], "None")])
def test_load_of_another_version_raises(tmp_path, content, version):
    (tmp_path / "report.json").write_text(json.dumps(content))
    message = re.escape(f"report.json: format version {version}, not 1. Run this version's `carbrand evaluate`.")
    with pytest.raises(DataError, match=message):
        report.load(tmp_path)


def test_confusion_matrix_as_text():
    result = metrics.compute([0, 0, 1], [[0.9, 0.1], [0.2, 0.8], [0.3, 0.7]], ["audi", "bmw"])
    assert report.confusion_text(result) == (
        "true \\ predicted  audi  bmw\n"
        "audi                 1    1\n"
        "bmw                  0    1\n"
    )  # fmt: skip
