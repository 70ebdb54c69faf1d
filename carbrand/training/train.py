"""The training run: head first if asked, then the stages that are not frozen; resumable at any step, bit by bit."""

import contextlib
import dataclasses
import json
import logging
import math
import os
import pathlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import gin
import keras
import numpy as np
import tensorflow as tf

import carbrand
from carbrand import config, files
from carbrand.data import manifest, pipeline
from carbrand.data.augment import Augment
from carbrand.data.preprocess import Preprocess
from carbrand.errors import CheckpointError, ConfigError, DataError, GateError
from carbrand.training import checkpoint, features, hardware, weights
from carbrand.training.hardware import Hardware
from carbrand.training.model import ModelSpec, boundary, build_model, freeze, logits_model
from carbrand.training.optimizer import OptimizerSpec, build_optimizer, learning_rate
from carbrand.training.progress import Progress
from carbrand.training.step import LossScale, cross_entropy, make_step
from carbrand.training.weights import Weights

RUN_FILE = "run.json"
CONFIG_FILE = "config.gin"
FORMAT_VERSION = 1

# A resumed run may differ in these: they are of the past, or change nothing.
_MAY_CHANGE = ("carbrand_version", "weights.path")

log = logging.getLogger(__name__)


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


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The arguments of `run` that decide what is computed."""

    epochs: float
    head_epochs: float
    batch_size: int
    seed: int
    deterministic: bool


@dataclasses.dataclass(frozen=True)
class Settings:
    """Everything that decides what a run computes, besides the data."""

    model: ModelSpec
    weights: Weights
    preprocess: Preprocess
    augment: Augment
    optimizer: OptimizerSpec
    hardware: Hardware
    schedule: Schedule

    def groups(self) -> dict[str, dict[str, Any]]:
        """The values as gin addresses them: group -> name -> value."""
        groups = {field.name: dataclasses.asdict(getattr(self, field.name)) for field in dataclasses.fields(self)}
        groups["train.run"] = groups.pop("schedule")
        return groups


@dataclasses.dataclass(frozen=True)
class RunResult:
    """What a run ended with: steps made, and the best validation accuracy and its loss."""

    steps: int
    best_accuracy: float
    best_loss: float


@dataclasses.dataclass
class Trainer:
    """The state of a run in memory, and what it needs at each step."""

    data: pathlib.Path
    run: pathlib.Path
    manifest: manifest.Manifest
    settings: Settings
    strategy: tf.distribute.Strategy
    model: keras.Model
    optimizer: keras.optimizers.Optimizer
    loss_scale: LossScale
    checkpoint_every_s: float
    step: int = 0
    best: tuple[float, float] = (-1.0, math.inf)  # accuracy, loss
    stop_signal: int | None = None

    @property
    def batch_size(self) -> int:
        """Photos per step over all replicas."""
        return self.settings.schedule.batch_size

    @property
    def meta(self) -> dict[str, Any]:
        """What the run is made from, in JSON values; stands in every checkpoint, and a resumed run must agree."""
        meta = {
            "carbrand_version": carbrand.__version__,
            "dataset": self.manifest.fingerprint,
            "brands": self.manifest.brands,
            "resize_short_px": self.manifest.resize_short_px,
            "jpeg_quality": self.manifest.jpeg_quality,
            "replicas": self.strategy.num_replicas_in_sync,
            "config": self.settings.groups(),
        }
        return json.loads(json.dumps(meta))


@gin.configurable("run", module="train")
def run(
    data: str | os.PathLike[str],
    run_dir: str | os.PathLike[str],
    *,
    epochs: float = 10.0,
    head_epochs: float = 0.0,
    batch_size: int = 32,
    seed: int = 0,
    deterministic: bool = True,
    checkpoint_every_s: float = 60.0,
    model: ModelSpec | None = None,
    weights: Weights | None = None,
    preprocess: Preprocess | None = None,
    augment: Augment | None = None,
    optimizer: OptimizerSpec | None = None,
    hardware: Hardware | None = None,
) -> RunResult:
    """Trains on the records in `data`, or goes on where the run in `run_dir` stopped.

    Args:
      data: A records folder.
      run_dir: Gets checkpoints, `config.gin`, `metrics.jsonl`, TensorBoard files and, at the end, `run.json`.
      epochs: Passes over the training photos with all stages but `model.freeze_until` trained; may be a fraction.
      head_epochs: Passes before that with the whole backbone frozen, on features that are computed once.
      batch_size: Photos per step over all replicas.
      seed: Of initial weights, order, augmentation and dropout.
      deterministic: Use only operations that repeat bit by bit: an interrupted run ends with the weights of an
        uninterrupted one. Costs some speed on GPUs.
      checkpoint_every_s: Seconds between two checkpoints.
      model: Variant, frozen stages and head. This and the following: by default from their own gin bindings.
      weights: Pretrained weights.
      preprocess: Image size, and the part of a photo that is looked at.
      augment: How training photos are varied.
      optimizer: Optimizer and learning rates.
      hardware: Devices and precision.

    Raises:
      ConfigError: Settings that cannot work.
      DataError: `data` is no complete records folder, or has an empty split.
      WeightsError: The pretrained weights are missing or do not fit.
      CheckpointError: `run_dir` holds a run with other data or settings.
      GateError: The gradient is not finite.
      SystemExit: SIGTERM (143) or SIGINT (130) came; the state is saved.
    """
    settings = Settings(
        model=model or ModelSpec(),
        weights=weights or Weights(),
        preprocess=preprocess or Preprocess(),
        augment=augment or Augment(),
        optimizer=optimizer or OptimizerSpec(),
        hardware=hardware or Hardware(),
        schedule=Schedule(epochs, head_epochs, batch_size, seed, deterministic),
    )
    trainer = _set_up(pathlib.Path(data), pathlib.Path(run_dir), settings, checkpoint_every_s)
    files.write_text(trainer.run / CONFIG_FILE, config.as_gin(settings.groups()))
    with _saving_on_signals(trainer):
        for phase in plan(trainer.manifest.splits["train"].num_examples, settings):
            if trainer.step < phase.stop:
                _train_phase(trainer, phase)
    result = RunResult(trainer.step, *trainer.best)
    description = {"format_version": FORMAT_VERSION, **dataclasses.asdict(result), **trainer.meta}
    files.write_json(trainer.run / RUN_FILE, description)
    return result


def plan(num_examples: int, settings: Settings) -> list[Phase]:
    """The phases of a run over `num_examples` training photos, one after the other.

    Raises:
      ConfigError: There is nothing to train.
    """
    schedule, optimizer = settings.schedule, settings.optimizer
    if schedule.epochs < 0 or schedule.head_epochs < 0 or schedule.epochs + schedule.head_epochs == 0:
        raise ConfigError(
            f"train.run.epochs={schedule.epochs!r}, train.run.head_epochs={schedule.head_epochs!r}: nothing to train. "
            "Make one of them positive."
        )
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


def _set_up(data: pathlib.Path, run_dir: pathlib.Path, settings: Settings, checkpoint_every_s: float) -> Trainer:
    dataset = _check_data(data)
    schedule, optimizer_spec = settings.schedule, settings.optimizer
    hardware.set_up(schedule.seed, schedule.deterministic)
    strategy = hardware.make_strategy(settings.hardware)
    _check_batch(schedule.batch_size, strategy.num_replicas_in_sync)
    keras.config.set_dtype_policy(settings.hardware.precision)
    state = checkpoint.load_latest(run_dir)
    with strategy.scope():
        model = build_model(dataset.brands, settings.model, image_size_px=settings.preprocess.height_width)
        if state is None:
            weights.load(model, settings.weights.path, settings.model.variant)
        freeze(model, "none")  # so that the optimizer gets state for every stage that any phase trains
        optimizer = build_optimizer(optimizer_spec, model.trainable_variables)
        loss_scale = LossScale(settings.hardware.precision)
    trainer = Trainer(data, run_dir, dataset, settings, strategy, model, optimizer, loss_scale, checkpoint_every_s)
    if state is not None:
        _resume(trainer, state)
    run_dir.mkdir(parents=True, exist_ok=True)
    return trainer


def _check_data(data: pathlib.Path) -> manifest.Manifest:
    dataset = manifest.load(data)
    for split in ("train", "validation"):
        if split not in dataset.splits or not dataset.splits[split].num_examples:
            raise DataError(f"{data}: the {split} split is empty. Build with more photos, or another --split.")
    return dataset


def _check_batch(batch_size: int, replicas: int) -> None:
    if batch_size < 1 or batch_size % replicas:
        raise ConfigError(
            f"train.run.batch_size={batch_size} does not divide among {replicas} replicas. "
            f"Use a multiple of {replicas}, for example {max(1, -(-batch_size // replicas)) * replicas}."
        )


def _resume(trainer: Trainer, state: checkpoint.State) -> None:
    theirs, ours = _flat(state.meta), _flat(trainer.meta)
    for name, value in ours.items():
        if name not in _MAY_CHANGE and theirs.get(name) != value:
            raise CheckpointError(
                f"{trainer.run}: the run was started with {name}={theirs.get(name)!r}, now it is {value!r}. "
                "Resume with the same data and config, or give another --run."
            )
    checkpoint.restore(trainer.model.variables, state.model, "The model's variables")
    checkpoint.restore(trainer.optimizer.variables, state.optimizer, "The optimizer's variables")
    trainer.loss_scale.scale.assign(state.extra["loss_scale"])
    trainer.loss_scale.finite_steps.assign(state.extra["finite_steps"])
    trainer.step, trainer.best = state.meta["step"], tuple(state.meta["best"])
    log.info("%s: going on at step %d", trainer.run, trainer.step)


def _flat(meta: dict[str, Any]) -> dict[str, Any]:
    """The values of `meta`, those of its config by their gin names."""
    config_values = {f"{group}.{name}": v for group, values in meta["config"].items() for name, v in values.items()}
    return {name: value for name, value in meta.items() if name != "config"} | config_values


def _state(trainer: Trainer, *, with_optimizer: bool = True) -> checkpoint.State:
    return checkpoint.State(
        model=checkpoint.arrays_of(trainer.model.variables),
        optimizer=checkpoint.arrays_of(trainer.optimizer.variables) if with_optimizer else {},
        extra={
            "loss_scale": trainer.loss_scale.scale.numpy(),
            "finite_steps": trainer.loss_scale.finite_steps.numpy(),
        },
        meta={**trainer.meta, "step": trainer.step, "best": list(trainer.best)},
    )


def _train_phase(trainer: Trainer, phase: Phase) -> None:
    freeze(trainer.model, phase.freeze_until)
    with trainer.strategy.scope():
        inputs = boundary(trainer.model, phase.freeze_until) if phase.is_cached else None
        network = logits_model(trainer.model, inputs)
    make_batches = _source(trainer, phase)
    train_step = make_step(
        network,
        trainer.optimizer,
        trainer.loss_scale,
        trainer.strategy,
        spec=trainer.settings.optimizer,
        seed=trainer.settings.schedule.seed,
        xla=trainer.settings.hardware.xla,
    )
    forward = features.make_forward(network, trainer.strategy)
    batches = iter(
        trainer.strategy.experimental_distribute_dataset(
            make_batches("train", is_training=True, start_step=trainer.step, num_steps=phase.stop)
        )
    )
    validation_steps = _validation_steps(phase, trainer.manifest.splits["train"].num_examples / trainer.batch_size)
    saved_at = time.monotonic()
    with Progress(
        trainer.run, start_step=trainer.step, num_steps=phase.stop, batch_size=trainer.batch_size
    ) as progress:
        while trainer.step < phase.stop:
            rate = learning_rate(
                phase.peak_rate, trainer.step - phase.start, phase.stop - phase.start, phase.warmup_steps
            )
            trainer.optimizer.learning_rate.assign(rate)
            asked_at = time.monotonic()
            batch = next(batches)
            input_wait_s = time.monotonic() - asked_at
            progress.add(train_step(batch, tf.constant(trainer.step, tf.int64)), input_wait_s)
            trainer.step += 1
            validates = trainer.step in validation_steps
            saves = _is_time_to_save(trainer, phase, saved_at)
            if validates or saves or progress.is_due:
                row = progress.log_steps(trainer.step, phase=phase.name, learning_rate=rate)
                _check_finite(trainer, row)
            if validates:
                _validate(trainer, forward, make_batches, progress, phase)
            if saves:
                checkpoint.save_latest(trainer.run, _state(trainer))
                saved_at = time.monotonic()
            if trainer.stop_signal is not None:
                log.warning("Stopped by signal %d at step %d; the state is saved.", trainer.stop_signal, trainer.step)
                raise SystemExit(128 + trainer.stop_signal)


def _is_time_to_save(trainer: Trainer, phase: Phase, saved_at: float) -> bool:
    is_last = trainer.step == phase.stop or trainer.stop_signal is not None
    return is_last or time.monotonic() - saved_at >= trainer.checkpoint_every_s


def _source(trainer: Trainer, phase: Phase) -> Callable[..., tf.data.Dataset]:
    """A function (split, is_training=…) -> batches for the phase's network: images, or features of frozen layers."""
    seed = trainer.settings.schedule.seed
    if not phase.is_cached:

        def images(split: str, **place: Any) -> tf.data.Dataset:
            return pipeline.make_dataset(
                trainer.data,
                split,
                batch_size=trainer.batch_size,
                preprocess=trainer.settings.preprocess,
                augment=trainer.settings.augment,
                seed=seed,
                pad_last=True,
                **place,
            )

        return images

    stored = {split: _frozen_features(trainer, phase, split) for split in ("train", "validation")}

    def frozen(split: str, **place: Any) -> tf.data.Dataset:
        return features.make_dataset(*stored[split], batch_size=trainer.batch_size, seed=seed, **place)

    return frozen


def _frozen_features(trainer: Trainer, phase: Phase, split: str) -> tuple[np.ndarray, np.ndarray]:
    with trainer.strategy.scope():
        prefix = keras.Model(trainer.model.input, boundary(trainer.model, phase.freeze_until))
    dataset = pipeline.make_dataset(
        trainer.data,
        split,
        batch_size=trainer.batch_size,
        is_training=False,
        preprocess=trainer.settings.preprocess,
        pad_last=True,
    )
    labels = manifest.load_index(trainer.data, split)["label"]
    inputs = {name: trainer.meta["config"][name] for name in ("model", "preprocess", "hardware")}
    array = features.compute(
        prefix,
        dataset,
        len(labels),
        trainer.strategy,
        folder=trainer.run / "features",
        key={"split": split, "dataset": trainer.manifest.fingerprint, "phase": phase.name, **inputs},
        title=f"{split} features of frozen {phase.freeze_until}",
    )
    return array, labels


def _validation_steps(phase: Phase, steps_per_epoch: float) -> set[int]:
    """The steps after which to validate: at the end of each epoch of the phase, and of the phase."""
    epochs = range(1, math.floor((phase.stop - phase.start) / steps_per_epoch) + 1)
    return {phase.start + math.ceil(epoch * steps_per_epoch) for epoch in epochs} | {phase.stop}


def _validate(
    trainer: Trainer,
    forward: features.Forward,
    make_batches: Callable[..., tf.data.Dataset],
    progress: Progress,
    phase: Phase,
) -> None:
    labels = manifest.load_index(trainer.data, "validation")["label"]
    logits = np.concatenate(
        list(features.outputs(forward, make_batches("validation", is_training=False), len(labels), trainer.strategy))
    )
    accuracy = float((logits.argmax(-1) == labels).mean())
    loss = float(tf.reduce_mean(cross_entropy(labels, logits)))
    progress.log_validation(trainer.step, phase=phase.name, accuracy=accuracy, loss=loss)
    if (accuracy, -loss) > (trainer.best[0], -trainer.best[1]):
        trainer.best = (accuracy, loss)
        checkpoint.save(trainer.run / checkpoint.FOLDER / checkpoint.BEST, _state(trainer, with_optimizer=False))


def _check_finite(trainer: Trainer, row: dict[str, Any]) -> None:
    if row["skipped"] and not trainer.loss_scale.is_dynamic:
        raise GateError(
            f"{trainer.run}: the gradient is not finite at or before step {row['step']} "
            f"(learning rate {row['learning_rate']:.3g}); the weights did not change. Lower optimizer.learning_rate."
        )


@contextlib.contextmanager
def _saving_on_signals(trainer: Trainer) -> Iterator[None]:
    """Within the block, SIGTERM and SIGINT let the step end and its state be saved."""
    if threading.current_thread() is not threading.main_thread():  # Python allows handlers there only
        yield
        return

    def note(number: int, _: Any) -> None:
        trainer.stop_signal = number

    previous = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
