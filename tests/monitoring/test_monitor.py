import json
import re

import logs
import pytest

from carbrand import cli, exported
from carbrand.errors import ConfigError, DataError
from carbrand.monitoring import monitor

DARK = {"mean_rgb": [10, 10, 10]}


def alike(numbers, **changes):
    return [logs.row(n, **{"mean_rgb": [100 + n % 60] * 3, "probability": 0.4 + n % 2 / 5, **changes}) for n in numbers]


def test_photos_like_those_of_the_records_have_not_drifted(model, tmp_path):
    found = monitor.run(model, logs.write(tmp_path / "log", alike(range(60))), tmp_path / "out")
    assert found.drifted == []
    assert [shift.size for shift in found.shifts] == [0.0] * 7
    assert found.reference_accuracy.value == 0.5
    assert found.accuracy is None
    written = json.loads((tmp_path / "out" / "monitor.json").read_text())
    assert written["shifts"][0]["size"] == 0.0
    assert "None of 7 signals has drifted." in (tmp_path / "out" / "monitor.txt").read_text()


def test_what_has_drifted_is_told_and_ends_with_exit_code_3(model, tmp_path, capsys):
    logs.write(tmp_path / "log", alike(range(60), **DARK, brand="bmw"))
    arguments = ["monitor", "--model", model, "--log", tmp_path / "log", "--output", tmp_path / "out"]
    assert cli._run(cli._parse(["carbrand", *map(str, arguments)])) == 3
    told, complaint = capsys.readouterr()
    assert complaint.startswith(f"GateError: {tmp_path / 'log'}: Drifted, 2 of 7 signals: brand")
    assert complaint.endswith(f"Look at {tmp_path / 'out' / 'monitor.html'}.\n")
    assert "Drifted, 2 of 7 signals: brand (100.0 %), brightness (100.0 %)." in told
    assert re.search(r"brightness +DRIFTED +100.0 +(2[0-9]|3[0-3])\.[0-9] +< 0.001 +130 +10\n", told)
    assert re.search(r"bmw +60 +0.0 +100.0\n", told)


def test_a_period_of_a_log_is_held_against_what_was_before_it(model, tmp_path):
    logs.write(tmp_path / "log", alike(range(200), **DARK))  # ten a day, from the first to the 20th
    since = {"since": "2026-11-11", "reference": tmp_path / "log"}
    found = monitor.run(model, tmp_path / "log", tmp_path / "out", **since)
    assert (found.facts["photos"], found.facts["photos of the reference"]) == (100, 100)
    assert found.facts["since"] == "2026-11-11T00:00:00Z"
    assert found.facts["reference answered from"] == "2026-11-01T12:00:00Z to 2026-11-10T12:00:00Z"
    assert found.drifted == []
    assert [day.date for day in found.days] == [f"2026-11-{day}" for day in range(11, 21)]
    with pytest.raises(ConfigError, match="is the log itself. Give --since: before it is the reference"):
        monitor.run(model, tmp_path / "log", tmp_path / "out", reference=tmp_path / "log")
    with pytest.raises(DataError, match="log: holds no answer before 2026-10-01T00:00:00Z: its answers are from"):
        monitor.run(model, tmp_path / "log", tmp_path / "out", since="2026-10-01", reference=tmp_path / "log")


def test_another_log_can_be_the_reference(model, tmp_path):
    for name in ("log", "old"):
        logs.write(tmp_path / name, alike(range(60), **DARK))
    found = monitor.run(model, tmp_path / "log", tmp_path / "out", reference=tmp_path / "old")
    assert found.drifted == []
    assert found.reference_accuracy is None


def test_true_brands_give_the_accuracy(model, tmp_path):
    logs.write(tmp_path / "log", alike(range(60)))
    lines = [f"{n:064x},{'Audi' if n < 6 else 'BMW'}" for n in range(8)] + [f"{9:064x},", f"{999:064x},audi"]
    (tmp_path / "labels.csv").write_text("\n".join(["sha256,brand", *lines]))
    found = monitor.run(model, tmp_path / "log", tmp_path / "out", labels=tmp_path / "labels.csv")
    assert (found.accuracy.value, found.accuracy.photos) == (0.75, 8)
    assert found.accuracy.interval.low == pytest.approx(0.4093, abs=1e-4)  # Wilson's of 6 of 8, by hand


def test_labels_that_tell_nothing_are_named(model, tmp_path, caplog):
    logs.write(tmp_path / "log", alike(range(60)))

    def labelled(name, text):
        (tmp_path / name).write_text(text)
        return monitor.run(model, tmp_path / "log", tmp_path / "out", labels=tmp_path / name).accuracy

    with pytest.raises(DataError, match="labels.csv:2: has no columns sha256 and brand. Name a table that has both"):
        labelled("labels.csv", "path,brand\na,audi\n")
    with pytest.raises(DataError, match="labels.jsonl:1: has no columns sha256 and brand"):
        labelled("labels.jsonl", '{"sha256": "1"}\n')
    with pytest.raises(DataError, match="labels.csv: has no row with a brand. Name some in review.html"):
        labelled("labels.csv", "sha256,brand\na,\n")
    with pytest.raises(DataError, match="has no row with a brand, but 1 that were chosen as hard ones"):
        labelled("labels.csv", "sha256,brand,chosen\na,audi,unsure\n")
    with pytest.raises(DataError, match="none of its 1 photos is in .*log. Name the labels of photos in this log"):
        labelled("labels.csv", "sha256,brand\na,audi\nb,\nc,-\n")
    with pytest.raises(DataError, match="labels.csv:3: says 'bmw' of a, a row above 'audi'. Keep one"):
        labelled("labels.csv", "sha256,brand\na,audi\na,bmw\n")
    with pytest.raises(ConfigError, match="labels.txt: is no table. Name a .csv, .tsv"):
        labelled("labels.txt", "")
    assert labelled("labels.csv", f"sha256,brand\n{1:064X},VW\n{2:064x},audi\n").value == 0.5
    told = json.loads((tmp_path / "out" / "monitor.json").read_text())["facts"]
    assert told["labels that the model does not know, which count as errors"] == "vw"
    assert "the model does not know vw, so these photos count as errors" in caplog.text


def test_brands_that_the_model_does_not_know_are_told(model, tmp_path, caplog):
    rows = [*alike(range(30)), *alike(range(30, 60), brand="ferrari")]
    found = monitor.run(model, logs.write(tmp_path / "log", rows), tmp_path / "out")
    assert {row.brand: row.now for row in found.brands} == {"audi": 0.5, "bmw": 0, "(other brands)": 0.5}
    assert "30 answers name brands that the model does not know, as ferrari" in caplog.text


def test_a_file_of_the_log_is_the_log_itself(model, tmp_path):
    logs.write(tmp_path / "log", alike(range(60)))
    with pytest.raises(ConfigError, match="is the log itself"):
        monitor.run(model, tmp_path / "log", tmp_path / "out", reference=tmp_path / "log" / "predictions-1.jsonl")


def test_days_tell_how_it_changed(model, tmp_path):
    rows = [logs.row(1), logs.row(1), logs.row(21, probability=0.9, is_unknown=True), logs.row(2, probability=0.7)]
    failed = {"time": rows[0]["time"], "sha256": "0", "error": "too_large: 9 GB"}
    found = monitor.run(model, logs.write(tmp_path / "log", [*rows, failed]), tmp_path / "out")
    first, second = found.days
    assert (first.date, first.answers, first.failures, first.unknown) == ("2026-11-02", 3, 1, 0.5)
    assert first.confidence == pytest.approx(0.7)
    assert (second.date, second.answers, second.failures) == ("2026-11-03", 1, 0)
    assert found.failures == {"too_large": 1}
    assert (found.answered, found.failed) == (4, 1)
    assert (found.expected_accuracy, found.reference_confidence) == (pytest.approx(0.7), pytest.approx(0.5))


def test_the_page_needs_no_network_and_has_every_part(model, tmp_path):
    logs.write(tmp_path / "log", [*alike(range(60), **DARK), {**logs.row(1), "error": "<b>not</b>: x"}])
    monitor.run(model, tmp_path / "log", tmp_path / "out")
    html = (tmp_path / "out" / "monitor.html").read_text()
    assert re.findall(r'(?:src|href)="(?!data:)[^"]*', html) == []
    assert re.findall(r'<section id="(\w+)"', html) == ["signals", "brands", "days", "failures"]
    assert "&lt;b&gt;not&lt;/b&gt;" in html
    assert '<tr class="bad"><td>brightness</td>' in html


def test_a_model_of_an_older_carbrand_needs_a_reference(model, tmp_path):
    (model / "1" / exported.REFERENCE).unlink()
    logs.write(tmp_path / "log", alike(range(60)))
    with pytest.raises(DataError, match=r"reference.jsonl: not there: .* or an older carbrand exported it"):
        monitor.run(model, tmp_path / "log", tmp_path / "out")


def test_bad_input_is_named_before_anything_is_written(model, tmp_path):
    logs.write(tmp_path / "log", [{**logs.row(1), "error": "x"}])
    with pytest.raises(DataError, match="log: holds 1 failures, no prediction. Its rows say why"):
        monitor.run(model, tmp_path / "log", tmp_path / "out")
    for output in (model / "1", model / "1" / "x", model / "2", model):
        with pytest.raises(ConfigError, match=f"--output={output}: lies in the model. Name another place"):
            monitor.run(model, tmp_path / "log", output)
    with pytest.raises(DataError, match="model/2: no such version; .*model has 1. Name one of these"):
        monitor.run(model / "2", tmp_path / "log", tmp_path / "out")
    with pytest.raises(ConfigError, match="--min_shift=2: give a number at least 0 and at most 1"):
        monitor.run(model, tmp_path / "log", tmp_path / "out", min_shift=2)
    with pytest.raises(DataError, match="no such folder. Make it with `carbrand export"):
        monitor.run(tmp_path / "none", tmp_path / "log", tmp_path / "out")
    assert not (tmp_path / "out").exists()
