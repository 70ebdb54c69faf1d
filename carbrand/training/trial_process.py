"""One training in a process of its own: started, followed by its validation rows, stopped by SIGTERM, which saves.

A folder has one such process at a time, also after the one that started it was killed.
"""

import contextlib
import dataclasses
import fcntl
import os
import pathlib
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any

from carbrand import files

OUTPUT = "output.log"
POLL_S = 0.25
_METRICS = "metrics.jsonl"  # as training.progress writes it, which loads TensorFlow
_LOCK = ".process.lock"


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a process ended.

    Attributes:
      exit_code: As of `subprocess`: of a process killed by a signal, its negative number.
      was_stopped: We had sent SIGTERM before.
    """

    exit_code: int
    was_stopped: bool


def run(
    command: Sequence[str],
    folder: pathlib.Path,
    *,
    on_validation: Callable[[int, dict[str, Any]], bool],
    is_interrupted: Callable[[], bool],
) -> Ended:
    """Runs `command`, which trains in `folder`, to its end; its output is appended to `folder/output.log`.

    Args:
      command: Program and arguments.
      folder: Where the process writes `metrics.jsonl`; exists.
      on_validation: Called with each validation's number (from 1) and row, those from before this start as well;
        whether to go on.
      is_interrupted: Whether to stop at once; asked all the time.
    """
    was_stopped, goes_on, seen = False, True, 0
    with _lock(folder, is_interrupted) as lock, (folder / OUTPUT).open("ab") as output:
        if is_interrupted():
            return Ended(-signal.SIGTERM, was_stopped=True)
        # A group of its own: Ctrl-C is for the tuner, which then stops the process. The process inherits the lock.
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=[lock.fileno()],
            process_group=0,
        )
        try:
            _write_owner(lock, process.pid)
            is_running = True
            while is_running:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(POLL_S)
                is_running = process.poll() is None
                for row in validations(folder)[seen:]:  # one that goes on from a checkpoint has fewer at first
                    seen += 1
                    goes_on = on_validation(seen, row) and goes_on
                if is_running and not was_stopped and (not goes_on or is_interrupted()):
                    process.terminate()
                    was_stopped = True
        finally:
            if process.poll() is None:
                process.terminate()
            process.wait()
    return Ended(process.returncode, was_stopped)


def validations(folder: pathlib.Path) -> list[dict[str, Any]]:
    """The validation rows of `metrics.jsonl`, in order."""
    return [row for row in files.read_log(folder / _METRICS, b'"validation"') if row["split"] == "validation"]


def reason(output: pathlib.Path, exit_code: int) -> str:
    """Why a process failed, in one line: the last error that it printed to `output`, or else its exit code."""
    if exit_code < 0:
        return f"killed by {signal.Signals(-exit_code).name}"
    lines = output.read_text(errors="replace").splitlines() if output.exists() else []
    errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Exit|Interrupt)\b", line)]
    return errors[-1] if errors else f"exit code {exit_code}"


@contextlib.contextmanager
def _lock(folder: pathlib.Path, is_interrupted: Callable[[], bool]) -> Iterator[IO[str]]:
    """Holds the folder's lock; stops the process that still holds it because its tuner was killed."""
    with (folder / _LOCK).open("a+") as lock:
        is_asked = False
        while not is_interrupted():
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                lock.truncate(0)  # the number there was of a process that has ended
                break
            except BlockingIOError:
                is_asked = is_asked or _stop_owner(lock)
                time.sleep(POLL_S)
        yield lock


def _write_owner(lock: IO[str], pid: int) -> None:
    lock.write(f"{socket.gethostname()} {pid}")
    lock.flush()


def _stop_owner(lock: IO[str]) -> bool:
    # While the lock is held the process lives, so its number cannot have passed on to another.
    lock.seek(0)
    host, _, pid = lock.read().partition(" ")
    if host != socket.gethostname() or not pid.isdigit():
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(int(pid), signal.SIGTERM)
    return True
