"""The training run: head first if asked, then the stages that are not frozen; resumable at any step, bit by bit."""

import contextlib
import dataclasses
import inspect
import logging
import os
import pathlib
import signal
import time
from collections.abc import Iterator
from typing import Any

import gin
import keras
import numpy as np
import tensorflow as tf

from carbrand import checks, config, files
from carbrand.data import manifest, pipeline, verify
from carbrand.data.augment import Augment
from carbrand.data.pipeline import Stream
from carbrand.data.preprocess import Preprocess
from carbrand.errors import DataError
from carbrand.training import batches, checkpoint, guards, probe, signals, workers
from carbrand.training.hardware import Hardware, workers_of
from carbrand.training.losses import Loss, make_objective
from carbrand.training.model import ModelSpec, boundary, logits_model
from carbrand.training.optimizer import OptimizerSpec, learning_rate
from carbrand.training.progress import Profile, Progress, Quiet, check_profile
from carbrand.training.settings import Phase, Schedule, Settings, check_unfreeze, nonempty_phases, validation_steps
from carbrand.training.trainer import Trainer, build_step, build_trainer, resume, save, set_up_devices
from carbrand.training.validation import Validator
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
    checkpoint_every_s: float = 180.0,
    keep_last: int = 2,
    keep_best: int = 0,
    patience: int = 0,
    profile_steps: tuple[int, int] | None = None,
    unfreeze: tuple[tuple[str, float], ...] = (),
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
      run_dir: Gets checkpoints, `config.gin`, `metrics.jsonl`, `metrics.csv`, TensorBoard files,
        `validation_errors.png` and, at the end, `run.json`.
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
      keep_last: How many of the newest checkpoints stay.
      keep_best: How many more of them stay, after the validations with the lowest losses; `carbrand evaluate` and
        `export` take the best one with `--checkpoint best`.
      patience: End the run after so many validations of its last phase whose loss is not below the best one; 0: never.
      profile_steps: Write TensorFlow's profile from the first of these steps to the second one, for TensorBoard.
      unfreeze: Stages that stay frozen longer than `model.freeze_until` says: (("conv4", 2), ("conv3", 5)) trains
        conv5 and the head, from epoch 2 on conv4 too, and from epoch 5 on all that is ever trained. The optimizer's
        state and the schedule of the learning rate go on; `optimizer.stage_decay` slows the lower stages.
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
      GateError: The gradient is not finite a second time: after the first, the run went back to its oldest checkpoint
        and on with a tenth of the rates.
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
        schedule=Schedule(
            epochs,
            head_epochs,
            batch_size,
            seed,
            deterministic,
            image_sizes=image_sizes,
            accumulate=accumulate,
            head_solver=head_solver,
            unfreeze=unfreeze,
            patience=patience,
        ),
    )
    keeping = checkpoint.Keeping(checkpoint_every_s, keep_last, keep_best)
    check_profile(profile_steps)
    data, run_dir = pathlib.Path(data), pathlib.Path(run_dir)
    dataset = _check_data(data)
    checks.folder("--run", run_dir)
    check_unfreeze(settings, dataset.splits["train"].num_examples)
    strategy = set_up_devices(settings)
    run_dir.mkdir(parents=True, exist_ok=True)
    here = workers_of(strategy)
    again = f"{run_dir} holds its last checkpoint: give the same command again, for all workers, to go on from there."
    with _locked(run_dir, here), workers.lost_ones(here, again), pipeline.data_errors():
        trainer = _set_up(data, run_dir, dataset, settings, strategy, keeping)
        writes = here.is_chief and not (_is_finished(trainer) and (trainer.run / RUN_FILE).exists())
        if writes:
            files.write_text(trainer.run / CONFIG_FILE, config.as_gin(trainer.settings.groups()))
        while not _is_finished(trainer):
            try:
                _train(trainer, profile_steps)
            except guards.NotFiniteError as error:
                guards.roll_back(trainer, error)
    last = trainer.validations[-1]
    result = RunResult(trainer.step, last.accuracy, last.loss)
    totals = {"totals": dataclasses.asdict(trainer.totals), "rate_factor": trainer.rate_factor}
    description = {"format_version": FORMAT_VERSION, **dataclasses.asdict(result), **totals, **trainer.meta}
    if writes:
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


def _locked(run_dir: pathlib.Path, here: workers.Workers) -> contextlib.AbstractContextManager[None]:
    if not here.is_chief:
        return contextlib.nullcontext()
    return files.locked(run_dir / _LOCK, f"{run_dir}: another training writes here.")


def _set_up(
    data: pathlib.Path,
    run_dir: pathlib.Path,
    dataset: manifest.Manifest,
    settings: Settings,
    strategy: tf.distribute.Strategy,
    keeping: checkpoint.Keeping,
) -> Trainer:
    state = checkpoint.load_latest(run_dir)
    trainer = build_trainer(data, run_dir, dataset, settings, strategy, keeping, loads_weights=state is None)
    if state is None:
        save(trainer)  # where a run whose gradient explodes can go back to
    else:
        resume(trainer, state)
    return trainer


def _check_data(data: pathlib.Path) -> manifest.Manifest:
    dataset = manifest.load(data)
    for split in ("train", "validation"):
        if split not in dataset.splits or not dataset.splits[split].num_examples:
            raise DataError(f"{data}: the {split} split is empty. Build with more photos, or another --split.")
    verify.check_quickly(data)
    return dataset


def _phases(trainer: Trainer) -> list[Phase]:
    return nonempty_phases(trainer.manifest.splits["train"].num_examples, trainer.settings)


def _is_finished(trainer: Trainer) -> bool:
    last, patience = _phases(trainer)[-1], trainer.settings.schedule.patience
    return trainer.step >= last.stop or guards.has_stalled(trainer.validations, patience, last.start)


def _train(trainer: Trainer, profile_steps: tuple[int, int] | None) -> None:
    """Goes through what is left of the phases."""
    for phase in _phases(trainer):
        if trainer.step < phase.stop:
            if phase.name == "head" and trainer.settings.schedule.head_solver == "lbfgs":
                _solve_phase(trainer, phase)
            else:
                _train_phase(trainer, phase, profile_steps)


def _train_phase(trainer: Trainer, phase: Phase, profile_steps: tuple[int, int] | None) -> None:
    network, train_step = build_step(trainer, phase)
    make_batches = batches.source(trainer, phase)
    validator = Validator(trainer, phase, network, make_batches)
    validates_at = validation_steps(phase, _steps_per_epoch(trainer))
    watch = guards.Watch(trainer, phase)
    saved_at = time.monotonic()
    with (
        _progress(trainer, phase) as progress,
        Profile(trainer.run, profile_steps) as profile,
        signals.noted(trainer.note_signal),
    ):
        for batch, input_wait_s in _timed(batches.training_batches(trainer, phase, make_batches)):
            rate = _learning_rate(trainer, phase)
            trainer.optimizer.learning_rate.assign(rate)
            profile.before(trainer.step)
            with guards.memory(trainer, phase):
                result = train_step(batch, tf.constant(trainer.step, tf.int64), np.float32(trainer.stop_signal or 0))
            progress.add(result, input_wait_s)
            watch.add(trainer.step, rate, result)
            trainer.step += 1
            is_validated = trainer.step in validates_at
            if is_validated:
                watch.check_all()
            if is_validated or progress.is_due:
                progress.log_steps(trainer.step, phase=phase.name, learning_rate=rate)
            if is_validated:
                validator.validate(progress)
            is_over = trainer.step == phase.stop or (is_validated and _is_finished(trainer))
            if is_over and trainer.workers.is_chief:
                validator.show_errors(progress)
            stop_signal = _stop_signal(trainer, watch)
            is_due = time.monotonic() - saved_at >= trainer.keeping.every_s
            if is_over or is_due or stop_signal is not None or trainer.is_among_best:
                if is_over or stop_signal is not None or trainer.workers.count == 1:  # where all workers look, or none
                    watch.check_all()
                save(trainer)
                saved_at = time.monotonic()
            if stop_signal is not None:
                log.warning("Stopped by signal %d at step %d; the state is saved.", stop_signal, trainer.step)
                raise SystemExit(128 + stop_signal)
            if is_over:
                return


def _stop_signal(trainer: Trainer, watch: guards.Watch) -> int | None:
    """The signal by which to stop now; several workers stop after the same step, by their votes."""
    if trainer.workers.count == 1:
        return trainer.stop_signal
    return (trainer.stop_signal or signal.SIGTERM) if watch.has_votes else None


def _timed(values: Iterator[Any]) -> Iterator[tuple[Any, float]]:
    """Each of `values`, and the seconds that it took to come."""
    while True:
        start = time.monotonic()
        try:
            value = next(values)
        except StopIteration:
            return
        yield value, time.monotonic() - start


def _steps_per_epoch(trainer: Trainer) -> float:
    return trainer.manifest.splits["train"].num_examples / trainer.batch_size


def _learning_rate(trainer: Trainer, phase: Phase) -> float:
    step, num_steps = trainer.step - phase.epochs_start, phase.rate_stop - phase.epochs_start
    return trainer.rate_factor * learning_rate(phase.peak_rate, step, num_steps, phase.warmup_steps)


def _progress(trainer: Trainer, phase: Phase) -> Progress | Quiet:
    if not trainer.workers.is_chief:
        return Quiet()
    return Progress(
        trainer.run,
        trainer.totals,
        start_step=trainer.step,
        num_steps=phase.stop,
        batch_size=trainer.batch_size,
        replicas=trainer.strategy.num_replicas_in_sync,
    )


def _solve_phase(trainer: Trainer, phase: Phase) -> None:
    """The head's phase in one step by L-BFGS; a run that is killed in it does it again."""
    with _progress(trainer, phase) as progress:
        network = solve_head(trainer, phase)
        trainer.step = phase.stop
        validator = Validator(trainer, phase, network, batches.source(trainer, phase))
        validator.validate(progress)
        if trainer.workers.is_chief:
            validator.show_errors(progress)
    save(trainer)


def solve_head(trainer: Trainer, phase: Phase) -> keras.Model:
    """Gives the head its best linear weights on the phase's frozen features; returns it, from features to logits."""
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
    with trainer.strategy.scope():
        return logits_model(trainer.model, boundary(trainer.model, phase.freeze_until))
