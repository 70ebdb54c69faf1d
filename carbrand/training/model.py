"""ResNet-50 with its pretrained weights' preprocessing inside, and a new head: pixels in 0..255 -> probabilities.

Layers bear the names of `keras.applications.ResNet50`, so that its weight files fit.
"""

import contextlib
import contextvars
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import gin
import keras
import tensorflow as tf

from carbrand import checks
from carbrand.errors import ConfigError
from carbrand.training.batch_norm import SynchronizedBatchNormalization

VARIANTS = ("v1", "v1.5")
STAGES = ("none", "conv1", "conv2", "conv3", "conv4", "conv5")
BLOCKS = {"conv2": (64, 3), "conv3": (128, 4), "conv4": (256, 6), "conv5": (512, 3)}  # arXiv:1512.03385, table 1
_CAFFE_MEAN_BGR = (103.939, 116.779, 123.68)  # keras.applications.imagenet_utils, mode "caffe"


@gin.configurable("model", module="carbrand")
@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """Which ResNet-50, and which head.

    Attributes:
      variant: "v1" is keras.applications' layout; "v1.5" has the stride on the 3×3 convolution, padded symmetrically.
      freeze_until: Stages up to and including this one keep their weights, and their BatchNorm uses its moving
        statistics: "none", "conv1" … "conv5" (the whole backbone).
      pooling: "avg" or "max" over the last feature map.
      hidden_units: Widths of dense layers between the pooled features and the brands.
      dropout: Share of the head's inputs dropped in training, in [0, 1).
      prior_bias: Begin with the brands' shares of the training photos as probabilities, rather than with equal ones.
      synchronized_batch_norm: Normalise training batches by the statistics of all replicas together. Off, each
        replica normalises by its own, and the moving statistics are averaged over the replicas after each step.
    """

    variant: str = "v1"
    freeze_until: str = "none"
    pooling: str = "avg"
    hidden_units: tuple[int, ...] = ()
    dropout: float = 0.0
    prior_bias: bool = False
    synchronized_batch_norm: bool = True
    batch_norm_momentum: float = 0.9  # Goyal et al. 2017, arXiv:1706.02677, 5.1; Keras's 0.99 lags in short runs

    def __post_init__(self) -> None:
        checks.choice("model.variant", self.variant, VARIANTS)
        checks.choice("model.freeze_until", self.freeze_until, STAGES)
        checks.choice("model.pooling", self.pooling, ("avg", "max"))
        checks.number("model.dropout", self.dropout, at_least=0, below=1)
        checks.number("model.batch_norm_momentum", self.batch_norm_momentum, at_least=0, below=1)
        checks.boolean("model.prior_bias", self.prior_bias)
        checks.boolean("model.synchronized_batch_norm", self.synchronized_batch_norm)
        if not isinstance(self.hidden_units, tuple | list):
            raise ConfigError(f"model.hidden_units={self.hidden_units!r}: give a tuple of widths, for example (256,).")
        for units in self.hidden_units:
            checks.number("model.hidden_units", units, at_least=1, whole=True)


def build_model(brands: Sequence[str], spec: ModelSpec | None = None, *, image_size_px: Any = None) -> keras.Model:
    """A new model: images [B, H, W, 3] RGB, 0..255, any numeric dtype -> probabilities [B, len(brands)] float32.

    Args:
      brands: The classes, in the order of the labels.
      spec: Variant, frozen stages and head; `ModelSpec()` (or its gin bindings) by default.
      image_size_px: (height, width), or None for a model that takes any size.
    """
    spec = spec or ModelSpec()
    image = keras.Input((*(image_size_px or (None, None)), 3), name="image")
    features = _backbone(ImageNormalization(name="normalization")(image), spec)
    pooling = keras.layers.GlobalAveragePooling2D if spec.pooling == "avg" else keras.layers.GlobalMaxPooling2D
    logits = _head(pooling(name="pool")(features), spec, len(brands))
    probabilities = keras.layers.Activation("softmax", dtype="float32", name="probabilities")(logits)
    model = keras.Model(image, probabilities, name="carbrand")
    freeze(model, spec.freeze_until)
    return model


def freeze(model: keras.Model, until: str) -> None:
    """Freezes the stages up to and including `until`, and no others."""
    frozen_stages = STAGES[1 : STAGES.index(until) + 1]
    for layer in model.layers:
        layer.trainable = not layer.name.startswith(frozen_stages) if frozen_stages else True


def boundary(model: keras.Model, frozen_until: str) -> keras.KerasTensor:
    """The output of the last layer that needs no training when stages up to `frozen_until` are frozen."""
    if frozen_until == "none":
        return model.input
    if frozen_until == "conv5":
        return model.get_layer("pool").output
    if frozen_until == "conv1":
        return model.get_layer("pool1_pool").output
    return _end_of_stage(model, frozen_until)


def last_features(model: keras.Model) -> keras.KerasTensor:
    """The output of the last stage [B, h, w, C], before pooling."""
    return _end_of_stage(model, "conv5")


def logits_model(model: keras.Model, inputs: keras.KerasTensor | None = None) -> keras.Model:
    """The same layers from `inputs` (default: the images) up to the logits [B, C] float32, without the softmax."""
    return keras.Model(model.input if inputs is None else inputs, model.get_layer("logits").output, name="logits_only")


def _end_of_stage(model: keras.Model, stage: str) -> keras.KerasTensor:
    return model.get_layer(f"{stage}_block{BLOCKS[stage][1]}_out").output


@keras.saving.register_keras_serializable("carbrand")
class ImageNormalization(keras.layers.Layer):
    """RGB pixels in 0..255 -> BGR minus ImageNet's mean: what every weight file of keras.applications.ResNet50 expects.

    It stands inside the model, so that no caller can pair the weights with another preprocessing.
    """

    def call(self, images: Any) -> Any:
        """[B, H, W, 3] -> the same shape, in the compute dtype."""
        mean = tf.constant(_CAFFE_MEAN_BGR, tf.float32)
        return tf.cast(tf.cast(images, tf.float32)[..., ::-1] - mean, self.compute_dtype)


@keras.saving.register_keras_serializable("carbrand")
class ExampleDropout(keras.layers.Layer):
    """Dropout whose mask depends on (seed, step, place in the global batch), not on the replica.

    Keras's own Dropout draws equal masks on all replicas, and its seed state is lost by every saved format. Outside
    of `dropout_seed`, as under `model.fit`, it draws from TensorFlow's global generator.
    """

    def __init__(self, rate: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.rate = rate

    def call(self, inputs: Any, training: bool = False) -> Any:
        """[B, units] -> the same shape."""
        if not training or not self.rate:
            return inputs
        keep = self._uniform(inputs) >= self.rate
        return tf.where(keep, inputs / tf.cast(1 - self.rate, inputs.dtype), tf.zeros_like(inputs))

    def _uniform(self, inputs: Any) -> tf.Tensor:
        shape = tf.shape(inputs)
        current = _dropout_seed.get()
        if current is None:
            return tf.random.uniform(shape)
        seed, replica, num_replicas = current
        whole_batch = tf.concat([[shape[0] * num_replicas], shape[1:]], 0)
        uniform = tf.random.stateless_uniform(whole_batch, seed, alg="philox")
        return uniform[replica * shape[0] : (replica + 1) * shape[0]]

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "rate": self.rate}


_dropout_seed: contextvars.ContextVar[tuple[tf.Tensor, tf.Tensor, int] | None] = contextvars.ContextVar(
    "dropout_seed", default=None
)


@contextlib.contextmanager
def dropout_seed(seed: tf.Tensor, replica: tf.Tensor, num_replicas: int) -> Iterator[None]:
    """Within the block, `ExampleDropout` draws from `seed` [2] int64, the rows of `replica` of `num_replicas`."""
    token = _dropout_seed.set((seed, replica, num_replicas))
    try:
        yield
    finally:
        _dropout_seed.reset(token)


def _backbone(x: Any, spec: ModelSpec) -> Any:
    x = keras.layers.ZeroPadding2D(3, name="conv1_pad")(x)
    x = _conv_bn(x, "conv1", 64, 7, spec, strides=2)
    x = keras.layers.Activation("relu", name="conv1_relu")(x)
    x = keras.layers.ZeroPadding2D(1, name="pool1_pad")(x)
    x = keras.layers.MaxPooling2D(3, strides=2, name="pool1_pool")(x)
    for stage, (filters, blocks) in BLOCKS.items():
        for block in range(1, blocks + 1):
            strides = 2 if block == 1 and stage != "conv2" else 1
            x = _bottleneck(x, f"{stage}_block{block}", filters, spec, strides=strides, project=block == 1)
    return x


def _bottleneck(x: Any, name: str, filters: int, spec: ModelSpec, *, strides: int, project: bool) -> Any:
    first, middle = (strides, 1) if spec.variant == "v1" else (1, strides)
    shortcut = _conv_bn(x, f"{name}_0", 4 * filters, 1, spec, strides=strides) if project else x
    x = _conv_bn(x, f"{name}_1", filters, 1, spec, strides=first)
    x = keras.layers.Activation("relu", name=f"{name}_1_relu")(x)
    if (
        middle > 1
    ):  # "same" would pad only right and below at stride 2; these weights were trained with both sides padded
        x = keras.layers.ZeroPadding2D(1, name=f"{name}_2_pad")(x)
    x = _conv_bn(x, f"{name}_2", filters, 3, spec, strides=middle, padding="valid" if middle > 1 else "same")
    x = keras.layers.Activation("relu", name=f"{name}_2_relu")(x)
    x = _conv_bn(x, f"{name}_3", 4 * filters, 1, spec)
    x = keras.layers.Add(name=f"{name}_add")([shortcut, x])
    return keras.layers.Activation("relu", name=f"{name}_out")(x)


def _conv_bn(
    x: Any, name: str, filters: int, kernel: int, spec: ModelSpec, *, strides: int = 1, padding: str = "valid"
) -> Any:
    x = keras.layers.Conv2D(filters, kernel, strides=strides, padding=padding, name=f"{name}_conv")(x)
    layer = SynchronizedBatchNormalization if spec.synchronized_batch_norm else keras.layers.BatchNormalization
    return layer(
        momentum=spec.batch_norm_momentum,
        epsilon=1.001e-5,  # keras.applications'
        # A block that begins as the identity trains better from random weights: Goyal et al. 2017, 5.1.
        gamma_initializer="zeros" if name.endswith("_3") else "ones",
        name=f"{name}_bn",
    )(x)


def _head(x: Any, spec: ModelSpec, num_brands: int) -> Any:
    for i, units in enumerate(spec.hidden_units, start=1):
        x = keras.layers.Dense(units, activation="relu", name=f"head_dense_{i}")(x)
    x = ExampleDropout(spec.dropout, name="head_dropout")(x)
    return keras.layers.Dense(num_brands, kernel_initializer="zeros", dtype="float32", name="logits")(x)
