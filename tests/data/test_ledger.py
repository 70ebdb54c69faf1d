import json

from carbrand.data import ledger


def test_each_split_and_dataset_counts_for_itself(tmp_path):
    assert ledger.add(tmp_path, "test", "ab12", {"model": "runs/a", "accuracy": 0.5}) == 1
    assert ledger.add(tmp_path, "test", "ab12", {"model": "runs/b", "accuracy": 0.6}) == 2
    assert ledger.add(tmp_path, "validation", "ab12", {}) == 1
    assert ledger.add(tmp_path, "test", "cd34", {}) == 1
    first = json.loads((tmp_path / "evaluations.jsonl").read_text().splitlines()[0])
    assert first.pop("time").endswith("+00:00")
    assert first == {"split": "test", "records": "ab12", "model": "runs/a", "accuracy": 0.5}


def test_half_a_line_of_a_killed_evaluation_is_no_evaluation(tmp_path):
    ledger.add(tmp_path, "test", "ab12", {})
    with (tmp_path / "evaluations.jsonl").open("ab") as file:
        file.write('{}\n[1]\n{"split": "test", "records": "ü'.encode()[:-1])
    assert ledger.add(tmp_path, "test", "ab12", {}) == 2
    assert ledger.add(tmp_path, "test", "ab12", {}) == 3


def test_records_that_cannot_be_written_are_evaluated_all_the_same(tmp_path, caplog):
    (tmp_path / "evaluations.jsonl").mkdir()  # as root, no folder is read-only
    assert ledger.add(tmp_path, "test", "ab12", {}) is None
    assert "evaluations.jsonl: cannot be written" in caplog.text
