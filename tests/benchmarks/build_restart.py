"""CPU time of a build that goes on after it was killed half-way, against that of a whole one.

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
import subprocess
import sys
import tempfile
import time

FEW = 20
_BUILD = "import sys; from beam_jobs import build_dataset; build_dataset.run(*sys.argv[1:3], workers=int(sys.argv[3]))"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--input", required=True, type=pathlib.Path, help="a folder with one folder of photos per brand"
    )
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        few = copy_few(options.input, folder / "few")
        rows = [measure(options.input, few, folder / "out", options.workers) for _ in range(options.rounds)]
    start, whole, second = (statistics.mean(column) for column in zip(*rows, strict=True))
    shares = [row[2] / row[1] for row in rows]
    print(f"CPU s: start {start:.1f}, whole build {whole:.1f}, second start {second:.1f}")
    print(f"second start / whole build: {statistics.mean(shares):.1%} ({min(shares):.1%} to {max(shares):.1%})")


def copy_few(source, folder):
    for brand in sorted(path for path in source.iterdir() if path.is_dir())[:2]:
        (folder / brand.name).mkdir(parents=True)
        for path in sorted(brand.iterdir())[: FEW // 2]:
            shutil.copy(path, folder / brand.name)
    return folder


def measure(photos, few, output, workers):
    """CPU seconds of a start, of a whole build, and of a second start."""
    start, _ = built(few, output, workers)
    whole, wall_s = built(photos, output, workers)
    shutil.rmtree(output)
    killed = start_build(photos, output, workers)
    time.sleep(wall_s / 2)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    assert not (output / "manifest.json").exists(), "it was too late to kill it"
    second, _ = built(photos, output, workers, keep=True)
    shutil.rmtree(output)
    return start, whole, second


def built(photos, output, workers, *, keep=False):
    """CPU and wall seconds of a build, its workers included."""
    if not keep:
        shutil.rmtree(output, ignore_errors=True)
    before, started = cpu_s(), time.monotonic()
    if start_build(photos, output, workers).wait():
        sys.exit(f"the build of {photos} failed")
    return cpu_s() - before, time.monotonic() - started


def start_build(photos, output, workers):
    command = [sys.executable, "-c", _BUILD, str(photos), str(output), str(workers)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)


def cpu_s():
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()
