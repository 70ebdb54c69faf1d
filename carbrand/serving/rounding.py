"""Kernels in 8 bits, rounded so that a layer's outputs change least (GPTQ: Frantar et al. 2022, arXiv:2210.17323)."""

import contextlib
from collections.abc import Iterator, Sequence

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

_LARGEST = 127  # of the codes, on both sides of zero
_DAMPING = 0.01  # of the mean diagonal, as in the paper
_BLOCK = 128  # inputs whose errors are passed on together: for speed
_BATCH = 16


@contextlib.contextmanager
def rounded(model: keras.Model, images: NDArray[np.uint8]) -> Iterator[None]:
    """Within the block, the kernels of convolutions and dense layers are those of the 8-bit file, in float32.

    TFLite's converter rounds each weight by itself, to 127 steps up to the largest of its output channel. Kernels that
    lie on these steps already pass through it unchanged: BatchNorm, which it multiplies into them, scales whole
    channels.

    Args:
      model: Of `training.model.build_model`, in float32.
      images: Typical inputs [N, H, W, 3]: which weights can make up for one another depends on them.
    """
    layers = [layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D | keras.layers.Dense)]
    kernels = [layer.kernel.numpy() for layer in layers]
    try:
        for layer, kernel, products in zip(layers, kernels, _input_products(model, layers, images), strict=True):
            matrix = round_matrix(kernel.reshape(-1, kernel.shape[-1]), products)
            layer.kernel.assign(matrix.reshape(kernel.shape))
        yield
    finally:
        for layer, kernel in zip(layers, kernels, strict=True):
            layer.kernel.assign(kernel)


def round_matrix(weights: NDArray[np.floating], products: NDArray[np.float64]) -> NDArray[np.float32]:
    """Rounds the weights of one input after another; the inputs still to come take over its error.

    Args:
      weights: [inputs, outputs].
      products: X'X of the layer's inputs X [examples, inputs], in float64.

    Returns:
      [inputs, outputs]: in each column -127 to 127 times one step; its largest weight stays as it is.
    """
    order = np.argsort(-np.diag(products), kind="stable")  # the strongest inputs first, while most can make up for them
    left = weights[order].astype(np.float64)
    largest = np.abs(left).argmax(axis=0)
    steps = np.abs(left).max(axis=0) / _LARGEST
    steps[steps == 0] = 1
    fixed = np.sign(left[largest, np.arange(left.shape[1])]) * _LARGEST
    spread = _spread(products[np.ix_(order, order)])
    result = np.empty_like(left)
    for start in range(0, len(left), _BLOCK):
        end = min(start + _BLOCK, len(left))
        errors = np.empty((end - start, left.shape[1]))
        for row in range(start, end):
            codes = np.clip(np.round(left[row] / steps), -_LARGEST, _LARGEST)
            result[row] = np.where(largest == row, fixed, codes) * steps
            errors[row - start] = (left[row] - result[row]) / spread[row, row]
            left[row + 1 : end] -= np.outer(spread[row, row + 1 : end], errors[row - start])
        left[end:] -= spread[start:end, end:].T @ errors
    return result[np.argsort(order)].astype(np.float32)


def _spread(products: NDArray[np.floating]) -> NDArray[np.floating]:
    """Upper Cholesky factor of the inverse: row i says how the inputs after i make up for an error of i."""
    damping = _DAMPING * np.diag(products).mean() or 1.0  # inputs that are zero throughout: any rounding does
    return np.linalg.cholesky(np.linalg.inv(products + damping * np.eye(len(products)))).T


def _input_products(
    model: keras.Model, layers: Sequence[keras.layers.Layer], images: NDArray[np.uint8]
) -> list[NDArray[np.float64]]:
    """X'X of the inputs of each layer on `images`: rows of X are examples, of convolutions patches."""
    inputs_of = keras.Model(model.input, [layer.input for layer in layers])

    @tf.function
    def products(batch: tf.Tensor) -> list[tf.Tensor]:
        rows = [_rows(layer, inputs) for layer, inputs in zip(layers, inputs_of(batch, training=False), strict=True)]
        return [tf.matmul(row, row, transpose_a=True) for row in rows]

    sums = [np.zeros((np.prod(layer.kernel.shape[:-1]),) * 2) for layer in layers]
    for start in range(0, len(images), _BATCH):
        for total, part in zip(sums, products(images[start : start + _BATCH]), strict=True):
            total += part.numpy()
    return sums


def _rows(layer: keras.layers.Layer, inputs: tf.Tensor) -> tf.Tensor:
    """What the kernel [inputs, outputs] is multiplied with: [examples, inputs]."""
    if isinstance(layer, keras.layers.Dense):
        return inputs
    patches = tf.image.extract_patches(
        inputs, [1, *layer.kernel_size, 1], [1, *layer.strides, 1], [1, 1, 1, 1], layer.padding.upper()
    )
    return tf.reshape(patches, [-1, patches.shape[-1]])
