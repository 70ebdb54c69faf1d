import dataclasses

import cv2
import hypothesis.extra.numpy
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from carbrand.data import augment, draws
from carbrand.data.augment import Augment
from carbrand.errors import ConfigError

NOTHING = Augment(crop_area_min=1.0, crop_aspect=1.0, flip=False)
EVERYTHING = Augment(color_jitter=0.4, randaugment_layers=2, erase_probability=0.5, mixup_alpha=0.2, cutmix_alpha=1.0)
IMAGES = hypothesis.extra.numpy.arrays(np.uint8, st.tuples(st.integers(3, 24), st.integers(3, 24), st.just(3)))
ROWS = hypothesis.extra.numpy.arrays(
    np.float64, EVERYTHING.num_draws, elements=st.floats(0, 1, exclude_max=True), fill=st.nothing()
)
SIDES = st.integers(1, 3000)


def gradient(height, width):
    rows, columns = np.mgrid[0:height, 0:width]
    return np.stack([rows * 255 / height, columns * 255 / width, 0 * rows + 60], -1).astype(np.uint8)


def rows_of(options, count, seed=0):
    return draws.uniform(seed, np.arange(count), options.num_draws)


def changed_box(ours, image):
    """The box (top, left, height, width) outside of which nothing changed, and the share of it that did."""
    changed = (ours != image).any(-1)
    rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
    height, width = rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1
    return (rows[0], columns[0], height, width), changed.sum() / (height * width)


def test_each_purpose_has_its_own_columns():
    columns = np.arange(EVERYTHING.num_draws)
    layers = slice(augment.RANDAUGMENT, None)
    purposes = augment.WINDOW, augment.FLIP, augment.JITTER, augment.ERASE, augment.MIX, layers
    np.testing.assert_array_equal(np.concatenate([np.atleast_1d(columns[p]) for p in purposes]), columns)


def test_layers_add_draws_and_nothing_else_does():
    assert Augment(randaugment_layers=3).num_draws == Augment().num_draws + 6
    assert dataclasses.replace(EVERYTHING, randaugment_layers=0).num_draws == Augment().num_draws


def test_draws_of_another_purpose_change_nothing():
    image, row = gradient(40, 50), rows_of(EVERYTHING, 1)[0]
    others = row.copy()
    others[augment.WINDOW], others[augment.MIX] = 0.5, 0.5
    np.testing.assert_array_equal(augment.vary(image, row, EVERYTHING), augment.vary(image, others, EVERYTHING))


def test_draws_beyond_those_needed_change_nothing():
    image, row = gradient(40, 50), rows_of(EVERYTHING, 1)[0]
    longer = np.append(row, [0.3] * 8)
    np.testing.assert_array_equal(augment.vary(image, row, EVERYTHING), augment.vary(image, longer, EVERYTHING))


def test_switching_one_augmentation_on_leaves_the_others_as_they_were():
    image = np.full((64, 64, 3), 100, np.uint8)
    erasing = dataclasses.replace(NOTHING, erase_probability=1.0)
    jittering = dataclasses.replace(erasing, color_jitter=0.3, mixup_alpha=1.0, randaugment_layers=1)
    for row in rows_of(jittering, 50):
        row[augment.RANDAUGMENT] = 0  # identity
        alone, together = augment.vary(image, row[: erasing.num_draws], erasing), augment.vary(image, row, jittering)
        (top, left, height, width), _ = changed_box(alone, image)
        noise = np.s_[top : top + height, left : left + width]
        np.testing.assert_array_equal(alone[noise], together[noise])


@settings(max_examples=200, deadline=None)
@given(height=SIDES, width=SIDES, input_height=SIDES, input_width=SIDES, row=ROWS, area=st.floats(0.01, 1))
def test_windows_lie_inside_the_photo(height, width, input_height, input_width, row, area):
    options = Augment(crop_area_min=area)
    found = augment.window(height, width, row, options, (input_height, input_width))
    assert all(type(number) is int for number in found)
    top, left, rows, columns = found
    assert 0 <= top < top + rows <= height
    assert 0 <= left < left + columns <= width


@settings(max_examples=200, deadline=None)
@given(height=st.integers(300, 900), width=st.integers(300, 900), row=ROWS)
def test_windows_keep_to_the_limits_of_area_and_aspect(height, width, row):
    options = Augment(crop_area_min=0.2, crop_aspect=1.5)
    _, _, rows, columns = augment.window(height, width, row, options, (100, 200))
    assert rows * columns >= 0.19 * height * width  # rounding to whole pixels
    assert 2 / 1.5 * 0.98 <= columns / rows <= 2 * 1.5 * 1.02


def test_areas_are_uniform_and_aspects_log_uniform():
    options = Augment(crop_area_min=0.1, crop_aspect=4 / 3)
    # A photo of the input's aspect: areas up to 3/4 always fit. A larger one, a, does where the aspect differs by a
    # factor of 1 / a at most: 47.6 % of them, by integration. So 65 / (65 + 25 * 0.476) of the windows are small.
    found = np.array([augment.window(4000, 6000, row, options, (200, 300)) for row in rows_of(options, 20_000)])
    area = found[:, 2] * found[:, 3] / (4000 * 6000)
    aspect = np.log(found[:, 3] / found[:, 2] / 1.5) / np.log(4 / 3)
    small = area < 0.75
    assert scipy.stats.kstest(area[small], scipy.stats.uniform(0.1, 0.65).cdf).pvalue > 1e-3
    assert scipy.stats.kstest(aspect[small], scipy.stats.uniform(-1, 2).cdf).pvalue > 1e-3
    assert abs(np.mean(small) - 0.845) < 0.0105  # 4 standard deviations


def test_windows_are_everywhere_alike():
    options = Augment(crop_area_min=0.25)
    found = np.array([augment.window(3000, 3000, row, options, (224, 224)) for row in rows_of(options, 3000)])
    for start, size in ((0, 2), (1, 3)):
        share = (found[:, start] + 0.5) / (3001 - found[:, size])
        assert scipy.stats.kstest(share, "uniform").pvalue > 1e-3


def test_windows_reach_both_ends():
    options = Augment(crop_area_min=0.25, crop_aspect=1.0)
    row = np.zeros(options.num_draws)  # area 0.25, so 50 x 50 of 100 x 100
    assert augment.window(100, 100, row, options, (32, 32)) == (0, 0, 50, 50)
    row[:2] = 1 - 2**-53
    assert augment.window(100, 100, row, options, (32, 32)) == (50, 50, 50, 50)


def test_the_second_attempt_counts_where_the_first_does_not_fit():
    options = Augment(crop_area_min=0.25, crop_aspect=1.0)
    row = np.zeros(options.num_draws)
    row[2] = 0.99  # nearly all of 100 x 200 as a square: 141 rows of 100
    assert augment.window(100, 200, row, options, (32, 32)) == (0, 0, 71, 71)  # 0.25 of 20,000 is 70.7 squared


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    # The window's aspect is at most 4/3 and at least 3/4: 100 x 133 and 133 x 100 pixels.
    [(100, 2000, (0, 933, 100, 133)), (2000, 100, (933, 0, 133, 100)), (1, 1, (0, 0, 1, 1)), (1, 9, (0, 4, 1, 1))],
)
def test_a_photo_in_which_no_attempt_fits_is_cut_in_the_middle(height, width, expected):
    options = Augment(crop_area_min=1.0)
    assert augment.window(height, width, rows_of(options, 1)[0], options, (224, 224)) == expected


def test_a_square_photo_is_kept_whole_where_nothing_may_vary():
    assert augment.window(64, 64, rows_of(NOTHING, 1)[0], NOTHING, (32, 32)) == (0, 0, 64, 64)


@settings(max_examples=100, deadline=None)
@given(image=IMAGES, row=ROWS)
def test_nothing_to_vary_leaves_every_pixel(image, row):
    np.testing.assert_array_equal(augment.vary(image, row, NOTHING), image)


@settings(max_examples=200, deadline=None)
@given(image=IMAGES, row=ROWS)
def test_shape_and_type_stay_and_the_input_is_untouched(image, row):
    before = image.copy()
    ours = augment.vary(image, row, dataclasses.replace(EVERYTHING, erase_probability=1.0))
    assert (ours.shape, ours.dtype) == (image.shape, np.uint8)
    np.testing.assert_array_equal(image, before)


def test_the_same_draws_give_the_same_pixels_and_others_do_not():
    image = gradient(48, 64)
    first, second = rows_of(EVERYTHING, 2)
    np.testing.assert_array_equal(augment.vary(image, first, EVERYTHING), augment.vary(image, first, EVERYTHING))
    assert (augment.vary(image, first, EVERYTHING) != augment.vary(image, second, EVERYTHING)).any()


def test_a_photo_does_not_depend_on_those_varied_before_it():
    image, rows = gradient(48, 64), rows_of(EVERYTHING, 30)
    forwards = [augment.vary(image, row, EVERYTHING) for row in rows]
    backwards = [augment.vary(image, row, EVERYTHING) for row in rows[::-1]]
    np.testing.assert_array_equal(forwards, backwards[::-1])


def test_half_of_the_photos_are_mirrored():
    options, image = Augment(), gradient(16, 20)
    varied = [augment.vary(image, row, options) for row in rows_of(options, 2000)]
    mirrored = sum(np.array_equal(one, image[:, ::-1]) for one in varied)
    assert mirrored + sum(np.array_equal(one, image) for one in varied) == 2000
    assert 910 < mirrored < 1090  # 4 standard deviations around 1000


def jittered(image, brightness, contrast, saturation):
    """Step by step, in float64, as the settings describe it."""
    luma = np.array([0.299, 0.587, 0.114])
    image = image * brightness
    mean = (image @ luma).mean()
    image = mean + (image - mean) * contrast
    grey = (image @ luma)[..., None]
    return np.clip(grey + (image - grey) * saturation, 0, 255)


@settings(max_examples=200, deadline=None)
@given(image=IMAGES, factors=st.tuples(*[st.floats(0.01, 1.99)] * 3))
def test_color_jitter_equals_its_three_steps(image, factors):
    assert np.abs(augment.jitter_color(image, *factors) - jittered(image, *factors)).max() <= 1


@settings(max_examples=50, deadline=None)
@given(image=IMAGES)
def test_color_jitter_by_factors_of_1_leaves_every_pixel(image):
    np.testing.assert_array_equal(augment.jitter_color(image, 1.0, 1.0, 1.0), image)


def test_jitter_draws_span_the_strength_in_order(monkeypatch):
    monkeypatch.setattr(augment, "jitter_color", lambda image, *factors: factors)
    row = np.zeros(NOTHING.num_draws)
    row[augment.JITTER] = 0.0, 0.5, 0.75
    options = dataclasses.replace(NOTHING, color_jitter=0.4)
    np.testing.assert_allclose(augment.vary(gradient(8, 8), row, options), [0.6, 1.0, 1.2])


def test_an_erased_box_keeps_to_its_limits_and_the_rest_is_untouched():
    image, options = np.full((200, 200, 3), 77, np.uint8), dataclasses.replace(NOTHING, erase_probability=1.0)
    for row in rows_of(options, 300):
        (_, _, height, width), changed = changed_box(augment.vary(image, row, options), image)
        assert 0.019 < height * width / 200**2 < 0.335  # rounding to whole pixels
        assert 1 / 3.4 < width / height < 3.4
        assert changed > 0.999  # a value of the noise is 77 in all three channels once in 16 million


def test_erased_areas_are_uniform():
    image, options = np.zeros((400, 400, 3), np.uint8), dataclasses.replace(NOTHING, erase_probability=1.0)
    boxes = [changed_box(augment.vary(image, row, options), image)[0] for row in rows_of(options, 300)]
    share = [height * width / 400**2 for _, _, height, width in boxes]
    assert scipy.stats.kstest(share, scipy.stats.uniform(0.02, 0.31).cdf).pvalue > 1e-3


def test_erasing_happens_as_often_as_asked_for():
    image, options = gradient(32, 32), dataclasses.replace(NOTHING, erase_probability=0.25)
    erased = sum((augment.vary(image, row, options) != image).any() for row in rows_of(options, 400))
    assert 65 < erased < 135  # 4 standard deviations around 100


def test_noise_is_uniform_and_of_every_value():
    noise = augment._noise(0.3, (200, 201, 3))
    counts = np.bincount(noise.ravel(), minlength=256)
    assert scipy.stats.chisquare(counts).pvalue > 1e-3
    assert (augment._noise(0.31, (200, 201, 3)) != noise).any()


@pytest.mark.parametrize(("height", "width"), [(3, 3), (10, 400), (400, 10)])
def test_erasing_fits_into_images_of_any_shape(height, width):
    image, options = np.zeros((height, width, 3), np.uint8), dataclasses.replace(NOTHING, erase_probability=1.0)
    for row in rows_of(options, 100):
        assert augment.vary(image, row, options).shape == image.shape


def test_real_photos_survive_everything_at_once(real_data):
    options = dataclasses.replace(EVERYTHING, erase_probability=1.0, randaugment_magnitude=10.0)
    paths = sorted((real_data / "cars6").glob("*/*.jpg"))[::50][:20]
    assert len(paths) == 20
    for path, row in zip(paths, rows_of(options, 20), strict=True):
        photo = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
        top, left, height, width = augment.window(*photo.shape[:2], row, options, (96, 128))
        image = cv2.resize(photo[top : top + height, left : left + width], (128, 96))
        ours = augment.vary(image, row, options)
        assert (ours.shape, ours.dtype) == ((96, 128, 3), np.uint8)
        assert ours.flags.c_contiguous
        assert ours.std() > 5
        assert (ours != image).mean() > 0.02


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"enabled": 1}, "augment.enabled=1 is neither True nor False"),
        ({"crop_area_min": 0.0}, "augment.crop_area_min=0.0: give a number above 0 and at most 1"),
        ({"crop_aspect": 0.5}, "augment.crop_aspect=0.5: give a number at least 1"),
        ({"flip": "yes"}, "augment.flip='yes' is neither True nor False"),
        ({"color_jitter": 1.0}, "augment.color_jitter=1.0: give a number at least 0 and below 1"),
        ({"randaugment_layers": -1}, "augment.randaugment_layers=-1: give a whole number at least 0"),
        ({"randaugment_layers": 1.5}, "augment.randaugment_layers=1.5: give a whole number"),
        ({"randaugment_magnitude": 11}, "augment.randaugment_magnitude=11: give a number at least 0 and at most 10"),
        ({"erase_probability": 1.1}, "augment.erase_probability=1.1: give a number at least 0 and at most 1"),
        ({"mixup_alpha": -0.1}, "augment.mixup_alpha=-0.1: give a number at least 0"),
        ({"cutmix_alpha": float("nan")}, "augment.cutmix_alpha=nan: give a number at least 0"),
    ],
)
def test_bad_settings_raise(options, message):
    with pytest.raises(ConfigError, match=f"^{message}"):
        Augment(**options)


def test_photos_are_mixed_only_where_asked_for():
    assert not Augment().mixes_photos
    assert not Augment(enabled=False, mixup_alpha=0.2).mixes_photos
    assert Augment(mixup_alpha=0.2).mixes_photos
    assert Augment(cutmix_alpha=0.2).mixes_photos
