"""How training goes: to the console, and in the same rows to `metrics.jsonl`, `metrics.csv` and TensorBoard."""

import csv
import json
import logging
import os
import pathlib
import sys
import time
from typing import Any

import numpy as np
import tensorflow as tf
import tqdm

from carbrand import checks, files
from carbrand.errors import ConfigError
from carbrand.training.step import StepResult
from carbrand.training.trainer import Totals

METRICS = "metrics.jsonl"
TABLE = "metrics.csv"
BOARD = "tensorboard"
_COLUMNS = (
    "split", "step", "phase", "loss", "accuracy", "learning_rate", "gradient_norm", "skipped", "images_per_s",
    "input_wait", "elapsed_s",
)  # fmt: skip
_LOG_EVERY_S = 1.0
_LONG_WAIT, _WARN_AFTER_S = 0.1, 30.0  # share of the time for which steps may wait for input

log = logging.getLogger(__name__)


class Progress:
    """Collects the results of steps and writes a row whenever an interval ends. Use as a context manager."""

    def __init__(
        self,
        run: pathlib.Path,
        totals: Totals,
        *,
        start_step: int,
        num_steps: int,
        batch_size: int,
        replicas: int = 1,
    ) -> None:
        """Drops all rows beyond `start_step`, left by an interrupted run: they will come again."""
        self._totals, self._batch_size, self._replicas = totals, batch_size, replicas
        rows = [row for row in files.read_log(run / METRICS) if row["step"] <= start_step]
        files.write_text(run / METRICS, "".join(json.dumps(row) + "\n" for row in rows))
        files.write_text(run / TABLE, "")
        _drop_events_after(run / BOARD, start_step)
        self._jsonl = (run / METRICS).open("a")
        self._csv = (run / TABLE).open("a", newline="")
        self._table = csv.DictWriter(self._csv, _COLUMNS, lineterminator="\n")
        self._table.writeheader()
        self._table.writerows(rows)
        self._board = tf.summary.create_file_writer(str(run / BOARD))
        self._bar = tqdm.tqdm(
            initial=start_step, total=num_steps, unit="step", desc="train", dynamic_ncols=True, disable=None
        )
        self._seconds = self._waited_s = 0.0  # since the start of this process, unlike the totals
        self._has_warned = False
        self._reset()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: Any) -> None:
        for output in (self._jsonl, self._csv, self._board, self._bar):
            output.close()

    def add(self, result: StepResult, input_wait_s: float) -> None:
        """Counts one step; the tensors are not looked at yet, so a GPU is not waited for."""
        self._results.append(result)
        self._input_wait_s += input_wait_s

    @property
    def is_due(self) -> bool:
        """Whether an interval has passed since the last row."""
        return bool(self._results) and time.monotonic() - self._start >= _LOG_EVERY_S

    def log_steps(self, step: int, **facts: Any) -> None:
        """Writes a row of means since the last one; `skipped` counts steps whose gradient was not finite."""
        results, steps = self._results, len(self._results)
        norms = [float(r.gradient_norm) for r in results]
        loss = sum(float(r.loss) for r in results) / steps
        elapsed_s = time.monotonic() - self._start
        self._count(elapsed_s)
        images_per_s = steps * self._batch_size / elapsed_s
        row = {
            "split": "train",
            "step": step,
            **facts,
            "loss": loss,
            "accuracy": sum(float(r.correct) for r in results) / (steps * self._batch_size),
            "gradient_norm": norms[-1],
            "skipped": sum(1 for norm in norms if not norm < float("inf")),
            "images_per_s": round(images_per_s, 1),
            "input_wait": round(self._input_wait_s / elapsed_s, 3),
            "elapsed_s": round(self._totals.seconds, 1),
        }
        self._write(row)
        shared = f" ({self._replicas} × {images_per_s / self._replicas:.0f})" if self._replicas > 1 else ""
        self._bar.set_postfix_str(
            f"loss {loss:.3f}, {images_per_s:.0f} images/s{shared}, input wait {row['input_wait']:.0%}", refresh=False
        )
        self._bar.set_description(str(facts.get("phase", "train")), refresh=False)
        self._bar.update(steps)
        self._reset()

    def log_validation(self, step: int, **facts: Any) -> None:
        """Writes one row of validation figures and shows it above the bar."""
        self._write({"split": "validation", "step": step, **facts})
        figures = ", ".join(f"{name} {value:.4g}" for name, value in facts.items() if isinstance(value, float))
        tqdm.tqdm.write(f"step {step} · validation · {figures}", file=sys.stderr)
        self._start = time.monotonic()  # the pause does not count in images/s

    def show_picture(self, step: int, name: str, pixels: np.ndarray) -> None:
        """Shows a picture [H, W, 3] uint8 in TensorBoard."""
        with self._board.as_default(step=step):
            tf.summary.image(name, pixels[np.newaxis])
        self._start = time.monotonic()

    def _count(self, elapsed_s: float) -> None:
        self._totals.seconds += elapsed_s
        self._totals.input_wait_s += self._input_wait_s
        self._seconds += elapsed_s
        self._waited_s += self._input_wait_s
        if not self._has_warned and self._seconds > _WARN_AFTER_S and self._waited_s > _LONG_WAIT * self._seconds:
            self._has_warned = True
            share = f"{self._waited_s / self._seconds:.0%} of the time"
            log.warning("Steps wait for input in %s. `carbrand doctor` measures what limits it.", share)

    def _write(self, row: dict[str, Any]) -> None:
        # A loss that is not finite is written as null: NaN is no JSON.
        clean = {k: None if isinstance(v, float) and not abs(v) < float("inf") else v for k, v in row.items()}
        self._jsonl.write(json.dumps(clean) + "\n")
        self._jsonl.flush()
        self._table.writerow(clean)
        self._csv.flush()
        with self._board.as_default(step=row["step"]):
            for name, value in row.items():
                if isinstance(value, float):
                    tf.summary.scalar(f"{row['split']}/{name}", value)

    def _reset(self) -> None:
        self._results: list[StepResult] = []
        self._input_wait_s = 0.0
        self._start = time.monotonic()


class Quiet:
    """Takes the place of `Progress` where another worker shows it."""

    is_due = False

    def __enter__(self) -> "Quiet":
        return self

    def __exit__(self, *_: Any) -> None:
        pass

    def add(self, result: StepResult, input_wait_s: float) -> None:
        """Nothing, as all others."""

    def log_steps(self, step: int, **facts: Any) -> None:
        """Nothing."""

    def log_validation(self, step: int, **facts: Any) -> None:
        """Nothing."""

    def show_picture(self, step: int, name: str, pixels: np.ndarray) -> None:
        """Nothing."""


def check_profile(steps: Any) -> None:
    """Raises ConfigError unless `steps` are what `Profile` takes."""
    if steps is None:
        return
    if not isinstance(steps, tuple | list) or len(steps) != 2:
        raise ConfigError(f"train.run.profile_steps={steps!r}: give two steps, for example (100, 105).")
    checks.number("train.run.profile_steps", steps[0], at_least=0, whole=True)
    checks.number("train.run.profile_steps", steps[1], above=steps[0], whole=True)


class Profile:
    """Writes TensorFlow's profile of some steps for TensorBoard. Use as a context manager."""

    def __init__(self, run: pathlib.Path, steps: tuple[int, int] | None) -> None:
        """`steps` are the first one and the one before which to stop; None: no profile."""
        self._folder, self._steps, self._is_running = run / BOARD, steps, False

    def __enter__(self) -> "Profile":
        return self

    def __exit__(self, *_: Any) -> None:
        self._stop()

    def before(self, step: int) -> None:
        """Call it before each step with its number."""
        if self._steps is None:
            return
        first, stop = self._steps
        if self._is_running and step >= stop:
            self._stop()
        elif not self._is_running and first <= step < stop:
            tf.profiler.experimental.start(str(self._folder))
            self._is_running = True

    def _stop(self) -> None:
        if self._is_running:
            tf.profiler.experimental.stop()
            self._is_running = False


def _drop_events_after(folder: pathlib.Path, step: int) -> None:
    """Rewrites the event files that hold a later step, or end in half an event."""
    for path in sorted(folder.glob("events.out.tfevents.*")):
        kept, is_whole = [], True
        try:
            for event in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
                if tf.compat.v1.Event.FromString(event).step <= step:
                    kept.append(event)
                else:
                    is_whole = False
        except tf.errors.DataLossError:
            is_whole = False
        if not is_whole:
            temporary = folder / f".{path.name}.tmp"
            with tf.io.TFRecordWriter(str(temporary)) as writer:
                for event in kept:
                    writer.write(event)
            os.replace(temporary, path)
