"""Time to the first batch of a stream that begins late in an epoch, and the memory that reading in windows takes.

    python tests/benchmarks/pipeline_seek.py
    python tests/benchmarks/pipeline_seek.py --input PHOTOS

The first makes a million small records in four shards, and starts fresh processes at the beginning and at 90 % of an
epoch: with the whole split shuffled, and with `shuffle_mib`. The time counts from the call of `make_dataset`, after all
imports, to the first batch of 64. The files are in the system's cache, so this is the work, without the disk.

With `--input`, a folder with a folder of JPEGs per brand, it makes records of these, again and again up to `--gib`, and
measures the largest PSS that a process reaches in 300 steps, for each `shuffle_mib`. Images are 32 pixels wide, so that
there is nothing else in memory that counts; the share is how much more it takes than with 0, of what was asked for.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile

import numpy as np

# The records of the tests of the pipeline, which lie beside them.
sys.path.append(str(pathlib.Path(__file__).parents[1] / "data"))

import small_records

BATCH = 64
NUM_SHARDS = 4
SEEK = """
import json, sys, time
from carbrand.data import pipeline
from carbrand.data.preprocess import Preprocess

folder, shuffle_mib, start_step = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
began, cpu_began = time.perf_counter(), time.process_time()
dataset = pipeline.make_dataset(
    folder, "train", batch_size=64, preprocess=Preprocess(image_size_px=32), start_step=start_step,
    stream=pipeline.Stream(shuffle_mib=shuffle_mib),
)
next(iter(dataset))
print(json.dumps([time.perf_counter() - began, time.process_time() - cpu_began]))
"""
MEMORY = """
import json, pathlib, sys
from carbrand.data import pipeline
from carbrand.data.preprocess import Preprocess

folder, shuffle_mib, steps = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
dataset = pipeline.make_dataset(
    folder, "train", batch_size=64, preprocess=Preprocess(image_size_px=32), num_steps=steps,
    stream=pipeline.Stream(shuffle_mib=shuffle_mib, threads=2), fields=["number"],
)
peak_kib = 0
for batch in dataset:
    for line in pathlib.Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            peak_kib = max(peak_kib, int(line.split()[1]))
print(json.dumps([peak_kib / 1024]))
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=pathlib.Path, help="folder with a folder of JPEGs per brand; measures memory")
    parser.add_argument("--records", type=int, default=1_000_000, help="to seek in")
    parser.add_argument("--gib", type=float, default=1.5, help="of records, when memory is measured")
    parser.add_argument("--steps", type=int, default=300, help="when memory is measured")
    parser.add_argument("--shuffle_mib", type=int, nargs="+", default=[0, 256, 512])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        (measure_memory if options.input else measure_seeks)(pathlib.Path(folder), options)


def measure_seeks(folder, options):
    photos = [small_records.photo(number, size=(16, 16)) for number in range(1000)]
    labels = small_records.labels_of(options.records)
    small_records.write(folder, labels, num_shards=NUM_SHARDS, photo=lambda number: photos[number % 1000])
    print(f"{options.records} records, {size_of(folder) / options.records:.0f} bytes each\n")
    print("| shuffle_mib | first batch at 0 % of an epoch, s | CPU-s | at 90 %, s | CPU-s |\n|---|---|---|---|---|")
    starts = [0, options.records * 9 // 10 // BATCH]
    for shuffle_mib in options.shuffle_mib:
        seconds = [medians(options.rounds, SEEK, folder, shuffle_mib, start) for start in starts]
        print("|", " | ".join([str(shuffle_mib), *(f"{number:.2f}" for pair in seconds for number in pair)]), "|")
    print("\nWhat is saved to go on is the step: one whole number.")


def measure_memory(folder, options):
    photos = [path.read_bytes() for path in sorted(options.input.glob("*/*.jp*g"))]
    num_records = round(options.gib * 2**30 / np.mean([len(photo) for photo in photos]))
    labels = small_records.labels_of(num_records)
    small_records.write(folder, labels, num_shards=NUM_SHARDS, photo=lambda number: photos[number % len(photos)])
    print(f"{num_records} records, {size_of(folder) / num_records / 1000:.0f} kB each; {options.steps} steps\n")
    print("| shuffle_mib | peak PSS, MiB | more than with the first | of shuffle_mib |\n|---|---|---|---|")
    first = None
    for shuffle_mib in options.shuffle_mib:
        (peak,) = medians(options.rounds, MEMORY, folder, shuffle_mib, options.steps)
        first = peak if first is None else first
        share = f"{(peak - first) / shuffle_mib:.2f}" if shuffle_mib else "-"
        print(f"| {shuffle_mib} | {peak:.0f} | {peak - first:.0f} | {share} |", flush=True)


def size_of(folder):
    return sum(path.stat().st_size for path in folder.glob("*.tfrecord*"))


def medians(rounds, code, *arguments):
    """Of the numbers that the program prints, each time in a process of its own."""
    return [
        statistics.median(column) for column in zip(*(run_alone(code, *arguments) for _ in range(rounds)), strict=True)
    ]


def run_alone(code, *arguments):
    done = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout)


if __name__ == "__main__":
    main()
