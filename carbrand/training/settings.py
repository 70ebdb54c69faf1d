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
from carbrand.training.losses import Loss
from carbrand.training.model import STAGES, ModelSpec
from carbrand.training.optimizer import OptimizerSpec, peak_rates
from carbrand.training.weights import Weights

HEAD_SOLVERS = ("sgd", "lbfgs")


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The arguments of `train.run` that decide what is computed; see there."""

    epochs: float
    head_epochs: float
    batch_size: int
    seed: int
    deterministic: bool
    image_sizes: tuple[tuple[float, int], ...] = ()
    accumulate: int = 1
    head_solver: str = "sgd"
    unfreeze: tuple[tuple[str, float], ...] = ()
    patience: int = 0

    def __post_init__(self) -> None:
        checks.number("train.run.epochs", self.epochs, at_least=0)
        checks.number("train.run.head_epochs", self.head_epochs, at_least=0)
        checks.number("train.run.batch_size", self.batch_size, at_least=1, whole=True)
        checks.number("train.run.accumulate", self.accumulate, at_least=1, whole=True)
        checks.number("train.run.seed", self.seed, at_least=0, below=2**32, whole=True)
        checks.choice("train.run.head_solver", self.head_solver, HEAD_SOLVERS)
        checks.boolean("train.run.deterministic", self.deterministic)
        checks.number("train.run.patience", self.patience, at_least=0, whole=True)
        if self.epochs + self.head_epochs == 0:
            raise ConfigError("train.run.epochs=0 and train.run.head_epochs=0: nothing to train. Raise one of them.")
        _check_image_sizes(self.image_sizes)
        _check_unfreeze(self.unfreeze, self.epochs)


def _check_image_sizes(sizes: Any) -> None:
    wrong = ConfigError(
        f"train.run.image_sizes={sizes!r}: give (epoch, side in pixels) pairs, the epochs ascending from 0, "
        "for example ((0, 128), (6, 192))."
    )
    if not _are_pairs(sizes):
        raise wrong
    epochs = [epoch for epoch, _ in sizes]
    for epoch in epochs:
        checks.number("train.run.image_sizes", epoch, at_least=0)
    if epochs and (epochs[0] != 0 or epochs != sorted(set(epochs))):
        raise wrong
    for _, size_px in sizes:
        Preprocess(image_size_px=size_px)


def _check_unfreeze(parts: Any, epochs: float) -> None:
    wrong = ConfigError(
        f"train.run.unfreeze={parts!r}: give (stage, epoch) pairs, each stage below the one before and the epochs "
        f"ascending between 0 and train.run.epochs={epochs!r}, for example (('conv4', 2), ('conv3', 5))."
    )
    if not _are_pairs(parts):
        raise wrong
    for stage, epoch in parts:
        checks.choice("train.run.unfreeze", stage, STAGES[1:])
        checks.number("train.run.unfreeze", epoch, above=0)
    depths, ends = [STAGES.index(stage) for stage, _ in parts], [epoch for _, epoch in parts]
    if depths != sorted(set(depths), reverse=True) or ends != sorted(set(ends)) or not all(e < epochs for e in ends):
        raise wrong


def _are_pairs(values: Any) -> bool:
    return isinstance(values, tuple | list) and all(isinstance(x, tuple | list) and len(x) == 2 for x in values)


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
    loss: Loss = dataclasses.field(default_factory=Loss)

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            check_kind(field, getattr(self, field.name))
        freezes = self.model.freeze_until != "none" or self.schedule.head_epochs > 0
        if freezes and self.weights.path is None:
            raise ConfigError(
                "weights.path=None: frozen stages would keep random weights. Set weights.path to 'imagenet', a file, a "
                "run or an export; or to 'random' if that is what you want."
            )
        if self.model.prior_bias and not (self._has_plain_loss and self.loss.class_weights == "none"):
            raise ConfigError(
                "model.prior_bias=True: the brands' shares are where to begin only with stream.sampling = 'natural', "
                "loss.name = 'cross_entropy' and loss.class_weights = 'none'. Set these, or prior_bias to False."
            )
        if self.schedule.head_solver == "lbfgs":
            self._check_solver()
        if any(STAGES.index(stage) <= STAGES.index(self.model.freeze_until) for stage, _ in self.schedule.unfreeze):
            raise ConfigError(
                f"train.run.unfreeze={self.schedule.unfreeze!r}: model.freeze_until={self.model.freeze_until!r} is "
                "what stays frozen to the end. Name stages above it only."
            )

    @property
    def _has_plain_loss(self) -> bool:
        return self.stream.sampling == "natural" and self.loss.name == "cross_entropy"

    def _check_solver(self) -> None:
        wrong = "train.run.head_solver='lbfgs'"
        if not self.schedule.head_epochs:
            raise ConfigError(f"{wrong} with train.run.head_epochs=0: there is no such phase. Set head_epochs to 1.")
        if self.model.hidden_units:
            raise ConfigError(
                f"{wrong} with model.hidden_units={self.model.hidden_units!r}: it solves a linear head only. "
                "Set hidden_units to (), or head_solver to 'sgd'."
            )
        if not self._has_plain_loss:
            raise ConfigError(
                f"{wrong} with stream.sampling={self.stream.sampling!r} and loss.name={self.loss.name!r}: it solves "
                "'cross_entropy' on 'natural' photos. Set these (class_weights are heeded), or head_solver to 'sgd'."
            )

    def groups(self) -> dict[str, dict[str, Any]]:
        """The values as gin addresses them: group -> name -> value."""
        groups = {field.name: dataclasses.asdict(getattr(self, field.name)) for field in dataclasses.fields(self)}
        groups["train.run"] = groups.pop("schedule")
        return groups


def check_kind(field: dataclasses.Field, value: Any) -> None:
    """Raises ConfigError unless `value` is of the class that `field` of `Settings` has."""
    assert isinstance(field.type, type)
    if not isinstance(value, field.type):
        raise ConfigError(
            f"train.run.{field.name}={value!r}: is no {field.type.__name__}. Leave it out, and bind {field.name}'s own "
            f"values, for example {field.name}.{dataclasses.fields(field.type)[0].name}."
        )


def by_gin_name(groups: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The values of `Settings.groups` by the names that gin addresses them by, as "optimizer.learning_rate"."""
    return {f"{group}.{name}": value for group, values in groups.items() for name, value in values.items()}


def check_batch(settings: Settings, replicas: int) -> None:
    """Raises ConfigError unless all micro-batches of all replicas get as many photos; an even number to mix."""
    schedule, mixes = settings.schedule, settings.augment.mixes_photos
    multiple = replicas * schedule.accumulate * (2 if mixes else 1)
    if schedule.batch_size % multiple:
        parts = [f"{replicas} replicas", f"train.run.accumulate={schedule.accumulate} micro-batches of each"]
        among = " and ".join(parts[: 1 + (schedule.accumulate > 1)]) + (" in pairs to be mixed" if mixes else "")
        raise ConfigError(
            f"train.run.batch_size={schedule.batch_size} does not divide among {among}. "
            f"Use a multiple of {multiple}, for example {-(-schedule.batch_size // multiple) * multiple}."
        )


def check_unfreeze(settings: Settings, num_examples: int) -> None:
    """Raises ConfigError if the last stage would thaw where a training on so many photos has ended already."""
    unfreeze, last = settings.schedule.unfreeze, plan(num_examples, settings)[-1]
    if unfreeze and last.start == last.stop:
        raise ConfigError(
            f"train.run.unfreeze={unfreeze!r}: {unfreeze[-1][0]} would thaw at step {last.start}, at which training "
            "ends. Let it thaw earlier, or train longer."
        )


@dataclasses.dataclass(frozen=True)
class Phase:
    """A part of the run with one set of trainable stages.

    Attributes:
      name: "head" or "main".
      freeze_until: As in `ModelSpec`.
      start: First step, over the whole run.
      stop: Step at which the phase has ended.
      epochs_start: Step from which its epochs count and its learning rate begins: parts of "main" share one.
      rate_stop: Step at which its learning rate has fallen to 0.
      peak_rate: Learning rate after the warm-up.
      warmup_steps: Length of the linear warm-up.
      is_cached: The frozen layers' outputs are computed once and reused, as nothing before them varies.
    """

    name: str
    freeze_until: str
    start: int
    stop: int
    epochs_start: int
    rate_stop: int
    peak_rate: float
    warmup_steps: float
    is_cached: bool


def plan(num_examples: int, settings: Settings) -> list[Phase]:
    """The phases of a run over `num_examples` training photos, one after the other."""
    schedule, optimizer = settings.schedule, settings.optimizer
    steps_per_epoch = num_examples / schedule.batch_size
    head_stop = 1 if schedule.head_solver == "lbfgs" else math.ceil(schedule.head_epochs * steps_per_epoch)
    head_rate, main_rate = peak_rates(optimizer, schedule.batch_size)
    stop = head_stop + math.ceil(schedule.epochs * steps_per_epoch)
    warmup_steps = optimizer.warmup_epochs * steps_per_epoch
    phases = [Phase("head", "conv5", 0, head_stop, 0, head_stop, head_rate, 0.0, is_cached=True)]
    for frozen, end in [*schedule.unfreeze, (settings.model.freeze_until, schedule.epochs)]:
        part = (phases[-1].stop, head_stop + math.ceil(end * steps_per_epoch))
        is_cached = frozen != "none" and not settings.augment.enabled
        phases.append(Phase("main", frozen, *part, head_stop, stop, main_rate, warmup_steps, is_cached))
    return phases


def nonempty_phases(num_examples: int, settings: Settings) -> list[Phase]:
    """Those of `plan` that have a step: without `epochs`, for example, the head's is the last."""
    return [phase for phase in plan(num_examples, settings) if phase.start < phase.stop]


def image_sizes(phase: Phase, settings: Settings, steps_per_epoch: float) -> list[tuple[int, Preprocess]]:
    """How large the training images of a phase are: (step before which it ends, preprocess) of each part, in order."""
    sizes = settings.schedule.image_sizes if phase.name == "main" and not phase.is_cached else ()
    starts = [min(phase.epochs_start + math.ceil(epoch * steps_per_epoch), phase.stop) for epoch, _ in sizes]
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
    phases = nonempty_phases(num_examples, settings)
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
    epochs = range(1, math.floor((phase.stop - phase.epochs_start) / steps_per_epoch) + 1)
    ends = {phase.epochs_start + math.ceil(epoch * steps_per_epoch) for epoch in epochs}
    return {step for step in ends if step > phase.start} | {phase.stop}
