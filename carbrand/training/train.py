"""The training run: head first if asked, then the stages that are not frozen; resumable at any step, bit by bit."""

import dataclasses
import inspect
import logging
import os
import pathlib
import time
from typing import Any

import gin
import numpy as np
import tensorflow as tf

from carbrand import config, files
from carbrand.data import manifest, pipeline, verify
from carbrand.data.augment import Augment
from carbrand.data.pipeline import Stream
from carbrand.data.preprocess import Preprocess
from carbrand.errors import ConfigError, DataError, GateError
from carbrand.training import batches, checkpoint, features, probe, signals
from carbrand.training.hardware import Hardware
from carbrand.training.losses import Loss, cross_entropy, make_objective
from carbrand.training.model import ModelSpec, boundary, logits_model
from carbrand.training.optimizer import OptimizerSpec, learning_rate
from carbrand.training.progress import Progress
from carbrand.training.settings import Phase, Schedule, Settings, plan, validation_steps
from carbrand.training.trainer import Trainer, build_step, build_trainer, resume, set_up_devices, state_of
from carbrand.training.weights import Weights

RUN_FILE = "run.json"
CONFIG_FILE = "config.gin"
FORMAT_VERSION = 1
_LOCK = ".lock"

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class RunResult:
    """What a run ended with: steps made, and accuracy and loss on the validation split."""

    steps: int
    validation_accuracy: float
    validation_loss: float


@gin.configurable("run", module="train")
def run(
    data: str | os.PathLike[str],
    run_dir: str | os.PathLike[str],
    *,
    epochs: float = 10.0,
    head_epochs: float = 0.0,
    head_solver: str = "sgd",
    batch_size: int = 32,
    accumulate: int = 1,
    seed: int = 0,
    deterministic: bool = True,
    checkpoint_every_s: float = 60.0,
    image_sizes: tuple[tuple[float, int], ...] = (),
    model: ModelSpec | None = None,
    weights: Weights | None = None,
    preprocess: Preprocess | None = None,
    augment: Augment | None = None,
    stream: Stream | None = None,
    loss: Loss | None = None,
    optimizer: OptimizerSpec | None = None,
    hardware: Hardware | None = None,
) -> RunResult:
    """Trains on the records in `data`, or goes on where the run in `run_dir` stopped.

    Args:
      data: A records folder.
      run_dir: Gets checkpoints, `config.gin`, `metrics.jsonl`, TensorBoard files and, at the end, `run.json`.
      epochs: Passes over the training photos with all stages but `model.freeze_until` trained; may be a fraction.
      head_epochs: Passes before that with the whole backbone frozen, on features that are computed once.
      head_solver: How that is done: "sgd", by the optimizer; or "lbfgs": one step to the best linear head, whose
        regularisation is chosen on the validation split, whatever the number of `head_epochs`. It knows neither
        label smoothing nor dropout.
      batch_size: Photos per step over all replicas.
      accumulate: Micro-batches that a step works through one after the other, where a whole batch does not fit into the
        memory: each has `batch_size` / `accumulate` photos, and their gradients are summed. The step is that of the
        whole batch, except that BatchNorm normalises each micro-batch by its own statistics.
      seed: Of initial weights, order, augmentation and dropout.
      deterministic: Use only operations that repeat bit by bit: an interrupted run ends with the weights of an
        uninterrupted one. Costs some speed on GPUs.
      checkpoint_every_s: Seconds between two checkpoints.
      image_sizes: The side of training images (pixels) from so many of `epochs` on, for example ((0, 128), (6, 192)):
        small images first save time. By default all have `preprocess.image_size_px`, as validation always has.
      model: Variant, frozen stages and head. This and the following: by default from their own gin bindings.
      weights: Pretrained weights.
      preprocess: Image size, and the part of a photo that is looked at.
      augment: How training photos are varied.
      stream: How training photos are drawn and read.
      loss: What is made small, and how much each brand counts.
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
        stream=stream or Stream(),
        loss=loss or Loss(),
        optimizer=optimizer or OptimizerSpec(),
        hardware=hardware or Hardware(),
        schedule=Schedule(epochs, head_epochs, batch_size, seed, deterministic, image_sizes, accumulate, head_solver),
    )
    schedule = settings.schedule
    trainer = _set_up(pathlib.Path(data), pathlib.Path(run_dir), settings, checkpoint_every_s)
    with files.locked(trainer.run / _LOCK, f"{run_dir}: another training writes here."), pipeline.data_errors():
        files.write_text(trainer.run / CONFIG_FILE, config.as_gin(settings.groups()))
        for phase in plan(trainer.manifest.splits["train"].num_examples, settings):
            if trainer.step < phase.stop:
                solves = phase.name == "head" and schedule.head_solver == "lbfgs"
                (_solve_phase if solves else _train_phase)(trainer, phase)
    result = RunResult(trainer.step, *trainer.validation)
    description = {"format_version": FORMAT_VERSION, **dataclasses.asdict(result), **trainer.meta}
    files.write_json(trainer.run / RUN_FILE, description)
    return result


def bound_settings() -> Settings:
    """What `run` would compute by gin's bindings, but from random weights: for those who only look at its inputs."""
    defaults = {name: parameter.default for name, parameter in inspect.signature(run).parameters.items()}
    values = {**defaults, **gin.get_bindings("train.run")}
    return Settings(
        model=values["model"] or ModelSpec(),
        weights=Weights(path="random"),
        preprocess=values["preprocess"] or Preprocess(),
        augment=values["augment"] or Augment(),
        stream=values["stream"] or Stream(),
        loss=values["loss"] or Loss(),
        optimizer=values["optimizer"] or OptimizerSpec(),
        hardware=values["hardware"] or Hardware(),
        schedule=Schedule(**{field.name: values[field.name] for field in dataclasses.fields(Schedule)}),
    )


def _set_up(data: pathlib.Path, run_dir: pathlib.Path, settings: Settings, checkpoint_every_s: float) -> Trainer:
    dataset = _check_data(data)
    if run_dir.exists() and not run_dir.is_dir():
        raise ConfigError(f"--run={run_dir}: is a file. Name a folder.")
    strategy = set_up_devices(settings)
    run_dir.mkdir(parents=True, exist_ok=True)
    state = checkpoint.load_latest(run_dir)
    trainer = build_trainer(data, run_dir, dataset, settings, strategy, checkpoint_every_s, loads_weights=state is None)
    if state is not None:
        resume(trainer, state)
    return trainer


def _check_data(data: pathlib.Path) -> manifest.Manifest:
    dataset = manifest.load(data)
    for split in ("train", "validation"):
        if split not in dataset.splits or not dataset.splits[split].num_examples:
            raise DataError(f"{data}: the {split} split is empty. Build with more photos, or another --split.")
    verify.check_quickly(data)
    return dataset


def _train_phase(trainer: Trainer, phase: Phase) -> None:
    network, train_step = build_step(trainer, phase)
    make_batches = batches.source(trainer, phase)
    forward = features.make_forward(network, trainer.strategy)
    steps_per_epoch = trainer.manifest.splits["train"].num_examples / trainer.batch_size
    validates_at = validation_steps(phase, steps_per_epoch)
    saved_at = time.monotonic()
    validation = make_batches("validation", is_training=False)
    with (
        Progress(trainer.run, start_step=trainer.step, num_steps=phase.stop, batch_size=trainer.batch_size) as progress,
        signals.noted(trainer.note_signal),
    ):
        training = batches.training_batches(trainer, phase, make_batches, steps_per_epoch)
        while trainer.step < phase.stop:
            rate = learning_rate(
                phase.peak_rate, trainer.step - phase.start, phase.stop - phase.start, phase.warmup_steps
            )
            trainer.optimizer.learning_rate.assign(rate)
            asked_at = time.monotonic()
            batch = next(training)
            input_wait_s = time.monotonic() - asked_at
            progress.add(train_step(batch, tf.constant(trainer.step, tf.int64)), input_wait_s)
            trainer.step += 1
            is_last = trainer.step == phase.stop
            if trainer.step in validates_at or is_last or progress.is_due:
                row = progress.log_steps(trainer.step, phase=phase.name, learning_rate=rate)
                _check_finite(trainer, row)
            if trainer.step in validates_at:
                _validate(trainer, forward, validation, progress, phase)
            stop_signal = trainer.stop_signal  # read once: it may come at any moment
            if is_last or stop_signal is not None or time.monotonic() - saved_at >= trainer.checkpoint_every_s:
                checkpoint.save_latest(trainer.run, state_of(trainer))
                saved_at = time.monotonic()
            if stop_signal is not None:
                log.warning("Stopped by signal %d at step %d; the state is saved.", stop_signal, trainer.step)
                raise SystemExit(128 + stop_signal)


def _solve_phase(trainer: Trainer, phase: Phase) -> None:
    """The head's phase in one step by L-BFGS; a run that is killed in it does it again."""
    with trainer.strategy.scope():
        network = logits_model(trainer.model, boundary(trainer.model, phase.freeze_until))
    brand_counts = trainer.manifest.splits["train"].brand_counts
    head = probe.solve(
        batches.frozen_features(trainer, phase, "train"),
        batches.frozen_features(trainer, phase, "validation"),
        len(brand_counts),
        make_objective(trainer.settings.loss, brand_counts).weights,
    )
    logits = trainer.model.get_layer("logits")
    logits.kernel.assign(head.kernel)
    logits.bias.assign(head.bias)
    trainer.average.restart()
    trainer.step = phase.stop
    forward = features.make_forward(network, trainer.strategy)
    validation = batches.source(trainer, phase)("validation", is_training=False)
    with Progress(trainer.run, start_step=0, num_steps=phase.stop, batch_size=trainer.batch_size) as progress:
        _validate(trainer, forward, validation, progress, phase)
    checkpoint.save_latest(trainer.run, state_of(trainer))


def _validate(
    trainer: Trainer,
    forward: features.Forward,
    dataset: tf.data.Dataset,
    progress: Progress,
    phase: Phase,
) -> None:
    labels = manifest.load_index(trainer.data, "validation")["label"]
    with trainer.average.in_use():
        logits = np.concatenate(list(features.outputs(forward, dataset, len(labels), trainer.strategy)))
    accuracy = float((logits.argmax(-1) == labels).mean())
    loss = float(tf.reduce_mean(cross_entropy(tf.one_hot(labels, logits.shape[-1]), logits)))
    progress.log_validation(trainer.step, phase=phase.name, accuracy=accuracy, loss=loss)
    trainer.validation = (accuracy, loss)


def _check_finite(trainer: Trainer, row: dict[str, Any]) -> None:
    if row["skipped"] and trainer.loss_scale.scale.numpy() <= 1:  # a larger scale only means that it was too large
        raise GateError(
            f"{trainer.run}: the gradient is not finite at or before step {row['step']} "
            f"(learning rate {row['learning_rate']:.3g}); the weights did not change. Lower optimizer.learning_rate."
        )
