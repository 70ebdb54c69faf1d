"""The state of a run in memory: model, optimizer, loss scale, average, step; made, saved and taken up again."""

import dataclasses
import json
import logging
import pathlib
from typing import Any, NamedTuple

import keras
import tensorflow as tf

import carbrand
from carbrand.data import manifest
from carbrand.errors import CheckpointError
from carbrand.training import checkpoint, hardware, weights
from carbrand.training.averaging import WeightAverage
from carbrand.training.losses import log_priors, make_objective
from carbrand.training.model import boundary, build_model, freeze, logits_model
from carbrand.training.optimizer import build_optimizer
from carbrand.training.settings import Phase, Settings, by_gin_name, check_batch
from carbrand.training.step import LossScale, TrainStep, check_xla, make_step
from carbrand.training.workers import Workers

# A resumed run may differ in these: they are of the past, or change nothing.
_MAY_CHANGE = (
    "carbrand_version",
    "weights.path",
    "stream.threads",
    "stream.max_damaged_fraction",
    "hardware.replicas",  # "replicas" is how many there are
    "hardware.wait_for_workers_s",
)

log = logging.getLogger(__name__)


class Validation(NamedTuple):
    """What the validation split said after a step: accuracy, mean cross-entropy, and the temperature for it."""

    step: int
    accuracy: float
    loss: float
    temperature: float = 1.0


@dataclasses.dataclass
class Totals:
    """Of a run, over all its restarts: time in steps and of it waiting for input, and steps that changed nothing."""

    seconds: float = 0.0
    input_wait_s: float = 0.0
    skipped_steps: int = 0


@dataclasses.dataclass
class Trainer:
    """The state of a run in memory, and what it needs at each step.

    Attributes:
      rate_factor: Multiplies every learning rate; below 1 once a gradient was not finite, see `guards.roll_back`.
      validations: All so far.
    """

    data: pathlib.Path
    run: pathlib.Path
    manifest: manifest.Manifest
    settings: Settings
    strategy: tf.distribute.Strategy
    model: keras.Model
    optimizer: keras.optimizers.Optimizer
    loss_scale: LossScale
    average: WeightAverage
    keeping: checkpoint.Keeping
    step: int = 0
    rate_factor: float = 1.0
    validations: list[Validation] = dataclasses.field(default_factory=list)
    totals: Totals = dataclasses.field(default_factory=Totals)
    stop_signal: int | None = None

    def note_signal(self, number: int) -> None:
        """Asks for an end after what is under way."""
        self.stop_signal = number

    @property
    def workers(self) -> Workers:
        """The processes that train together."""
        return hardware.workers_of(self.strategy)

    @property
    def batch_size(self) -> int:
        """Photos per step over all replicas."""
        return self.settings.schedule.batch_size

    @property
    def is_among_best(self) -> bool:
        """Whether the state after this step was validated, and is to be kept for its loss."""
        return self.step in self.keeping.best_steps(self.validations)

    @property
    def meta(self) -> dict[str, Any]:
        """What the run is made from; see `meta_of`."""
        return meta_of(self.manifest, self.settings, self.strategy.num_replicas_in_sync)


def meta_of(dataset: manifest.Manifest, settings: Settings, replicas: int) -> dict[str, Any]:
    """What a run is made from, in JSON values; stands in every checkpoint, and a resumed run must agree."""
    meta = {
        "carbrand_version": carbrand.__version__,
        "dataset": dataset.fingerprint,
        "brands": dataset.brands,
        "resize_short_px": dataset.resize_short_px,
        "jpeg_quality": dataset.jpeg_quality,
        "replicas": replicas,
        "config": settings.groups(),
    }
    return json.loads(json.dumps(meta))


def check_same(run: pathlib.Path, theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    """Raises CheckpointError if a run that was made from `theirs` cannot go on with `ours`; see `meta_of`."""
    theirs, ours = _flat(theirs), _flat(ours)
    for name, value in ours.items():
        if name not in _MAY_CHANGE and theirs.get(name) != value:
            raise CheckpointError(
                f"{run}: the run was started with {name}={theirs.get(name)!r}, now it is {value!r}. "
                "Resume with the same data and config, or give another --run."
            )


def set_up_devices(settings: Settings) -> tf.distribute.Strategy:
    """Seeds and devices as `settings` want them, before anything is computed."""
    schedule = settings.schedule
    hardware.set_up(schedule.seed, schedule.deterministic)
    strategy = hardware.make_training_strategy(settings.hardware)
    check_batch(settings, strategy.num_replicas_in_sync)
    return strategy


def build_trainer(
    data: pathlib.Path,
    run_dir: pathlib.Path,
    dataset: manifest.Manifest,
    settings: Settings,
    strategy: tf.distribute.Strategy,
    keeping: checkpoint.Keeping | None = None,
    *,
    loads_weights: bool = True,
) -> Trainer:
    """Model, optimizer and loss scale of a run at its first step; writes nothing."""
    with strategy.scope(), hardware.layers_in(settings.hardware.precision):
        image_size_px = None if settings.schedule.image_sizes else settings.preprocess.height_width
        model = build_model(dataset.brands, settings.model, image_size_px=image_size_px)
        if loads_weights:
            weights.load(model, settings.weights.path, settings.model.variant)
            if settings.model.prior_bias:
                model.get_layer("logits").bias.assign(log_priors(dataset.splits["train"].brand_counts))
        check_xla(model, strategy, settings.hardware.xla)
        freeze(model, "none")  # so that the optimizer gets state for every stage that any phase trains
        thaws = bool(settings.schedule.head_epochs or settings.schedule.unfreeze)
        optimizer = build_optimizer(settings.optimizer, model.trainable_variables, thaws=thaws)
        loss_scale = LossScale(settings.hardware.precision)
        average = WeightAverage(settings.optimizer.ema_decay, model.trainable_variables)
    state = (strategy, model, optimizer, loss_scale, average)
    return Trainer(data, run_dir, dataset, settings, *state, keeping or checkpoint.Keeping())


def resume(trainer: Trainer, state: checkpoint.State) -> None:
    """Puts `trainer` where the run that saved `state` was.

    Raises:
      CheckpointError: That run has other data, settings or variables.
    """
    check_same(trainer.run, state.meta, trainer.meta)
    _keep_weights(trainer, state.meta["config"]["weights"]["path"])
    checkpoint.restore(trainer.model.variables, state.model, "The model's variables")
    checkpoint.restore(trainer.optimizer.variables, state.optimizer, "The optimizer's variables")
    trainer.loss_scale.scale.assign(state.extra["loss_scale"])
    trainer.loss_scale.finite_steps.assign(state.extra["finite_steps"])
    trainer.average.restore(state.average, int(state.extra.get("average_updates", 0)))
    trainer.step, trainer.rate_factor = state.meta["step"], state.meta["rate_factor"]
    trainer.validations = [Validation(*row) for row in state.meta["validations"]]
    trainer.totals = Totals(**state.meta["totals"])
    log.info("%s: going on at step %d", trainer.run, trainer.step)


def _keep_weights(trainer: Trainer, path: str | None) -> None:
    """Has the settings name the weights that the run began with, whatever is given now."""
    given = trainer.settings.weights.path
    if given != path:
        log.warning("%s: began with weights.path=%r; %r has no effect any more.", trainer.run, path, given)
        trainer.settings = dataclasses.replace(trainer.settings, weights=weights.Weights(path))


def _flat(meta: dict[str, Any]) -> dict[str, Any]:
    """The values of `meta`, those of its config by their gin names."""
    return {name: value for name, value in meta.items() if name != "config"} | by_gin_name(meta["config"])


def state_of(trainer: Trainer) -> checkpoint.State:
    """All that `resume` needs."""
    return checkpoint.State(
        model=checkpoint.arrays_of(trainer.model.variables),
        optimizer=checkpoint.arrays_of(trainer.optimizer.variables),
        extra={
            "loss_scale": trainer.loss_scale.scale.numpy(),
            "finite_steps": trainer.loss_scale.finite_steps.numpy(),
            "average_updates": trainer.average.updates.numpy(),
        },
        meta={
            **trainer.meta,
            "step": trainer.step,
            "rate_factor": trainer.rate_factor,
            "validations": [list(row) for row in trainer.validations],
            "totals": dataclasses.asdict(trainer.totals),
        },
        average=trainer.average.arrays(),
    )


def save(trainer: Trainer) -> None:
    """Writes a checkpoint of the present state, and removes those that are not to be kept; the chief does."""
    if trainer.workers.is_chief:
        checkpoint.save_latest(trainer.run, state_of(trainer), trainer.keeping)


def build_step(trainer: Trainer, phase: Phase) -> tuple[keras.Model, TrainStep]:
    """The phase's network, from images or stored features to logits, and the compiled step that trains it."""
    freeze(trainer.model, phase.freeze_until)
    with trainer.strategy.scope():
        inputs = boundary(trainer.model, phase.freeze_until) if phase.is_cached else None
        network = logits_model(trainer.model, inputs)
    train_step = make_step(
        network,
        trainer.optimizer,
        trainer.loss_scale,
        trainer.strategy,
        spec=trainer.settings.optimizer,
        seed=trainer.settings.schedule.seed,
        xla=trainer.settings.hardware.xla,
        accumulate=trainer.settings.schedule.accumulate,
        objective=make_objective(trainer.settings.loss, trainer.manifest.splits["train"].brand_counts),
        average=trainer.average,
    )
    return network, train_step
