import csv
import json

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from tiny_network import build_model

from carbrand.data.preprocess import Preprocess
from carbrand.errors import ConfigError
from carbrand.training import progress, train, trainer, validation
from carbrand.training.progress import Progress
from carbrand.training.step import StepResult
from carbrand.training.trainer import Totals


def result(loss=0.5):
    return StepResult(*(tf.constant(value) for value in (loss, 4.0, 1.0, 1.0, 0.0)))


def started(run, start_step, totals=None, **options):
    return Progress(run, totals or Totals(), start_step=start_step, num_steps=10, batch_size=8, **options)


def written(run, start_step, steps, totals=None):
    """A row for each of `steps`, with a loss that tells which process wrote it."""
    with started(run, start_step, totals) as ours:
        for step in steps:
            ours.add(result(step + start_step / 100), 0.0)
            ours.log_steps(step, phase="main", learning_rate=0.1 * step)
            ours.log_validation(step, phase="main", accuracy=step / 10, loss=float(step))


def jsonl(run):
    return [json.loads(line) for line in (run / progress.METRICS).read_text().splitlines()]


def table(run):
    with (run / progress.TABLE).open(newline="") as file:
        return [{name: value for name, value in row.items() if value} for row in csv.DictReader(file)]


def board(run):
    """(name, step) -> value, of all event files together; a value that is there twice is an error."""
    values = {}
    for path in sorted((run / progress.BOARD).glob("events*")):
        for event in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            event = tf.compat.v1.Event.FromString(event)
            for value in event.summary.value:
                if value.metadata.plugin_data.plugin_name == "scalars":
                    assert (value.tag, event.step) not in values
                    values[value.tag, event.step] = float(tf.make_ndarray(value.tensor))
    return values


def test_jsonl_csv_and_tensorboard_agree_after_a_run_was_killed_and_went_on(tmp_path):
    written(tmp_path, 0, [1, 2, 3, 4])
    with (tmp_path / progress.METRICS).open("a") as file:
        file.write('{"split": "train", "st')  # killed while it wrote
    newest = max((tmp_path / progress.BOARD).glob("events*"))
    newest.write_bytes(newest.read_bytes()[:-7])
    written(tmp_path, 2, [3, 4, 5])
    rows = jsonl(tmp_path)
    assert [row["step"] for row in rows] == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert [row["loss"] for row in rows if row["split"] == "train"] == pytest.approx([1, 2, 3.02, 4.02, 5.02])
    assert table(tmp_path) == [{name: str(value) for name, value in row.items()} for row in rows]
    expected = {
        (f"{row['split']}/{name}", row["step"]): pytest.approx(value, rel=1e-6)
        for row in rows
        for name, value in row.items()
        if isinstance(value, float)
    }
    assert board(tmp_path) == expected


def test_totals_go_on_after_a_restart(tmp_path):
    totals = Totals(seconds=100.0, input_wait_s=7.0)
    with started(tmp_path, 5, totals) as ours:
        ours.add(result(), 0.5)
        ours.log_steps(6)
    assert jsonl(tmp_path)[0]["elapsed_s"] == pytest.approx(100, abs=5)
    assert 100 < totals.seconds < 105
    assert totals.input_wait_s == 7.5


def test_a_loss_that_is_not_finite_is_null(tmp_path):
    with started(tmp_path, 0) as ours:
        ours.add(result(float("nan")), 0.0)
        ours.log_steps(1)
    assert jsonl(tmp_path)[0]["loss"] is None
    assert "loss" not in table(tmp_path)[0]


@pytest.mark.parametrize(("wait_s", "warns"), [(2.0, 0), (4.0, 1)])
def test_long_waits_for_input_are_told_once(tmp_path, monkeypatch, caplog, wait_s, warns):
    clock = iter(range(0, 10_000, 20))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    with started(tmp_path, 0) as ours:
        for step in range(1, 6):
            ours.add(result(), wait_s)
            ours.log_steps(step)
    messages = [record.getMessage() for record in caplog.records if "wait for input" in record.getMessage()]
    assert messages == ["Steps wait for input in 20% of the time. `carbrand doctor` measures what limits it."] * warns


def test_the_bar_shows_what_each_replica_does(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(progress.tqdm.tqdm, "set_postfix_str", lambda self, text, refresh: shown.append(text))
    with started(tmp_path, 0, replicas=4) as ours:
        ours.add(result(), 0.0)
        ours.log_steps(1)
    assert "images/s (4 × " in shown[0]


@pytest.fixture(scope="module")
def finished(drawn_records, tmp_path_factory):
    """A run of a tiny network that was profiled and made errors."""
    run_dir = tmp_path_factory.mktemp("finished") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "build_model", build_model)
        options = {"batch_size": 8, "preprocess": Preprocess(image_size_px=32), "profile_steps": (2, 4)}
        train.run(drawn_records, run_dir, epochs=2, **options)
    return run_dir


def test_the_worst_errors_are_drawn_and_stand_in_tensorboard(finished):
    with Image.open(finished / validation.ERRORS_PICTURE) as picture:
        assert picture.width > 300
        pixels = np.asarray(picture.convert("RGB"))
    pictures = []
    for path in (finished / progress.BOARD).glob("events*"):
        for event in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            for value in tf.compat.v1.Event.FromString(event).summary.value:
                if value.metadata.plugin_data.plugin_name == "images":
                    pictures.append(tf.io.decode_png(tf.make_ndarray(value.tensor)[2]).numpy())
    np.testing.assert_array_equal(pictures[-1], pixels)


def test_chosen_steps_are_profiled(finished):
    assert list((finished / progress.BOARD / "plugins" / "profile").rglob("*.xplane.pb"))


@pytest.mark.parametrize("steps", [5, (5,), (5, 5), (-1, 5), ("a", 5)])
def test_bad_profile_steps_raise(drawn_records, tmp_path, steps):
    with pytest.raises(ConfigError, match=r"train.run.profile_steps="):
        train.run(drawn_records, tmp_path / "run", profile_steps=steps)
