"""TFLite files for phones and small devices: the network's input [1, H, W, 3] uint8 -> probabilities [1, C] float32."""

import contextlib
import os
import pathlib
import warnings

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from carbrand import quiet
from carbrand.serving import rounding
from carbrand.training import hardware
from carbrand.training.model import logits_model

FORMATS = ("float16", "int8")
_MAX_TYPICAL = 128  # photos by which weights are rounded


def write(path: pathlib.Path, model: keras.Model, temperature: float, name: str, typical: NDArray[np.uint8]) -> None:
    """Converts a model of `training.model.build_model`.

    Args:
      path: The file.
      model: In float32.
      temperature: By which logits are divided.
      name: "float16": weights at half the size; "int8": weights at a quarter, rounded by `rounding`, and activations in
        8 bits with ranges that are found for each photo. Of 164 photos of 20 brands these change the brand of 2 %, and
        of 5 % with each weight rounded by itself; ranges fixed beforehand changed 8 %, activations in 16 bits 5 %, in
        20 times the time.
      typical: Inputs of the network [N, H, W, 3].
    """
    adjusted = rounding.rounded(model, typical[:_MAX_TYPICAL]) if name == "int8" else contextlib.nullcontext()
    # From the Keras model: of a SavedModel of ours the converter silently loses the weights.
    with adjusted, quiet.output():
        converter = tf.lite.TFLiteConverter.from_keras_model(_twin(model, temperature, typical.shape[1:3]))
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if name == "float16":
            converter.target_spec.supported_types = [tf.float16]
        path.write_bytes(converter.convert())


def predict(path: pathlib.Path, images: NDArray[np.uint8]) -> NDArray[np.floating]:
    """What the file says of the network's inputs [N, H, W, 3]: probabilities [N, C]."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is to move to another package
        interpreter = tf.lite.Interpreter(str(path), num_threads=os.cpu_count())
    interpreter.allocate_tensors()
    given, result = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]
    rows = []
    for image in images:
        interpreter.set_tensor(given, image[np.newaxis])
        interpreter.invoke()
        rows.append(interpreter.get_tensor(result)[0])
    return np.stack(rows)


def _twin(model: keras.Model, temperature: float, height_width: tuple[int, int]) -> keras.Model:
    with hardware.layers_in("float32"):
        image = keras.Input((*height_width, 3), batch_size=1, dtype="uint8", name="image")
        scaled = keras.layers.Rescaling(1 / temperature)(logits_model(model)(image))
        return keras.Model(image, keras.layers.Softmax()(scaled))
