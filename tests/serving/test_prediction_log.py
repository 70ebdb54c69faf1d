import json

from carbrand.serving.prediction_log import PredictionLog


def test_files_are_changed_by_size_and_hold_every_row(tmp_path):
    log = PredictionLog(tmp_path, max_file_bytes=2000)
    for number in range(100):
        log.add({"number": number}, b"photo")
    log.close()
    paths = sorted(tmp_path.glob("predictions-*.jsonl"), key=lambda path: path.stat().st_mtime_ns)
    rows = [json.loads(line) for path in paths for line in path.open()]
    assert sorted(row["number"] for row in rows) == list(range(100))
    assert len(paths) > 5
    assert all(path.stat().st_size < 2300 for path in paths)
    assert log.lost == 0
    assert not (tmp_path / "photos").exists()


def test_what_cannot_be_written_is_counted(tmp_path):
    log = PredictionLog(tmp_path / "log")
    (tmp_path / "log").rmdir()
    log.add({}, b"photo")
    log.close()
    assert log.lost == 1
