"""Where in a photo a brand was seen: class-activation maps of the last stage (Grad-CAM, Selvaraju et al. 2017, 3)."""

import io
from collections.abc import Callable

import keras
import matplotlib
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from PIL import Image

from carbrand.data.opencv import cv2
from carbrand.training.model import last_features, logits_model

OPACITY = 0.5  # of the map over the photo
_COLORS = matplotlib.colormaps["inferno"](np.linspace(0, 1, 256))[:, :3]

# (images [B, H, W, 3] uint8, labels [B] int) -> maps [B, h, w] float32, each from 0 to 1
Heatmap = Callable[[NDArray[np.uint8], NDArray[np.integer]], NDArray[np.floating]]


def make(model: keras.Model) -> Heatmap:
    """A function (images [B, H, W, 3] uint8, labels [B]) -> maps [B, h, w] float32 in [0, 1].

    A map shows what speaks for the brand of the label: how far each place of the last feature map raises its logit. It
    is 0 everywhere where nothing does.

    Args:
        model: images -> probabilities, of `training.model.build_model`.
    """
    stages = keras.Model(model.input, last_features(model))
    head = logits_model(model, last_features(model))

    @tf.function
    def maps(images: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        features = stages(images, training=False)
        with tf.GradientTape() as tape:
            tape.watch(features)
            score = tf.gather(head(features, training=False), labels, axis=1, batch_dims=1)
        importance = tf.reduce_mean(tape.gradient(score, features), (1, 2), keepdims=True)
        found = tf.nn.relu(tf.reduce_sum(importance * features, -1))
        return tf.math.divide_no_nan(found, tf.reduce_max(found, (1, 2), keepdims=True))

    return lambda images, labels: maps(tf.constant(images), tf.constant(labels, tf.int32)).numpy()


def mixed(image: NDArray[np.uint8], heat: NDArray[np.floating]) -> NDArray[np.uint8]:
    """A photo [H, W, 3] with its map [h, w] laid over it: bright where the brand was seen."""
    height, width = image.shape[:2]
    heat = np.clip(cv2.resize(heat.astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC), 0, 1)
    colors = _COLORS[np.round(255 * heat).astype(np.uint8)]
    return ((1 - OPACITY) * image + OPACITY * 255 * colors).astype(np.uint8)


def overlay(image: NDArray[np.uint8], heat: NDArray[np.floating]) -> bytes:
    """`mixed` as a JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(mixed(image, heat)).save(buffer, "JPEG", quality=80)
    return buffer.getvalue()
