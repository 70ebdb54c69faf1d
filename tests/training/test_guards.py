import dataclasses
import json
import math
import signal

import numpy as np
import pytest
import tensorflow as tf
from tiny_network import build_model

from carbrand.data import manifest
from carbrand.data.augment import Augment
from carbrand.data.pipeline import Stream
from carbrand.data.preprocess import Preprocess
from carbrand.errors import CheckpointError, ConfigError, GateError
from carbrand.training import checkpoint, guards, train, trainer
from carbrand.training.model import ModelSpec
from carbrand.training.optimizer import OptimizerSpec
from carbrand.training.trainer import Validation
from carbrand.training.weights import Weights

RANDOM = Weights("random")


@pytest.fixture(autouse=True)
def _tiny_network(monkeypatch):
    monkeypatch.setattr(trainer, "build_model", build_model)


def options(**changes):
    return {"epochs": 3, "batch_size": 8, "preprocess": Preprocess(image_size_px=32), "augment": Augment(), **changes}


def rows(run_dir, split="train"):
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["split"] == split]


def steps_of(run_dir):
    return sorted(int(path.name[5:14]) for path in (run_dir / checkpoint.FOLDER).iterdir())


def altering_steps(monkeypatch, alter):
    """Has `alter(result, batch, step)` replace the result of each training step."""
    original = train.build_step

    def build_step(*arguments):
        network, train_step = original(*arguments)
        return network, lambda batch, step, *vote: alter(train_step(batch, step, *vote), batch, int(step))

    monkeypatch.setattr(train, "build_step", build_step)


def not_finite(result):
    nan = tf.constant(math.nan)
    return dataclasses.replace(result, loss=nan, gradient_norm=nan)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"augment": Augment(mixup_alpha=0.2)},
        {"stream": Stream(shuffle_mib=1)},
        {"augment": Augment(enabled=False), "model": ModelSpec(freeze_until="conv4"), "weights": RANDOM},
    ],
    ids=["images", "mixed", "windows", "features"],
)
def test_gradient_that_is_not_finite_sends_the_run_back_with_a_tenth_of_the_rates(
    drawn_records, tmp_path, monkeypatch, changes
):
    labels = []

    def alter(result, batch, step):
        if step == 5 and not labels:
            labels.extend(batch[1].numpy())
            return not_finite(result)
        return result

    altering_steps(monkeypatch, alter)
    monkeypatch.setattr(train.Progress, "is_due", True)
    run_dir = tmp_path / "run"
    result = train.run(drawn_records, run_dir, **options(**changes))
    facts = json.loads((run_dir / guards.NOT_FINITE_FILE).read_text())
    brands = manifest.load(drawn_records).brands
    assert facts["step"] == 5
    assert facts["loss"] == "nan"
    assert [photo["brand"] for photo in facts["photos"]] == [brands[label] for label in labels]
    assert all(photo["file"].startswith(photo["brand"]) for photo in facts["photos"])
    described = json.loads((run_dir / "run.json").read_text())
    assert described["rate_factor"] == guards.RATE_FACTOR
    assert [row["step"] for row in rows(run_dir)] == list(range(1, result.steps + 1))  # from the start again
    assert rows(run_dir)[0]["learning_rate"] == pytest.approx(0.001)


def test_a_second_one_ends_the_run_and_leaves_its_checkpoints(drawn_records, tmp_path, monkeypatch):
    altering_steps(monkeypatch, lambda result, batch, step: not_finite(result) if step == 5 else result)
    with pytest.raises(
        GateError, match=r"not finite at step 5 \(loss nan, learning rate 0\.000\d+\).* names the 8 photos"
    ):
        train.run(drawn_records, tmp_path / "run", **options(checkpoint_every_s=0))
    state = checkpoint.load_latest(tmp_path / "run")
    assert state.meta["rate_factor"] == guards.RATE_FACTOR
    with pytest.raises(GateError):  # the same command finds the same
        train.run(drawn_records, tmp_path / "run", **options(checkpoint_every_s=0))


def test_a_run_that_is_killed_after_going_back_goes_on_with_the_lower_rates(drawn_records, tmp_path, monkeypatch):
    altering_steps(monkeypatch, lambda result, batch, step: not_finite(result) if step == 5 else result)
    original = train._train

    def killed_the_second_time(trainer, profile_steps):
        if trainer.rate_factor < 1:
            raise KeyboardInterrupt
        original(trainer, profile_steps)

    with monkeypatch.context() as patch:
        patch.setattr(train, "_train", killed_the_second_time)
        with pytest.raises(KeyboardInterrupt):
            train.run(drawn_records, tmp_path / "run", **options(checkpoint_every_s=0))
    assert steps_of(tmp_path / "run") == [4]  # the older of the two that were kept
    with pytest.raises(GateError, match="Lower optimizer.learning_rate, or look at these photos"):
        train.run(drawn_records, tmp_path / "run", **options(checkpoint_every_s=0))


def test_the_last_step_before_a_stop_was_looked_at(drawn_records, tmp_path, monkeypatch):
    trainers = []
    original = train._train_phase

    def noting(trainer, *rest):
        trainers.append(trainer)
        original(trainer, *rest)

    def alter(result, batch, step):
        if step != 3 or len(trainers) > 1:
            return result
        trainers[0].note_signal(signal.SIGTERM)
        return not_finite(result)

    monkeypatch.setattr(train, "_train_phase", noting)
    altering_steps(monkeypatch, alter)
    with pytest.raises(SystemExit):
        train.run(drawn_records, tmp_path / "run", **options())
    state = checkpoint.load_latest(tmp_path / "run")
    assert state.meta["rate_factor"] == guards.RATE_FACTOR
    assert state.meta["step"] < 3
    assert json.loads((tmp_path / "run" / guards.NOT_FINITE_FILE).read_text())["step"] == 3


def test_a_loss_scale_that_is_too_large_sends_nothing_back(drawn_records, tmp_path, monkeypatch):
    def alter(result, batch, step):
        if step != 5:
            return result
        return dataclasses.replace(result, gradient_norm=tf.constant(math.inf), loss_scale=tf.constant(2.0))

    altering_steps(monkeypatch, alter)
    train.run(drawn_records, tmp_path / "run", **options(epochs=2))
    described = json.loads((tmp_path / "run" / "run.json").read_text())
    assert described["rate_factor"] == 1
    assert described["totals"]["skipped_steps"] == 1


def test_a_real_explosion_is_found_at_its_step(drawn_records, tmp_path):
    explodes = OptimizerSpec(learning_rate=1e38, weight_decay=0.0)
    with pytest.raises(GateError, match=r"the gradient is not finite at step \d+ \(loss .*, learning rate \d"):
        train.run(drawn_records, tmp_path / "run", **options(epochs=9, optimizer=explodes))


def test_lack_of_memory_names_the_batch_that_fits(drawn_records, tmp_path, monkeypatch):
    def alter(*_):
        raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor with shape[8,1]\nmore")

    altering_steps(monkeypatch, alter)
    message = (
        r"batch_size=8: a step of the main phase does not fit into the memory \(OOM when allocating tensor with shape"
        r"\[8,1\]\). Set train.run.accumulate = 2, .*, or train.run.batch_size = 4,"
    )
    with pytest.raises(ConfigError, match=message):
        train.run(drawn_records, tmp_path / "run", **options())


@pytest.mark.parametrize(
    ("losses", "patience", "expected"),
    [
        ([3, 2, 1], 1, False),
        ([3, 2, 2], 1, True),  # as high is no better
        ([3, 2, 2.5], 2, False),
        ([3, 2, 2.5, 2.1], 2, True),
        ([3, 2, 2.5, 1.9], 2, False),
        ([1, 2, 3], 0, False),
        ([1], 1, False),
        ([1, math.nan, math.nan], 2, True),
        ([math.nan, math.nan, math.nan], 2, True),
        ([math.nan, 2, 1], 2, False),
        ([math.nan, 1, math.nan, 0.5], 2, False),
    ],
)
def test_a_loss_that_stands_still(losses, patience, expected):
    validations = [Validation(10, 0.5, 0.0)]  # of the phase before
    validations += [Validation(11 + step, 0.5, loss) for step, loss in enumerate(losses)]
    assert guards.has_stalled(validations, patience, start=10) is expected


@pytest.mark.parametrize("epochs", [{"epochs": 9}, {"epochs": 0, "head_epochs": 9}], ids=["main", "head"])
def test_a_run_whose_loss_stands_still_ends_early_and_is_not_taken_up_again(
    drawn_records, tmp_path, monkeypatch, epochs
):
    spec = OptimizerSpec(learning_rate=1e-30, head_learning_rate=1e-30, weight_decay=0.0)
    idle = options(patience=2, optimizer=spec, **epochs)
    idle["model"], idle["weights"] = ModelSpec(freeze_until="conv5"), RANDOM
    result = train.run(drawn_records, tmp_path / "run", **idle)
    assert len(rows(tmp_path / "run", "validation")) == 3
    assert rows(tmp_path / "run", "validation")[-1]["step"] == result.steps
    monkeypatch.setattr(train, "_train", lambda *_: pytest.fail("trained on"))
    assert train.run(drawn_records, tmp_path / "run", **idle) == result


def test_the_best_checkpoints_stay_and_can_be_asked_for(drawn_records, tmp_path, monkeypatch):
    losses = iter([0.5, 0.1, 0.4, 0.2, 0.3])
    original = train.Validator._losses
    monkeypatch.setattr(train.Validator, "_losses", lambda self: np.full_like(original(self), next(losses, 9.0)))
    train.run(drawn_records, tmp_path / "run", **options(epochs=5, keep_best=2, keep_last=1))
    validated = [row["step"] for row in rows(tmp_path / "run", "validation")]
    assert steps_of(tmp_path / "run") == [validated[1], validated[3], validated[4]]
    assert checkpoint.load_run(tmp_path / "run", "best").meta["step"] == validated[1]
    assert checkpoint.load_run(tmp_path / "run").meta["step"] == validated[4]


def interrupt(*_):
    raise KeyboardInterrupt


def test_a_run_without_such_a_checkpoint_says_so(drawn_records, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "_train", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train.run(drawn_records, tmp_path / "run", **options())
    with pytest.raises(CheckpointError, match="no validated checkpoint was kept. Train with train.run.keep_best = 1"):
        checkpoint.load_run(tmp_path / "run", "best")
    with pytest.raises(CheckpointError, match="has not trained a step yet"):
        checkpoint.load_run(tmp_path / "run")
    with pytest.raises(ConfigError, match="--checkpoint='first' is not one of 'latest', 'best'"):
        checkpoint.load_run(tmp_path / "run", "first")
