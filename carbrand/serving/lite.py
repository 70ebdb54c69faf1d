"""TFLite files for phones and small devices: the network's input [1, H, W, 3] uint8 -> probabilities [1, C] float32."""

import os
import pathlib
import warnings

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from carbrand import quiet
from carbrand.training import hardware
from carbrand.training.model import logits_model

FORMATS = ("float16", "int8")


def write(path: pathlib.Path, model: keras.Model, temperature: float, name: str, height_width: tuple[int, int]) -> None:
    """Converts a model of `training.model.build_model`.

    Args:
      path: The file.
      model: In float32.
      temperature: By which logits are divided.
      name: "float16": weights at half the size; "int8": weights at a quarter, and activations in 8 bits with ranges
        that are found for each photo. Ranges fixed beforehand by validation photos changed the brand of 8 % of 164
        photos of 20 brands, these 5 %, and activations in 16 bits as many, in 20 times the time.
      height_width: Of the input, in pixels.
    """
    # From the Keras model: of a SavedModel of ours the converter silently loses the weights.
    converter = tf.lite.TFLiteConverter.from_keras_model(_twin(model, temperature, height_width))
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if name == "float16":
        converter.target_spec.supported_types = [tf.float16]
    with quiet.output():
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
