"""Images per CPU-second, time to the first batch and memory of the training input, against nine other ways to do it.

    python tests/benchmarks/input_pipeline.py --make_peers --peers PEERS --input PHOTOS MORE_PHOTOS --rounds 3

`carbrand build` makes records of each input with its defaults (`--as_they_are`: without shrinking the photos), and all
read the photos of its train split: as records, or as the same JPEGs in a folder per brand. In batches of 64 of
224 x 224 pixels, from random windows of 0.35 to 1 of the area and 3/4 to 4/3 in aspect, half of them mirrored:

- carbrand: `make_dataset` with its defaults.
- carbrand, all: with color jitter, RandAugment and erasing too, as far as `Augment` has them.
- model garden: TensorFlow Model Garden's classification input with its own reader, whose defaults differ in that it
  shuffles 10,000 records, and normalises images to float32. "All": with its own color jitter, RandAugment and erasing.
- tfds: the records as TFDS opens them, shuffled; TFDS decodes the whole photo; crop, flip and resize of `tf.image`.
- keras: `image_dataset_from_directory` to 256 x 256, RandomCrop and RandomFlip, in float32. Its windows have one size;
  Keras has no random-resized crop. "Zoom": with a RandomZoom before, the nearest to it.
- torch: PyTorch's DataLoader with worker processes and Pillow, which decodes large photos at a fraction (`draft`).
- grain: the same function in the threads of Google's Grain, in this process.
- dali: NVIDIA DALI on the CPU, decoding only the random window, without antialiasing, as ours.

And two bounds, which make no batches:

- bare: TensorFlow reads the records in order, parses them and decodes the random window, nothing else.
- simplejpeg: threads decode whole JPEGs, without TensorFlow.

Each runs in a process of its own, in turns, so that a busy machine slows all of them, on as many cores as `--workers`.
CPU times are those of all its processes, from after the first batches on. The time to the first batch counts from the
call, after all imports; that of peers with a shuffle buffer holds its filling, in Model Garden 10,000 records. Memory
is the largest sum of the processes' shares (PSS) seen. All figures are medians of the rounds, also the ratios.

Peers that do not go with carbrand's environment have their own below PEERS, which `--make_peers` makes (5 GB); without
it, or where a package is missing, they are left out.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import venv

import input_peers
import psutil
from input_peers import Contender

PACKAGES = {
    "tf_models": ["tf-models-official==2.20.0", "tensorflow==2.20.0", "tf-keras==2.20.1", "psutil==7.2.2"],
    "others": [
        # The CPU build of PyTorch; DALI's package for CUDA 12 also runs where there is no GPU.
        *("torch==2.13.0", "pillow==12.3.0", "grain==0.2.18", "nvidia-dali-cuda120==2.4.0", "psutil==7.2.2"),
    ],
}
MEMORY_EVERY_S = 0.2


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", required=True, nargs="+", help="folders with a folder of JPEGs per brand")
    parser.add_argument("--as_they_are", action="store_true", help="do not shrink the photos in the records")
    parser.add_argument("--images", type=int, default=4000, help="that each contender delivers while it is measured")
    parser.add_argument("--workers", type=int, default=2, help="cores, and threads or processes where one chooses")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", type=pathlib.Path, help="folder of the peers' environments")
    parser.add_argument("--make_peers", action="store_true", help="make those environments first")
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=list(CONTENDERS), help="contenders")
    options = parser.parse_args()
    if options.make_peers:
        make_peers(options.peers)
    names = [name for name in options.only if can_run(name, options.peers)]
    for source in options.input:
        with tempfile.TemporaryDirectory() as folder:
            compare(pathlib.Path(source), names, options, pathlib.Path(folder))


def make_peers(folder):
    for name, packages in PACKAGES.items():
        venv.create(folder / name, symlinks=True, with_pip=True)
        subprocess.run([python_of(name, folder), "-m", "pip", "install", "--quiet", *packages], check=True)


def python_of(environment, peers):
    return str(peers / environment / "bin" / "python") if environment else sys.executable


def can_run(name, peers):
    """Whether all that the contender imports is there; tells if not."""
    contender = CONTENDERS[name]
    if contender.environment and not peers:
        print(f"{name} is left out: it needs --peers")
        return False
    command = [python_of(contender.environment, peers), "-c", f"import {', '.join(contender.modules)}"]
    try:
        subprocess.run(command, check=True, capture_output=True, env=quiet())
    except (OSError, subprocess.CalledProcessError) as error:
        reason = getattr(error, "stderr", b"").decode().strip().rpartition("\n")[2] or error
        print(f"{name} is left out: {reason}")
        return False
    return True


def quiet():
    return os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}


def compare(photos, names, options, folder):
    records, jpegs = folder / "records", folder / "jpegs"
    build(photos, records, options.as_they_are)
    count, mean_bytes = copy_jpegs(records, jpegs)
    source = input_peers.Source(str(records), str(jpegs), options.images, options.workers)
    measured = {name: [] for name in names}
    for _ in range(options.rounds):
        for name, rows in measured.items():
            rows.append(run_alone(name, source, options.peers))
    print(f"\n{photos.name}: {count} JPEGs of {mean_bytes / 1000:.0f} kB; ", end="")
    print(f"{options.images} images, {options.workers} workers, {options.rounds} rounds\n")
    print_table(measured)


def build(photos, records, as_they_are):
    shrink = ["--resize_short", "0"] if as_they_are else []
    command = [sys.executable, "-m", "carbrand", "build", "--input", photos, "--output", records, *shrink]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        sys.exit(done.stdout)


def copy_jpegs(records, folder):
    """The JPEGs of the train split, in a folder per brand -> how many there are, and their mean size in bytes."""
    from carbrand.data import records as codec

    sizes = []
    for shard in sorted(records.glob("*-train.tfrecord*")):
        for payload in payloads(shard):
            record = codec.parse(payload)
            target = folder / record["image/class/text"].decode() / f"{len(sizes):06d}.jpg"
            target.parent.mkdir(parents=True, exist_ok=True)
            sizes.append(target.write_bytes(record["image/encoded"]))
    return len(sizes), statistics.mean(sizes)


def payloads(shard):
    """Those of a TFRecord file: 8 bytes of length, 4 of its checksum, the payload, 4 of its checksum."""
    with shard.open("rb") as file:
        while header := file.read(12):
            yield file.read(struct.unpack("<Q4x", header)[0])
            file.read(4)


def run_alone(name, source, peers):
    """What `input_peers.report` prints in a process of its own, with the peak memory in MiB."""
    contender = CONTENDERS[name]
    home = "input_pipeline" if name in OURS else "input_peers"
    command = f"import input_peers, {home} as home; "
    command += f"input_peers.report(home.CONTENDERS[{name!r}], input_peers.{source!r})"
    with tempfile.TemporaryFile() as messages:
        process = subprocess.Popen(
            [python_of(contender.environment, peers), "-c", command],
            cwd=pathlib.Path(__file__).parent,
            env=quiet(),
            stdout=subprocess.PIPE,
            stderr=messages,
        )
        peak = PeakMemory(process.pid)
        output, _ = process.communicate()
        if process.returncode:
            messages.seek(0)
            sys.exit(f"{name}: {messages.read().decode()}")
    return json.loads(output.splitlines()[-1]) | {"peak_mib": peak.stop()}


class PeakMemory:
    """Looks at a process and its children again and again, from here, so that they do not pay for it."""

    def __init__(self, pid):
        self._bytes = 0
        self._is_stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, args=[psutil.Process(pid)])
        self._thread.start()

    def stop(self):
        """The largest sum of their PSS seen, in MiB."""
        self._is_stopped.set()
        self._thread.join()
        return self._bytes / 2**20

    def _watch(self, process):
        while not self._is_stopped.wait(MEMORY_EVERY_S):
            try:
                tree = [process, *process.children(recursive=True)]
            except psutil.NoSuchProcess:
                return
            self._bytes = max(self._bytes, sum(map(pss_bytes, tree)))


def pss_bytes(process):
    try:
        return process.memory_full_info().pss
    except (psutil.NoSuchProcess, psutil.ZombieProcess, psutil.AccessDenied):
        return 0  # it has just ended


def print_table(measured):
    print("| contender | images per CPU-s | carbrand / it | first batch s | peak MiB |\n|---|---|---|---|---|")
    for name, rows in measured.items():
        speed, first, peak = (median(rows, key) for key in ("images_per_cpu_s", "first_batch_s", "peak_mib"))
        ours = measured.get("carbrand")
        ratio = f"{statistics.median(map(ratio_of, ours, rows)):.2f}" if ours else "-"
        print(f"| {name} | {speed:.0f} | {ratio} | {first:.1f} | {peak:.0f} |")


def median(rows, key):
    return statistics.median(row[key] for row in rows)


def ratio_of(ours, theirs):
    return ours["images_per_cpu_s"] / theirs["images_per_cpu_s"]


def carbrand_default(source):
    import carbrand

    dataset = carbrand.make_dataset(source.records, "train", batch_size=input_peers.BATCH)
    return (images for images, _ in dataset)


def carbrand_all(source):
    import carbrand

    wanted = {
        "color_jitter": input_peers.COLOR_JITTER,
        "randaugment_layers": input_peers.RANDAUGMENT_LAYERS,
        "erase_probability": input_peers.ERASE_PROBABILITY,
    }
    known = {field.name for field in dataclasses.fields(carbrand.Augment)}
    augment = carbrand.Augment(**{name: value for name, value in wanted.items() if name in known})
    dataset = carbrand.make_dataset(source.records, "train", batch_size=input_peers.BATCH, augment=augment)
    return (images for images, _ in dataset)


_CARBRAND = ("tensorflow", "carbrand.data.pipeline")

OURS = {
    "carbrand": Contender(carbrand_default, _CARBRAND),
    "carbrand, all": Contender(carbrand_all, _CARBRAND),
}
CONTENDERS = OURS | input_peers.CONTENDERS


if __name__ == "__main__":
    main()
