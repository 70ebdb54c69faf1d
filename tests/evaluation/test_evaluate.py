import csv
import json
import shutil

import numpy as np
import pytest

from carbrand.data import manifest
from carbrand.errors import ConfigError, DataError, GateError
from carbrand.evaluation import evaluate
from carbrand.training import hardware


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


def test_batch_size_does_not_matter_and_each_look_is_noted(of_run, tiny_run, drawn_records, tmp_path):
    metrics, folder = evaluate.run(drawn_records, run_dir=tiny_run, split="train", output=tmp_path, batch_size=7)
    np.testing.assert_allclose(probabilities(folder), probabilities(of_run[1]), atol=1e-5)
    assert metrics.confusion_matrix == of_run[0].confusion_matrix
    first, now = (
        json.loads((place / "report.json").read_text())["facts"]["evaluations of this split so far"]
        for place in (of_run[1], folder)
    )
    rows = [json.loads(line) for line in (drawn_records / "evaluations.jsonl").read_text().splitlines()]
    assert 1 <= first < now == sum(row["split"] == "train" for row in rows)
    assert rows[-1]["model"] == str(tiny_run)


@pytest.mark.slow
@pytest.mark.parametrize("replicas", [2, 4])
def test_replicas_do_not_matter(of_run, tiny_run, drawn_records, tmp_path, monkeypatch, replicas):
    original = hardware.make_strategy
    monkeypatch.setattr(hardware, "make_strategy", lambda _: original(hardware.Hardware(replicas=replicas)))
    metrics, folder = evaluate.run(drawn_records, run_dir=tiny_run, split="train", output=tmp_path, batch_size=7)
    np.testing.assert_allclose(probabilities(folder), probabilities(of_run[1]), atol=1e-5)
    assert metrics.confusion_matrix == of_run[0].confusion_matrix
    assert metrics.examples == of_run[0].examples


def test_a_model_that_got_worse_ends_with_exit_code_3(of_run, tiny_run, drawn_records, tmp_path):
    better = tmp_path / "better"
    shutil.copytree(of_run[1], better)
    rows = predictions(better)
    with (better / "predictions.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows({**row, "predicted": row["brand"]} for row in rows)
    with pytest.raises(
        GateError, match=r"worse than .*better beyond chance: macro F1 100\.0 -> .* %\. .*report\.txt has"
    ):
        evaluate.run(drawn_records, run_dir=tiny_run, split="train", output=tmp_path / "out", baseline=better)
    assert "1 of 1 numbers worse" in (tmp_path / "out" / "report.txt").read_text()
    assert json.loads((tmp_path / "out" / "report.json").read_text())["comparison"][0]["before"] == 1.0


def test_a_baseline_of_other_photos_is_refused(of_run, tiny_run, drawn_records, tmp_path):
    with pytest.raises(DataError, match="of its 22 photos are among the 12 evaluated now"):
        evaluate.run(drawn_records, run_dir=tiny_run, split="validation", output=tmp_path, baseline=of_run[1])


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
