import dataclasses
import pathlib
import re

import evaluations
import pytest

from carbrand.data import manifest
from carbrand.data.preprocess import Preprocess
from carbrand.errors import DataError
from carbrand.evaluation import card
from carbrand.evaluation.bootstrap import Interval
from carbrand.evaluation.slices import Slice
from carbrand.evaluation.trained import Trained

CONFIG = {
    "model": {"variant": "v1.5", "pooling": "avg", "dropout": 0.2},
    "preprocess": {"crop_fraction": 0.875},
    "optimizer": {"learning_rate": 0.01},
}


@pytest.fixture
def dataset(drawn_records):
    return manifest.load(drawn_records)


@pytest.fixture
def evaluation():
    facts = {"model": "runs/a", "step": 9, "trained_on": "ab12", "records": "ab12", "split": "test"}
    return evaluations.small(facts=facts, slices=[Slice("year", "2024", 12, 0.25, Interval(0.1, 0.5))])


def model(**config):
    return Trained(
        folder=pathlib.Path("runs/a"),
        predict=None,
        make_model=None,
        brands=tuple(evaluations.BRANDS),
        preprocess=Preprocess(image_size_px=192),
        resize_short_px=256,
        jpeg_quality=90,
        temperature=2.0,
        facts={},
        config={**CONFIG, **config},
    )


def test_the_card_tells_data_numbers_and_settings(evaluation, dataset):
    text = card.render(evaluation, dataset, model())
    assert text.startswith("# Model card: runs/a\n")
    for line in (
        "| model | ResNet-50 v1.5, head: avg pooling, dropout 0.2 |",
        "| input | RGB, 192 × 192 px; the middle 87.5 % of the photo |",
        "| step | 9 |",
        "| accuracy | 50.0 % | 16.7 to 83.3 |",
        "| the same at temperature 2.000 | 18.0 % | by chance alone 14.6 |",
        "| Kia | 0 | no photo | no photo | no photo |",
        "| Škoda | 1 | 100.0 | 100.0 | 100.0 |",
        "- 2 photos of BMW were taken for Audi.",
        "- 1 photo of Audi was taken for BMW.",
        "- year 2024: accuracy 25.0 % on 12 photos.",
        "- Not measured at all, for want of photos: Kia.",
        "| optimizer.learning_rate | 0.01 |",
        "Of 54 photos 48 were kept; 3 were copies, 0 stood under several",
        "brands, 3 could not be used. Near copies: keep_one. Photos of a group are all in one split.",
    ):
        assert line in text.splitlines(), line
    assert f"| test | {dataset.splits['test'].num_examples} | 2 | 3 |" in text.splitlines()
    assert not re.search(r"\|\s*\|\s*\|\n(?!\|---)", text.replace("| | |\n|---", ""))


def test_a_missing_number_is_an_error(evaluation, dataset):
    intervals = {name: interval for name, interval in evaluation.metrics.intervals.items() if name != "macro_f1"}
    lacking = dataclasses.replace(evaluation, metrics=dataclasses.replace(evaluation.metrics, intervals=intervals))
    with pytest.raises(DataError, match="macro_f1"):
        card.render(lacking, dataset, model())
    undefined = dataclasses.replace(evaluation.calibration, expected_calibration_error=float("nan"))
    with pytest.raises(DataError, match="runs/a: a number of its model card is nan. Evaluate it on more photos."):
        card.render(dataclasses.replace(evaluation, calibration=undefined), dataset, model())


def test_a_missing_fact_is_an_error(evaluation, dataset):
    with pytest.raises(DataError, match="runs/a: its model card lacks a fact .*pooling.*Train or export it again."):
        card.render(evaluation, dataset, model(model={"variant": "v1", "dropout": 0.0}))
