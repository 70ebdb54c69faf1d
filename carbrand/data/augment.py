"""Training-only randomness, stateless: an encoded image and a seed in, the same augmented pixels out, every time."""

import dataclasses

import gin
import tensorflow as tf

from carbrand import checks
from carbrand.data import preprocess


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
    """

    enabled: bool = True
    crop_area_min: float = 0.35  # guess: Szegedy et al. 2014 use 0.08, at which a badge often leaves the picture
    crop_aspect: float = 4 / 3  # Szegedy et al. 2014, arXiv:1409.4842, section 6
    flip: bool = True
    color_jitter: float = 0.0

    def __post_init__(self) -> None:
        checks.boolean("augment.enabled", self.enabled)
        checks.number("augment.crop_area_min", self.crop_area_min, above=0, at_most=1)
        checks.number("augment.crop_aspect", self.crop_aspect, at_least=1)
        checks.boolean("augment.flip", self.flip)
        checks.number("augment.color_jitter", self.color_jitter, at_least=0, below=1)

    def __call__(self, encoded: tf.Tensor, seed: tf.Tensor, height_width: tuple[int, int]) -> tf.Tensor:
        """One JPEG (scalar string) and a seed [2] int64 -> [H, W, 3] uint8.

        Only the window's blocks are decoded; bilinear without antialiasing, since records are stored near this size.
        """
        window = random_window(tf.io.extract_jpeg_shape(encoded), seed, self, height_width)
        image = tf.io.decode_and_crop_jpeg(encoded, window, channels=3, dct_method="INTEGER_FAST")
        if self.flip:
            image = tf.cond(_uniform(seed, 1) < 0.5, lambda: image[:, ::-1], lambda: image)
        image = tf.image.resize(image, height_width, method="bilinear")
        if self.color_jitter:
            image = jitter_color(image, seed, self.color_jitter)
        return preprocess.to_uint8(image)


def random_window(shape: tf.Tensor, seed: tf.Tensor, augment: Augment, height_width: tuple[int, int]) -> tf.Tensor:
    """A window [top, left, height, width] int32 inside an image of `shape` [h, w, …]."""
    aspect = height_width[1] / height_width[0]
    begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
        shape,
        tf.zeros([1, 0, 4]),
        tf.random.fold_in(seed, 0),
        aspect_ratio_range=(aspect / augment.crop_aspect, aspect * augment.crop_aspect),
        area_range=(augment.crop_area_min, 1.0),
        max_attempts=10,
        use_image_if_no_bounding_boxes=True,
    )
    return tf.concat([begin[:2], size[:2]], 0)


def jitter_color(image: tf.Tensor, seed: tf.Tensor, strength: float) -> tf.Tensor:
    """Scales brightness, contrast and saturation of [H, W, 3] float pixels, each by a factor in 1 ± `strength`."""
    brightness, contrast, saturation = (1 + strength * (2 * _uniform(seed, 2 + i) - 1) for i in range(3))
    image = image * brightness
    mean = tf.reduce_mean(image)
    image = mean + (image - mean) * contrast
    grey = tf.reduce_mean(image, axis=-1, keepdims=True)
    return grey + (image - grey) * saturation


def _uniform(seed: tf.Tensor, purpose: int) -> tf.Tensor:
    return tf.random.stateless_uniform([], tf.random.fold_in(seed, purpose))
