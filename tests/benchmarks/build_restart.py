"""CPU and wall time of a build that goes on after it was killed half-way, against those of a whole one.

    python tests/benchmarks/build_restart.py --input PHOTOS --rounds 3

Each round builds the photos as a whole, kills a second build with SIGKILL after half of that time, and starts it again;
figures are means of the rounds. "Start" is what a build of `FEW` photos takes: what no cache can save, and so nearly
all of the second start where photos are few.
"""

import argparse
import os
import pathlib
import resource
import shutil
import signal
import statistics
import sys
import tempfile
import time

from build_memory import start_build
from build_throughput import FEW, copy_photos


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--input", required=True, type=pathlib.Path, help="a folder with one folder of photos per brand"
    )
    parser.add_argument("--workers", type=int, default=0, help="processes; 0 for what carbrand chooses")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        copy_photos(options.input, folder / "few", FEW)
        rows = [measure(options.input, folder / "few", folder / "out", options.workers) for _ in range(options.rounds)]
    for unit, table in zip(("CPU", "wall"), zip(*rows, strict=True), strict=True):
        start, whole, second = (statistics.mean(column) for column in zip(*table, strict=True))
        shares = [row[2] / row[1] for row in table]
        print(f"{unit} s: start {start:.1f}, whole build {whole:.1f}, second start {second:.1f}")
        print(f"second start / whole build: {statistics.mean(shares):.1%} ({min(shares):.1%} to {max(shares):.1%})")


def measure(photos, few, output, workers):
    """Seconds of a start, of a whole build, and of a second start: CPU, wall."""
    start = built(few, output, workers)
    shutil.rmtree(output)
    whole = built(photos, output, workers)
    shutil.rmtree(output)
    killed = start_build(photos, output, workers)
    time.sleep(whole[1] / 2)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    assert not (output / "manifest.json").exists(), "it was too late to kill it"
    second = built(photos, output, workers)
    shutil.rmtree(output)
    return tuple(zip(start, whole, second, strict=True))


def built(photos, output, workers):
    """CPU and wall seconds of a build, its workers included."""
    before, started = cpu_s(), time.monotonic()
    if start_build(photos, output, workers).wait():
        sys.exit(f"the build of {photos} failed")
    return cpu_s() - before, time.monotonic() - started


def cpu_s():
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()
