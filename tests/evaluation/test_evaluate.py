import csv
import json
import shutil

import numpy as np
import pytest

from carbrand.data import manifest
from carbrand.errors import ConfigError, DataError
from carbrand.evaluation import evaluate


def predictions(folder):
    with (folder / "predictions.csv").open(encoding="utf-8-sig") as file:
        return list(csv.DictReader(file))


def probabilities(folder):
    return np.array([[float(row[k]) for k in row if k.startswith("probability_")] for row in predictions(folder)])


@pytest.fixture(scope="module")
def of_run(tiny_run, drawn_records, tmp_path_factory):
    return evaluate.run(drawn_records, run_dir=tiny_run, split="train", output=tmp_path_factory.mktemp("of_run"))


def test_every_photo_counts_once(of_run, drawn_records):
    metrics, folder = of_run
    split = manifest.load(drawn_records).splits["train"]
    assert metrics.examples == split.num_examples
    assert [brand.support for brand in metrics.per_brand] == list(split.brand_counts)
    names = [row["filename"] for row in predictions(folder)]
    assert len(set(names)) == len(names) == split.num_examples


def test_brand_of_each_row_is_its_folder(of_run):
    for row in predictions(of_run[1]):
        assert row["filename"].split("/")[0] == row["brand"]


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_batch_size_does_not_matter(of_run, tiny_run, drawn_records, tmp_path, batch_size):
    metrics, folder = evaluate.run(
        drawn_records, run_dir=tiny_run, split="train", output=tmp_path, batch_size=batch_size
    )
    np.testing.assert_allclose(probabilities(folder), probabilities(of_run[1]), atol=1e-5)
    assert metrics.confusion_matrix == of_run[0].confusion_matrix


def test_exported_model_gives_the_same_answers(of_run, tiny_model, drawn_records, tmp_path):
    metrics, folder = evaluate.run(drawn_records, model_dir=tiny_model, split="train", output=tmp_path)
    np.testing.assert_allclose(probabilities(folder), probabilities(of_run[1]), atol=1e-5)
    assert metrics.accuracy == of_run[0].accuracy


def test_report_goes_beside_the_model_by_default(tiny_model, drawn_records):
    _, folder = evaluate.run(drawn_records, model_dir=tiny_model, split="validation")
    assert folder == tiny_model / "evaluation-validation"
    facts = json.loads((folder / "report.json").read_text())["facts"]
    assert facts["records"] == manifest.load(drawn_records).fingerprint
    shutil.rmtree(folder)


def test_other_brands_raise(tiny_run, drawn_records, monkeypatch):
    import dataclasses

    other = dataclasses.replace(manifest.load(drawn_records), brands=("a", "b"))
    monkeypatch.setattr(manifest, "load", lambda _: other)
    with pytest.raises(DataError, match="has the brands a, b; .* knows arvena, belmarr"):
        evaluate.run(drawn_records, run_dir=tiny_run)


def test_run_and_model_together_raise(tiny_run, tiny_model, drawn_records):
    with pytest.raises(ConfigError, match="Give one of --run and --model"):
        evaluate.run(drawn_records, run_dir=tiny_run, model_dir=tiny_model)
