"""RandAugment on the host (Cubuk et al. 2019, arXiv:1909.13719): uint8 pixels, a strength and draws in, pixels out.

Each operation takes an image [H, W, 3] uint8 RGB and a strength, and returns a new image of that shape or the image
itself. Strengths run from 0 to 1, below 0 for the other direction. Ranges at strength 1 are those of torchvision's
RandAugment, and what the operations do to pixels is what Pillow does, up to rounding.
"""

import math
from collections.abc import Callable

import numpy as np

from carbrand.data.opencv import cv2

MAGNITUDE_MAX = 10  # Cubuk et al. 2019, section 3: a linear scale from 0 to 10 for all operations
DRAWS_PER_LAYER = 2  # operation, direction
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow's convert("L")

_ENHANCE = 0.9  # brightness, color, contrast and sharpness: factors 1 ± this
_ROTATE_DEGREES = 30.0
_SHEAR = 0.3  # pixels sideways for each pixel away from the first row or column
_TRANSLATE = 150 / 331  # share of the side: 150 px of AutoAugment's 331 px images (Cubuk et al. 2018)
_POSTERIZE_BITS = 4  # of 8, taken away
_FILL = (128, 128, 128)  # grey where there was no photo: `replace_value` of the authors' EfficientNet code
_SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]]) / 13  # Pillow's ImageFilter.SMOOTH
_LEVELS = np.arange(256)


def apply(image: np.ndarray, draws: np.ndarray, magnitude: float) -> np.ndarray:
    """One random operation after another: image [H, W, 3] uint8, draws [2 * layers] in [0, 1), magnitude 0..10."""
    names = tuple(OPERATIONS)
    for which, direction in draws.reshape(-1, DRAWS_PER_LAYER).tolist():
        name = names[int(which * len(names))]
        sign = -1 if name in SIGNED and direction < 0.5 else 1
        image = OPERATIONS[name](image, sign * magnitude / MAGNITUDE_MAX)
    return image


def identity(image: np.ndarray, strength: float) -> np.ndarray:
    """The image itself; the strength has no part in it."""
    return image


def autocontrast(image: np.ndarray, strength: float) -> np.ndarray:
    """Stretches each channel to 0..255; the strength has no part in it."""
    columns = image.reshape(len(image), -1)
    low = columns.min(0).reshape(-1, 3).min(0).astype(float)
    high = columns.max(0).reshape(-1, 3).max(0).astype(float)
    is_flat = high == low
    scale = np.where(is_flat, 1, 255 / np.where(is_flat, 1, high - low))
    return cv2.transform(image, np.column_stack([np.diag(scale), np.where(is_flat, 0, -low * scale)]))


def equalize(image: np.ndarray, strength: float) -> np.ndarray:
    """Makes each channel's histogram as flat as can be; the strength has no part in it."""
    return _look_up(image, np.stack([_equalizing_table(image, channel) for channel in range(3)], -1))


def rotate(image: np.ndarray, strength: float) -> np.ndarray:
    """Turns about the centre, by up to 30 degrees; above 0 counter-clockwise."""
    height, width = image.shape[:2]
    angle = math.radians(_ROTATE_DEGREES * strength)
    cos, sin = math.cos(angle), math.sin(angle)
    x, y = width / 2, height / 2
    return _affine(image, [[cos, -sin, x - cos * x + sin * y], [sin, cos, y - sin * x - cos * y]])


def solarize(image: np.ndarray, strength: float) -> np.ndarray:
    """Inverts all values from a threshold up: 256 (none) at strength 0, 0 (all) at strength 1."""
    return _look_up(image, np.where(256 * (1 - strength) > _LEVELS, _LEVELS, 255 - _LEVELS))


def color(image: np.ndarray, strength: float) -> np.ndarray:
    """Less saturated down to 0.1 times, or more up to 1.9 times."""
    return cv2.transform(image, saturation(1 + _ENHANCE * strength))


def posterize(image: np.ndarray, strength: float) -> np.ndarray:
    """Clears up to 4 of the 8 bits of each value, the lowest first."""
    return image & np.uint8(256 - 2 ** round(_POSTERIZE_BITS * strength))


def contrast(image: np.ndarray, strength: float) -> np.ndarray:
    """Scales the distance to the mean grey by 0.1 to 1.9."""
    mean = round(cv2.mean(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))[0])
    return _look_up(image, mean + (1 + _ENHANCE * strength) * (_LEVELS - mean))


def brightness(image: np.ndarray, strength: float) -> np.ndarray:
    """Scales all values by 0.1 to 1.9."""
    return _look_up(image, (1 + _ENHANCE * strength) * _LEVELS)


def sharpness(image: np.ndarray, strength: float) -> np.ndarray:
    """Below 0 blends with a smoothed image, above 0 away from it; the outermost pixels stay as they are."""
    kernel = -_ENHANCE * strength * _SMOOTH
    kernel[1, 1] += 1 + _ENHANCE * strength
    sharpened = cv2.filter2D(image, -1, kernel)
    for edge in np.s_[:1, :], np.s_[-1:, :], np.s_[:, :1], np.s_[:, -1:]:
        sharpened[edge] = image[edge]
    return sharpened


def shear_x(image: np.ndarray, strength: float) -> np.ndarray:
    """Shifts rows sideways, the lower the further; the first row stays."""
    return _affine(image, [[1, _SHEAR * strength, 0], [0, 1, 0]])


def shear_y(image: np.ndarray, strength: float) -> np.ndarray:
    """Shifts columns up or down, those further right by more; the first column stays."""
    return _affine(image, [[1, 0, 0], [_SHEAR * strength, 1, 0]])


def translate_x(image: np.ndarray, strength: float) -> np.ndarray:
    """Shifts by whole pixels, up to 45 % of the width; above 0 to the left."""
    return _shift(image, 0, round(_TRANSLATE * image.shape[1] * strength))


def translate_y(image: np.ndarray, strength: float) -> np.ndarray:
    """Shifts by whole pixels, up to 45 % of the height; above 0 upwards."""
    return _shift(image, round(_TRANSLATE * image.shape[0] * strength), 0)


# Those of the paper, section 3. The order is part of the random stream: another would change every augmented run.
OPERATIONS: dict[str, Callable[[np.ndarray, float], np.ndarray]] = {
    operation.__name__: operation
    for operation in (
        identity,
        autocontrast,
        equalize,
        rotate,
        solarize,
        color,
        posterize,
        contrast,
        brightness,
        sharpness,
        shear_x,
        shear_y,
        translate_x,
        translate_y,
    )
}
SIGNED = frozenset(OPERATIONS) - {"identity", "autocontrast", "equalize", "solarize", "posterize"}


def saturation(factor: float) -> np.ndarray:
    """The matrix [3, 3] that scales the distance of RGB pixels to the grey of their luma."""
    return factor * np.eye(3) + (1 - factor) * np.broadcast_to(LUMA, (3, 3))


def _look_up(image: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Replaces each value by its entry in `table` [256], or [256, 3] for each channel, rounded and clipped."""
    return cv2.LUT(image, np.clip(np.rint(table), 0, 255).astype(np.uint8)[None])


def _equalizing_table(image: np.ndarray, channel: int) -> np.ndarray:
    """[256] int64, as PIL.ImageOps.equalize has it: in whole numbers, and the identity where a value dominates."""
    histogram = cv2.calcHist([image], [channel], None, [256], [0, 256]).astype(np.int64).ravel()
    step = (histogram.sum() - histogram[np.flatnonzero(histogram)[-1]]) // 255
    if not step:
        return _LEVELS
    below = np.cumsum(histogram) - histogram
    return (step // 2 + below) // step


def _affine(image: np.ndarray, matrix: list[list[float]]) -> np.ndarray:
    """The output at (x, y) is the input at `matrix` @ (x, y, 1), bilinear; (0, 0) is the corner of the first pixel."""
    backward = np.array(matrix, np.float64)
    backward[:, 2] += backward[:, :2].sum(1) / 2 - 0.5  # cv2 counts from the centre of the first pixel
    warped = cv2.warpAffine(
        cv2.cvtColor(image, cv2.COLOR_RGB2RGBA),  # four channels take half the time of three, there and back included
        backward,
        image.shape[1::-1],
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=_FILL,
    )
    return cv2.cvtColor(warped, cv2.COLOR_RGBA2RGB)


def _shift(image: np.ndarray, up: int, left: int) -> np.ndarray:
    """Moves the image by whole pixels; below 0 down or right."""
    height, width = image.shape[:2]
    kept = image[max(up, 0) : height + min(up, 0), max(left, 0) : width + min(left, 0)]
    border = max(-up, 0), max(up, 0), max(-left, 0), max(left, 0)
    return cv2.copyMakeBorder(kept, *border, cv2.BORDER_CONSTANT, value=_FILL)
