"""About how much memory and disk a training takes: arithmetic on ResNet-50's table of layers, no model is built."""

import dataclasses
import itertools
import math
from collections.abc import Iterator

from carbrand.training.model import BLOCKS, STAGES, ModelSpec
from carbrand.training.optimizer import OptimizerSpec

# Bytes kept for the backward pass for each element of a trained convolution's output: that output, its BatchNorm's and
# its ReLU's, in part in float32 in mixed precision too. Measured on a CPU as the peak resident memory of training steps
# (128 and 224 px, batches of 8 and 16): 12.5 to 14 in float32, 9 in bfloat16; float16 is taken to be alike.
_KEPT_BYTES = {"float32": 13.0, "mixed_float16": 9.0, "mixed_bfloat16": 9.0}
# How many of its largest outputs are alive at once in a frozen network, which keeps none. Measured in the same way.
_FROZEN_COPIES = 5
_SLOTS = {"sgd": 1, "adamw": 2, "lamb": 2}  # momentum; first and second moments
_FLOAT_BYTES = 4  # variables, gradients and slots are float32 in every precision


@dataclasses.dataclass(frozen=True)
class Convolution:
    """One convolution with its BatchNorm.

    Attributes:
      stage: "conv1" … "conv5".
      parameters: Trainable ones: kernel, bias, and BatchNorm's scale and offset.
      statistics: BatchNorm's moving mean and variance.
      outputs: Elements of its output for one image.
    """

    stage: str
    parameters: int
    statistics: int
    outputs: int


def convolutions(spec: ModelSpec, height_width: tuple[int, int]) -> Iterator[Convolution]:
    """Those of the backbone for images of so many pixels, from the first to the last."""

    def one(stage: str, kernel: int, channels: int, filters: int) -> Convolution:
        parameters = kernel * kernel * channels * filters + 3 * filters
        return Convolution(stage, parameters, 2 * filters, size[0] * size[1] * filters)

    size = _halved(height_width)
    yield one("conv1", 7, 3, 64)
    size, channels = _halved(size), 64
    for stage, (filters, blocks) in BLOCKS.items():
        for block in range(blocks):
            before = size
            if block == 0 and stage != "conv2":
                size = _halved(size)
            if block == 0:
                yield one(stage, 1, channels, 4 * filters)
            after, size = size, size if spec.variant == "v1" else before
            yield one(stage, 1, channels, filters)  # v1.5 has its stride on the next one
            size = after
            yield one(stage, 3, filters, filters)
            yield one(stage, 1, filters, 4 * filters)
            channels = 4 * filters


def head_parameters(spec: ModelSpec, num_brands: int) -> int:
    """Weights and biases of the dense layers."""
    widths = [4 * BLOCKS["conv5"][0], *spec.hidden_units, num_brands]
    return sum((before + 1) * after for before, after in itertools.pairwise(widths))


def state_bytes(spec: ModelSpec, optimizer: OptimizerSpec, num_brands: int) -> int:
    """Of a checkpoint, and of the variables of one replica: parameters, their slots and averages, statistics."""
    layers = list(convolutions(spec, (32, 32)))
    parameters = sum(layer.parameters for layer in layers) + head_parameters(spec, num_brands)
    statistics = sum(layer.statistics for layer in layers)
    copies = 1 + _SLOTS[optimizer.name] + (optimizer.ema_decay > 0)
    return _FLOAT_BYTES * (parameters * copies + statistics)


def replica_bytes(
    spec: ModelSpec,
    optimizer: OptimizerSpec,
    *,
    num_brands: int,
    height_width: tuple[int, int],
    batch: float,
    precision: str,
    freeze_until: str,
) -> float:
    """About what one replica takes in training: state, gradients and activations for `batch` images."""
    frozen_stages = STAGES[1 : STAGES.index(freeze_until) + 1]
    layers = list(convolutions(spec, height_width))
    trained = [layer for layer in layers if layer.stage not in frozen_stages]
    gradients = _FLOAT_BYTES * (sum(layer.parameters for layer in trained) + head_parameters(spec, num_brands))
    kept = _KEPT_BYTES[precision] * sum(layer.outputs for layer in trained)
    passing = max((layer.outputs for layer in layers if layer.stage in frozen_stages), default=0)
    activations = batch * max(kept, _FROZEN_COPIES * _FLOAT_BYTES * passing)
    return state_bytes(spec, optimizer, num_brands) + gradients + activations


def feature_bytes(spec: ModelSpec, height_width: tuple[int, int], freeze_until: str) -> int:
    """Of the stored features of one photo, when stages up to `freeze_until` are frozen."""
    if freeze_until == "conv5":  # pooled
        return _FLOAT_BYTES * 4 * BLOCKS["conv5"][0]
    if freeze_until == "conv1":  # pooled, too
        return _FLOAT_BYTES * 64 * math.prod(_halved(_halved(height_width)))
    return (
        _FLOAT_BYTES * [layer.outputs for layer in convolutions(spec, height_width) if layer.stage == freeze_until][-1]
    )


def _halved(size: tuple[int, int]) -> tuple[int, int]:
    return (size[0] + 1) // 2, (size[1] + 1) // 2
