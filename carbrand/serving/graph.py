"""The graph that is exported: photos in, brands, honest probabilities and an unknown-brand score out."""

from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from carbrand.data.preprocess import Preprocess
from carbrand.evaluation import heatmap
from carbrand.exported import EXAMPLE_FEATURE
from carbrand.training.model import boundary

_NUM_QUANTILES = 201


class ServingModule(tf.Module):
    """The exported graph. `weights` holds each variable once, in the order of `Exported.variables`."""

    def __init__(
        self,
        model: keras.Model,
        brands: tuple[str, ...],
        preprocess: Preprocess,
        *,
        temperature: float,
        known_features: NDArray[np.floating],
        known_groups: Sequence[object],
    ) -> None:
        """Sets what the graph holds.

        Args:
          model: As trained.
          brands: In the order of its logits.
          preprocess: Of the photos.
          temperature: Of the logits.
          known_features: [N, F] of two or more photos of known brands, of no training if possible.
          known_groups: [N] which of these belong together: a new photo has no sibling among them.
        """
        super().__init__()
        self.weights = [variable.value for variable in model.variables]
        self._brands = tf.constant(brands)
        # Functions, not the models themselves, which would be tracked too and store each variable a second time.
        network = network_of(model)
        self._network = lambda images: network(images, training=False)
        self._heat = heatmap.make_graph(model)
        self._preprocess = preprocess
        self._temperature = temperature
        directions = known_features / np.maximum(np.linalg.norm(known_features, axis=1, keepdims=True), 1e-12)
        self._known = tf.constant(directions, tf.float32)
        distances = _to_nearest(directions, known_groups)
        self._known_quantiles = tf.constant(np.quantile(distances, np.linspace(0, 1, _NUM_QUANTILES)), tf.float32)

    def signatures(self) -> dict[str, tf.types.experimental.ConcreteFunction]:
        """By the names that they have in the SavedModel."""
        photos = tf.TensorSpec([None], tf.string, name="encoded")
        examples = tf.TensorSpec([None], tf.string, name="inputs")
        pixels = tf.TensorSpec([None, None, None, 3], tf.uint8, name="images")
        labels = tf.TensorSpec([None], tf.int32, name="label")
        return {
            "serving_default": self.predict.get_concrete_function(photos),
            "pixels": self.predict_pixels.get_concrete_function(pixels),
            "classify": self.classify.get_concrete_function(examples),
            "heatmap": self.heatmap.get_concrete_function(photos, labels),
            "features": self.features.get_concrete_function(photos),
        }

    @tf.function
    def predict(self, encoded: tf.Tensor) -> dict[str, tf.Tensor]:
        """Encoded photos [B] string -> see `_answers`."""
        return self._answers(self._inputs(self._preprocess, encoded))

    @tf.function
    def predict_pixels(self, images: tf.Tensor) -> dict[str, tf.Tensor]:
        """Decoded photos [B, h, w, 3] uint8, of any size -> what `predict` says of the same photos encoded."""
        return self._answers(self._inputs(self._preprocess.of_pixels, images))

    @tf.function
    def classify(self, inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        """Serialised tf.Examples [B] with `EXAMPLE_FEATURE` -> classes [B, C] string, scores [B, C] float32.

        The brands of each photo, the most probable one first: TensorFlow Serving's classification.
        """
        features = {EXAMPLE_FEATURE: tf.io.FixedLenFeature([], tf.string)}
        encoded = tf.io.parse_example(inputs, features)[EXAMPLE_FEATURE]
        probabilities = self._answers(self._inputs(self._preprocess, encoded))["probabilities"]
        scores, order = tf.math.top_k(probabilities, len(self._brands))
        return {"classes": tf.gather(self._brands, order), "scores": scores}

    @tf.function
    def heatmap(self, encoded: tf.Tensor, label: tf.Tensor) -> dict[str, tf.Tensor]:
        """Encoded photos [B], brands by number [B] int32 -> image [B, H, W, 3] uint8 and heat [B, h, w] float32.

        What the network sees, and how much each place of it speaks for the brand, see `evaluation.heatmap`.
        """
        images = self._inputs(self._preprocess, encoded)
        return {"image": images, "heat": self._heat(images, label)}

    @tf.function
    def features(self, encoded: tf.Tensor) -> dict[str, tf.Tensor]:
        """Encoded photos [B] string -> features [B, F] float32: what the head sees of them."""
        return {"features": self._network(self._inputs(self._preprocess, encoded))[0]}

    def _inputs(self, function: object, photos: tf.Tensor) -> tf.Tensor:
        spec = tf.TensorSpec((*self._preprocess.height_width, 3), tf.uint8)
        return tf.map_fn(function, photos, fn_output_signature=spec)

    def _answers(self, images: tf.Tensor) -> dict[str, tf.Tensor]:
        """The network's input [B, H, W, 3] uint8 -> the most probable brand of each photo, and how sure that is.

        brand [B] string; probability [B] and probabilities [B, C] float32, after temperature scaling; logits [B, C]
        float32, as trained; unknown_score [B] float32: the share of known photos that look more familiar.
        """
        features, logits = self._network(images)
        probabilities = tf.nn.softmax(logits / self._temperature)
        above = tf.searchsorted(self._known_quantiles, self._strangeness(features), side="left")
        return {
            "brand": tf.gather(self._brands, tf.argmax(logits, -1)),
            "probability": tf.reduce_max(probabilities, -1),
            "probabilities": probabilities,
            "logits": logits,
            "unknown_score": tf.cast(above, tf.float32) / _NUM_QUANTILES,
        }

    def _strangeness(self, features: tf.Tensor) -> tf.Tensor:
        """How far photos are from the nearest known one: features [B, F] -> [B], 1 minus the cosine.

        Nearest neighbours (Sun et al. 2022, arXiv:2204.06507), not the logits: these call pictures without any car as
        familiar as cars (README).
        """
        similarity = tf.linalg.matmul(tf.math.l2_normalize(features, -1), self._known, transpose_b=True)
        return 1 - tf.reduce_max(similarity, -1)


def _to_nearest(directions: NDArray[np.floating], groups: Sequence[object]) -> NDArray[np.floating]:
    """1 minus the cosine of each of `directions` [N, F] and the nearest one of another group -> [N].

    If there is but one group, of the nearest other one.
    """
    numbers = np.unique(np.array([str(group) for group in groups]), return_inverse=True)[1]
    if numbers.max() == 0:
        numbers = np.arange(len(numbers))
    is_sibling = numbers[:, np.newaxis] == numbers
    return 1 - np.where(is_sibling, -1, directions @ directions.T).max(axis=1)


def network_of(model: keras.Model) -> keras.Model:
    """The same layers: images -> (features [B, F] after pooling, logits [B, C])."""
    return keras.Model(model.input, (boundary(model, "conv5"), model.get_layer("logits").output))
