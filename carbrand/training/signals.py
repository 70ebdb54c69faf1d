"""SIGTERM and SIGINT, noted instead of obeyed at once: a run ends its step and saves its state first."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def noted(note: Callable[[int], None]) -> Iterator[None]:
    """Within the block, SIGTERM and SIGINT call `note` with their number.

    The second time they act as ever.
    """
    if threading.current_thread() is not threading.main_thread():  # Python allows handlers there only
        yield
        return
    previous = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def handle(number: int, _: Any) -> None:
        note(number)
        signal.signal(number, previous[signal.Signals(number)])

    for number in previous:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
