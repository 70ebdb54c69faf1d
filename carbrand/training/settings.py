"""What a run computes: its settings, by the names that gin gives them, and the phases that follow from them."""

import dataclasses
import math
from typing import Any

from carbrand import checks
from carbrand.data.augment import Augment
from carbrand.data.pipeline import Stream
from carbrand.data.preprocess import Preprocess
from carbrand.errors import ConfigError
from carbrand.training.hardware import Hardware
from carbrand.training.model import ModelSpec
from carbrand.training.optimizer import OptimizerSpec
from carbrand.training.weights import Weights


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The arguments of `train.run` that decide what is computed; see there."""

    epochs: float
    head_epochs: float
    batch_size: int
    seed: int
    deterministic: bool
    image_sizes: tuple[tuple[float, int], ...] = ()

    def __post_init__(self) -> None:
        checks.number("train.run.epochs", self.epochs, at_least=0)
        checks.number("train.run.head_epochs", self.head_epochs, at_least=0)
        checks.number("train.run.batch_size", self.batch_size, at_least=1, whole=True)
        checks.number("train.run.seed", self.seed, at_least=0, below=2**32, whole=True)
        checks.boolean("train.run.deterministic", self.deterministic)
        if self.epochs + self.head_epochs == 0:
            raise ConfigError("train.run.epochs=0 and train.run.head_epochs=0: nothing to train. Raise one of them.")
        _check_image_sizes(self.image_sizes)


def _check_image_sizes(sizes: Any) -> None:
    wrong = ConfigError(
        f"train.run.image_sizes={sizes!r}: give (epoch, side in pixels) pairs, the epochs ascending from 0, "
        "for example ((0, 128), (6, 192))."
    )
    if not isinstance(sizes, tuple | list) or not all(
        isinstance(pair, tuple | list) and len(pair) == 2 for pair in sizes
    ):
        raise wrong
    epochs = [epoch for epoch, _ in sizes]
    if epochs and (epochs[0] != 0 or epochs != sorted(set(epochs))):
        raise wrong
    for _, size_px in sizes:
        Preprocess(image_size_px=size_px)


@dataclasses.dataclass(frozen=True)
class Settings:
    """Everything that decides what a run computes, besides the data."""

    model: ModelSpec
    weights: Weights
    preprocess: Preprocess
    augment: Augment
    stream: Stream
    optimizer: OptimizerSpec
    hardware: Hardware
    schedule: Schedule

    def __post_init__(self) -> None:
        freezes = self.model.freeze_until != "none" or self.schedule.head_epochs > 0
        if freezes and self.weights.path is None:
            raise ConfigError(
                "weights.path=None: frozen stages would keep random weights. Set weights.path to 'imagenet', a file, a "
                "run or an export; or to 'random' if that is what you want."
            )

    def groups(self) -> dict[str, dict[str, Any]]:
        """The values as gin addresses them: group -> name -> value."""
        groups = {field.name: dataclasses.asdict(getattr(self, field.name)) for field in dataclasses.fields(self)}
        groups["train.run"] = groups.pop("schedule")
        return groups


@dataclasses.dataclass(frozen=True)
class Phase:
    """A part of the run with one set of trainable stages.

    Attributes:
      name: "head" or "main".
      freeze_until: As in `ModelSpec`.
      start: First step, over the whole run.
      stop: Step at which the phase has ended.
      peak_rate: Learning rate after the warm-up.
      warmup_steps: Length of the linear warm-up.
      is_cached: The frozen layers' outputs are computed once and reused, as nothing before them varies.
    """

    name: str
    freeze_until: str
    start: int
    stop: int
    peak_rate: float
    warmup_steps: float
    is_cached: bool


def plan(num_examples: int, settings: Settings) -> list[Phase]:
    """The phases of a run over `num_examples` training photos, one after the other."""
    schedule, optimizer = settings.schedule, settings.optimizer
    steps_per_epoch = num_examples / schedule.batch_size
    head_stop = math.ceil(schedule.head_epochs * steps_per_epoch)
    stop = head_stop + math.ceil(schedule.epochs * steps_per_epoch)
    warmup_steps = optimizer.warmup_epochs * steps_per_epoch
    freeze_until = settings.model.freeze_until
    is_cached = freeze_until != "none" and not settings.augment.enabled
    return [
        Phase("head", "conv5", 0, head_stop, optimizer.head_learning_rate, 0.0, is_cached=True),
        Phase("main", freeze_until, head_stop, stop, optimizer.learning_rate, warmup_steps, is_cached=is_cached),
    ]


def image_sizes(phase: Phase, settings: Settings, steps_per_epoch: float) -> list[tuple[int, Preprocess]]:
    """How large the training images of a phase are: (step before which it ends, preprocess) of each part, in order."""
    sizes = settings.schedule.image_sizes if phase.name == "main" and not phase.is_cached else ()
    starts = [min(phase.start + math.ceil(epoch * steps_per_epoch), phase.stop) for epoch, _ in sizes]
    parts = [dataclasses.replace(settings.preprocess, image_size_px=size_px) for _, size_px in sizes]
    return list(zip([*starts[1:], phase.stop], parts or [settings.preprocess], strict=True))


@dataclasses.dataclass(frozen=True)
class Inputs:
    """How training reads its photos at a step; the attributes are arguments of `data.preview.run`."""

    step: int
    batch_size: int
    seed: int
    preprocess: Preprocess
    augment: Augment
    stream: Stream
    note: str


def inputs_at(step: int | None, num_examples: int, settings: Settings) -> Inputs:
    """How a run over `num_examples` photos reads them at `step`, by default the first one of its last phase.

    Raises:
      ConfigError: The run ends before that step.
    """
    schedule = settings.schedule
    phases = [phase for phase in plan(num_examples, settings) if phase.start < phase.stop]
    step = phases[-1].start if step is None else step
    checks.number("step", step, at_least=0, below=phases[-1].stop, whole=True)
    phase = next(phase for phase in phases if step < phase.stop)
    sizes = image_sizes(phase, settings, num_examples / schedule.batch_size)
    preprocess = next(preprocess for stop, preprocess in sizes if step < stop)
    source = "preprocess.image_size_px" if preprocess is settings.preprocess else "train.run.image_sizes"
    augment, stream = settings.augment, settings.stream
    if phase.is_cached:  # features.make_dataset knows neither variation nor blocks
        augment, stream = dataclasses.replace(augment, enabled=False), dataclasses.replace(stream, shuffle_mib=0)
    note = f"size by {source}, {phase.name} phase"
    return Inputs(step, schedule.batch_size, schedule.seed, preprocess, augment, stream, note)


def validation_steps(phase: Phase, steps_per_epoch: float) -> set[int]:
    """The steps after which to validate: at the end of each epoch of the phase, and of the phase."""
    epochs = range(1, math.floor((phase.stop - phase.start) / steps_per_epoch) + 1)
    return {phase.start + math.ceil(epoch * steps_per_epoch) for epoch in epochs} | {phase.stop}
