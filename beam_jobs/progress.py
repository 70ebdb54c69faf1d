"""How far a pipeline is: one byte per photo and step in a file, polled by the process that started the pipeline."""

import contextlib
import logging
import pathlib
import sys
import threading
import time
from collections.abc import Iterator

import tqdm

CHECKED, REJECTED, WRITTEN = b"c", b"r", b"w"  # what a byte of the file says

_LOG = logging.getLogger("carbrand.build")
_POLL_S = 0.5
_LOG_EVERY_S = 60  # where stderr is no terminal


@contextlib.contextmanager
def shown(path: str, num_photos: int) -> Iterator[None]:
    """Shows photos per second, rejects and time left, on a terminal as a bar, otherwise as a log line now and then."""
    pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
    pathlib.Path(path).touch()
    ended = threading.Event()
    with tqdm.tqdm(total=num_photos, unit=" photos", desc="check", disable=None, leave=False) as bar:
        thread = threading.Thread(target=_follow, args=(pathlib.Path(path), bar, ended), daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def _follow(path: pathlib.Path, bar: tqdm.tqdm, ended: threading.Event) -> None:
    rejected = written = 0
    started = logged = time.monotonic()
    done = 0
    with path.open("rb") as file:
        is_last = False
        while not is_last:
            is_last = ended.wait(timeout=_POLL_S)
            new = file.read()
            rejected += new.count(REJECTED)
            written += new.count(WRITTEN)
            done += new.count(CHECKED) + new.count(REJECTED)
            _show(bar, done, rejected, written)
            if bar.disable and not sys.stderr.isatty() and time.monotonic() - logged >= _LOG_EVERY_S:
                logged = time.monotonic()
                _LOG.info(line(done, bar.total or 0, rejected, written, logged - started))


def _show(bar: tqdm.tqdm, done: int, rejected: int, written: int) -> None:
    total = bar.total or 0
    # A step that ran twice counts twice.
    bar.update(min(done, total) - bar.n)
    bar.set_postfix_str(f"{rejected} rejected" + (f", {written} written" if written else ""), refresh=False)


def line(done: int, total: int, rejected: int, written: int, seconds: float) -> str:
    """For example "checked 500 of 2000 photos, 3 rejected, 50.0 photos/s, 30 s left"."""
    if written:
        return f"checked {done} of {total} photos, {rejected} rejected; {written} written"
    rate = done / seconds
    left = f"{(total - done) / rate:.0f} s left" if done else "no estimate yet"
    return f"checked {done} of {total} photos, {rejected} rejected, {rate:.1f} photos/s, {left}"
