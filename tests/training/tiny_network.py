"""A network that trains in no time, with the layers' names by which ResNet-50 is frozen, cut and slowed in stages."""

import keras

from carbrand.training.batch_norm import SynchronizedBatchNormalization
from carbrand.training.model import BLOCKS, ExampleDropout, freeze


def build_model(brands, spec, *, image_size_px=None):
    """What `model.build_model` returns for a network of one small convolution in each stage."""
    image = keras.Input((*(image_size_px or (None, None)), 3), name="image")
    x = keras.layers.Rescaling(1 / 64, name="normalization")(image)
    x = keras.layers.Conv2D(4, 3, strides=2, name="conv1_conv")(x)
    x = keras.layers.MaxPooling2D(2, name="pool1_pool")(x)
    for stage, (_, blocks) in BLOCKS.items():
        name = f"{stage}_block{blocks}"
        x = keras.layers.Conv2D(4, 3, padding="same", name=f"{name}_conv")(x)
        x = SynchronizedBatchNormalization(momentum=spec.batch_norm_momentum, name=f"{name}_bn")(x)
        x = keras.layers.Activation("relu", name=f"{name}_out")(x)
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    x = ExampleDropout(spec.dropout, name="head_dropout")(x)
    x = keras.layers.Dense(len(brands), dtype="float32", name="logits")(x)
    model = keras.Model(image, keras.layers.Softmax(dtype="float32", name="probabilities")(x), name="carbrand")
    freeze(model, spec.freeze_until)
    return model
