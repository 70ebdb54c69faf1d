import dataclasses

import keras
import numpy as np
import pytest
import scipy.stats
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from carbrand.data import augment, draws, mixing
from carbrand.data.augment import Augment
from carbrand.errors import ConfigError

MIXUP, CUTMIX = Augment(mixup_alpha=0.4), Augment(cutmix_alpha=1.0)
BOTH = Augment(mixup_alpha=0.4, cutmix_alpha=1.0)
ALL = pytest.mark.parametrize("options", [MIXUP, CUTMIX, BOTH], ids=["mixup", "cutmix", "both"])


def plans(options, count, height_width, seed=0):
    return mixing.plan(draws.uniform(seed, np.arange(count), options.num_draws), options, height_width)


def batch(count, height, width, brands=5, seed=0):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, height, width, 3), np.uint8)
    return images, np.eye(brands, dtype=np.float32)[rng.integers(0, brands, count)]


def mixed_pixel_by_pixel(images, targets, plan):
    """What the papers say, one pixel at a time."""
    new_images, new_targets = np.zeros(images.shape), np.zeros(targets.shape)
    _, height, width, _ = images.shape
    for n, (weight, top, left, bottom, right) in enumerate(plan.tolist()):
        partner = n + 1 if n % 2 == 0 else n - 1
        own_share = 0.0
        for y in range(height):
            for x in range(width):
                own = 0.0 if top <= y < bottom and left <= x < right else weight
                new_images[n, y, x] = own * images[n, y, x] + (1 - own) * images[partner, y, x]
                own_share += own / (height * width)
        new_targets[n] = own_share * targets[n] + (1 - own_share) * targets[partner]
    return new_images, new_targets


@ALL
def test_mix_equals_mixing_pixel_by_pixel(options):
    images, targets = batch(8, 9, 13)
    plan = plans(options, 8, (9, 13))
    ours, our_targets = mixing.mix(images, targets, plan)
    theirs, their_targets = mixed_pixel_by_pixel(images, targets, plan)
    np.testing.assert_allclose(ours, theirs, atol=1e-4)  # of 255, in float32
    np.testing.assert_allclose(our_targets, their_targets, atol=1e-6)


@ALL
@pytest.mark.parametrize("dtype", ["uint8", "float16", "float32"])
def test_results_are_float32_under_any_policy(options, dtype):
    images, targets = batch(4, 8, 8)
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        ours, our_targets = mixing.mix(tf.cast(images, dtype), targets, plans(options, 4, (8, 8)))
    finally:
        keras.config.set_dtype_policy(before)
    assert (ours.dtype, our_targets.dtype) == (tf.float32, tf.float32)
    assert (ours.shape, our_targets.shape) == ((4, 8, 8, 3), (4, 5))
    assert 0 <= np.min(ours) <= np.max(ours) <= 255


@ALL
def test_xla_gives_the_same(options):
    images, targets = batch(6, 16, 24)
    plan = plans(options, 6, (16, 24))
    compiled = tf.function(mixing.mix, jit_compile=True)(tf.constant(images), targets, plan)
    for ours, theirs in zip(compiled, mixing.mix(images, targets, plan), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)


@ALL
@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**63), height=st.integers(1, 40), width=st.integers(1, 40))
def test_targets_still_sum_to_1(options, seed, height, width):
    images, targets = batch(8, height, width)
    _, ours = mixing.mix(images, targets, plans(options, 8, (height, width), seed))
    np.testing.assert_allclose(np.sum(ours, -1), 1, atol=1e-6)
    assert np.min(ours) >= 0


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**63), height=st.integers(1, 40), width=st.integers(1, 40))
def test_the_share_of_the_target_is_the_share_of_the_pixels(seed, height, width):
    # White photos of brand 0 beside black ones of brand 1: white pixels are counted, not computed.
    images = np.zeros((8, height, width, 3), np.uint8)
    images[::2] = 255
    targets = np.eye(2, dtype=np.float32)[[0, 1] * 4]
    ours, our_targets = mixing.mix(images, targets, plans(CUTMIX, 8, (height, width), seed))
    white = np.asarray(ours) == 255
    assert (white | (np.asarray(ours) == 0)).all()
    share = white[..., 0].sum((1, 2)) / (height * width)
    np.testing.assert_allclose(np.asarray(our_targets)[:, 0], share, rtol=2e-7, atol=1e-7)  # one rounding of float32


def test_a_large_image_counts_its_pixels_exactly():
    plan = np.array([[1, 0, 0, 1023, 1021], [1, 0, 0, 0, 0]], np.float32)
    _, ours = mixing.mix(tf.zeros([2, 1024, 1024, 3]), np.eye(2, dtype=np.float32), plan)
    assert np.asarray(ours)[0, 1] == np.float32(1023 * 1021 / 1024**2)


def test_photos_are_exchanged_between_neighbours_only():
    images, targets = batch(6, 4, 4)
    whole = np.tile(np.array([1, 0, 0, 4, 4], np.float32), (6, 1))
    ours, our_targets = mixing.mix(images, targets, whole)
    np.testing.assert_array_equal(ours, images[[1, 0, 3, 2, 5, 4]])
    np.testing.assert_array_equal(our_targets, targets[[1, 0, 3, 2, 5, 4]])


def test_an_unmixed_photo_keeps_every_pixel():
    images, targets = batch(4, 5, 6)
    plan = plans(Augment(), 4, (5, 6))
    assert (plan[:, 0] == 1).all()
    ours, our_targets = mixing.mix(images, targets, plan)
    np.testing.assert_array_equal(ours, images)
    np.testing.assert_array_equal(our_targets, targets)


def test_an_odd_batch_raises():
    images, targets = batch(5, 4, 4)
    message = "batch_size: 5 photos on each replica cannot be mixed in pairs. Give .* an even multiple"
    with pytest.raises(ConfigError, match=message):
        tf.function(mixing.mix).get_concrete_function(tf.constant(images), targets, plans(MIXUP, 5, (4, 4)))


def test_a_batch_of_unknown_size_is_mixed_too():
    specs = tf.TensorSpec([None, 4, 6, 3], tf.uint8), tf.TensorSpec([None, 5]), tf.TensorSpec([None, 5])
    mix = tf.function(mixing.mix, input_signature=specs)
    images, targets = batch(4, 4, 6)
    plan = plans(BOTH, 4, (4, 6))
    for ours, theirs in zip(mix(images, targets, plan), mixing.mix(images, targets, plan), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    with pytest.raises(tf.errors.InvalidArgumentError):
        mix(images[:3], targets[:3], plan[:3])


@ALL
def test_plans_are_float32_in_whole_pixels_inside_the_image(options):
    plan = plans(options, 500, (30, 40))
    assert (plan.shape, plan.dtype) == ((500, 5), np.float32)
    weight, top, left, bottom, right = plan.T
    assert ((weight >= 0) & (weight <= 1)).all()
    np.testing.assert_array_equal(plan[:, 1:], np.round(plan[:, 1:]))
    assert ((top >= 0) & (top <= bottom) & (bottom <= 30)).all()
    assert ((left >= 0) & (left <= right) & (right <= 40)).all()


def test_a_photo_is_planned_alike_in_any_block():
    rows = draws.uniform(0, np.arange(40), BOTH.num_draws)
    whole = mixing.plan(rows, BOTH, (30, 40))
    np.testing.assert_array_equal(mixing.plan(rows[7:8], BOTH, (30, 40)), whole[7:8])


@pytest.mark.parametrize("alpha", [0.2, 1.0, 8.0])
def test_mixup_weights_follow_the_beta_distribution(alpha):
    plan = plans(Augment(mixup_alpha=alpha), 4000, (30, 40))
    assert scipy.stats.kstest(plan[:, 0], scipy.stats.beta(alpha, alpha).cdf).pvalue > 1e-3
    assert ((plan[:, 3] - plan[:, 1]) * (plan[:, 4] - plan[:, 2]) == 0).all()


def test_cutmix_boxes_have_the_drawn_area_around_the_drawn_centre():
    row = np.zeros((1, CUTMIX.num_draws))
    # Beta(1, 1) is uniform: own share 0.75, so a box of half of each side, 20 x 40, around (0.5, 0.25) of 40 x 80.
    row[0, augment.MIX] = 0.0, 0.75, 0.5, 0.25
    assert mixing.plan(row, CUTMIX, (40, 80)).tolist() == [[1, 10, 0, 30, 40]]
    row[0, augment.MIX] = 0.0, 0.75, 0.0, 0.75  # half of the box lies above the image
    assert mixing.plan(row, CUTMIX, (40, 80)).tolist() == [[1, 0, 40, 10, 80]]


def test_cutmix_boxes_have_the_aspect_of_the_image_where_nothing_is_cut_off():
    _, top, left, bottom, right = plans(CUTMIX, 2000, (300, 600)).T
    inside = (top > 0) & (left > 0) & (bottom < 300) & (right < 600) & (bottom - top > 20)
    assert inside.sum() > 300
    np.testing.assert_allclose(((right - left) / (bottom - top))[inside], 2, rtol=0.06)  # whole pixels


def test_each_photo_gets_one_of_the_two_each_half_of_the_time():
    plan = plans(BOTH, 2000, (300, 300))
    is_mixup = plan[:, 0] < 1
    has_box = (plan[:, 3] > plan[:, 1]) & (plan[:, 4] > plan[:, 2])
    assert not (is_mixup & has_box).any()
    assert 900 < is_mixup.sum() < 1100  # 4.5 standard deviations around 1000
    assert (is_mixup | has_box).mean() > 0.97  # a weight or box may round to nothing


def test_with_one_alpha_it_is_always_that_one():
    mixup, cutmix = plans(MIXUP, 300, (30, 30)), plans(CUTMIX, 300, (30, 30))
    np.testing.assert_array_equal(mixup[:, 1:3], mixup[:, 3:])  # every box is empty
    assert (mixup[:, 0] < 1).mean() > 0.9
    assert (cutmix[:, 0] == 1).all()


def test_cutmix_alone_cuts_the_boxes_that_it_cuts_beside_mixup():
    ours, both = plans(CUTMIX, 200, (50, 50)), plans(BOTH, 200, (50, 50))
    is_cutmix = draws.uniform(0, np.arange(200), BOTH.num_draws)[:, augment.MIX.start] < 0.5
    np.testing.assert_array_equal(both[is_cutmix], ours[is_cutmix])
    both_mixup = dataclasses.replace(BOTH, cutmix_alpha=0.0)
    np.testing.assert_array_equal(both[~is_cutmix, 0], plans(both_mixup, 200, (50, 50))[~is_cutmix, 0])
