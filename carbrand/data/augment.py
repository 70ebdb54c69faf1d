"""Training-only randomness on the host: a photo's pixels and its draws in, the same varied pixels out, every time.

All draws of a photo are one row of `draws.uniform`, with fixed columns for each purpose: switching one augmentation on
leaves what the others do as it was.
"""

import dataclasses
import math
import threading

import gin
import numpy as np
import simplejpeg

from carbrand import checks
from carbrand.data import draws as random_draws
from carbrand.data import randaugment
from carbrand.data.opencv import cv2

_ATTEMPTS = 10  # of a random crop, as torchvision's RandomResizedCrop and tf.image's sample_distorted_bounding_box
_ERASE_AREA = (0.02, 0.33)  # share of the image; torchvision's RandomErasing
_ERASE_ASPECT = 3.3  # and 1 / 3.3; torchvision's RandomErasing

_THREAD = threading.local()

# Columns of the draws.
WINDOW = slice(0, 2 + 2 * _ATTEMPTS)  # top, left, then (area, aspect) of each attempt
FLIP = WINDOW.stop
JITTER = slice(FLIP + 1, FLIP + 4)  # brightness, contrast, saturation
ERASE = slice(JITTER.stop, JITTER.stop + 6)  # whether, area, aspect, top, left, noise
MIX = slice(ERASE.stop, ERASE.stop + 4)  # CutMix or MixUp, share, centre down, centre across
RANDAUGMENT = MIX.stop  # (operation, direction) of each layer, to the end


@gin.configurable("augment", module="carbrand")
@dataclasses.dataclass(frozen=True)
class Augment:
    """How a training photo is varied.

    Attributes:
      enabled: Off, training sees exactly what evaluation sees, and frozen layers are run only once over each photo.
      crop_area_min: Smallest share of the photo's area that a random crop keeps, in (0, 1].
      crop_aspect: Largest factor by which a crop's aspect ratio differs from the network input's, 1 or more.
      flip: Mirror half of the photos left to right.
      color_jitter: Strength of random brightness, contrast and saturation: each is scaled by 1 ± this, in [0, 1).
      randaugment_layers: Random operations on each photo, one after another (Cubuk et al. 2019); 0 is none.
      randaugment_magnitude: Strength of these operations, 0 to 10.
      erase_probability: Share of photos in which a random box becomes noise (Zhong et al. 2017), in [0, 1].
      mixup_alpha: Photos are blended in pairs, by a share from Beta(alpha, alpha) (Zhang et al. 2017); 0 is never.
      cutmix_alpha: A box is pasted from one photo into another, its share of the area from Beta(alpha, alpha)
        (Yun et al. 2019); 0 is never. With `mixup_alpha`, each photo gets one of the two.
    """

    enabled: bool = True
    crop_area_min: float = 0.35  # guess: Szegedy et al. 2014 use 0.08, at which a badge often leaves the picture
    crop_aspect: float = 4 / 3  # Szegedy et al. 2014, arXiv:1409.4842, section 6
    flip: bool = True
    color_jitter: float = 0.0
    randaugment_layers: int = 0
    randaugment_magnitude: float = 3.0  # as torchvision's default, 9 of its 30, which has the same ranges
    erase_probability: float = 0.0
    mixup_alpha: float = 0.0
    cutmix_alpha: float = 0.0

    def __post_init__(self) -> None:
        checks.boolean("augment.enabled", self.enabled)
        checks.number("augment.crop_area_min", self.crop_area_min, above=0, at_most=1)
        checks.number("augment.crop_aspect", self.crop_aspect, at_least=1)
        checks.boolean("augment.flip", self.flip)
        checks.number("augment.color_jitter", self.color_jitter, at_least=0, below=1)
        checks.number("augment.randaugment_layers", self.randaugment_layers, at_least=0, whole=True)
        checks.number("augment.randaugment_magnitude", self.randaugment_magnitude, at_least=0,
                      at_most=randaugment.MAGNITUDE_MAX)  # fmt: skip
        checks.number("augment.erase_probability", self.erase_probability, at_least=0, at_most=1)
        checks.number("augment.mixup_alpha", self.mixup_alpha, at_least=0)
        checks.number("augment.cutmix_alpha", self.cutmix_alpha, at_least=0)

    @property
    def num_draws(self) -> int:
        """How many draws a photo needs, whether or not they are used."""
        return RANDAUGMENT + randaugment.DRAWS_PER_LAYER * self.randaugment_layers

    @property
    def mixes_photos(self) -> bool:
        """Whether photos are mixed in pairs, which needs an even batch and targets as shares; see `mixing`."""
        return self.enabled and (self.mixup_alpha > 0 or self.cutmix_alpha > 0)


def window(
    height: int, width: int, draws: np.ndarray, augment: Augment, height_width: tuple[int, int]
) -> tuple[int, int, int, int]:
    """A random window (top, left, height, width) inside a photo of `height` x `width`, for a network input's size.

    Its share of the area is uniform, its aspect ratio log-uniform around the network input's, each as often as the
    result fits into the photo; if none of 10 attempts does, the largest central window (Szegedy et al. 2014).
    """
    aspect = height_width[1] / height_width[0]
    top, left, *attempts = draws[WINDOW].tolist()
    for area, shape in zip(attempts[::2], attempts[1::2], strict=True):
        pixels = height * width * _between(augment.crop_area_min, 1, area)
        ratio = aspect * augment.crop_aspect ** (2 * shape - 1)
        rows, columns = round(math.sqrt(pixels / ratio)), round(math.sqrt(pixels * ratio))
        if 0 < rows <= height and 0 < columns <= width:
            return int(top * (height - rows + 1)), int(left * (width - columns + 1)), rows, columns
    return _central_window(height, width, aspect / augment.crop_aspect, aspect * augment.crop_aspect)


def augmented(
    encoded: bytes | memoryview,
    draws: np.ndarray,
    augment: Augment,
    height_width: tuple[int, int],
    out: np.ndarray | None = None,
) -> np.ndarray:
    """One JPEG and its draws [num_draws] -> [H, W, 3] uint8 RGB: a random window of it, resized and varied.

    Where the window is at least twice as large as the output, libjpeg decodes at 1/2, 1/4 or 1/8 (other scales take
    longer than none); the rest is bilinear without antialiasing, since records are stored near this size.

    Args:
      encoded: RGB or grey.
      draws: Of this photo.
      augment: What to do.
      height_width: H and W.
      out: [H, W, 3] uint8, to be filled and returned; memory that is in use already takes half the time.

    Raises:
      ValueError: It is no sound JPEG.
    """
    height, width, _, _ = simplejpeg.decode_jpeg_header(encoded)
    top, left, rows, columns = window(height, width, draws, augment, height_width)
    image = simplejpeg.decode_jpeg(
        encoded,
        "RGB",
        fastdct=True,
        fastupsample=True,
        min_height=min(math.ceil(height * height_width[0] / rows), height),
        min_width=min(math.ceil(width * height_width[1] / columns), width),
        min_factor=2,
        buffer=_buffer(3 * height * width),
    )
    down, across = image.shape[0] / height, image.shape[1] / width
    top, left, bottom, right = (
        round(edge) for edge in (top * down, left * across, (top + rows) * down, (left + columns) * across)
    )
    cut = image[top : max(bottom, top + 1), left : max(right, left + 1)]
    resized = cv2.resize(cut, height_width[::-1], dst=out, interpolation=cv2.INTER_LINEAR)
    varied = vary(resized, draws, augment)
    if out is None or varied is out:
        return varied
    np.copyto(out, varied)
    return out


def vary(image: np.ndarray, draws: np.ndarray, augment: Augment) -> np.ndarray:
    """Flip, colour jitter, RandAugment and erasing, in this order: [H, W, 3] uint8 RGB -> the same, never in place.

    Args:
      image: A photo, already cropped and resized.
      draws: [num_draws] float64 in [0, 1), of this photo.
      augment: What to do.
    """
    if augment.flip and draws[FLIP] < 0.5:
        image = cv2.flip(image, 1)
    if augment.color_jitter:
        image = jitter_color(image, *(1 + augment.color_jitter * (2 * draws[JITTER] - 1)))
    if augment.randaugment_layers:
        image = randaugment.apply(image, draws[RANDAUGMENT : augment.num_draws], augment.randaugment_magnitude)
    if draws[ERASE.start] < augment.erase_probability:
        image = erase(image, draws[ERASE][1:])
    return image


def jitter_color(image: np.ndarray, brightness: float, contrast: float, saturation: float) -> np.ndarray:
    """Scales brightness, then contrast around the mean grey, then saturation: three factors, 1 is no change.

    All three are linear, so one pass does them, rounded and clipped only at the end.
    """
    grey_mean = brightness * np.dot(cv2.mean(image)[:3], randaugment.LUMA)
    matrix = brightness * contrast * randaugment.saturation(saturation)
    return cv2.transform(image, np.column_stack([matrix, np.full(3, (1 - contrast) * grey_mean)]))


def erase(image: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """A copy of the image with noise in a random box; draws: area, aspect, top, left, noise.

    Noise, as in the paper's algorithm 1: a box of one colour would be a shape that the network can learn to know.
    """
    height, width = image.shape[:2]
    area, shape, top, left, noise = draws.tolist()
    pixels = height * width * _between(*_ERASE_AREA, area)
    ratio = _ERASE_ASPECT ** (2 * shape - 1)
    rows = min(max(round(math.sqrt(pixels / ratio)), 1), height)
    columns = min(max(round(math.sqrt(pixels * ratio)), 1), width)
    top, left = int(top * (height - rows + 1)), int(left * (width - columns + 1))
    image = image.copy()
    image[top : top + rows, left : left + columns] = _noise(noise, (rows, columns, 3))
    return image


def _noise(draw: float, shape: tuple[int, int, int]) -> np.ndarray:
    """Uniform uint8 values, from one draw."""
    count = math.prod(shape)
    start = np.array([int(draw * 2**53)], np.uint64)
    # Little-endian, so that the bytes come in the same order on every machine.
    values = random_draws.words(start, np.arange(-(-count // 8))).astype("<u8").view(np.uint8)
    return values[:count].reshape(shape)


def _buffer(num_bytes: int) -> np.ndarray:
    """Memory of this thread to decode into: new memory for each photo would cost a sixth of the decoding."""
    buffer = getattr(_THREAD, "buffer", None)
    if buffer is None or len(buffer) < num_bytes:
        buffer = _THREAD.buffer = np.empty(num_bytes, np.uint8)
    return buffer


def _central_window(height: int, width: int, aspect_min: float, aspect_max: float) -> tuple[int, int, int, int]:
    """The largest central window whose aspect ratio lies within the limits, up to whole pixels."""
    rows = min(height, max(round(width / aspect_min), 1))
    columns = min(width, max(round(height * aspect_max), 1))
    return (height - rows) // 2, (width - columns) // 2, rows, columns


def _between(low: float, high: float, draw: float) -> float:
    return low + (high - low) * draw
