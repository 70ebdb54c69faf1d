"""Where in a photo a brand was seen: class-activation maps of the last stage (Grad-CAM, Selvaraju et al. 2017, 3)."""

from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from carbrand.training.model import last_features, logits_model

# (images [B, H, W, 3] uint8, labels [B] int) -> maps [B, h, w] float32, each from 0 to 1
Heatmap = Callable[[NDArray[np.uint8], NDArray[np.integer]], NDArray[np.floating]]


def make(model: keras.Model) -> Heatmap:
    """`make_graph` for arrays of numpy."""
    maps = make_graph(model)
    return lambda images, labels: maps(tf.constant(images), tf.constant(labels, tf.int32)).numpy()


def make_graph(model: keras.Model) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    """A compiled function (images [B, H, W, 3] uint8, labels [B] int32) -> maps [B, h, w] float32 in [0, 1].

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

    return maps
