import dataclasses

import pytest

from carbrand import config
from carbrand.data.augment import Augment
from carbrand.data.pipeline import Stream
from carbrand.data.preprocess import Preprocess
from carbrand.errors import ConfigError
from carbrand.training import settings, train
from carbrand.training.hardware import Hardware
from carbrand.training.model import ModelSpec
from carbrand.training.optimizer import OptimizerSpec
from carbrand.training.settings import Schedule, Settings
from carbrand.training.weights import Weights

# 100 photos in batches of 8: 12.5 steps an epoch, so the head stops at 25, and the main phase at 63.
SETTINGS = Settings(
    model=ModelSpec(),
    weights=Weights("random"),
    preprocess=Preprocess(image_size_px=64),
    augment=Augment(),
    stream=Stream(shuffle_mib=1),
    optimizer=OptimizerSpec(),
    hardware=Hardware(),
    schedule=Schedule(epochs=3, head_epochs=2, batch_size=8, seed=7, deterministic=True),
)


@pytest.fixture
def gin_config():
    yield
    config.parse()


def test_inputs_are_those_of_the_first_step_after_the_head():
    inputs = settings.inputs_at(None, 100, SETTINGS)
    assert (inputs.step, inputs.batch_size, inputs.seed) == (25, 8, 7)
    assert (inputs.preprocess, inputs.augment, inputs.stream) == (
        SETTINGS.preprocess, SETTINGS.augment, SETTINGS.stream,
    )  # fmt: skip
    assert inputs.note == "size by preprocess.image_size_px, main phase"


def test_inputs_of_a_head_on_stored_features_do_not_vary():
    inputs = settings.inputs_at(24, 100, SETTINGS)
    assert (inputs.augment.enabled, inputs.stream.shuffle_mib) == (False, 0)
    assert inputs.note == "size by preprocess.image_size_px, head phase"


def test_inputs_have_the_size_that_images_have_at_the_step():
    schedule = dataclasses.replace(SETTINGS.schedule, image_sizes=((0, 32), (1, 48)))
    growing = dataclasses.replace(SETTINGS, schedule=schedule)
    sizes = {step: settings.inputs_at(step, 100, growing).preprocess.image_size_px for step in (0, 25, 37, 38, 62)}
    assert sizes == {0: 64, 25: 32, 37: 32, 38: 48, 62: 48}
    assert settings.inputs_at(25, 100, growing).note == "size by train.run.image_sizes, main phase"


def test_inputs_of_a_head_alone():
    schedule = dataclasses.replace(SETTINGS.schedule, epochs=0)
    assert settings.inputs_at(None, 100, dataclasses.replace(SETTINGS, schedule=schedule)).step == 0


def test_a_stage_that_would_thaw_at_the_end_raises():
    schedule = dataclasses.replace(SETTINGS.schedule, unfreeze=(("conv4", 2.99),))  # 37.4 of 37.5 steps
    thawing = dataclasses.replace(SETTINGS, schedule=schedule)
    settings.check_unfreeze(thawing, 1000)
    with pytest.raises(ConfigError, match="conv4 would thaw at step 63, at which training ends. Let it thaw earlier"):
        settings.check_unfreeze(thawing, 100)


@pytest.mark.parametrize("step", [-1, 63])
def test_a_step_that_training_does_not_have_raises(step):
    with pytest.raises(ConfigError, match=f"step={step}: give a whole number at least 0 and below 63"):
        settings.inputs_at(step, 100, SETTINGS)


def test_settings_are_those_of_gin(gin_config):
    config.parse(["finetune"], ["train.run.seed=5", "train.run.augment=@augment()", "augment.cutmix_alpha=1.0"])
    bound = train.bound_settings()
    assert (bound.schedule.head_epochs, bound.schedule.seed, bound.schedule.deterministic) == (40, 5, True)
    assert (bound.augment.color_jitter, bound.augment.cutmix_alpha) == (0.2, 1.0)
    assert bound.model.freeze_until == "conv3"
