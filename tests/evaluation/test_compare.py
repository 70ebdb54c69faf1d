import csv

import evaluations
import numpy as np
import PIL.Image
import pytest

from carbrand.errors import ConfigError, DataError
from carbrand.evaluation import compare, report

LABELS = np.repeat(np.arange(4), 50)


def write(folder, num_wrong, **facts):
    """The report of a model that takes so many of each brand's photos for the next brand."""
    predicted = np.where(np.arange(200) % 50 < num_wrong, (LABELS + 1) % 4, LABELS)
    probabilities = evaluations.probabilities_of(predicted)
    facts = {"model": folder.name, "records": "ab12", "split": "test", **facts}
    rows = [
        {
            "filename": f"{number}.jpg",
            "sha256": str(number),
            "group": str(number),
            "brand": evaluations.BRANDS[LABELS[number]],
            "probabilities": probabilities[number],
        }
        for number in range(200)
    ]
    report.write(folder, evaluations.evaluate(LABELS, probabilities, facts=facts), rows, {})
    return folder


@pytest.fixture
def folders(tmp_path):
    return [write(tmp_path / name, num_wrong) for name, num_wrong in (("worst", 25), ("best", 5), ("second", 6))]


def test_the_best_stands_first_and_the_others_say_what_is_lost(folders, tmp_path):
    table = compare.run(folders, tmp_path / "out").splitlines()
    assert [line.split()[0] for line in table[1:]] == ["best", "second", "worst"]
    first, second, worst = compare.compare(folders)
    assert first.difference is None
    assert second.difference.low < 0 <= second.difference.high or second.difference.high < 0
    assert worst.difference.low == pytest.approx(-0.4 - 0.07, abs=0.02)  # 80 of 200 photos: 0.4 ± 1.96 × 0.035
    assert worst.difference.high == pytest.approx(-0.4 + 0.07, abs=0.02)
    assert "90.0 (" in table[1]
    with (tmp_path / "out" / "comparison.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["model"] for row in rows] == ["best", "second", "worst"]
    assert rows[0]["less than the best, points"] == "-"
    with PIL.Image.open(tmp_path / "out" / "comparison.png") as picture:
        assert picture.size[0] > 600


def test_the_picture_has_a_point_and_an_interval_for_each(folders):
    axes = compare.figure(compare.compare(folders)).axes[0]
    accuracy, macro_f1 = axes.containers
    assert accuracy.lines[0].get_xdata().tolist() == pytest.approx([0.9, 0.88, 0.5])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["best", "second", "worst"]
    assert len(macro_f1.lines[2][0].get_segments()) == 3


@pytest.mark.parametrize(
    ("facts", "message"),
    [({"split": "validation"}, "split validation, not test"), ({"records": "cd34"}, "records cd34, not ab12")],
)
def test_other_photos_cannot_be_compared(folders, tmp_path, facts, message):
    other = write(tmp_path / "other", 5, **facts)
    with pytest.raises(DataError, match=f"other: {message} as in .*worst. Evaluate all models on the same records"):
        compare.run([*folders, other], tmp_path / "out")


def test_a_file_is_no_folder(folders, tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(ConfigError, match="out: is a file. Name a folder."):
        compare.run(folders, tmp_path / "out")
