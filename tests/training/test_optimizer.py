import keras
import numpy as np
import pytest
from test_accumulate import Run, assert_close

from carbrand.training.model import ModelSpec, build_model
from carbrand.training.optimizer import OptimizerSpec, build_optimizer, peak_rates, stage_rate

# Path of a variable -> rate with stage_decay 0.5.
RATES = {
    "conv1_conv/kernel": 1 / 32,
    "conv4_block1_1_conv/kernel": 1 / 4,
    "conv5_block1_1_bn/gamma": 1 / 2,
    "conv5_block1_1_conv/bias": 1 / 2,
    "logits/kernel": 1,
    "logits/bias": 1,
}


def one_step(spec, value=2.0, gradient=-0.5):
    """Each variable after one step of rate 0.1 from `value`."""
    variables = []
    for path in RATES:
        layer, name = path.split("/")
        with keras.name_scope(layer):
            variables.append(keras.Variable(np.full([2], value, np.float32), name=name))
    assert [v.path for v in variables] == list(RATES)
    optimizer = build_optimizer(spec, variables)
    optimizer.learning_rate.assign(0.1)
    optimizer.apply([np.full([2], gradient, np.float32)] * len(variables), variables)
    return {v.path: v.numpy()[0] for v in variables}


def kept(path, rate, decay=0.01):
    """What weight decay leaves of a variable."""
    return 1 - (0.1 * rate * decay if path.endswith("kernel") else 0)


def test_stages_learn_more_slowly_with_sgd():
    after = one_step(OptimizerSpec(stage_decay=0.5, weight_decay=0.01))
    for path, rate in RATES.items():  # Nesterov's first step is 1.9 gradients
        assert after[path] == pytest.approx(2 * kept(path, rate) + 0.1 * rate * 1.9 * 0.5, rel=1e-6), path


def test_stages_learn_more_slowly_with_adamw():
    after = one_step(OptimizerSpec("adamw", stage_decay=0.5, weight_decay=0.01))
    for path, rate in RATES.items():  # Adam's first step has the length of the rate, whatever the gradient
        assert after[path] == pytest.approx(2 * kept(path, rate) + 0.1 * rate, rel=1e-6), path


@pytest.mark.parametrize("stage_decay", [1.0, 0.5])
def test_adamw_s_first_steps_of_a_late_stage_have_the_length_of_the_rate(stage_decay):
    head, late = (keras.Variable(np.zeros(2, np.float32), name=name) for name in ("logits", "conv5_kernel"))
    optimizer = build_optimizer(OptimizerSpec("adamw", stage_decay=stage_decay), [head, late], thaws=True)
    optimizer.learning_rate.assign(0.1)
    gradient = np.full([2], 0.5, np.float32)
    for _ in range(50):
        optimizer.apply([gradient], [head])
    for step in range(1, 6):
        optimizer.apply([gradient, gradient], [head, late])
        assert late.numpy() == pytest.approx(-0.1 * stage_decay * step, rel=1e-3)  # the decay of 1e-4 weighs nothing
        assert head.numpy() == pytest.approx(-0.1 * (50 + step), rel=1e-2)


def test_adamw_for_late_stages_equals_the_plain_one_where_none_is_late():
    plain, ours = (Run(2, spec=OptimizerSpec("adamw"), thaws=thaws) for thaws in (False, True))
    for run in (plain, ours):
        run.optimizer.learning_rate.assign(0.01)
        run.train(4)
    assert_close(plain.weights(), ours.weights(), 0)


@pytest.mark.parametrize(("stage_decay", "rates"), [(1.0, dict.fromkeys(RATES, 1)), (0.5, RATES)])
def test_lamb_steps_by_the_length_of_the_variable(stage_decay, rates):
    after = one_step(OptimizerSpec("lamb", stage_decay=stage_decay, weight_decay=0.01))
    for path, rate in rates.items():  # Adam's direction times |w| / |direction|, after the decay
        assert after[path] == pytest.approx(2 * kept(path, rate) * (1 + 0.1 * rate), rel=1e-6), path


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_equal_stages_step_as_without_rates(name):
    plain = one_step(OptimizerSpec(name, weight_decay=0.01))
    almost = one_step(OptimizerSpec(name, weight_decay=0.01, stage_decay=1 - 1e-9))
    assert almost == pytest.approx(plain, rel=1e-6)


def test_each_stage_of_the_model_has_its_rate():
    model = build_model(("a", "b"), ModelSpec(hidden_units=(4,)))
    rates = {v.path.split("_")[0].split("/")[0]: stage_rate(v.path, 0.5) for v in model.variables}
    assert rates == {
        "conv1": 1 / 32,
        "conv2": 1 / 16,
        "conv3": 1 / 8,
        "conv4": 1 / 4,
        "conv5": 1 / 2,
        "head": 1,
        "logits": 1,
    }


def test_rates_grow_with_the_batch_if_asked():
    assert peak_rates(OptimizerSpec(learning_rate=0.1, head_learning_rate=1.0), 64) == (1.0, 0.1)
    scaled = OptimizerSpec(learning_rate=0.1, head_learning_rate=1.0, scale_with_batch=True)
    assert peak_rates(scaled, 64) == (0.25, 0.025)
    assert peak_rates(scaled, 512) == (2.0, 0.2)


@pytest.mark.parametrize("name", ["sgd", "adamw", "lamb"])
def test_replicas_change_nothing_of_the_rates(name):
    spec = OptimizerSpec(name, stage_decay=0.3, weight_decay=0.1)
    one, many = Run(1, spec=spec), Run(2, spec=spec)
    for run in (one, many):
        run.optimizer.learning_rate.assign(0.01)
        run.train(4)
    assert_close(one.weights(), many.weights(), 1e-5)
