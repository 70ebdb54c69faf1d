import csv
import dataclasses
import json
import shutil

import numpy as np
import pytest

from carbrand.data import manifest
from carbrand.errors import CheckpointError, ConfigError, DataError, GateError
from carbrand.evaluation import evaluate, slices
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


def right_on_all(report, folder):
    """A copy of a report, of a model that took no photo for another brand."""
    shutil.copytree(report, folder)
    rows = predictions(folder)
    with (folder / "predictions.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows({**row, "predicted": row["brand"]} for row in rows)
    return folder


def test_a_model_that_got_worse_ends_with_exit_code_3(of_run, tiny_run, drawn_records, tmp_path):
    better = right_on_all(of_run[1], tmp_path / "better")
    with pytest.raises(
        GateError, match=r"worse than .*better beyond chance: macro F1 100\.0 -> .* %\. .*report\.txt has"
    ):
        evaluate.run(drawn_records, run_dir=tiny_run, split="train", output=tmp_path / "out", baseline=better)
    assert "1 of 1 numbers worse" in (tmp_path / "out" / "report.txt").read_text()
    assert json.loads((tmp_path / "out" / "report.json").read_text())["comparison"][0]["before"] == 1.0


@pytest.mark.slow
def test_too_few_photos_are_not_judged(of_run, tiny_run, drawn_records, tmp_path, monkeypatch):
    better = right_on_all(of_run[1], tmp_path / "better")
    monkeypatch.setattr(slices, "MIN_PHOTOS", 23)  # of 22
    evaluate.run(drawn_records, run_dir=tiny_run, split="train", output=tmp_path / "out", baseline=better)
    for name in ("report.txt", "report.html"):
        assert "ot judged, as fewer than 10 groups of photos are too few" in (tmp_path / "out" / name).read_text()


@pytest.mark.parametrize("name", ["", "report.json"])
def test_a_baseline_is_not_written_over(of_run, tiny_run, drawn_records, tmp_path, name):
    link = tmp_path / "link"
    link.symlink_to(of_run[1])
    with pytest.raises(ConfigError, match="^--baseline=.*: the new report would be written over it, .* another --outp"):
        evaluate.run(drawn_records, run_dir=tiny_run, split="train", output=of_run[1], baseline=link / name)


def test_a_baseline_in_the_default_folder_is_not_written_over(tiny_run, drawn_records):
    with pytest.raises(ConfigError, match="written over it, into .*evaluation-train. Give another --output."):
        evaluate.run(drawn_records, run_dir=tiny_run, split="train", baseline=tiny_run / "evaluation-train")


def test_a_file_in_place_of_the_report_is_told_first(drawn_records, tmp_path):
    (tmp_path / "evaluation-test").touch()
    with pytest.raises(ConfigError, match="evaluation-test: is a file. Name a folder."):
        evaluate.run(drawn_records, run_dir=tmp_path)
    with pytest.raises(ConfigError, match="evaluation-test: is a file. Name a folder."):
        evaluate.check_several([tmp_path], "test", tmp_path / "out")


def test_several_runs_are_checked_before_the_first(tiny_run, tmp_path):
    evaluate.check_several([tiny_run, tiny_run], "test", tmp_path / "out")
    with pytest.raises(CheckpointError, match="nothere: no such folder"):
        evaluate.check_several([tiny_run, tmp_path / "nothere"], "test", tmp_path / "out")
    (tmp_path / "out").touch()
    with pytest.raises(ConfigError, match="--output=.*out: is a file. Name a folder."):
        evaluate.check_several([tiny_run], "test", tmp_path / "out")


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
    other = dataclasses.replace(manifest.load(drawn_records), brands=("a", "b"))
    monkeypatch.setattr(manifest, "load", lambda _: other)
    with pytest.raises(DataError, match="has the brands a, b; .* knows arvena, belmarr"):
        evaluate.run(drawn_records, run_dir=tiny_run)


def test_run_and_model_together_raise(tiny_run, tiny_model, drawn_records):
    with pytest.raises(ConfigError, match="Give one of --run and --model"):
        evaluate.run(drawn_records, run_dir=tiny_run, model_dir=tiny_model)
