import signal
import sys
import threading
import time

import pytest

from carbrand.training import trial_process


def run(tmp_path, code, on_validation=lambda *_: True, is_interrupted=lambda: False):
    return trial_process.run(
        [sys.executable, "-S", "-E", "-c", code], tmp_path, on_validation=on_validation, is_interrupted=is_interrupted
    )


WRITES = """
import time
with open({path!r}, "a") as file:
    for step in range({steps}):
        file.write('{{"split": "train", "step": 1}}\\n{{"split": "validation", "step": %d}}\\n' % step)
        file.flush()
        time.sleep({pause})
"""


def test_each_validation_is_told_once_with_its_number(tmp_path):
    told = []
    code = WRITES.format(path=str(tmp_path / "metrics.jsonl"), steps=3, pause=0.1)
    ended = run(tmp_path, code, lambda number, row: told.append((number, row["step"])) or True)
    assert told == [(1, 0), (2, 1), (3, 2)]
    assert ended == trial_process.Ended(0, was_stopped=False)


def test_a_verdict_stops_the_process(tmp_path):
    code = WRITES.format(path=str(tmp_path / "metrics.jsonl"), steps=1000, pause=0.1)
    ended = run(tmp_path, code, lambda number, _: number < 2)
    assert ended == trial_process.Ended(-signal.SIGTERM, was_stopped=True)


def test_a_folder_has_one_process_at_a_time(tmp_path):
    first = threading.Thread(target=run, args=(tmp_path, "import time; time.sleep(30)"))
    first.start()
    deadline = time.monotonic() + 10
    while not (tmp_path / ".process.lock").exists() or not (tmp_path / ".process.lock").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert run(tmp_path, "").exit_code == 0  # stops the first, as if its tuner was dead
    first.join(5)
    assert not first.is_alive()


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("print('one'); print('ConfigError: a.b=1: too much.'); raise SystemExit(2)", "ConfigError: a.b=1: too much."),
        ("import json; json.loads('x')", r"json.decoder.JSONDecodeError: Expecting value: line 1 column 1 (char 0)"),
        ("raise SystemExit(7)", "exit code 7"),
        ("import os; os.kill(os.getpid(), 9)", "killed by SIGKILL"),
    ],
)
def test_the_reason_of_a_failure_is_one_line(tmp_path, code, reason):
    ended = run(tmp_path, code)
    assert trial_process.reason(tmp_path / trial_process.OUTPUT, ended.exit_code) == reason
