"""How far a pipeline is: one byte per photo and step in a file, polled by the process that started the pipeline."""

import collections
import contextlib
import logging
import pathlib
import sys
import threading
import time
from collections.abc import Iterator

import tqdm

CHECKED, REJECTED, COMPARED, WRITTEN = b"c", b"r", b"n", b"w"  # what a byte of the file says

_LOG = logging.getLogger("carbrand.build")
_POLL_S = 0.5
_LOG_EVERY_S = 60  # where stderr is no terminal


@contextlib.contextmanager
def shown(path: str, num_photos: int, what: str = "check") -> Iterator[None]:
    """Shows photos per second, rejects and time left, on a terminal as a bar, otherwise as a log line now and then.

    `what` is done to the photos, "check" or "predict".
    """
    pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
    pathlib.Path(path).touch()
    ended = threading.Event()
    with tqdm.tqdm(total=num_photos, unit=" photos", desc=what, disable=None, leave=False) as bar:
        thread = threading.Thread(target=_follow, args=(pathlib.Path(path), what, bar, ended), daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def _follow(path: pathlib.Path, what: str, bar: tqdm.tqdm, ended: threading.Event) -> None:
    counts: collections.Counter[int] = collections.Counter()
    started = logged = time.monotonic()
    with path.open("rb") as file:
        is_last = False
        while not is_last:
            is_last = ended.wait(timeout=_POLL_S)
            counts.update(file.read())
            # A step that ran twice counts twice.
            done = min(counts[CHECKED[0]] + counts[REJECTED[0]], bar.total or 0)
            bar.update(done - bar.n)
            bar.set_postfix_str(_rest(counts), refresh=False)
            if bar.disable and not sys.stderr.isatty() and time.monotonic() - logged >= _LOG_EVERY_S:
                logged = time.monotonic()
                _LOG.info(line(what, done, bar.total or 0, logged - started, _rest(counts)))


def _rest(counts: collections.Counter[int]) -> str:
    """For example "3 rejected, 20 compared, 100 written"."""
    rest = [f"{counts[REJECTED[0]]} rejected"]
    rest += [
        f"{counts[what[0]]} {word}" for what, word in ((COMPARED, "compared"), (WRITTEN, "written")) if counts[what[0]]
    ]
    return ", ".join(rest)


def line(what: str, done: int, total: int, seconds: float, rest: str) -> str:
    """For example "checked 500 of 2000 photos, 50.0 photos/s, 30 s left; 3 rejected"."""
    rate = done / seconds
    left = f", {rate:.1f} photos/s, {(total - done) / rate:.0f} s left" if 0 < done < total else ""
    return f"{what}ed {done} of {total} photos{left}; {rest}"
