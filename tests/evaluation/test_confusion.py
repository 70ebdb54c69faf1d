import io
import subprocess
import sys

import evaluations
import numpy as np
import PIL.Image
import pytest

from carbrand.evaluation import confusion, metrics

BRANDS = evaluations.BRANDS


def test_pairs_stand_by_count_then_label():
    result = metrics.compute([3, 1, 2, 2, 0], np.eye(4)[[0, 0, 1, 1, 0]], BRANDS)
    assert confusion.pairs(result) == [("Kia", "BMW", 2), ("BMW", "Audi", 1), ("Škoda", "Audi", 1)]


@pytest.mark.parametrize(("num_brands", "num_counts"), [(25, 25), (26, 0)])
def test_counts_stand_in_the_cells_up_to_25_brands(num_brands, num_counts):
    axes = confusion.figure(evaluations.all_wrong(num_brands).metrics).axes[0]
    assert len(axes.texts) == num_counts


def test_colours_are_shares_of_the_true_brand():
    # Audi: 2 of 3 right, 1 taken for BMW; Kia has no photos.
    image = confusion.figure(evaluations.small().metrics).axes[0].images[0].get_array()
    assert image[0].tolist() == pytest.approx([2 / 3, 1 / 3, 0, 0])
    assert image.mask.all(axis=1).tolist() == [False, False, True, False]


def test_names_are_no_formulas_and_not_endless():
    figure = confusion.figure(metrics.compute([0, 1, 2], np.eye(3), ["$\\frac$", "A" * 24, "B" * 25]))
    figure.savefig(io.BytesIO(), format="png")
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names == ["$\\frac$", "A" * 24, "B" * 23 + "…"]


@pytest.mark.parametrize(("num_brands", "least_px"), [(2, 400), (25, 1000), (26, 600), (100, 1500)])
def test_the_picture_grows_with_the_brands(tmp_path, num_brands, least_px):
    confusion.figure(evaluations.all_wrong(num_brands).metrics).savefig(tmp_path / "matrix.png")
    with PIL.Image.open(tmp_path / "matrix.png") as picture:
        assert min(picture.size) >= least_px


def test_drawing_loads_no_pyplot():
    code = """
import io, sys
from carbrand.evaluation import confusion, metrics
confusion.figure(metrics.compute([0], [[1, 0]], ["Audi", "BMW"])).savefig(io.BytesIO(), format="png")
sys.exit("matplotlib.pyplot" in sys.modules or "tensorflow" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
