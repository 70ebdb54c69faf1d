"""Runs that are killed at any moment and started again end, bit by bit, as one that was left alone."""

import contextlib
import json
import math
import pathlib
import signal
import subprocess
import sys
from concurrent import futures

import numpy as np
import pytest

from carbrand.data import manifest
from carbrand.training import checkpoint

SCRIPT = pathlib.Path(__file__).with_name("killable_runs.py")
PLACED = (
    [("step", number) for number in (1, 9, 20, 27)]
    + [("save", number) for number in (1, 2, 5)]
    + [("saved", number) for number in (1, 2, 5)]
    + [("validate", 5), ("validated", 1), ("validated", 4), ("phase", 2), ("phase", 3), ("features", 2)]
)
RANDOM = 14


class Runs:
    """Trains in a few processes side by side."""

    def __init__(self, records, processes):
        command = [sys.executable, str(SCRIPT), str(records)]
        self._free = [
            subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
            for _ in range(processes)
        ]

    def __call__(self, run_dir, **request):
        """Trains in `run_dir`; returns the exit code and the seconds that it took."""
        process = self._free.pop()
        try:
            process.stdin.write(json.dumps({"run": str(run_dir), **request}) + "\n")
            process.stdin.flush()
            code, seconds = process.stdout.readline().split()
        finally:
            self._free.append(process)
        return int(code), float(seconds)

    def close(self):
        for process in self._free:
            process.communicate(timeout=60)


@pytest.fixture(scope="module")
def runs(drawn_records):
    with contextlib.closing(Runs(drawn_records, 2)) as ours:
        yield ours


@pytest.fixture(scope="module")
def whole(runs, tmp_path_factory):
    """A run that was left alone, and the seconds that it took."""
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    code, seconds = runs(run_dir)
    assert code == 0
    return run_dir, seconds


def final(run_dir):
    """All that a run ends with, but for times."""
    state = checkpoint.load_latest(run_dir)
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    validations = [row for row in rows if row["split"] == "validation"]
    meta = {name: value for name, value in state.meta.items() if name != "totals"}
    arrays = {
        f"{part}:{name}": array
        for part in ("model", "optimizer", "extra", "average")
        for name, array in getattr(state, part).items()
    }
    return meta, validations, arrays


def assert_same(ours, theirs):
    our_meta, our_validations, our_arrays = final(ours)
    meta, validations, arrays = final(theirs)
    assert our_meta == meta
    assert our_validations == validations
    assert our_arrays.keys() == arrays.keys()
    for name, array in our_arrays.items():
        np.testing.assert_array_equal(array, arrays[name], err_msg=name)
    steps = [json.loads(line)["step"] for line in (ours / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)


@pytest.mark.slow
def test_thirty_killed_runs_end_as_one_that_was_left_alone(runs, whole, tmp_path):
    reference, seconds = whole
    _, _, arrays = final(reference)
    assert arrays["extra:loss_scale"] > 2**15  # it has changed on the way
    assert arrays["extra:average_updates"] > 0
    draws = np.random.default_rng(0).uniform(0.2, 0.95, RANDOM)
    requests = [{"at": list(place)} for place in PLACED] + [{"after_s": draw * seconds} for draw in draws.tolist()]
    assert len(requests) == 30

    def killed_and_started_again(number):
        run_dir, request = tmp_path / str(number), requests[number]
        first, _ = runs(run_dir, **request)
        second, _ = runs(run_dir)
        return first, second

    with futures.ThreadPoolExecutor(2) as pool:
        codes = list(pool.map(killed_and_started_again, range(30)))
    for number, (request, (first, second)) in enumerate(zip(requests, codes, strict=True)):
        # The whole run may have been the slower one, on a busy machine.
        assert first == -signal.SIGKILL or (first == 0 and "after_s" in request), request
        assert second == 0, request
        assert_same(tmp_path / str(number), reference)
    assert sum(first == -signal.SIGKILL for first, _ in codes) >= 25


@pytest.mark.slow
def test_sigterm_saves_at_most_one_step_later(runs, whole, drawn_records, tmp_path):
    for number in (3, 14):  # in the head's phase, and in the next one
        run_dir = tmp_path / str(number)
        code, _ = runs(run_dir, at=["step", number], signal=int(signal.SIGTERM))
        assert code == 128 + signal.SIGTERM
        assert number <= checkpoint.load_latest(run_dir).meta["step"] <= number + 1
        assert runs(run_dir)[0] == 0
        assert_same(run_dir, whole[0])


@pytest.mark.slow
def test_the_plan_has_all_that_is_killed(whole, drawn_records):
    photos = manifest.load(drawn_records).splits["train"].num_examples
    _, validations, _ = final(whole[0])
    assert [row["phase"] for row in validations] == ["head"] * 2 + ["main"] * 4
    assert validations[-1]["step"] == math.ceil(2 * photos / 4) + math.ceil(3 * photos / 4)
