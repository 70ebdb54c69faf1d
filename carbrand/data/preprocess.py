"""Image bytes -> [H, W, 3] uint8 as the network sees it: the one definition, for evaluation, export and serving."""

import dataclasses

import gin
import tensorflow as tf

from carbrand import checks
from carbrand.errors import ConfigError


@gin.configurable("preprocess", module="carbrand")
@dataclasses.dataclass(frozen=True)
class Preprocess:
    """The part of a photo that is looked at, and the size it is resized to.

    Attributes:
      image_size_px: Side of the square image, or (height, width).
      crop_fraction: The central window's share of the largest window with the image's aspect ratio, in (0, 1].
    """

    image_size_px: int | tuple[int, int] = 224
    crop_fraction: float = 0.875  # He et al. 2015, arXiv:1512.03385: 224 of 256

    def __post_init__(self) -> None:
        checks.number("preprocess.crop_fraction", self.crop_fraction, above=0, at_most=1)
        size = self.image_size_px
        if isinstance(size, tuple | list) and len(size) != 2:
            raise ConfigError(f"preprocess.image_size_px={size!r}: give one side or (height, width).")
        for side in size if isinstance(size, tuple | list) else (size,):
            checks.number("preprocess.image_size_px", side, at_least=32, whole=True)

    @property
    def height_width(self) -> tuple[int, int]:
        """Height and width in pixels."""
        size = self.image_size_px
        return (size, size) if isinstance(size, int) else (size[0], size[1])

    def __call__(self, encoded: tf.Tensor) -> tf.Tensor:
        """One encoded image (scalar string) -> [H, W, 3] uint8, RGB.

        Bilinear with antialiasing, as a photo may be much larger than the network's input.
        """
        return self.of_pixels(tf.io.decode_image(encoded, channels=3, expand_animations=False))

    def of_pixels(self, image: tf.Tensor) -> tf.Tensor:
        """One decoded image [h, w, 3] uint8, RGB -> [H, W, 3] uint8."""
        window = central_window(image, self.height_width, self.crop_fraction)
        return to_uint8(tf.image.resize(window, self.height_width, method="bilinear", antialias=True))


def central_window(image: tf.Tensor, height_width: tuple[int, int], crop_fraction: float) -> tf.Tensor:
    """Cuts the central window of `height_width`'s aspect ratio: [h, w, 3] -> [h', w', 3]."""
    shape = tf.cast(tf.shape(image)[:2], tf.float32)
    target = tf.constant(height_width, tf.float32)
    window = tf.cast(tf.maximum(1.0, tf.round(target * tf.reduce_min(shape / target) * crop_fraction)), tf.int32)
    top_left = (tf.shape(image)[:2] - window) // 2
    return tf.slice(image, tf.concat([top_left, [0]], 0), tf.concat([window, [3]], 0))


def to_uint8(image: tf.Tensor) -> tf.Tensor:
    """Float pixels in 0..255, with some overshoot allowed -> uint8, rounded."""
    return tf.cast(tf.clip_by_value(tf.round(image), 0.0, 255.0), tf.uint8)
