"""A worker process on this machine: Beam's own, but it ends with the process that started it, and only with that.

Else, when the driver is killed, its workers write on for a while, into a folder in which the next build may have begun.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main() -> None:
    """Takes the process ID of the driver as the only argument, and the rest from the environment, as Beam does."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(sys.argv[1]):  # it ended before
        return
    # A terminal sends Ctrl-C to the driver too, and it is the one to decide.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    from apache_beam.runners.worker import sdk_worker_main

    sdk_worker_main.main(sys.argv)
    # Not a return: gRPC's threads now and then abort an interpreter that ends, which would look as if it was killed.
    os._exit(0)


if __name__ == "__main__":
    main()
