"""Several workers of one training on this machine: started together, and ended together when one of them ends."""

import contextlib
import ctypes
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

from carbrand import checks
from carbrand.errors import ConfigError, GateError, WorkerError
from carbrand.training import signals, trial_process, workers

_POLL_S = 0.2
_GRACE_S = 15.0  # to end by itself; TensorFlow is deaf to SIGTERM while it waits for a peer that is gone
_GPUS = "CUDA_VISIBLE_DEVICES"


def run(command: Sequence[str], count: int, *, grace_s: float = _GRACE_S) -> int:
    """Runs `command` as `count` workers, which find each other by TF_CONFIG, until all of them have ended.

    The terminal shows worker 0; of the others, the last line of one that fails. SIGTERM and SIGINT go to all of them.

    Args:
      command: Program and arguments, the same for all.
      count: Of workers; the GPUs that are visible are shared among them.
      grace_s: How long they may take to end once one has failed, before they are killed.

    Returns:
      The exit code, 0 or that of a training that was stopped after it saved.

    Raises:
      ConfigError: As `variables`.
      WorkerError: A worker failed, after all others have ended.
    """
    environments = variables(count)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        errors = [pathlib.Path(folder) / f"{index}.log" for index in range(count)]
        processes = []
        for index in range(count):
            stderr = None if index == 0 else stack.enter_context(errors[index].open("wb"))
            processes.append(
                subprocess.Popen(
                    command,
                    env={**os.environ, **environments[index]},
                    stdin=subprocess.DEVNULL,
                    stdout=None if index == 0 else subprocess.DEVNULL,
                    stderr=stderr,
                    process_group=0,  # Ctrl-C comes here, and is sent on
                    preexec_fn=_die_with_the_launcher,
                )
            )
        try:
            failed = _wait(processes)
        finally:
            _end(processes, grace_s)
        codes = [process.returncode for process in processes]
        if failed is None:
            return max(codes)
        if codes[0] in (ConfigError.exit_code, GateError.exit_code):  # its own line has said what is wrong, for all
            return codes[0]
        raise WorkerError(
            f"worker {failed}: {trial_process.reason(errors[failed], codes[failed])}; the others were ended. Give the "
            "same command again to go on from the last checkpoint."
        )


def variables(count: int) -> list[dict[str, str]]:
    """Of the environment, for each of `count` workers: its place, and the GPUs that it sees.

    Raises:
      ConfigError: TF_CONFIG is set already, or the GPUs cannot be shared evenly.
    """
    checks.number("--workers", count, at_least=1, whole=True)
    if os.environ.get(workers.TF_CONFIG):
        raise ConfigError(f"--workers={count}: {workers.TF_CONFIG} is set, by which this is one of several. Unset one.")
    gpus = _shares_of_gpus(count)
    addresses = _free_addresses(count)
    return [{workers.TF_CONFIG: workers.tf_config(addresses, index), **gpus[index]} for index in range(count)]


def _wait(processes: Sequence[subprocess.Popen[bytes]]) -> int | None:
    """Sends signals on until all have ended well; or returns the first that has not, while others may still run."""
    expected: list[int | None] = [None, 0]  # None: it still runs

    def send_on(number: int) -> None:
        expected.append(128 + number)
        for process in processes:
            process.send_signal(number)

    with signals.noted(send_on):
        while True:
            codes = [process.poll() for process in processes]
            failed = next((index for index, code in enumerate(codes) if code not in expected), None)
            if failed is not None or None not in codes:
                return failed
            time.sleep(_POLL_S)


def _end(processes: Sequence[subprocess.Popen[bytes]], grace_s: float) -> None:
    running = [process for process in processes if process.poll() is None]
    for process in running:
        process.terminate()
    until = time.monotonic() + grace_s
    for process in running:
        try:
            process.wait(max(until - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _free_addresses(count: int) -> tuple[str, ...]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("localhost", 0))) for _ in range(count)]
        return tuple(f"localhost:{each.getsockname()[1]}" for each in sockets)


def _shares_of_gpus(count: int) -> list[dict[str, str]]:
    """For each worker, the variable that says which GPUs it sees; none where there are no GPUs."""
    gpus = _visible_gpus()
    if not gpus:
        return [{} for _ in range(count)]
    if len(gpus) % count:
        raise ConfigError(f"--workers={count} cannot share {len(gpus)} GPUs evenly. Give a number that divides them.")
    each = len(gpus) // count
    return [{_GPUS: ",".join(gpus[each * index : each * (index + 1)])} for index in range(count)]


def _visible_gpus() -> list[str]:
    if _GPUS in os.environ:
        return [gpu for gpu in os.environ[_GPUS].split(",") if gpu and gpu != "-1"]
    try:
        listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return []
    return [str(number) for number, _ in enumerate(listed.splitlines())]


def _die_with_the_launcher() -> None:
    """In a new worker: asks Linux for SIGKILL when the launcher ends, however it ends."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
