"""What limits a training, and the one change that would help most: numbers in, one line out."""

import dataclasses
import math

from carbrand.training.model import STAGES
from carbrand.training.settings import Settings

BALANCED = 1.15  # times as fast is equally fast: measurements differ by as much
_MUCH_LARGER = 1.5  # of stored photos: from twice the area on
_MIN_SHARE = 0.2  # of the input's cost, below which a part is not worth a change
_SHUFFLE_MIB = 256  # two windows, each of more than a hundred reads of 1 MiB


@dataclasses.dataclass(frozen=True)
class Measured:
    """What a training was measured to do, and on what.

    Attributes:
      settings: It runs with.
      input: Images per second that the input delivers.
      compute: Images per second that the step takes, or the frozen layers where their outputs are stored.
      read: CPU-seconds to read an image; `decode` to decode, cut and resize it; `augment` to vary it.
      threads: That make the input.
      cores: Of the machine.
      gpus: Of the machine; 0: the CPU trains.
      has_bfloat16: The CPU computes in bfloat16 by itself.
      stored_short_px: Short side of the stored photos.
      is_cached: The outputs of frozen layers are stored.
    """

    settings: Settings
    input: float
    compute: float
    read: float
    decode: float
    augment: float
    threads: int
    cores: int
    gpus: int
    has_bfloat16: bool
    stored_short_px: float
    is_cached: bool = False


@dataclasses.dataclass(frozen=True)
class Advice:
    """The limit of a training and what to change.

    Attributes:
      limit: "input", "step" or "neither".
      ratio: How many times slower the limit is than the other.
      line: A gin line, or a command; "" if there is none.
      reason: A sentence.
    """

    limit: str
    ratio: float
    line: str
    reason: str


def advise(measured: Measured) -> Advice:
    """The advice that follows from the numbers."""
    ratio = max(measured.input, measured.compute) / min(measured.input, measured.compute)
    if ratio < BALANCED:
        return Advice("neither", ratio, "", "Input and step are about equally fast: nothing needs changing.")
    if measured.input < measured.compute:
        return Advice("input", ratio, *_faster_input(measured))
    return Advice("step", ratio, *(_faster_gpu(measured) if measured.gpus else _faster_cpu(measured)))


def _faster_input(measured: Measured) -> tuple[str, str]:
    if measured.threads < measured.cores:
        wanted = math.ceil(measured.threads * measured.compute / measured.input)
        threads = min(wanted, measured.cores)
        return f"stream.threads = {threads}", f"{measured.threads} of {measured.cores} cores make the input."
    costs = {"augment": measured.augment, "decode": measured.decode, "read": measured.read}
    remedies = {"augment": _less_augmentation, "decode": _smaller_photos, "read": _longer_reads}
    for part in sorted(costs, key=lambda name: -costs[name]):
        share = costs[part] / sum(costs.values())
        line = remedies[part](measured)
        if line and share >= _MIN_SHARE:
            return line, f"{part} is {share:.0%} of the input's CPU time."
    return "", "All cores make the input, and no setting would spare them much: more cores would help."


def _less_augmentation(measured: Measured) -> str:
    augment = measured.settings.augment
    if measured.is_cached or not augment.enabled:
        return ""
    if augment.randaugment_layers:
        # The CPU time per image at which the input would keep up, if all of the variation were these layers.
        cost = measured.read + measured.decode + measured.augment
        too_much = cost * (1 - measured.input / measured.compute)
        superfluous = math.ceil(augment.randaugment_layers * too_much / measured.augment)
        return f"augment.randaugment_layers = {max(augment.randaugment_layers - superfluous, 0)}"
    if augment.color_jitter:
        return "augment.color_jitter = 0.0"
    return "augment.erase_probability = 0.0" if augment.erase_probability else ""


def _smaller_photos(measured: Measured) -> str:
    preprocess = measured.settings.preprocess
    wanted = math.ceil(max(preprocess.height_width) / 0.875 / 32) * 32  # what 224 px are of 256, the build's default
    is_larger = measured.stored_short_px > _MUCH_LARGER * wanted
    return f"carbrand build --resize_short {wanted} …" if is_larger else ""


def _longer_reads(measured: Measured) -> str:
    stream = measured.settings.stream
    return f"stream.shuffle_mib = {_SHUFFLE_MIB}" if stream.sampling == "natural" and not stream.shuffle_mib else ""


def _faster_gpu(measured: Measured) -> tuple[str, str]:
    settings = measured.settings
    trains_batch_norm = settings.model.freeze_until != "conv5" and settings.model.synchronized_batch_norm
    replicas = settings.hardware.replicas or measured.gpus
    if not settings.hardware.xla and not measured.is_cached and not (replicas > 1 and trains_batch_norm):
        return "hardware.xla = True", "The GPU is the limit, and XLA joins many of its small operations."
    if settings.hardware.precision == "float32":
        return "hardware.precision = 'mixed_bfloat16'", "The GPU is the limit, and computes in float32."
    if settings.schedule.deterministic:
        return "train.run.deterministic = False", "The GPU is the limit, and may not use operations that do not repeat."
    return "", "The GPU is the limit, and used well: more or faster ones would help."


def _faster_cpu(measured: Measured) -> tuple[str, str]:
    settings = measured.settings
    stage = STAGES.index(settings.model.freeze_until)
    if settings.hardware.xla:
        return "hardware.xla = False", "XLA is slow on a CPU."
    if settings.hardware.precision == "mixed_float16":
        return "hardware.precision = 'float32'", "float16 is slow on a CPU."
    if settings.hardware.precision == "float32" and measured.has_bfloat16:
        return "hardware.precision = 'mixed_bfloat16'", "The CPU is the limit, and has instructions for bfloat16."
    if measured.is_cached:
        return "", "The CPU is the limit; the frozen layers see each photo only once already."
    # Stages that stay frozen longer have to lie above `freeze_until`.
    if stage < STAGES.index("conv4") and settings.weights.path is not None and not settings.schedule.unfreeze:
        return "model.freeze_until = 'conv4'", "The CPU is the limit; only the last stage would be trained."
    if stage >= STAGES.index("conv4") and settings.augment.enabled:
        return "augment.enabled = False", "The frozen layers would see each photo only once; costs some accuracy."
    (size, width), epochs = settings.preprocess.height_width, settings.schedule.epochs
    if not settings.schedule.image_sizes and size == width >= 96 and epochs >= 1:
        sizes = ((0, size // 48 * 32), (round(epochs * 0.6, 1), size))
        # Tan & Le 2021, arXiv:2104.00298, section 4: the sizes grow during the training.
        return f"train.run.image_sizes = {sizes}", "The CPU is the limit; smaller images first save time."
    return "", "The CPU is the limit: a GPU would help."
