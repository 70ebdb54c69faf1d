"""What ends a training, or sends it back, before it has wasted a night: gradients, memory, a loss that stands still."""

import contextlib
import dataclasses
import logging
import math
from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow as tf

from carbrand import files
from carbrand.errors import ConfigError, GateError
from carbrand.training import batches, cases, checkpoint, machine
from carbrand.training.cases import Case
from carbrand.training.settings import Phase
from carbrand.training.step import StepResult
from carbrand.training.trainer import Trainer, Validation, resume, save

NOT_FINITE_FILE = "not_finite.json"
RATE_FACTOR = 0.1  # of the learning rates after the first gradient that was not finite
_FORMAT_VERSION = 1

log = logging.getLogger(__name__)


class NotFiniteError(Exception):
    """A step had a gradient that was not finite, which no loss scale can help; `facts` are JSON values about it."""

    def __init__(self, facts: dict[str, Any]) -> None:
        super().__init__(f"step {facts['step']}")
        self.facts = facts


class Watch:
    """Looks at the results of the steps of a phase, each after the next one is under way: a GPU need not wait.

    Attributes:
      has_votes: Some worker voted for the end of the run in a step that was looked at. All workers know it at once.
    """

    def __init__(self, trainer: Trainer, phase: Phase) -> None:
        self._trainer, self._phase = trainer, phase
        self.has_votes = False
        self._unchecked: list[tuple[int, float, StepResult]] = []

    def add(self, step: int, rate: float, result: StepResult) -> None:
        """Takes the result of the step from `step` on, and looks at that of the one before; see `check_all`."""
        self.check_all()
        self._unchecked.append((step, rate, result))

    def check_all(self) -> None:
        """Raises NotFiniteError, with the photos of the batch, after a gradient that no smaller loss scale can mend."""
        while self._unchecked:
            self._check(*self._unchecked.pop(0))

    def _check(self, step: int, rate: float, result: StepResult) -> None:
        self.has_votes = self.has_votes or float(result.votes) > 0
        norm = float(result.gradient_norm)
        if _is_finite(norm):
            return
        self._trainer.totals.skipped_steps += 1
        loss = float(result.loss)
        if _is_finite(loss) and float(result.loss_scale) > 1:
            return  # the scale was too large, and has been halved
        facts = {
            "step": step,
            "phase": self._phase.name,
            "learning_rate": rate,
            "loss": str(loss),
            "gradient_norm": str(norm),
            "photos": batches.photos_at(self._trainer, step),
        }
        raise NotFiniteError(facts)


def roll_back(trainer: Trainer, error: NotFiniteError) -> None:
    """Writes what is known to `not_finite.json`, and puts the run back to its oldest checkpoint, with lower rates.

    Raises:
      GateError: It happened before; the checkpoints stay as they are.
    """
    facts, run = error.facts, trainer.run
    is_second = trainer.rate_factor < 1
    if trainer.workers.is_chief:
        files.write_json(run / NOT_FINITE_FILE, {"format_version": _FORMAT_VERSION, **facts})
    what = (
        f"the gradient is not finite at step {facts['step']} (loss {facts['loss']}, learning rate "
        f"{facts['learning_rate']:.3g}); the weights did not change. {run / NOT_FINITE_FILE} names the "
        f"{len(facts['photos'])} photos of the batch."
    )
    if is_second:
        raise GateError(f"{run}: {what} Lower optimizer.learning_rate, or look at these photos.")
    state = checkpoint.load_oldest(run)
    resume(trainer, dataclasses.replace(state, meta={**state.meta, "rate_factor": RATE_FACTOR}))
    save(trainer)
    log.warning("%s: %s Going back to step %d with %g of the rates.", run, what, trainer.step, RATE_FACTOR)


def has_stalled(validations: Sequence[Validation], patience: int, start: int) -> bool:
    """Whether the last `patience` validations after step `start` all have a higher loss than one before them.

    What is no number is the highest.
    """
    losses = [math.inf if math.isnan(row.loss) else row.loss for row in validations if row.step > start]
    return bool(patience) and len(losses) > patience and min(losses[-patience:]) >= min(losses[:-patience])


@contextlib.contextmanager
def memory(trainer: Trainer, phase: Phase) -> Iterator[None]:
    """Within the block, a lack of memory is a ConfigError that says what would fit."""
    try:
        yield
    except tf.errors.ResourceExhaustedError as error:
        case = Case(trainer.data, trainer.manifest, trainer.settings, machine.look(), trainer.run, trainer.workers)
        known = [size for size in case.machine.gpu_bytes if size is not None]
        each = min(known) if known else cases.free_bytes_each(case) or 0
        batch = min(cases.fitting_batch(case, each), trainer.batch_size // 2)
        smaller = f", or train.run.batch_size = {batch}, which is another training" if batch else ""
        raise ConfigError(
            f"train.run.batch_size={trainer.batch_size}: a step of the {phase.name} phase does not fit into the memory "
            f"({str(error.message).splitlines()[0]}). Set train.run.accumulate = "
            f"{2 * trainer.settings.schedule.accumulate}, which computes the same in smaller parts{smaller}, and start "
            "again in another --run."
        ) from error


def _is_finite(value: float) -> bool:
    return abs(value) < float("inf")
