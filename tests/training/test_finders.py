import dataclasses
import json
import math

import numpy as np
import pytest
import tensorflow as tf
import tiny_network

from carbrand import config
from carbrand.data import manifest
from carbrand.data.augment import Augment
from carbrand.data.preprocess import Preprocess
from carbrand.errors import ConfigError
from carbrand.training import doctor, finders, measure, trainer
from carbrand.training.cases import Case
from carbrand.training.hardware import Hardware
from carbrand.training.machine import Machine
from carbrand.training.measure import Rate
from carbrand.training.model import ModelSpec
from carbrand.training.optimizer import OptimizerSpec
from carbrand.training.settings import Schedule, Settings
from carbrand.training.weights import Weights


@pytest.fixture(autouse=True)
def _tiny_network(monkeypatch):
    monkeypatch.setattr(trainer, "build_model", tiny_network.build_model)
    yield
    config.parse()


@pytest.fixture
def case(drawn_records):
    settings = Settings(
        model=ModelSpec(),
        weights=Weights("random"),
        preprocess=Preprocess(image_size_px=32),
        augment=Augment(),
        stream=measure.pipeline.Stream(),
        optimizer=OptimizerSpec(),
        hardware=Hardware(),
        schedule=Schedule(2, 0, 8, 0, True),
    )
    return Case(drawn_records, manifest.load(drawn_records), settings, Machine(cores=2, free_bytes=8 * 10**9))


def with_head(case):
    settings = dataclasses.replace(
        case.settings, model=ModelSpec(freeze_until="conv4"), schedule=Schedule(2, 1, 8, 0, True)
    )
    return dataclasses.replace(case, settings=settings)


def test_smoothing_is_an_average_with_bias_correction():
    assert finders.smooth([2.0, 2.0, 2.0]) == pytest.approx([2, 2, 2])
    assert finders.smooth([1.0, 2.0])[1] == pytest.approx((0.9 * 0.1 * 1 + 0.1 * 2) / (1 - 0.9**2))


def test_the_suggestion_is_a_tenth_of_the_rate_with_the_lowest_loss():
    rates = np.geomspace(1e-6, 10, 120)
    losses = 3 + (np.log10(rates) + 1) ** 2  # lowest at 0.1; smoothing puts it a little later
    found = finders.curve(rates.tolist(), losses.tolist())
    assert 0.01 <= found.suggestion <= 0.05


def test_what_is_not_finite_does_not_count():
    found = finders.curve([0.1, 0.2, 0.3, 0.4], [3.0, 2.0, math.nan, math.inf])
    assert len(found.losses) == len(found.rates) == 2
    assert found.suggestion == 0.02


def test_a_loss_that_only_rises_gives_no_rate():
    assert finders.curve([0.1, 0.2, 0.3], [1.0, 2.0, 3.0]).suggestion is None


def test_the_ramp_falls_then_explodes_on_a_real_network(case, tmp_path):
    found = finders.find_rate(case)
    lowest = int(np.argmin(found.losses))
    assert found.losses[lowest] < found.losses[0] < found.losses[-1]
    assert 0.05 < found.rates[lowest] < 2
    assert found.rates[lowest] * 0.1 == pytest.approx(found.suggestion, rel=0.06)
    finders.draw(found, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 5_000


def test_the_head_is_solved_before_the_ramp(case, monkeypatch):
    solved = []
    original = finders.train.solve_head
    monkeypatch.setattr(finders.train, "solve_head", lambda t, p: solved.append(p.name) or original(t, p))
    finders.find_rate(with_head(case))
    assert solved == ["head"]


def test_a_head_that_is_tried_itself_is_not_solved_before(case, monkeypatch):
    monkeypatch.setattr(finders.train, "solve_head", lambda *_: pytest.fail("solved"))
    alone = dataclasses.replace(with_head(case).settings, schedule=Schedule(0, 1, 8, 0, True))
    found = finders.find_rate(dataclasses.replace(case, settings=alone))
    assert min(found.losses) < found.losses[0]


def test_batches_grow_until_the_memory_ends(case, monkeypatch):
    def rate(work, seconds):
        size = work()
        if size == 64:
            raise tf.errors.ResourceExhaustedError(None, None, "OOM")
        return Rate(min(size, 15.0), 1.0)

    monkeypatch.setattr(measure, "rate", rate)
    monkeypatch.setattr(measure, "step_work", lambda sized, phase: lambda: sized.batch_size)
    found = finders.find_batch(case, 0.1)
    assert list(found.speeds) == [1, 2, 4, 8, 16, 32]
    assert found.limit == 64
    assert found.suggestion == 16  # 15 images/s, as 32; 8 are only half as fast


def test_batches_on_a_cpu_end_where_the_memory_is_expected_to(case, monkeypatch):
    monkeypatch.setattr(measure, "rate", lambda work, seconds: Rate(work(), 1.0))
    monkeypatch.setattr(measure, "step_work", lambda sized, phase: lambda: sized.batch_size)
    fits = finders.cases.fitting_batch(case, 2e9)
    small = dataclasses.replace(case, machine=Machine(cores=2, free_bytes=2 * 10**9))
    assert max(finders.find_batch(small, 0.1).speeds) == fits < 1024
    with pytest.raises(ConfigError, match="not even a batch of 1 fits"):
        finders.find_batch(dataclasses.replace(case, machine=Machine(cores=2, free_bytes=10**8)), 0.1)


@pytest.mark.parametrize("is_cached", [False, True])
def test_real_steps_of_each_size_are_measured(case, monkeypatch, is_cached):
    monkeypatch.setattr(finders, "_MAX_BATCH", 4)
    if is_cached:
        settings = dataclasses.replace(
            case.settings, model=ModelSpec(freeze_until="conv4"), augment=Augment(enabled=False)
        )
        case = dataclasses.replace(case, settings=settings)
    found = finders.find_batch(case, 0.05)
    assert list(found.speeds) == [1, 2, 4]
    assert all(rate.images_per_s > 0 for rate in found.speeds.values())


def test_doctor_finds_a_rate_and_a_batch_and_writes_both(drawn_records, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(finders, "_MAX_BATCH", 2)
    config.parse(bindings=["preprocess.image_size_px = 32", "train.run.batch_size = 8"])
    found = doctor.run(drawn_records, find="rate", output=tmp_path)
    output = capsys.readouterr().out
    assert f"optimizer.learning_rate = {found.rate_curve.suggestion:.2g}" in output
    assert (tmp_path / "learning_rate.png").exists()
    assert json.loads((tmp_path / "doctor.json").read_text())["rate_curve"]["rates"][0] == 1e-6
    found = doctor.run(drawn_records, seconds=0.05, find="batch", output=tmp_path)
    assert f"train.run.batch_size = {found.batch_speeds.suggestion}" in capsys.readouterr().out
    assert set(json.loads((tmp_path / "doctor.json").read_text())["batch_speeds"]["speeds"]) == {"1", "2"}


def test_doctor_names_the_rate_of_the_head_where_only_it_is_trained(drawn_records, capsys):
    bindings = ["preprocess.image_size_px = 32", "train.run.batch_size = 8", "weights.path = 'random'"]
    config.parse(bindings=[*bindings, "train.run.head_epochs = 1", "train.run.epochs = 0"])
    found = doctor.run(drawn_records, find="rate")
    output = capsys.readouterr().out
    assert "steps of the head phase" in output
    assert f"Try:\n  optimizer.head_learning_rate = {found.rate_curve.suggestion:.2g}" in output


def test_a_head_that_is_solved_has_no_rate_to_be_found(case):
    solved = dataclasses.replace(with_head(case).settings, schedule=Schedule(0, 1, 8, 0, True, head_solver="lbfgs"))
    with pytest.raises(ConfigError, match="head_solver='lbfgs': takes no learning rate"):
        finders.find_rate(dataclasses.replace(case, settings=solved))


def test_nothing_is_found_while_only_checking(drawn_records):
    with pytest.raises(ConfigError, match="--check --find=rate: nothing is looked for while only checking"):
        doctor.run(drawn_records, check_only=True, find="rate")


def test_something_else_cannot_be_found(drawn_records):
    with pytest.raises(ConfigError, match="--find='seed' is not one of 'rate', 'batch'"):
        doctor.run(drawn_records, find="seed")
