"""A worker process on this machine: Beam's own, but it ends with the process that started it, and only with that.

Else, when the driver is killed, its workers write on for a while, into a folder in which the next build may have begun.
"""

import contextlib
import ctypes
import io
import os
import signal
import sys

# Below, starting processes takes longer than they save. Measured: 1,600 photos of 40 kB took 9 s in this process and
# 23 s in two, on two busy cores.
MIN_PHOTOS_FOR_PROCESSES = 4000

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_M_ARENA_MAX = -8  # glibc's malloc.h


def default_number(num_photos: int) -> int:
    """Of worker processes for so many photos: one per core, or one where there are few."""
    return 1 if num_photos < MIN_PHOTOS_FOR_PROCESSES else len(os.sched_getaffinity(0))


class LossyLog(io.TextIOBase):
    """Standard error, but what does not fit on a full disk is lost.

    Beam prints an error before it reports it to the driver, which waits for ever when printing fails.
    """

    def write(self, text: str) -> int:
        """Never raises."""
        with contextlib.suppress(OSError):
            os.write(2, text.encode(errors="backslashreplace"))
        return len(text)


def share_one_heap() -> None:
    """Keeps the threads of this process from taking memory from the system for each of them, where glibc does so.

    Measured with tests/benchmarks/build_memory.py: 20,000 photos in two workers took 1,354 MiB, and with this 984.
    """
    with contextlib.suppress(AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)


def give_back_memory() -> None:
    """Returns to the system what was freed in between, where glibc is the C library; about a millisecond.

    Else what one phase of a job freed in small pieces stays with the process while the next one takes more.
    """
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def main() -> None:
    """Takes the process ID of the driver as the only argument, and the rest from the environment, as Beam does."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(sys.argv[1]):  # it ended before
        return
    share_one_heap()
    sys.stderr = LossyLog()
    # A terminal sends Ctrl-C to the driver too, and it is the one to decide.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    from apache_beam.runners.worker import sdk_worker_main

    sdk_worker_main.main(sys.argv)
    # Not a return: gRPC's threads now and then abort an interpreter that ends, which would look as if it was killed.
    os._exit(0)


if __name__ == "__main__":
    main()
