import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from carbrand.monitoring import suspects


@pytest.fixture(scope="module")
def clusters():
    """Features of 200 photos in groups of two, labels from 0 to 3, and which ten labels are wrong."""
    rng = np.random.default_rng(0)
    truth = np.repeat(np.arange(100) % 4, 2)
    features = 3 * np.eye(4)[truth] + rng.normal(size=(200, 4)) * 0.7
    wrong = rng.permutation(100)[:5]
    places = np.concatenate([2 * wrong, 2 * wrong + 1])
    labels = truth.copy()
    labels[places] = (labels[places] + 1) % 4
    return features, labels, np.repeat(np.arange(100), 2), set(places.tolist())


def test_wrong_labels_come_first_though_their_groups_share_them(clusters):
    features, labels, groups, wrong = clusters
    margins = suspects.margins(suspects.probabilities(features, labels, groups), labels)
    assert set(np.argsort(margins)[:10].tolist()) == wrong
    assert margins.min() >= -1
    assert margins.max() <= 1


def test_no_photo_is_judged_by_one_of_its_own_group(clusters):
    features, labels, groups, _ = clusters
    features, labels = features.copy(), labels.copy()
    features[:2], labels[:2] = [100.0, 0, 0, 0], 3  # which only these two can teach
    found = suspects.probabilities(features, labels, groups)
    assert (found[:2].argmax(axis=1) == 0).all()
    own = LogisticRegression(C=10.0).fit(features, labels).predict(features[:2])
    assert (own == 3).all()  # as a classifier that has seen them says


@pytest.mark.parametrize(
    ("labels", "groups", "are_enough"),
    [
        ([0, 0, 0, 0, 0, 1, 1], [0, 1, 2, 3, 4, 5, 6], True),
        ([0, 0, 0, 0, 0, 1, 1], [0, 1, 2, 3, 4, 5, 5], False),  # one group of the second brand
        ([0, 0, 0, 0, 1, 1, 1], [0, 1, 2, 3, 4, 5, 6], False),  # four of the larger brand
        ([0, 0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 2, 3], False),  # four groups
        ([0] * 9, list(range(9)), False),
    ],
)
def test_how_many_photos_are_enough(labels, groups, are_enough):
    labels, groups = np.array(labels), np.array(groups)
    assert suspects.are_enough(labels, groups) == are_enough
    if are_enough:
        assert suspects.probabilities(np.eye(len(labels)), labels, groups).shape == (len(labels), 2)


def test_margin_by_hand():
    found = np.array([[0.7, 0.2, 0.1], [0.7, 0.2, 0.1], [0.0, 0.0, 1.0]])
    np.testing.assert_allclose(suspects.margins(found, np.array([0, 2, 2])), [0.5, -0.6, 1.0])


def test_nothing_is_said_of_a_brand_with_one_group(clusters):
    features, labels, groups, wrong = clusters
    labels = labels.copy()
    labels[:2] = 4
    found = suspects.probabilities(features, labels, groups)
    assert found.shape == (200, 5)
    assert np.isnan(found[:2]).all()
    assert np.isfinite(found[2:]).all()
    order = np.argsort(suspects.margins(found, labels), kind="stable")
    assert set(order[: len(wrong - {0, 1})].tolist()) == wrong - {0, 1}
