"""Silence for libraries whose C++ side writes to the terminal, whatever the log level."""

import contextlib
import os
import pathlib
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def output() -> Iterator[None]:
    """Within the block nothing that this process writes to stdout or stderr is seen."""
    streams = {1: sys.stdout, 2: sys.stderr}
    before = {}
    for number, stream in streams.items():
        stream.flush()
        before[number] = os.dup(number)
    try:
        with pathlib.Path(os.devnull).open("wb") as nowhere:
            for number in streams:
                os.dup2(nowhere.fileno(), number)
        yield
    finally:
        for number, stream in streams.items():
            stream.flush()
            os.dup2(before[number], number)
            os.close(before[number])
