import gzip

import logs
import numpy as np
import pytest

from carbrand.errors import ConfigError, DataError
from carbrand.monitoring import answers
from carbrand.monitoring.answers import Period
from carbrand.serving.prediction_log import PredictionLog

ALL = Period()


def test_rows_of_all_files_become_columns(tmp_path):
    logs.write(tmp_path, [logs.row(1, brand="bmw", probability=0.25)], "predictions-1.jsonl")
    logs.write(tmp_path, [logs.row(2, is_unknown=True, mean_rgb=[1, 2, 3])], "predictions-2.jsonl")
    found = answers.read(tmp_path, version=1, period=ALL)
    assert found.brand.tolist() == ["bmw", "audi"]
    assert found.probability.tolist() == [0.25, 0.5]
    assert found.is_unknown.tolist() == [False, True]
    assert found.mean_rgb.tolist() == [[100, 100, 100], [1, 2, 3]]
    assert found.time.tolist() == [np.datetime64(f"2026-11-0{day}T12:00", "ms").item() for day in (2, 3)]
    assert answers.read(tmp_path / "predictions-2.jsonl", version=1, period=ALL).sha256.tolist() == [f"{2:064x}"]


def test_a_photo_that_was_sent_again_counts_once_and_what_counts_not_is_told(tmp_path):
    rows = [logs.row(1), logs.row(1, brand="bmw"), logs.row(2, model_version=2), logs.row(3)]
    failures = [{"time": rows[0]["time"], "sha256": "0", "model_version": 1, "error": "not_an_image: starts with b'x'"}]
    broken = [{"time": "x"}, logs.row(4, probability=float("nan")), "no JSON", "[1, 2]", '"text"', "null"]
    found = answers.read(logs.write(tmp_path, rows + failures * 2 + broken), version=1, period=ALL)
    assert found.brand.tolist() == ["audi", "audi"]
    assert (found.repeated, found.other_versions, found.unreadable) == (1, 1, 6)
    assert found.failures == {"not_an_image": 2}
    assert {day: dict(counts) for day, counts in found.days.items()} == {
        "2026-11-02": {"answers": 2, "failures": 2},
        "2026-11-04": {"answers": 1},
    }


@pytest.mark.parametrize(
    ("since", "until", "days"),
    [
        ("2026-11-03", None, [3, 4]),
        (None, "2026-11-03", [1, 2]),
        ("2026-11-02T12:00", "2026-11-03T12:00Z", [2]),
        ("2026-11-02T14:00+02:00", "2026-11-03T13:00+02:00", [2]),
    ],
)
def test_a_period_takes_its_first_and_not_its_last_moment(tmp_path, since, until, days):
    logs.write(tmp_path, map(logs.row, range(4)))
    found = answers.read(tmp_path, version=1, period=Period.parse(since, until))
    assert [time.day for time in found.time.tolist()] == days


@pytest.mark.parametrize(
    "changes",
    [
        {"probability": True},
        {"probability": 1.5},
        {"is_unknown": "false"},
        {"width": 0.5},
        {"width": 10**30},
        {"height": "200"},
        {"mean_rgb": "123"},
        {"mean_rgb": [1, 2]},
        {"mean_rgb": [1, 2, float("nan")]},
        {"brand": None},
        {"brand": "a" * 1000},
        {"sha256": "../secret.png"},
        {"time": 5},
        {"time": "0001-01-01T00:00+05:00"},
    ],
)
def test_a_row_that_is_no_answer_is_left_out(tmp_path, changes):
    found = answers.read(logs.write(tmp_path, [logs.row(1), logs.row(2, **changes)]), version=1, period=ALL)
    assert (len(found), found.unreadable) == (1, 1)


def test_a_line_that_is_being_written_is_none_yet(tmp_path):
    logs.write(tmp_path, [logs.row(1), "[" * 200_000])
    with (tmp_path / "predictions-1.jsonl").open("a") as file:
        file.write('{"time": "2026-')
    found = answers.read(tmp_path, version=1, period=ALL)
    assert (len(found), found.unreadable) == (1, 1)


def test_odd_rows_are_kept(tmp_path):
    rows = [
        logs.row(1, time="0001-01-01T00:00+00:00", model_version=None),
        {"time": logs.row(2)["time"], "error": "\ud800x\n: y"},
    ]
    found = answers.read(logs.write(tmp_path, rows), version=1, period=ALL)
    assert (len(found), found.failures) == (1, {"\\ud800x\\n": 1})
    assert list(found.days) == ["0001-01-01", "2026-11-03"]


def test_files_that_were_compressed_are_read(tmp_path):
    logs.write(tmp_path, map(logs.row, range(9)))
    plain = tmp_path / "predictions-1.jsonl"
    content = gzip.compress(plain.read_bytes())
    plain.unlink()
    (tmp_path / "predictions-1.jsonl.gz").write_bytes(content)
    assert len(answers.read(tmp_path, version=1, period=ALL)) == 9
    for damaged in (content[:-9], b"no gzip"):
        (tmp_path / "predictions-1.jsonl.gz").write_bytes(damaged)
        with pytest.raises(DataError, match=r"predictions-1.jsonl.gz: damaged \(.*\). Write it anew, or move it away"):
            answers.read(tmp_path, version=1, period=ALL)


def test_what_the_server_writes_can_be_read(tmp_path):
    log = PredictionLog(tmp_path)
    log.add({name: value for name, value in logs.row(1).items() if name not in ("time", "sha256", "bytes")}, b"photo")
    log.close()
    assert len(answers.read(tmp_path, version=1, period=Period.parse("2026-01-01", None))) == 1


def test_a_log_without_answers_says_why(tmp_path):
    with pytest.raises(DataError, match="no such log. Write one with `carbrand serve --log"):
        answers.read(tmp_path / "log", version=1, period=ALL)
    logs.write(tmp_path, [logs.row(1)])
    with pytest.raises(DataError, match="no answer of version 2, but 1 of others. Name the folder"):
        answers.read(tmp_path, version=2, period=ALL)
    with pytest.raises(DataError, match="no answer of version 2 before 2027-01-01T00:00:00Z, but 1 of others"):
        answers.read(tmp_path, version=2, period=Period.parse(None, "2027-01-01"))
    with pytest.raises(DataError, match="holds no answer. Name what `carbrand serve --log` wrote"):
        answers.read(logs.write(tmp_path / "empty", []), version=1, period=ALL)
    with pytest.raises(DataError, match="no answer from 2027-01-01T00:00:00Z: its answers are from 2026-11-02T12:00"):
        answers.read(tmp_path, version=1, period=Period.parse("2027-01-01", None))
    logs.write(tmp_path, [{"loss": 1}])
    with pytest.raises(DataError, match="holds 1 lines that are no answers"):
        answers.read(tmp_path, version=1, period=ALL)


def test_a_period_that_is_none_raises():
    with pytest.raises(ConfigError, match="--since=yesterday: is no date or time. Write 2026-11-30"):
        Period.parse("yesterday", None)
    with pytest.raises(ConfigError, match="--since=2026-11-02 --until=2026-11-01: no time lies between"):
        Period.parse("2026-11-02", "2026-11-01")
