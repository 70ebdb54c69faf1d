import numpy as np
import pytest
import tensorflow as tf
from test_accumulate import BATCH, IMAGES, LABELS, NoDropout

from carbrand.errors import ConfigError
from carbrand.training.losses import Loss, Objective, class_weights, cross_entropy, log_priors, make_objective
from carbrand.training.optimizer import OptimizerSpec

# Softmax: 1/2, 1/4, 1/4.
LOGITS = np.log([[2.0, 1.0, 1.0]]).astype(np.float32)


def test_cross_entropy_of_a_mixed_target():
    # 0.75 · log 2 + 0.25 · log 4
    np.testing.assert_allclose(cross_entropy(np.float32([[0.75, 0.25, 0]]), LOGITS), [1.25 * np.log(2)], rtol=1e-6)


def test_focal_counts_what_is_right_already_less():
    # (1 - 1/2)² · log 2, and half of it with half of (1 - 1/4)² · log 4
    for target, expected in [([1, 0, 0], 0.25 * np.log(2)), ([0.5, 0.5, 0], (0.125 + 0.5625) * np.log(2))]:
        np.testing.assert_allclose(cross_entropy(np.float32([target]), LOGITS, 0.0, 2.0), [expected], rtol=1e-6)


def test_focal_has_a_finite_gradient_where_the_model_is_sure():
    logits = tf.constant([[200.0, 0, 0], [0, 200.0, 0]])
    with tf.GradientTape() as tape:
        tape.watch(logits)
        loss = tf.reduce_sum(cross_entropy(tf.one_hot([0, 0], 3), logits, 0.0, 0.5))
    assert np.isfinite(loss)
    assert np.isfinite(tape.gradient(loss, logits)).all()


def test_logit_adjusted_adds_the_log_priors():
    objective = make_objective(Loss("logit_adjusted", tau=2.0), (4, 2, 2))
    # Priors 1/2, 1/4, 1/4, to the power 2, times 2, 1, 1: shares 8 : 1 : 1.
    loss = cross_entropy(np.float32([[1, 0, 0], [0, 1, 0]]), objective.adjust(np.repeat(LOGITS, 2, 0)))
    np.testing.assert_allclose(loss, [np.log(10 / 8), np.log(10)], rtol=1e-6)


def test_class_weights_have_mean_one_over_the_photos():
    np.testing.assert_allclose(class_weights((1, 4, 4), "inverse"), [3, 0.75, 0.75])  # 9 photos / 3 brands / n
    np.testing.assert_allclose(class_weights((1, 4, 4), "sqrt"), [1.8, 0.9, 0.9])  # 9 / (1 + 2 + 2) / sqrt(n)


def test_brands_without_photos_have_finite_numbers():
    np.testing.assert_allclose(class_weights((3, 0), "inverse"), [1, 3])
    np.testing.assert_allclose(log_priors((3, 0)), np.log([0.75, 0.25]), rtol=1e-6)


def test_mixed_photos_count_by_their_shares():
    weights = Objective(weights=np.float32([3, 1, 1])).photo_weights(np.float32([[1, 0, 0], [0.25, 0.75, 0]]))
    np.testing.assert_allclose(weights, [3, 1.5])


def test_plain_cross_entropy_needs_no_numbers():
    assert make_objective(Loss(), (1, 2)) == Objective()


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_step_divides_by_the_weights_of_the_whole_batch(accumulate):
    """Replicas get different weights: the labels of one are those that count 5."""
    weights, order = np.float32([1, 5, 2]), np.argsort(LABELS[:BATCH], kind="stable")
    objective = Objective(weights=weights, offsets=np.float32([0, -1, 0.5]), gamma=2.0)
    run = NoDropout(2, accumulate, spec=OptimizerSpec(weight_decay=0.0), objective=objective)
    with tf.GradientTape() as tape:
        logits = run.model(IMAGES[order])
        losses = cross_entropy(tf.one_hot(LABELS[order], 3), logits + objective.offsets, 0.0, 2.0)
        expected = tf.reduce_sum(losses * weights[LABELS[order]]) / weights[LABELS[order]].sum()
    norm = tf.linalg.global_norm(tape.gradient(expected, [v.value for v in run.model.trainable_variables]))
    result = run.train_on(order[: BATCH // 2], order[BATCH // 2 :])
    np.testing.assert_allclose(float(result.loss), float(expected), rtol=1e-6)
    np.testing.assert_allclose(float(result.gradient_norm), float(norm), rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "hinge"}, "loss.name='hinge' is not one of 'cross_entropy', 'focal', 'logit_adjusted'"),
        ({"gamma": -1}, "loss.gamma=-1: give a number at least 0"),
        ({"tau": "1"}, "loss.tau='1': give a number at least 0"),
        ({"class_weights": True}, "loss.class_weights=True is not one of 'none', 'sqrt', 'inverse'"),
    ],
)
def test_bad_loss_raises(options, message):
    with pytest.raises(ConfigError, match=message):
        Loss(**options)
