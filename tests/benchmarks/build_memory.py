"""Peak memory of a build of few and of many photos: the driver and its workers must not hold what grows with them.

    python tests/benchmarks/build_memory.py --input PHOTOS --sizes 4000,20000 --workers 2

The photos are crops of those in --input, each in colours of its own, so that no two are copies. Memory is PSS: what
processes share counts once. It is sampled every 0.2 s over all processes of a build, which has a session of its own.
"""

import argparse
import contextlib
import dataclasses
import multiprocessing
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np
from PIL import Image

_SAMPLE_EVERY_S = 0.2
_BUILD = (
    "import sys; from beam_jobs import build_dataset; "
    "build_dataset.run(*sys.argv[1:3], workers=int(sys.argv[3]) or None)"  # 0: what carbrand chooses
)


@dataclasses.dataclass(frozen=True)
class Peak:
    """In MiB: of all processes together, of the driver, and of the largest worker; each at its own moment."""

    all_mib: float = 0
    driver_mib: float = 0
    worker_mib: float = 0

    def with_sample(self, driver_mib, workers_mib):
        return Peak(
            max(self.all_mib, driver_mib + sum(workers_mib)),
            max(self.driver_mib, driver_mib),
            max([self.worker_mib, *workers_mib]),
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", required=True, help="a folder with one folder of photos per brand")
    parser.add_argument("--sizes", default="4000,20000", help="numbers of photos")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--scratch", default=None, help="a folder that keeps the crops for the next time")
    options = parser.parse_args()
    peaks = []
    print("| photos | s | MiB at most: all | driver | a worker |\n|---|---|---|---|---|")
    with contextlib.ExitStack() as stack:
        scratch = pathlib.Path(options.scratch or stack.enter_context(tempfile.TemporaryDirectory()))
        for size in map(int, options.sizes.split(",")):
            photos = draw_crops(pathlib.Path(options.input), scratch / f"photos-{size}", size)
            started = time.monotonic()
            with tempfile.TemporaryDirectory(dir=scratch) as output:
                peaks.append(peak_of_build(photos, output, options.workers))
            row = (size, time.monotonic() - started, *dataclasses.astuple(peaks[-1]))
            print("| " + " | ".join(f"{value:.0f}" for value in row) + " |", flush=True)
    print(f"\nlast against first: {peaks[-1].all_mib / peaks[0].all_mib:.2f}")


def draw_crops(originals, folder, count):
    """Writes `count` photos below `folder`, unless they are there."""
    if not folder.exists():
        paths = sorted(path for path in originals.rglob("*") if path.is_file())
        jobs = [(paths[number % len(paths)], folder, number) for number in range(count)]
        with multiprocessing.get_context("spawn").Pool() as pool:
            pool.starmap(draw_crop, jobs, chunksize=100)
    return folder


def draw_crop(original, folder, number):
    draw = np.random.default_rng(number)
    image = Image.open(original).convert("RGB")
    share = draw.uniform(0.3, 0.6)
    width, height = (max(32, round(side * share**0.5)) for side in image.size)
    left = int(draw.integers(0, max(1, image.width - width)))
    top = int(draw.integers(0, max(1, image.height - height)))
    crop = np.asarray(image.crop((left, top, left + width, top + height)).resize((480, 320)), np.float32)
    pixels = (crop - 128) * draw.uniform(0.6, 1.3, 3) + draw.uniform(90, 160, 3)
    path = folder / original.parent.name / f"{number:06d}.jpg"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=90)


def peak_of_build(photos, output, workers):
    build = start_build(photos, output, workers)
    peak = Peak()
    while build.poll() is None:
        workers = processes_of(session=build.pid) - {build.pid}
        peak = peak.with_sample(pss_mib(build.pid), [pss_mib(pid) for pid in workers])
        time.sleep(_SAMPLE_EVERY_S)
    if build.returncode:
        sys.exit(f"the build of {photos} failed with exit code {build.returncode}")
    return peak


def start_build(photos, output, workers):
    """A build in a process and a session of its own."""
    command = [sys.executable, "-c", _BUILD, str(photos), str(output), str(workers)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)


def processes_of(session):
    found = set()
    for path in pathlib.Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # ended meanwhile
            if int((path / "stat").read_text().rpartition(")")[2].split()[3]) == session:
                found.add(int(path.name))
    return found


def pss_mib(pid):
    """0 if the process has ended."""
    with contextlib.suppress(OSError):
        for line in pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1024
    return 0


if __name__ == "__main__":
    os.nice(5)
    main()
