import itertools
import json
import math
import os
import re
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
import tensorflow as tf
import tiny_network

from carbrand import files
from carbrand.data import manifest, pipeline
from carbrand.data.augment import Augment
from carbrand.data.pipeline import Stream
from carbrand.data.preprocess import Preprocess
from carbrand.errors import CheckpointError, ConfigError, DataError
from carbrand.training import checkpoint, features, train, trainer, weights
from carbrand.training import step as step_module
from carbrand.training.hardware import Hardware
from carbrand.training.losses import Loss, cross_entropy
from carbrand.training.model import ModelSpec
from carbrand.training.optimizer import OptimizerSpec
from carbrand.training.settings import Schedule, Settings, inputs_at, plan, validation_steps
from carbrand.training.weights import Weights

TINY = Preprocess(image_size_px=32)


def settings(**changes):
    defaults = {
        "model": ModelSpec(),
        "weights": Weights("random"),
        "preprocess": TINY,
        "augment": Augment(),
        "stream": Stream(),
        "optimizer": OptimizerSpec(),
        "hardware": Hardware(),
        "schedule": Schedule(epochs=2, head_epochs=0, batch_size=8, seed=0, deterministic=True),
    }
    return Settings(**{**defaults, **changes})


def schedule(epochs, head_epochs=0.0, batch_size=8):
    return Schedule(epochs, head_epochs, batch_size, 0, True)


def test_plan_has_the_head_first():
    phases = plan(100, settings(schedule=schedule(2, head_epochs=1), model=ModelSpec(freeze_until="conv4")))
    assert [(p.name, p.freeze_until, p.start, p.stop) for p in phases] == [
        ("head", "conv5", 0, 13),  # 12.5 steps an epoch, rounded up
        ("main", "conv4", 13, 38),
    ]
    assert [p.is_cached for p in phases] == [True, False]


def test_frozen_and_unaugmented_stages_are_cached():
    frozen = settings(model=ModelSpec(freeze_until="conv4"), augment=Augment(enabled=False))
    assert plan(100, frozen)[1].is_cached
    assert not plan(100, settings(augment=Augment(enabled=False)))[1].is_cached


def test_stages_are_unfrozen_one_after_the_other():
    parts = Schedule(6, 1, 8, 0, True, unfreeze=(("conv4", 2), ("conv3", 4)))
    phases = plan(80, settings(schedule=parts, model=ModelSpec(freeze_until="conv2")))
    assert [(p.freeze_until, p.start, p.stop) for p in phases] == [
        ("conv5", 0, 10),
        ("conv4", 10, 30),
        ("conv3", 30, 50),
        ("conv2", 50, 70),
    ]
    assert {(p.epochs_start, p.rate_stop) for p in phases[1:]} == {(10, 70)}  # one schedule of the rates
    assert [sorted(validation_steps(p, 10)) for p in phases[1:]] == [[20, 30], [40, 50], [60, 70]]


def test_image_sizes_follow_the_epochs_of_all_parts():
    sizes = ((0, 32), (3, 64))
    parts = Schedule(6, 0, 8, 0, True, image_sizes=sizes, unfreeze=(("conv4", 2), ("conv3", 4)))
    ours = settings(schedule=parts, model=ModelSpec(freeze_until="conv2"))
    found = {step: inputs_at(step, 80, ours).preprocess.image_size_px for step in (0, 29, 30, 59)}
    assert found == {0: 32, 29: 32, 30: 64, 59: 64}


@pytest.mark.parametrize(
    ("unfreeze", "message"),
    [
        (("conv4", 2), "give .stage, epoch. pairs"),
        ((("conv6", 2),), "unfreeze='conv6' is not one of"),
        ((("conv4", 0),), "unfreeze=0: give a number above 0"),
        ((("conv3", 2), ("conv4", 4)), "each stage below the one before"),
        ((("conv4", 4), ("conv3", 2)), "the epochs ascending"),
        ((("conv4", 6),), "between 0 and train.run.epochs=6"),
        ((("conv3", 2),), "model.freeze_until='conv3' is what stays frozen to the end"),
    ],
)
def test_bad_unfreeze_raises(unfreeze, message):
    with pytest.raises(ConfigError, match=message):
        settings(schedule=Schedule(6, 0, 8, 0, True, unfreeze=unfreeze), model=ModelSpec(freeze_until="conv3"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "train.run.epochs=0 and train.run.head_epochs=0: nothing to train"),
        ({"epochs": "3"}, "train.run.epochs='3': give a number at least 0"),
        ({"epochs": float("nan")}, "train.run.epochs=nan"),
        ({"batch_size": 8.0}, "train.run.batch_size=8.0: give a whole number at least 1"),
        ({"seed": -1}, "train.run.seed=-1: give a whole number at least 0 and below"),
        ({"deterministic": 1}, "train.run.deterministic=1 is neither True nor False"),
    ],
)
def test_bad_schedule_raises(drawn_records, tmp_path, change, message):
    with pytest.raises(ConfigError, match=message):
        train.run(drawn_records, tmp_path / "run", **change)


def test_a_stage_that_never_thaws_raises(drawn_records, tmp_path):
    with pytest.raises(ConfigError, match="conv4 would thaw at step 1, at which training ends"):
        train.run(drawn_records, tmp_path / "run", epochs=0.01, unfreeze=(("conv4", 0.005),), weights=Weights("random"))


def test_frozen_stages_without_weights_raise(drawn_records, tmp_path):
    with pytest.raises(ConfigError, match="weights.path=None: frozen stages would keep random weights"):
        train.run(drawn_records, tmp_path / "run", model=ModelSpec(freeze_until="conv4"))


def test_second_training_of_a_run_raises(drawn_records, tmp_path):
    (tmp_path / "run").mkdir()
    with (
        files.locked(tmp_path / "run" / ".lock", ""),
        pytest.raises(ConfigError, match="another training writes here. Wait for it"),
    ):
        train.run(drawn_records, tmp_path / "run", batch_size=8, preprocess=TINY)


def with_a_damaged_shard(records, folder):
    for file in records.iterdir():
        if file.is_file():
            (folder / file.name).write_bytes(file.read_bytes())
    shard = folder / manifest.load(folder).splits["train"].shards[0].name
    shard.write_bytes(shard.read_bytes()[:-50])
    return shard


def test_a_damaged_shard_is_named_before_the_first_step(drawn_records, tmp_path):
    shard = with_a_damaged_shard(drawn_records, tmp_path)
    with pytest.raises(DataError, match=rf"{shard.name}: .*`carbrand verify .*` finds every damaged record"):
        train.run(tmp_path, tmp_path / "run", batch_size=8, preprocess=TINY)


@pytest.mark.slow
def test_a_damaged_record_costs_training_that_record_only(drawn_records, tmp_path, monkeypatch, caplog):
    shard = with_a_damaged_shard(drawn_records, tmp_path)
    monkeypatch.setattr(train.verify, "check_quickly", lambda folder: None)
    train.run(tmp_path, tmp_path / "run", epochs=1, batch_size=8, preprocess=TINY)
    (message,) = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert re.search(rf"{shard.name}: record .* the file ends after", message)


def test_a_record_damaged_beyond_the_budget_ends_training_with_its_name(drawn_records, tmp_path, monkeypatch):
    shard = with_a_damaged_shard(drawn_records, tmp_path)
    monkeypatch.setattr(train.verify, "check_quickly", lambda folder: None)
    with pytest.raises(DataError, match=f"{shard.name}: record .* the file ends after"):
        train.run(tmp_path, tmp_path / "run", batch_size=8, preprocess=TINY, stream=Stream(max_damaged_fraction=0))


@pytest.mark.slow
def test_images_grow_with_the_epochs_and_are_traced_once_for_each_size(drawn_records, tmp_path, monkeypatch):
    shapes = []
    original = trainer.make_step

    def make_step(model, *rest, **options):
        step = original(model, *rest, **options)
        return lambda batch, *rest: shapes.append(batch[0].shape[1:3]) or step(batch, *rest)

    traced = []
    monkeypatch.setattr(trainer, "make_step", make_step)
    monkeypatch.setattr(step_module, "cross_entropy", lambda *a: traced.append(1) or cross_entropy(*a))
    sizes = ((0, 32), (0.5, 40), (1.5, 32))
    run_dir = tmp_path / "run"
    train.run(drawn_records, run_dir, epochs=2, batch_size=8, preprocess=TINY, image_sizes=sizes)
    photos = manifest.load(drawn_records).splits["train"].num_examples
    changes = [math.ceil(epoch * photos / 8) for epoch in (0.5, 1.5, 2)]
    assert shapes == [(32, 32)] * changes[0] + [(40, 40)] * (changes[1] - changes[0]) + [(32, 32)] * (
        changes[2] - changes[1]
    )
    assert len(traced) == 2


@pytest.mark.parametrize("sizes", [((1, 64),), ((0, 64), (0, 96)), (64,), ((0, 16),), 64])
def test_bad_image_sizes_raise(sizes):
    with pytest.raises(ConfigError, match="image_sizes=|image_size_px=16"):
        Schedule(1, 0, 8, 0, True, sizes)


@pytest.mark.slow
def test_balanced_brands_reach_the_training(drawn_records, tmp_path, caplog):
    options = probe_options(epochs=1, stream=Stream(sampling="balanced"))
    train.run(drawn_records, tmp_path / "cached", **options)
    with caplog.at_level("INFO", logger="carbrand"):
        train.run(drawn_records, tmp_path / "images", **{**options, "augment": Augment(mixup_alpha=0.4)})
    assert any("balanced sampling: an epoch holds" in record.getMessage() for record in caplog.records)


def test_signal_that_comes_during_validation_is_not_lost(drawn_records, tmp_path, monkeypatch):
    original = train.Validator.validate

    def validate(self, progress):
        original(self, progress)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(train.Validator, "validate", validate)
    with pytest.raises(SystemExit) as stop:
        train.run(drawn_records, tmp_path / "run", **probe_options())
    assert stop.value.code == 143
    assert checkpoint.load_latest(tmp_path / "run").meta["step"] == rows(tmp_path / "run", "validation")[-1]["step"]


def test_precision_does_not_outlive_the_run(drawn_records, tmp_path):
    options = probe_options(epochs=0.5, hardware=Hardware(precision="mixed_bfloat16"))
    train.run(drawn_records, tmp_path / "run", **options)
    assert keras.config.dtype_policy().name == "float32"


def test_batch_that_does_not_divide_raises(drawn_records, tmp_path):
    with pytest.raises(ConfigError, match="batch_size=7 does not divide among 2 replicas. .* for example 8"):
        train.run(drawn_records, tmp_path / "run", batch_size=7, hardware=Hardware(replicas=2))


def test_empty_split_raises(drawn_records, tmp_path, monkeypatch):
    whole = manifest.load(drawn_records)
    monkeypatch.setitem(whole.splits, "validation", manifest.Split((), (0,) * 6))
    monkeypatch.setattr(manifest, "load", lambda _: whole)
    with pytest.raises(DataError, match="the validation split is empty"):
        train.run(drawn_records, tmp_path / "run")


@pytest.fixture(scope="module")
def probe(drawn_records, tmp_path_factory):
    """A finished run: a linear head on frozen random features."""
    run_dir = tmp_path_factory.mktemp("probe") / "run"
    options = probe_options()
    result = train.run(drawn_records, run_dir, **options)
    return run_dir, result


def probe_options(**changes):
    return {
        "epochs": 3,
        "batch_size": 8,
        "preprocess": TINY,
        "model": ModelSpec(freeze_until="conv5"),
        "weights": Weights("random"),
        "augment": Augment(enabled=False),
        **changes,
    }


def rows(run_dir, split):
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["split"] == split]


def test_run_leaves_metrics_config_and_manifest(probe, drawn_records):
    run_dir, result = probe
    steps = -(-3 * manifest.load(drawn_records).splits["train"].num_examples // 8)
    assert result.steps == steps == rows(run_dir, "train")[-1]["step"]
    assert len(rows(run_dir, "validation")) == 3
    assert json.loads((run_dir / "run.json").read_text())["validation_accuracy"] == result.validation_accuracy
    assert "train.run.epochs = 3\n" in (run_dir / "config.gin").read_text()
    assert list((run_dir / "tensorboard").glob("events*"))


@pytest.mark.slow
def test_config_of_a_run_repeats_it(probe, drawn_records, tmp_path):
    from carbrand import config

    run_dir, result = probe
    config.parse([str(run_dir / "config.gin")])
    try:
        again = train.run(drawn_records, tmp_path / "again")
    finally:
        config.parse()
    assert again == result
    assert (tmp_path / "again" / "config.gin").read_text() == (run_dir / "config.gin").read_text()
    assert_same_weights(run_dir, tmp_path / "again")


@pytest.mark.slow
def test_accumulating_changes_neither_steps_nor_weights(probe, drawn_records, tmp_path):
    run_dir, result = probe
    assert train.run(drawn_records, tmp_path / "run", **probe_options(accumulate=2)).steps == result.steps
    ours, theirs = (checkpoint.load_latest(folder).model for folder in (tmp_path / "run", run_dir))
    np.testing.assert_allclose(ours["logits/kernel"], theirs["logits/kernel"], atol=1e-6)
    with pytest.raises(CheckpointError, match="started with train.run.accumulate=1, now it is 2"):
        train.run(drawn_records, run_dir, **probe_options(accumulate=2))


def stopped_and_resumed(records, run_dir, monkeypatch, **options):
    """A run that is stopped by a signal after its first validation, then finished."""
    original = train.Validator.validate

    def validate(self, progress):
        original(self, progress)
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(train.Validator, "validate", validate)
        with pytest.raises(SystemExit):
            train.run(records, run_dir, **options)
    return train.run(records, run_dir, **options)


AVERAGING = OptimizerSpec(ema_decay=0.9, learning_rate=1e-4, stage_decay=0.5)


@pytest.mark.slow
def test_average_is_validated_evaluated_and_resumed(drawn_records, tmp_path, monkeypatch):
    from carbrand.evaluation import evaluate

    options = probe_options(optimizer=AVERAGING, model=ModelSpec(freeze_until="conv5", prior_bias=True))
    result = train.run(drawn_records, tmp_path / "whole", **options)
    assert stopped_and_resumed(drawn_records, tmp_path / "stopped", monkeypatch, **options) == result
    assert_same_weights(tmp_path / "whole", tmp_path / "stopped")
    model, _ = checkpoint.load_model(tmp_path / "whole")
    state = checkpoint.load_latest(tmp_path / "whole")
    np.testing.assert_array_equal(model.get_layer("logits").kernel.numpy(), state.average["logits/kernel"])
    assert (state.average["logits/kernel"] != state.model["logits/kernel"]).any()
    metrics, _ = evaluate.run(drawn_records, run_dir=tmp_path / "whole", split="validation", batch_size=8)
    assert metrics.log_loss == pytest.approx(result.validation_loss, rel=1e-4)


@pytest.mark.slow
def test_a_stage_that_thaws_late_is_resumed(drawn_records, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "build_model", tiny_network.build_model)
    options = {"epochs": 2, "head_epochs": 1, "weights": Weights("random"), "unfreeze": (("conv4", 1),)}
    options |= {"batch_size": 8, "preprocess": TINY, "optimizer": OptimizerSpec("adamw")}
    train.run(drawn_records, tmp_path / "whole", **options)
    stopped_and_resumed(drawn_records, tmp_path / "stopped", monkeypatch, **options)
    assert_same_weights(tmp_path / "whole", tmp_path / "stopped")


def interrupt(*_):
    raise KeyboardInterrupt


def test_training_can_begin_with_the_shares_of_the_brands(drawn_records, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "_train", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train.run(drawn_records, tmp_path / "run", **probe_options(model=ModelSpec("v1", "conv5", prior_bias=True)))
    state = checkpoint.load_latest(tmp_path / "run")
    assert state.meta["step"] == 0
    counts = np.array(manifest.load(drawn_records).splits["train"].brand_counts)
    np.testing.assert_allclose(tf.nn.softmax(state.model["logits/bias"]), counts / counts.sum(), rtol=1e-5)


LBFGS = {"head_epochs": 1, "head_solver": "lbfgs"}


@pytest.mark.slow
def test_head_is_solved_in_one_step_and_then_trained_on(drawn_records, tmp_path, monkeypatch):
    options = probe_options(epochs=1, optimizer=AVERAGING, **LBFGS)
    result = train.run(drawn_records, tmp_path / "whole", **options)
    phases = [(row["phase"], row["step"]) for row in rows(tmp_path / "whole", "validation")]
    steps = -(-manifest.load(drawn_records).splits["train"].num_examples // 8)
    assert phases == [("head", 1), ("main", 1 + steps)]
    with monkeypatch.context() as patch:
        patch.setattr(train.probe, "solve", lambda *_: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            train.run(drawn_records, tmp_path / "killed", **options)
    assert train.run(drawn_records, tmp_path / "killed", **options) == result
    assert_same_weights(tmp_path / "whole", tmp_path / "killed")


def test_head_alone_can_be_solved(drawn_records, tmp_path):
    result = train.run(drawn_records, tmp_path / "run", **probe_options(epochs=0, **LBFGS))
    assert result.steps == 1
    state = checkpoint.load_latest(tmp_path / "run")
    (validation,) = rows(tmp_path / "run", "validation")
    assert validation["loss"] == result.validation_loss
    assert state.model["logits/kernel"].any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head_epochs": 0}, "head_solver='lbfgs' with train.run.head_epochs=0: there is no such phase"),
        ({"model": ModelSpec(hidden_units=(4,))}, r"with model.hidden_units=\(4,\): it solves a linear head only"),
        ({"stream": Stream(sampling="sqrt")}, "with stream.sampling='sqrt' and loss.name='cross_entropy'"),
        ({"loss": Loss("focal")}, "with stream.sampling='natural' and loss.name='focal'"),
        ({"head_solver": "newton"}, "train.run.head_solver='newton' is not one of 'sgd', 'lbfgs'"),
        (
            {"model": ModelSpec(prior_bias=True), "loss": Loss(class_weights="sqrt")},
            "model.prior_bias=True: the brands",
        ),
        ({"model": ModelSpec(prior_bias=True), "stream": Stream(sampling="sqrt")}, "model.prior_bias=True: the brands"),
    ],
)
def test_heads_that_cannot_be_solved_raise(drawn_records, tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        train.run(drawn_records, tmp_path / "run", **probe_options(**{**LBFGS, **changes}))


def test_rates_that_grow_with_the_batch_reach_the_plan():
    spec = OptimizerSpec(scale_with_batch=True, learning_rate=0.32, head_learning_rate=3.2)
    rates = [phase.peak_rate for phase in plan(100, settings(optimizer=spec))]
    assert rates == pytest.approx([0.1, 0.01])  # for 8 of 256 photos


@pytest.mark.slow
def test_loss_reaches_the_training(drawn_records, tmp_path):
    losses = []
    for number, loss in enumerate((Loss(), Loss("focal"))):
        train.run(drawn_records, tmp_path / str(number), **probe_options(epochs=0.1, loss=loss))
        losses.append(rows(tmp_path / str(number), "train")[0]["loss"])
    # Equal probabilities of 6 brands: log 6, and (5/6)² of it.
    assert losses == pytest.approx([math.log(6), (5 / 6) ** 2 * math.log(6)], rel=1e-5)


def assert_same_weights(ours, theirs):
    ours, theirs = checkpoint.load_latest(ours), checkpoint.load_latest(theirs)
    assert ours.meta["step"] == theirs.meta["step"]
    for part in ("model", "optimizer", "extra", "average"):
        assert getattr(ours, part).keys() == getattr(theirs, part).keys()
        for name, array in getattr(ours, part).items():
            np.testing.assert_array_equal(array, getattr(theirs, part)[name], err_msg=name)


def test_finished_run_is_not_trained_again(probe, drawn_records, monkeypatch):
    run_dir, result = probe
    monkeypatch.setattr(train, "_train", lambda *_: pytest.fail("trained again"))
    assert train.run(drawn_records, run_dir, **probe_options()) == result


def test_a_resumed_run_names_the_weights_that_it_began_with(drawn_records, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(trainer, "build_model", tiny_network.build_model)
    options, run_dir = probe_options(epochs=1), tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(train, "_train", interrupt)
        with pytest.raises(KeyboardInterrupt):
            train.run(drawn_records, run_dir, **options)
    train.run(drawn_records, run_dir, **{**options, "weights": Weights("other.h5")})
    assert "began with weights.path='random'; 'other.h5' has no effect any more" in caplog.text
    assert "weights.path = 'random'\n" in (run_dir / "config.gin").read_text()
    assert json.loads((run_dir / "run.json").read_text())["config"]["weights"] == {"path": "random"}


def test_a_finished_run_is_not_written_again(probe, drawn_records):
    run_dir, _ = probe
    before = [(run_dir / name).read_text() for name in ("config.gin", "run.json")]
    train.run(drawn_records, run_dir, **probe_options(stream=Stream(threads=3)))
    assert [(run_dir / name).read_text() for name in ("config.gin", "run.json")] == before


def test_frozen_backbone_is_run_once_over_each_photo(drawn_records, tmp_path, monkeypatch):
    passes = []
    original = features.outputs
    monkeypatch.setattr(features, "outputs", lambda f, d, n, s: passes.append(n) or original(f, d, n, s))
    train.run(drawn_records, tmp_path / "run", **probe_options(epochs=4))
    counts = {name: split.num_examples for name, split in manifest.load(drawn_records).splits.items()}
    # One pass of the backbone over each split; then the head alone validates, once an epoch.
    assert passes == [counts["train"], counts["validation"]] + [counts["validation"]] * 4
    assert len(list((tmp_path / "run" / "features").glob("*.npy"))) == 2


@pytest.mark.slow
def test_features_of_the_head_come_from_those_of_a_lower_stage(drawn_records, tmp_path, monkeypatch):
    made = []
    original = features.compute

    def compute(prefix, *rest, **options):
        made.append((prefix.input.shape[1:], original(prefix, *rest, **options)))
        return made[-1][1]

    monkeypatch.setattr(features, "compute", compute)
    options = probe_options(model=ModelSpec(freeze_until="conv4"), epochs=0.1, **LBFGS)
    train.run(drawn_records, tmp_path / "run", **options)
    assert {(inputs, array.shape[1:]) for inputs, array in made} == {
        ((32, 32, 3), (2, 2, 1024)),
        ((2, 2, 1024), (2048,)),
    }
    model, _ = checkpoint.load_model(tmp_path / "run")
    dataset = pipeline.make_dataset(drawn_records, "train", batch_size=8, is_training=False, preprocess=TINY)
    prefix = keras.Model(model.input, model.get_layer("conv4_block6_out").output)
    expected = np.concatenate([prefix(images, training=False) for images, _ in dataset])
    np.testing.assert_allclose(made[0][1], expected, rtol=1e-4, atol=1e-4)


def test_features_equal_the_backbone_s_output(probe, drawn_records):
    run_dir, _ = probe
    model, _ = checkpoint.load_model(run_dir)
    dataset = pipeline.make_dataset(drawn_records, "train", batch_size=8, is_training=False, preprocess=TINY)
    prefix = keras.Model(model.input, model.get_layer("pool").output)
    expected = np.concatenate([prefix(images, training=False) for images, _ in dataset])
    stored = [np.load(path) for path in (run_dir / "features").glob("*.npy")]
    ours = next(array for array in stored if len(array) == len(expected))
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 4}, "started with train.run.epochs=3, now it is 4"),
        ({"optimizer": OptimizerSpec(learning_rate=0.5)}, "started with optimizer.learning_rate=0.01, now it is 0.5"),
    ],
)
def test_resuming_with_other_settings_raises(probe, drawn_records, change, message):
    with pytest.raises(CheckpointError, match=message):
        train.run(drawn_records, probe[0], **probe_options(**change))


def test_weights_of_a_run_load_into_another(probe):
    from carbrand.training.model import build_model

    model = build_model(("x", "y"), ModelSpec())
    coverage = weights.load(model, str(probe[0]), "v1")
    assert coverage.backbone_fraction == 1
    assert set(coverage.new) == {"logits/kernel", "logits/bias"}  # two brands here, six there


def test_head_then_unfrozen_stages(drawn_records, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "build_model", tiny_network.build_model)
    options = probe_options(head_epochs=2, epochs=1, model=ModelSpec(freeze_until="conv4"), augment=Augment())
    train.run(drawn_records, tmp_path / "run", **options)
    phases = [row["phase"] for row in rows(tmp_path / "run", "train")]
    assert phases == sorted(phases)  # "head" before "main"
    assert set(phases) == {"head", "main"}


def test_frozen_stages_keep_every_bit_until_they_are_unfrozen(drawn_records, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "build_model", tiny_network.build_model)
    options = {"preprocess": TINY, "batch_size": 8, "checkpoint_every_s": 0, "keep_last": 99}
    model, unfreeze = ModelSpec(freeze_until="conv3"), (("conv5", 1), ("conv4", 2))
    train.run(
        drawn_records,
        tmp_path / "run",
        epochs=3,
        head_epochs=1,
        model=model,
        weights=Weights("random"),
        unfreeze=unfreeze,
        **options,
    )
    photos = manifest.load(drawn_records).splits["train"].num_examples
    ends = [math.ceil(photos / 8) + math.ceil(epoch * photos / 8) for epoch in (0, 1, 2, 3)]
    states = [checkpoint.load(tmp_path / f"run/checkpoints/step-{step:09d}.npz") for step in (0, *ends)]
    changed = [
        {name[:5] for name in before.model if (before.model[name] != after.model[name]).any()}
        for before, after in itertools.pairwise(states)
    ]
    head = {"logit"}  # of its name, the first five letters
    assert changed == [head, head, head | {"conv5"}, head | {"conv5", "conv4"}]
    counts = [int(next(v for k, v in state.optimizer.items() if k.endswith("iteration"))) for state in states]
    assert counts == [0, *ends]  # one optimizer all the way


# A network of a few layers that is trained from images; killed and resumed in the same way as the real one.
COMMAND = (
    "train", "--gin_param", "preprocess.image_size_px=32", "--gin_param", "train.run.batch_size=4",
    "--gin_param", "train.run.epochs=2", "--gin_param", "train.run.checkpoint_every_s=0",
    "--gin_param", "model.dropout=0.3",
)  # fmt: skip


def start(records, run_dir, *extra):
    arguments = [sys.executable, "-m", "carbrand", *COMMAND, "--data", records, "--run", run_dir, *extra]
    return subprocess.Popen(list(map(str, arguments)), stderr=subprocess.PIPE, text=True)


def wait_for_step(run_dir, process, step):
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline and process.poll() is None:
        names = [p.name for p in (run_dir / checkpoint.FOLDER).glob("step-*.npz")]
        if any(int(name[5:14]) >= step for name in names):
            return
        time.sleep(0.05)
    pytest.fail(f"no checkpoint of step {step}: {process.communicate()[1]}")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("replicas", "kills", "more"),
    [
        (1, (3, 11), ("train.run.image_sizes=((0, 40), (1, 32))", "stream.sampling='sqrt'", "augment.mixup_alpha=0.4")),
        (2, (3,), ("augment.cutmix_alpha=1.0", "model.freeze_until='conv3'", "weights.path='random'")),
    ],
)
def test_killed_run_ends_with_the_weights_of_an_uninterrupted_one(drawn_records, tmp_path, replicas, kills, more):
    bindings = (f"hardware.replicas={replicas}", *more)
    extra = [part for binding in bindings for part in ("--gin_param", binding)]
    assert start(drawn_records, tmp_path / "whole", *extra).wait() == 0
    for step in kills:  # in mid-epoch, in the first and the second
        process = start(drawn_records, tmp_path / "killed", *extra)
        wait_for_step(tmp_path / "killed", process, step)
        process.kill()
        assert process.wait() == -signal.SIGKILL
    assert start(drawn_records, tmp_path / "killed", *extra).wait() == 0
    assert_same_weights(tmp_path / "whole", tmp_path / "killed")
    steps = [row["step"] for row in rows(tmp_path / "killed", "validation")]
    assert steps == [row["step"] for row in rows(tmp_path / "whole", "validation")]


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signal_saves_and_exits_with_its_code(drawn_records, tmp_path, number, code):
    process = start(drawn_records, tmp_path / "run")
    wait_for_step(tmp_path / "run", process, 2)
    os.kill(process.pid, number)
    _, errors = process.communicate()
    assert process.returncode == code
    assert "the state is saved" in errors
    assert checkpoint.load_latest(tmp_path / "run").meta["step"] >= 2


def test_learning_rate_warms_up_and_falls_to_zero():
    from carbrand.training.optimizer import learning_rate

    rates = [learning_rate(1.0, step, 10, warmup_steps=2) for step in range(11)]
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert rates[6] == pytest.approx(0.5)
    assert rates[10] == pytest.approx(0.0)


def test_features_do_not_fit_on_the_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(features.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10})())
    image = keras.Input((4,))
    model = keras.Model(image, keras.layers.Dense(2)(image))
    with pytest.raises(DataError, match="test features take 0.0 GB"):
        features.compute(
            model,
            tf.data.Dataset.range(1),
            100,
            tf.distribute.get_strategy(),
            folder=tmp_path,
            key={},
            title="test features",
        )
