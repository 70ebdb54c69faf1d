import pytest

from carbrand.errors import ConfigError
from carbrand.training.hardware import Hardware, make_strategy
from carbrand.training.optimizer import OptimizerSpec


def test_replicas_on_the_cpu():
    assert make_strategy(Hardware(replicas=4)).num_replicas_in_sync == 4
    assert make_strategy(Hardware()).num_replicas_in_sync == 1


def test_more_replicas_than_devices_raises():
    with pytest.raises(ConfigError, match="hardware.replicas=9, but this process was started with 8 CPU devices"):
        make_strategy(Hardware(replicas=9))


def test_unknown_precision_raises():
    with pytest.raises(ConfigError, match="hardware.precision='float8' is not one of 'float32', 'mixed_float16'"):
        Hardware(precision="float8")


def test_negative_replicas_raise():
    with pytest.raises(ConfigError, match="hardware.replicas=-1: give a whole number at least 0"):
        Hardware(replicas=-1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "adam"}, "optimizer.name='adam' is not one of 'sgd', 'adamw', 'lamb'"),
        ({"learning_rate": 0}, "optimizer.learning_rate=0: give a number above 0"),
        ({"head_learning_rate": -1}, "optimizer.head_learning_rate=-1"),
        ({"clip_norm": -1.0}, "optimizer.clip_norm=-1.0: give a number above 0"),
        ({"weight_decay": "1"}, "optimizer.weight_decay='1'"),
        ({"scale_with_batch": 1}, "optimizer.scale_with_batch=1 is neither True nor False"),
        ({"stage_decay": 0}, "optimizer.stage_decay=0: give a number above 0 and at most 1"),
        ({"ema_decay": 1.0}, "optimizer.ema_decay=1.0: give a number at least 0 and below 1"),
        ({"label_smoothing": 1}, "optimizer.label_smoothing=1: give a number at least 0 and below 1"),
    ],
)
def test_bad_optimizer_raises(options, message):
    with pytest.raises(ConfigError, match=message):
        OptimizerSpec(**options)
