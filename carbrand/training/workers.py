"""Which of several workers this process is, as TF_CONFIG says, and how they wait for one another at the start.

TensorFlow's own start blocks for an hour without a word if a worker is missing, deaf to signals; see `rendezvous`.
"""

import contextlib
import dataclasses
import json
import logging
import os
import re
import socket
import time
from collections.abc import Iterator

from carbrand.errors import ConfigError, WorkerError

TF_CONFIG = "TF_CONFIG"
_POLL_S = 0.2
_TELL_EVERY_S = 10.0
_GO = b"go"
# In TensorFlow's messages about a peer that is not there any more.
_LOST = ("Collective ops is aborted", "unhealthy", "Socket closed", "failed to connect", "Connection reset")

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Workers:
    """The processes that train together.

    Attributes:
      addresses: HOST:PORT of each; empty for one process alone.
      index: Of this process.
    """

    addresses: tuple[str, ...] = ()
    index: int = 0

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.addresses) or 1

    @property
    def count_here(self) -> int:
        """How many share this machine's memory."""
        hosts = [_split(address)[0] for address in self.addresses]
        return hosts.count(hosts[self.index]) if hosts else 1

    @property
    def is_chief(self) -> bool:
        """Whether this process writes the run's files."""
        return self.index == 0


def here() -> Workers:
    """The workers by TF_CONFIG, {"cluster": {"worker": ["HOST:PORT", …]}, "task": {"type": "worker", "index": N}}.

    Raises:
      ConfigError: It says something else.
    """
    text = os.environ.get(TF_CONFIG)
    if not text:
        return Workers()
    try:
        config = json.loads(text)
        cluster, task = config["cluster"], config["task"]
        addresses, index = tuple(map(str, cluster["worker"])), int(task["index"])
        is_known = set(cluster) == {"worker"} and task["type"] == "worker" and 0 <= index < len(addresses)
    except (ValueError, KeyError, TypeError, OverflowError):
        is_known = False
    if not is_known or not all(_is_address(address) for address in addresses):
        raise ConfigError(
            f'{TF_CONFIG}={text}: give {{"cluster": {{"worker": ["HOST:PORT", …]}}, "task": {{"type": "worker", '
            '"index": N}}, or unset it to train in one process.'
        )
    return Workers(addresses, index) if len(addresses) > 1 else Workers()


@contextlib.contextmanager
def none() -> Iterator[Workers]:
    """Within the block, this process is alone, whatever TF_CONFIG said."""
    said = os.environ.pop(TF_CONFIG, None)
    try:
        yield here()
    finally:
        if said is not None:
            os.environ[TF_CONFIG] = said


def tf_config(addresses: tuple[str, ...], index: int) -> str:
    """What `here` reads."""
    return json.dumps({"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}})


def rendezvous(workers: Workers, limit_s: float) -> None:
    """Returns once all workers have called it, on the ports that TensorFlow is to use then.

    Every ten seconds it says whom it waits for.

    Raises:
      WorkerError: Not all of them came within `limit_s` seconds.
    """
    if workers.count == 1:
        return
    waiting = _Waiting(limit_s)
    if workers.is_chief:
        _gather(workers, waiting)
    else:
        _join(workers, waiting)


class _Waiting:
    """Tells from time to time who is missing, and ends the wait at a limit."""

    def __init__(self, limit_s: float) -> None:
        self._start, self._limit_s = time.monotonic(), limit_s
        self._told = 0

    def check(self, missing: str) -> None:
        """Call it often while `missing` is so."""
        waited_s = time.monotonic() - self._start
        if waited_s > self._limit_s:
            raise WorkerError(
                f"Waited {self._limit_s:.0f} s for {missing}. Start all workers with the same data, config and "
                f"{TF_CONFIG} (but for its index), and look whether their hosts reach each other."
            )
        if waited_s > _TELL_EVERY_S * (self._told + 1):
            self._told += 1
            log.warning("Waiting for %s, for %.0f s of at most %.0f.", missing, waited_s, self._limit_s)


def _gather(workers: Workers, waiting: _Waiting) -> None:
    """The chief's part: waits until every other one has said its index, then sends all of them on."""
    _, port = _split(workers.addresses[0])
    others: dict[int, socket.socket] = {}
    with contextlib.ExitStack() as stack:
        try:
            server = stack.enter_context(socket.create_server(("", port)))
        except OSError as error:
            raise WorkerError(f"{TF_CONFIG}: port {port} is not free here. Name another for all workers.") from error
        server.settimeout(_POLL_S)
        while len(others) < workers.count - 1:
            missing = [i for i in range(1, workers.count) if i not in others]
            waiting.check(", ".join(f"worker {i} ({workers.addresses[i]})" for i in missing))
            with contextlib.suppress(OSError, ValueError):
                connection, _ = server.accept()
                stack.enter_context(connection)
                connection.settimeout(1.0)
                others[int(connection.recv(16))] = connection
        for connection in others.values():
            connection.sendall(_GO)


def _join(workers: Workers, waiting: _Waiting) -> None:
    """Another worker's part: says its index to the chief and waits until that sends it on."""
    chief = workers.addresses[0]
    while True:
        waiting.check(f"worker 0 ({chief}) to gather all")
        with contextlib.suppress(OSError), socket.create_connection(_split(chief), timeout=1.0) as connection:
            connection.sendall(str(workers.index).encode())
            connection.settimeout(_POLL_S)
            while True:
                waiting.check(f"worker 0 ({chief}) to gather all")
                with contextlib.suppress(TimeoutError):
                    answer = connection.recv(len(_GO))
                    if answer == _GO:
                        return
                    break  # the chief has gone away
        time.sleep(_POLL_S)


@contextlib.contextmanager
def lost_ones(workers: Workers, then: str) -> Iterator[None]:
    """Within the block, TensorFlow's errors about a worker that is gone are a WorkerError that ends in `then`."""
    import tensorflow as tf

    try:
        yield
    except tf.errors.OpError as error:
        if workers.count > 1 and any(sign in error.message for sign in _LOST):
            raise WorkerError(f"worker {workers.index}: another one is gone, or cannot be reached. {then}") from error
        raise


def _is_address(address: str) -> bool:
    host, separator, port = address.rpartition(":")
    return bool(host and separator) and re.fullmatch("[0-9]{1,5}", port) is not None and 0 < int(port) < 2**16


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host, int(port)
