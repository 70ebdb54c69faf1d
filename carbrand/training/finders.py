"""Looks for a learning rate or a batch size before a training: a ramp of rates, or one size after another."""

import contextlib
import dataclasses
import math
import pathlib
import tempfile
from collections.abc import Sequence

import numpy as np
import tensorflow as tf
import tqdm
from matplotlib.figure import Figure

from carbrand import files
from carbrand.data import pipeline
from carbrand.errors import ConfigError
from carbrand.training import batches, cases, measure, train
from carbrand.training.cases import Case
from carbrand.training.measure import Rate
from carbrand.training.settings import Phase
from carbrand.training.trainer import Trainer, build_step, build_trainer, set_up_devices

RATE_PICTURE = "learning_rate.png"
_FIRST_RATE, _LAST_RATE = 1e-6, 10.0
_RATE_STEPS = 120
_SMOOTHING = 0.9  # of the loss, an average with bias correction
_DIVERGED = 3.0  # times the lowest loss, at which the ramp ends
_BELOW_LOWEST = 0.1  # of the rate with the lowest loss: well before it rises (Smith 2015, arXiv:1506.01186, 3.3)
_MAX_BATCH = 1024
_NEARLY_AS_FAST = 0.95


@dataclasses.dataclass(frozen=True)
class RateCurve:
    """What a ramp of learning rates said.

    Attributes:
      rates: Of each step, ascending.
      losses: The smoothed training loss after each.
      suggestion: A peak rate to try; None if the loss never fell.
    """

    rates: list[float]
    losses: list[float]
    suggestion: float | None


@dataclasses.dataclass(frozen=True)
class BatchSpeeds:
    """How fast training steps are by their batch.

    Attributes:
      speeds: By photos per step over all replicas, ascending.
      limit: The size at which the memory was not enough; None if none was too large.
      suggestion: The smallest batch that is nearly as fast as the fastest.
    """

    speeds: dict[int, Rate]
    limit: int | None
    suggestion: int


def find_rate(case: Case) -> RateCurve:
    """Trains the last phase for some steps while the learning rate rises, until the loss explodes; writes nothing.

    A phase of the head before it, if there is one, is replaced by the best linear head.

    Raises:
      ConfigError: The last phase is solved without a rate.
    """
    phase = case.phases[-1]
    if phase.name == "head" and case.settings.schedule.head_solver == "lbfgs":
        raise ConfigError("train.run.head_solver='lbfgs': takes no learning rate. Leave --find=rate out, or use 'sgd'.")
    with tempfile.TemporaryDirectory() as folder, pipeline.data_errors():
        trainer = _trainer(dataclasses.replace(case, run_dir=pathlib.Path(folder)))
        for before in case.phases[:-1]:
            if before.name == "head":
                train.solve_head(trainer, before)
        _, train_step = build_step(trainer, phase)
        trainer.step = phase.start
        source = batches.training_batches(trainer, _endless(phase), batches.source(trainer, phase))
        ramp = np.geomspace(_FIRST_RATE, _LAST_RATE, _RATE_STEPS).tolist()
        losses: list[float] = []
        for number, rate in enumerate(tqdm.tqdm(ramp, unit="step", desc="learning rates", leave=False, disable=None)):
            trainer.optimizer.learning_rate.assign(rate)
            losses.append(float(train_step(next(source), tf.constant(number, tf.int64)).loss))
            smoothed = smooth(losses)
            if not math.isfinite(losses[-1]) or smoothed[-1] > _DIVERGED * min(smoothed):
                break
    return curve(ramp[: len(losses)], losses)


def curve(rates: Sequence[float], losses: Sequence[float]) -> RateCurve:
    """What training losses at rising rates say; what is not finite at the end is left out."""
    losses = [loss for loss in losses if math.isfinite(loss)]
    smoothed = smooth(losses)
    lowest = int(np.argmin(smoothed))
    found = _round(rates[lowest] * _BELOW_LOWEST) if lowest else None
    return RateCurve(list(rates[: len(losses)]), smoothed, found)


def smooth(values: Sequence[float]) -> list[float]:
    """Exponential moving averages, each over the values so far."""
    total, smoothed = 0.0, []
    for number, value in enumerate(values, start=1):
        total = _SMOOTHING * total + (1 - _SMOOTHING) * value
        smoothed.append(total / (1 - _SMOOTHING**number))
    return smoothed


def draw(found: RateCurve, path: pathlib.Path) -> None:
    """Writes a picture of the curve."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(found.rates, found.losses)
    axes.set(xscale="log", xlabel="learning rate", ylabel="training loss, smoothed")
    axes.set_title("Loss while the learning rate rises")
    if found.suggestion:
        axes.axvline(found.suggestion, color="grey", linestyle="--")
        axes.annotate(f" {found.suggestion:g}", (found.suggestion, max(found.losses)))
    with files.atomic_writer(path) as file:
        figure.savefig(file, format="png", dpi=120)


def find_batch(case: Case, seconds: float) -> BatchSpeeds:
    """Measures the last phase's step for `seconds` at one batch size after another, each twice the one before.

    It ends where the memory ends, by what TensorFlow says or, on a CPU, by what `cases.fitting_batch` expects.
    """
    replicas = case.replicas
    smallest = replicas * case.settings.schedule.accumulate * (2 if case.settings.augment.mixes_photos else 1)
    largest = _MAX_BATCH * replicas
    free = cases.free_bytes_each(case)
    if not case.machine.gpu_bytes and free is not None:
        largest = min(largest, cases.fitting_batch(case, free))
    sizes = [smallest * 2**power for power in range(20) if smallest * 2**power <= largest]
    if not sizes:
        raise ConfigError(f"{case.data}: not even a batch of {smallest} fits into the memory that is free.")
    trainer = _trainer(case, loads_weights=False)
    trainer.optimizer.learning_rate.assign(0.0)  # so that nothing explodes on a batch that comes again and again
    phase, speeds, limit = case.phases[-1], {}, None
    for size in tqdm.tqdm(sizes, unit="size", desc="batch sizes", leave=False, disable=None):
        schedule = dataclasses.replace(trainer.settings.schedule, batch_size=size)
        sized = dataclasses.replace(trainer, settings=dataclasses.replace(trainer.settings, schedule=schedule))
        with contextlib.suppress(tf.errors.ResourceExhaustedError):
            speeds[size] = measure.rate(measure.step_work(sized, phase), seconds)
        if size not in speeds:
            limit = size
            break
    if not speeds:
        raise ConfigError(f"{case.data}: not even a batch of {smallest} fits into the device's memory.")
    fastest = max(rate.images_per_s for rate in speeds.values())
    suggestion = next(size for size, rate in speeds.items() if rate.images_per_s >= _NEARLY_AS_FAST * fastest)
    return BatchSpeeds(speeds, limit, suggestion)


def _trainer(case: Case, *, loads_weights: bool = True) -> Trainer:
    strategy = set_up_devices(case.settings)
    folder = case.run_dir or pathlib.Path()
    return build_trainer(case.data, folder, case.dataset, case.settings, strategy, loads_weights=loads_weights)


def _endless(phase: Phase) -> Phase:
    return dataclasses.replace(phase, stop=phase.start + _RATE_STEPS)


def _round(value: float) -> float:
    """To two digits."""
    return float(f"{value:.1e}")
