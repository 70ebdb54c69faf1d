import hypothesis.extra.numpy
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps

from carbrand.data import randaugment

FREE = ("autocontrast", "equalize")  # of any strength
WHOLE_NUMBERS = ("equalize", "posterize", "solarize")  # nothing to round
SIZES = st.tuples(st.integers(3, 20), st.integers(3, 20), st.just(3))
# Any pixels, and drawings of few colours, on which histograms are at their oddest.
IMAGES = SIZES.flatmap(
    lambda size: st.one_of(
        hypothesis.extra.numpy.arrays(np.uint8, size),
        hypothesis.extra.numpy.arrays(np.uint8, size, elements=st.sampled_from([0, 7, 130, 255])),
    )
)
SIGNED_STRENGTHS = st.floats(-1, 1)
# What Pillow makes of an image and a strength.
PILLOW = {
    "autocontrast": lambda image, s: ImageOps.autocontrast(image),
    "equalize": lambda image, s: ImageOps.equalize(image),
    "solarize": lambda image, s: ImageOps.solarize(image, 256 * (1 - abs(s))),
    "posterize": lambda image, s: ImageOps.posterize(image, 8 - round(4 * abs(s))),
    "color": lambda image, s: ImageEnhance.Color(image).enhance(1 + 0.9 * s),
    "contrast": lambda image, s: ImageEnhance.Contrast(image).enhance(1 + 0.9 * s),
    "brightness": lambda image, s: ImageEnhance.Brightness(image).enhance(1 + 0.9 * s),
    "sharpness": lambda image, s: ImageEnhance.Sharpness(image).enhance(1 + 0.9 * s),
}
GREY = (128, 128, 128)


def affine(image, matrix):
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=GREY)


PILLOW_GEOMETRY = {
    "rotate": lambda image, s: image.rotate(30 * s, Image.Resampling.BILINEAR, fillcolor=GREY),
    "shear_x": lambda image, s: affine(image, (1, 0.3 * s, 0, 0, 1, 0)),
    "shear_y": lambda image, s: affine(image, (1, 0, 0, 0.3 * s, 1, 0)),
    "translate_x": lambda image, s: affine(image, (1, 0, round(150 / 331 * image.width * s), 0, 1, 0)),
    "translate_y": lambda image, s: affine(image, (1, 0, 0, 0, 1, round(150 / 331 * image.height * s))),
}


def smooth_image(height=96, width=128):
    rows, columns = np.mgrid[0:height, 0:width]
    waves = np.sin(rows / 15), np.cos(columns / 12), np.sin((rows + columns) / 20)
    return np.stack([128 + 100 * wave for wave in waves], -1).astype(np.uint8)


def difference(ours, theirs):
    return np.abs(ours.astype(int) - np.asarray(theirs).astype(int))


def signed(name, strength):
    return strength if name in randaugment.SIGNED else abs(strength)


def test_the_operations_are_the_fourteen_of_the_paper():
    assert set(randaugment.OPERATIONS) == {"identity", *PILLOW, *PILLOW_GEOMETRY}
    assert len(randaugment.OPERATIONS) == 14


@pytest.mark.parametrize("name", sorted(set(PILLOW) - {"color"}))
@settings(max_examples=100, deadline=None)
@given(image=IMAGES, strength=SIGNED_STRENGTHS)
def test_pixels_equal_pillow_within_one_grey_level(name, image, strength):
    ours = randaugment.OPERATIONS[name](image, signed(name, strength))
    assert difference(ours, PILLOW[name](Image.fromarray(image), strength)).max() <= 1


@pytest.mark.parametrize("strength", [-0.9, -0.3, 0.1, 1])
@pytest.mark.parametrize("name", PILLOW)
def test_large_images_equal_pillow_too(name, strength):
    # cv2 computes long rows by other instructions than short ones. In "color", Pillow rounds the grey before blending.
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (150, 203, 3), np.uint8)
    drawing = rng.integers(0, 256, (4, 3), np.uint8)[rng.integers(0, 4, (150, 203))]
    for image in (noise, noise // 7 + 90, drawing, smooth_image()):
        ours = randaugment.OPERATIONS[name](image, signed(name, strength))
        apart = difference(ours, PILLOW[name](Image.fromarray(image), strength))
        assert np.mean(apart > 1) < 1e-3
        assert apart.max() <= (0 if name in WHOLE_NUMBERS else 2 if name == "color" else 1)


@settings(max_examples=100, deadline=None)
@given(image=IMAGES, strength=SIGNED_STRENGTHS)
def test_color_is_the_rounded_distance_to_grey(image, strength):
    grey = (image @ np.array([0.299, 0.587, 0.114]))[..., None]
    exact = np.clip(grey + (1 + 0.9 * strength) * (image - grey), 0, 255)
    assert np.abs(randaugment.color(image, strength) - exact).max() <= 0.9  # 0.5, and cv2's fixed point


@pytest.mark.parametrize("name", WHOLE_NUMBERS)
@settings(max_examples=50, deadline=None)
@given(image=IMAGES, strength=st.floats(0, 1))
def test_operations_without_rounding_equal_pillow_exactly(name, image, strength):
    theirs = PILLOW[name](Image.fromarray(image), strength)
    np.testing.assert_array_equal(randaugment.OPERATIONS[name](image, strength), theirs)


@pytest.mark.parametrize("strength", [-1, -0.37, 0.05, 0.9])
@pytest.mark.parametrize("name", PILLOW_GEOMETRY)
def test_geometry_equals_pillow_on_a_smooth_image(name, strength):
    ours = randaugment.OPERATIONS[name](smooth_image(), strength)
    apart = difference(ours, PILLOW_GEOMETRY[name](Image.fromarray(smooth_image()), strength))
    # Pillow's outermost pixels are whole, ours blend into the grey: one pixel along the photo's edge differs.
    assert apart.mean() < 1
    assert np.median(apart) <= 1
    assert np.mean(apart > 2) < 0.03


@pytest.mark.parametrize("name", ["translate_x", "translate_y"])
@settings(max_examples=50, deadline=None)
@given(image=IMAGES, strength=SIGNED_STRENGTHS)
def test_translations_are_by_whole_pixels(name, image, strength):
    theirs = PILLOW_GEOMETRY[name](Image.fromarray(image), strength)
    np.testing.assert_array_equal(randaugment.OPERATIONS[name](image, strength), theirs)


@pytest.mark.parametrize("name", sorted(set(randaugment.OPERATIONS) - set(FREE)))
@settings(max_examples=30, deadline=None)
@given(image=IMAGES)
def test_nothing_changes_at_strength_0(name, image):
    np.testing.assert_array_equal(randaugment.OPERATIONS[name](image, 0.0), image)


@pytest.mark.parametrize("name", randaugment.OPERATIONS)
@settings(max_examples=30, deadline=None)
@given(image=IMAGES, strength=SIGNED_STRENGTHS)
def test_shape_and_type_stay_and_the_input_is_untouched(name, image, strength):
    before = image.copy()
    ours = randaugment.OPERATIONS[name](image, signed(name, strength))
    assert (ours.shape, ours.dtype) == (image.shape, np.uint8)
    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize("name", randaugment.OPERATIONS)
def test_every_operation_takes_an_image_that_is_a_view(name):
    image = smooth_image()
    window, flipped = image[3:40, 5:60], image[:, ::-1]
    for view in (window, flipped):
        ours = randaugment.OPERATIONS[name](view, 0.7)
        np.testing.assert_array_equal(ours, randaugment.OPERATIONS[name](view.copy(), 0.7))


def test_one_flat_channel_stays_as_it_is():
    image = smooth_image()
    image[..., 1] = 90
    assert (randaugment.autocontrast(image, 1.0)[..., 1] == 90).all()
    assert (randaugment.equalize(image, 1.0)[..., 1] == 90).all()


def test_layers_apply_the_operations_drawn_in_order(monkeypatch):
    calls = []
    recorders = {
        name: lambda image, strength, name=name: calls.append((name, strength)) or image
        for name in randaugment.OPERATIONS
    }
    monkeypatch.setattr(randaugment, "OPERATIONS", recorders)
    # Fourteen equal shares: 0 is the first operation, 3/14 up to 4/14 the fourth, and so on.
    draws = np.array([0.0, 0.2, 3.5 / 14, 0.2, 3.5 / 14, 0.7, 4.5 / 14, 0.2, 1 - 2**-53, 0.9])
    randaugment.apply(smooth_image(), draws, 9.0)
    assert calls == [("identity", 0.9), ("rotate", -0.9), ("rotate", 0.9), ("solarize", 0.9), ("translate_y", 0.9)]


def test_no_layers_leave_the_image():
    image = smooth_image()
    np.testing.assert_array_equal(randaugment.apply(image, np.zeros(0), 9.0), image)
