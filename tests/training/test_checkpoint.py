import logging
import math

import keras
import numpy as np
import pytest

from carbrand.errors import CheckpointError, ConfigError
from carbrand.training import checkpoint
from carbrand.training.checkpoint import State


def state(step):
    return State(
        model={"a/kernel": np.full((2, 3), step, np.float32)},
        optimizer={"iterations": np.array(step)},
        extra={"loss_scale": np.float32(2)},
        meta={"step": step, "brands": ["a", "b"], "validations": []},
    )


def test_round_trip(tmp_path):
    checkpoint.save(tmp_path / "c.npz", state(7))
    loaded = checkpoint.load(tmp_path / "c.npz")
    np.testing.assert_array_equal(loaded.model["a/kernel"], state(7).model["a/kernel"])
    assert loaded.model["a/kernel"].dtype == np.float32
    assert loaded.optimizer["iterations"] == 7
    assert loaded.extra["loss_scale"] == 2
    assert loaded.meta == state(7).meta


def test_the_last_two_are_kept(tmp_path):
    for step in (1, 2, 30):
        checkpoint.save_latest(tmp_path, state(step))
    names = sorted(p.name for p in (tmp_path / checkpoint.FOLDER).iterdir())
    assert names == ["step-000000002.npz", "step-000000030.npz"]
    assert checkpoint.load_latest(tmp_path).meta["step"] == 30


def test_the_best_one_has_a_loss_that_is_a_number(tmp_path):
    losses = [math.nan, 0.4, 0.5]
    for step in (1, 2, 3):
        saved = state(step)
        saved.meta["validations"] = [[n + 1, 0.5, loss, 1.0] for n, loss in enumerate(losses[:step])]
        checkpoint.save_latest(tmp_path, saved, checkpoint.Keeping(last=3))
    assert checkpoint.load_run(tmp_path, "best").meta["step"] == 2


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b.replace(b"\x80?", b"\x80A")])
def test_damaged_newest_falls_back_to_the_one_before(tmp_path, caplog, damage):
    for step in (1, 2):
        checkpoint.save_latest(tmp_path, state(step if step == 2 else 1))
    newest = tmp_path / checkpoint.FOLDER / "step-000000002.npz"
    content = newest.read_bytes()
    damaged = damage(content.replace(b"\x00\x00\x00@", b"\x00\x00\x80?"))
    newest.write_bytes(damaged)
    with caplog.at_level(logging.WARNING):
        assert checkpoint.load_latest(tmp_path).meta["step"] == 1
    assert "damaged checkpoint" in caplog.text


@pytest.mark.parametrize("last", [1, 2])
def test_what_is_saved_after_a_fall_back_is_the_newest(tmp_path, last):
    keeping = checkpoint.Keeping(last=last)
    for step in (2, 5):
        checkpoint.save_latest(tmp_path, state(step), checkpoint.Keeping(last=2))
    (tmp_path / checkpoint.FOLDER / "step-000000005.npz").write_bytes(b"damaged")
    for step in (3, 4):
        checkpoint.save_latest(tmp_path, state(step), keeping)
        assert checkpoint.load_latest(tmp_path).meta["step"] == step
    assert len(list((tmp_path / checkpoint.FOLDER).iterdir())) == last


def test_whichever_bit_is_another_one_the_one_before_is_fallen_back_to(tmp_path):
    for step in (1, 2):
        checkpoint.save_latest(tmp_path, state(step))
    newest = tmp_path / checkpoint.FOLDER / "step-000000002.npz"
    content = newest.read_bytes()
    for bit in range(0, 8 * len(content), 7):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        newest.write_bytes(damaged)
        assert checkpoint.load_latest(tmp_path).meta["step"] in (1, 2)


def test_no_checkpoint_yet(tmp_path):
    assert checkpoint.load_latest(tmp_path / "new") is None


def test_missing_raises(tmp_path):
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        checkpoint.load(tmp_path / "none.npz")


def test_other_format_version_raises(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "FORMAT_VERSION", 99)
    checkpoint.save(tmp_path / "c.npz", state(1))
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="has checkpoint format 99"):
        checkpoint.load(tmp_path / "c.npz")


@pytest.mark.parametrize(("folder", "what"), [("none", "no such folder"), (".", "not a run with a checkpoint")])
def test_folder_that_is_no_run_raises(tmp_path, folder, what):
    with pytest.raises(CheckpointError, match=what):
        checkpoint.load_run(tmp_path / folder)


def test_checkpoint_of_another_version_is_not_passed_over(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "FORMAT_VERSION", 99)
    checkpoint.save_latest(tmp_path, state(1))
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="has checkpoint format 99, this carbrand reads 2"):
        checkpoint.load_latest(tmp_path)


def test_only_damaged_checkpoints_raise(tmp_path):
    checkpoint.save_latest(tmp_path, state(1))
    (tmp_path / checkpoint.FOLDER / "step-000000001.npz").write_bytes(b"")
    with pytest.raises(CheckpointError, match="all checkpoints are damaged"):
        checkpoint.load_latest(tmp_path)


def test_restore_refuses_other_shapes():
    layer = keras.layers.Dense(2, name="a")
    layer.build((None, 3))
    arrays = checkpoint.arrays_of(layer.variables)
    arrays["a/kernel"] = np.zeros((5, 2), np.float32)
    with pytest.raises(
        CheckpointError, match=r"The weights do not fit the checkpoint: a/kernel has shape \(3, 2\), \(5, 2\)"
    ):
        checkpoint.restore(layer.variables, arrays, "The weights")


def test_restore_puts_values_back():
    layer = keras.layers.Dense(2, name="a")
    layer.build((None, 3))
    arrays = checkpoint.arrays_of(layer.variables)
    layer.kernel.assign(np.zeros((3, 2)))
    checkpoint.restore(layer.variables, arrays, "The weights")
    np.testing.assert_array_equal(layer.kernel.numpy(), arrays["a/kernel"])


@pytest.mark.parametrize("value", [{"every_s": -1}, {"last": 0}, {"best": 1.5}])
def test_bad_keeping_raises(value):
    with pytest.raises(ConfigError, match=r"train.run.\w+=.*: give a "):
        checkpoint.Keeping(**value)
