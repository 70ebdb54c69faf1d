"""MixUp and CutMix in two parts: `plan` on the host draws what to do with each photo, `mix` on the device does it.

MixUp: Zhang et al. 2017, arXiv:1710.09412. CutMix: Yun et al. 2019, arXiv:1905.04899. Photos 2k and 2k+1 of a batch are
each other's partners: the order is random anyway, and no pair spans two replicas as long as each has an even batch.
"""

import numpy as np
import scipy.special
import tensorflow as tf

from carbrand.data.augment import MIX, Augment
from carbrand.errors import ConfigError

PLAN_COLUMNS = 5


def plan(draws: np.ndarray, augment: Augment, height_width: tuple[int, int]) -> np.ndarray:
    """How each photo is mixed: draws [K, num_draws] float64 -> [K, 5] float32.

    Columns: the photo's own weight outside of the pasted box, in [0, 1]; then the box, whose pixels are its partner's:
    top, left, bottom, right in whole pixels. MixUp's box is empty, CutMix's weight is 1.
    """
    which, share, *centre = draws[:, MIX].T
    is_cutmix = which < 0.5 if augment.mixup_alpha and augment.cutmix_alpha else bool(augment.cutmix_alpha)
    weight = np.where(is_cutmix, 1, _beta(share, augment.mixup_alpha))
    pasted = np.where(is_cutmix, 1 - _beta(share, augment.cutmix_alpha), 0)
    return np.column_stack([weight, *_box(pasted, np.array(centre), height_width)]).astype(np.float32)


def mix(images: tf.Tensor, targets: tf.Tensor, plan: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Each photo with its partner, and the targets by their shares; in float32, whatever the policy.

    Args:
      images: [B, H, W, 3], uint8 or float, of one replica; B even.
      targets: [B, C] float32, each row a distribution.
      plan: [B, 5] float32, as `plan` returns it.

    Returns:
      images [B, H, W, 3] float32, targets [B, C] float32.

    Raises:
      ConfigError: B is odd, while tracing. Where B is only known later, TensorFlow fails to reshape.
    """
    batch, height, width, _ = images.shape
    if batch is not None:
        check_even(batch)
    weight, top, left, bottom, right = tf.unstack(tf.cast(plan, tf.float32), num=PLAN_COLUMNS, axis=1)
    own = weight[:, None, None, None] * _outside(top, left, bottom, right, (height, width))
    # Whole numbers below 2**24, so exact: the target's share is the share of the pixels.
    share = (weight * (1 - (bottom - top) * (right - left) / (height * width)))[:, None]
    return _blend(images, own), _blend(targets, share)


def check_even(count: int) -> None:
    """Raises ConfigError unless so many photos of a replica can be mixed in pairs."""
    if count % 2:
        raise ConfigError(
            f"batch_size: {count} photos on each replica cannot be mixed in pairs. Give a batch_size that is an even "
            "multiple of the number of replicas, or set augment.mixup_alpha and augment.cutmix_alpha to 0."
        )


def _beta(draws: np.ndarray, alpha: float) -> np.ndarray:
    """Beta(alpha, alpha) by its inverse distribution function; 1 where alpha is 0."""
    return scipy.special.betaincinv(alpha, alpha, draws) if alpha else np.ones_like(draws)


def _box(area: np.ndarray, centre: np.ndarray, height_width: tuple[int, int]) -> np.ndarray:
    """Boxes of a share [K] of the area around centres [2, K] in [0, 1), cut off at the border -> [4, K]."""
    size = np.array(height_width)[:, None]
    half = np.sqrt(area) / 2
    return np.concatenate([np.clip(np.rint((centre + side * half) * size), 0, size) for side in (-1, 1)])


def _outside(
    top: tf.Tensor, left: tf.Tensor, bottom: tf.Tensor, right: tf.Tensor, height_width: tuple[int, int]
) -> tf.Tensor:
    """0 inside of each box and 1 elsewhere: [B] each -> [B, H, W, 1] float32."""
    rows, columns = (tf.range(size, dtype=tf.float32)[None] for size in height_width)
    in_rows = (rows >= top[:, None]) & (rows < bottom[:, None])
    in_columns = (columns >= left[:, None]) & (columns < right[:, None])
    return 1 - tf.cast(in_rows[:, :, None] & in_columns[:, None], tf.float32)[..., None]


def _blend(values: tf.Tensor, own: tf.Tensor) -> tf.Tensor:
    """`own` of each row of `values` and the rest of its partner, in float32."""
    values = tf.cast(values, tf.float32)
    pairs = tf.reshape(values, [-1, 2, *values.shape[1:]])
    partners = tf.reshape(tf.reverse(pairs, [1]), tf.shape(values))
    return own * values + (1 - own) * partners
