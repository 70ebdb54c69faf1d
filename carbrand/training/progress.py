"""How training goes: loss, accuracy, images/s, input wait and time left to console, `metrics.jsonl` and TensorBoard."""

import json
import pathlib
import sys
import time
from typing import Any

import tensorflow as tf
import tqdm

from carbrand import files
from carbrand.training.step import StepResult

METRICS = "metrics.jsonl"
_LOG_EVERY_S = 1.0


class Progress:
    """Collects the results of steps and writes a row whenever an interval ends. Use as a context manager."""

    def __init__(self, run: pathlib.Path, *, start_step: int, num_steps: int, batch_size: int) -> None:
        """Drops rows of `metrics.jsonl` beyond `start_step`, left by an interrupted run: they will come again."""
        self._path = run / METRICS
        self._batch_size = batch_size
        self._keep_rows_until(start_step)
        self._jsonl = self._path.open("a")
        self._board = tf.summary.create_file_writer(str(run / "tensorboard"))
        self._bar = tqdm.tqdm(
            initial=start_step, total=num_steps, unit="step", desc="train", dynamic_ncols=True, disable=None
        )
        self._reset()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: Any) -> None:
        self._jsonl.close()
        self._board.close()
        self._bar.close()

    def add(self, result: StepResult, input_wait_s: float) -> None:
        """Counts one step; the tensors are not looked at yet, so a GPU is not waited for."""
        self._results.append(result)
        self._input_wait_s += input_wait_s

    @property
    def is_due(self) -> bool:
        """Whether an interval has passed since the last row."""
        return bool(self._results) and time.monotonic() - self._start >= _LOG_EVERY_S

    def log_steps(self, step: int, **facts: Any) -> dict[str, Any]:
        """Writes the means since the last row; returns them, with `skipped`: steps whose gradient was not finite."""
        results, steps = self._results, len(self._results)
        norms = [float(r.gradient_norm) for r in results]
        elapsed_s = time.monotonic() - self._start
        row = {
            "split": "train",
            "step": step,
            **facts,
            "loss": sum(float(r.loss) for r in results) / steps,
            "accuracy": sum(float(r.correct) for r in results) / (steps * self._batch_size),
            "gradient_norm": norms[-1],
            "skipped": sum(1 for norm in norms if not norm < float("inf")),
            "images_per_s": round(steps * self._batch_size / elapsed_s, 1),
            "input_wait": round(self._input_wait_s / elapsed_s, 3),
        }
        self._write(row)
        self._bar.set_postfix_str(
            f"loss {row['loss']:.3f}, {row['images_per_s']:.0f} images/s, input wait {row['input_wait']:.0%}",
            refresh=False,
        )
        self._bar.set_description(str(facts.get("phase", "train")), refresh=False)
        self._bar.update(steps)
        self._reset()
        return row

    def log_validation(self, step: int, **facts: Any) -> None:
        """Writes one row of validation figures and shows it above the bar."""
        self._write({"split": "validation", "step": step, **facts})
        figures = ", ".join(f"{name} {value:.4g}" for name, value in facts.items() if isinstance(value, float))
        tqdm.tqdm.write(f"step {step} · validation · {figures}", file=sys.stderr)
        self._start = time.monotonic()  # the pause does not count in images/s

    def _write(self, row: dict[str, Any]) -> None:
        # A loss that is not finite is written as null: NaN is no JSON.
        clean = {k: None if isinstance(v, float) and not abs(v) < float("inf") else v for k, v in row.items()}
        self._jsonl.write(json.dumps(clean) + "\n")
        self._jsonl.flush()
        with self._board.as_default(step=row["step"]):
            for name, value in row.items():
                if isinstance(value, float):
                    tf.summary.scalar(f"{row['split']}/{name}", value)

    def _reset(self) -> None:
        self._results: list[StepResult] = []
        self._input_wait_s = 0.0
        self._start = time.monotonic()

    def _keep_rows_until(self, step: int) -> None:
        if self._path.exists():
            rows = [line for line in self._path.read_text().splitlines() if _step_of(line) <= step]
            files.write_text(self._path, "".join(line + "\n" for line in rows))


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except ValueError:  # half a line, from a run that was killed
        return float("inf")
