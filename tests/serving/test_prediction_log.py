import json
import subprocess
import sys
import threading
import time

from carbrand.serving import prediction_log
from carbrand.serving.prediction_log import PredictionLog


def rows_in(folder):
    return [json.loads(line) for path in folder.glob("predictions-*.jsonl") for line in path.open()]


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


def test_a_full_disk_costs_the_rows_that_do_not_fit_and_no_more(tmp_path):
    code = f"""
import pathlib, resource
from carbrand.serving.prediction_log import PredictionLog
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))  # writing beyond fails, as on a full disk
log = PredictionLog(pathlib.Path({str(tmp_path)!r}))
for number in range(100):
    log.add({{"number": number}}, b"photo")
log.close()
print(log.lost)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert len(rows_in(tmp_path)) + int(done.stdout) == 100
    assert len(rows_in(tmp_path)) > 5
    assert len(list(tmp_path.iterdir())) == 1
    assert done.stderr.count("rows are lost") == 1


def test_rows_outlive_a_file_that_was_taken_away(tmp_path):
    log = PredictionLog(tmp_path)
    log.add({"number": 0}, b"photo")
    deadline = time.monotonic() + 9
    while not rows_in(tmp_path):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    next(tmp_path.iterdir()).unlink()
    for number in range(1, 20):
        log.add({"number": number}, b"photo")
    log.close()
    assert sorted(row["number"] for row in rows_in(tmp_path)) == list(range(1, 20))
    assert log.lost == 0


def test_a_photo_that_cannot_be_kept_does_not_cost_its_row(tmp_path, caplog):
    (tmp_path / "photos").touch()
    log = PredictionLog(tmp_path, keep_photos=True)
    for number in range(20):
        log.add({}, b"%d" % number)
    log.close()
    assert len(rows_in(tmp_path)) == log.lost == 20
    assert len(list(tmp_path.glob("*.jsonl"))) == 1
    assert caplog.text.count("are lost") == 1


def test_photos_that_wait_for_the_disk_have_limited_room(tmp_path, monkeypatch):
    monkeypatch.setattr(prediction_log, "_MAX_PHOTO_BYTES", 10)
    goes_on = threading.Event()
    monkeypatch.setattr(PredictionLog, "_keep", lambda *_: goes_on.wait(9))
    log = PredictionLog(tmp_path, keep_photos=True)
    for _ in range(3):
        log.add({}, b"12345678")
    goes_on.set()
    log.close()
    assert (log.lost, len(rows_in(tmp_path))) == (2, 3)
