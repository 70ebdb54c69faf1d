"""Photos per second of a whole build, against a plain loop, TFDS, and `images.normalise` alone, which is the bound.

    python tests/benchmarks/build_throughput.py --input PHOTOS MORE_PHOTOS --photos 1600

A folder of fewer photos is filled up with repeats of them, whose bytes differ; so near duplicates are looked for only
in a folder that needs none. What each contender does:

- build: `build_dataset.run` with its defaults, so on all cores, "no near" without the search for near duplicates.
- plain: one process, as one writes it first: Pillow decodes all pixels, turns them upright, resizes with Lanczos and
  encodes, unless the photo fits already; SHA-256, a `tf.train.Example` with our features, `tf.io.TFRecordWriter`. It
  shuffles nothing, finds no copies and makes no perceptual hash.
- tfds: `download_and_prepare` of a builder that does the same to the photos, and stores them with name and label.
- bound: reads the photos and calls `images.normalise`, in as many processes as there are workers.

Each runs in a process of its own, in turns, so that a busy machine slows all of them; CPU times are those of all its
processes, and all figures medians of the rounds. To start is paid once, however many photos follow: it is what a run on
`FEW` photos takes, and "net" figures leave it out.
"""

import argparse
import functools
import io
import multiprocessing
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

FEW = 20
SHORT_PX = 256


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", required=True, nargs="+", help="folders with a folder of JPEGs per brand")
    parser.add_argument("--photos", type=int, default=1600, help="of each input")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes of the bound")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=list(CONTENDERS), help="contenders")
    options = parser.parse_args()
    for source in options.input:
        with tempfile.TemporaryDirectory() as folder:
            compare(pathlib.Path(source), options, pathlib.Path(folder))


def compare(source, options, folder):
    is_repeated = copy_photos(source, folder / "all", options.photos)
    copy_photos(source, folder / "few", FEW)
    names = [name for name in options.only if name != "build" or not is_repeated]
    seconds = {(name, size): [] for name in names for size in ("few", "all")}
    for _ in range(options.rounds):
        for (name, size), measured in seconds.items():
            measured.append(run_alone(name, folder / size, options.workers))
    medians = {key: [statistics.median(column) for column in zip(*rows, strict=True)] for key, rows in seconds.items()}
    print(f"\n{source.name}: {options.photos} photos, {options.workers} workers, {options.rounds} rounds\n")
    print_table(names, medians, options.photos)


def print_table(names, medians, num_photos):
    print("| | start: CPU s | wall s | photos per CPU s | net | per wall s | net | net of the bound, CPU |")
    print("|---|---|---|---|---|---|---|---|")
    rows = {name: rates(medians[name, "few"], medians[name, "all"], num_photos) for name in names}
    for name, row in rows.items():
        share = f"{row[3] / rows['bound'][3]:.0%}" if "bound" in rows else "-"
        print(f"| {name} | " + " | ".join(f"{value:.1f}" for value in row) + f" | {share} |")
    for ours in {"build", "no near"} & rows.keys():
        for other in {"plain", "tfds"} & rows.keys():
            ratios = [mine / theirs for mine, theirs in zip(rows[ours][2:], rows[other][2:], strict=True)]
            print("{} / {}: CPU {:.2f}, net {:.2f}; wall {:.2f}, net {:.2f}".format(ours, other, *ratios))


def rates(few, everything, num_photos):
    """(CPU seconds, wall seconds) twice -> both of the start, then photos per CPU second, net, per wall second, net."""
    gross = [num_photos / seconds for seconds in everything]
    net = [(num_photos - FEW) / (seconds - start) for start, seconds in zip(few, everything, strict=True)]
    return *few, gross[0], net[0], gross[1], net[1]


def copy_photos(source, folder, count):
    """Copies so many photos, evenly chosen; says whether there were too few, so that some had to be repeated."""
    paths = sorted(path for path in source.rglob("*.jpg") if path.is_file())
    for number in range(count):
        path = paths[number * len(paths) // count] if count < len(paths) else paths[number % len(paths)]
        target = folder / path.relative_to(source).with_name(f"{number:06d}.jpg")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes() + b"%d" % number)  # decoders stop at the end of the image before it
    return count > len(paths)


def run_alone(name, photos, workers):
    """CPU and wall seconds of a process that runs one contender, its own processes included."""
    with tempfile.TemporaryDirectory() as output:
        command = "import build_throughput; build_throughput.CONTENDERS[{!r}]({!r}, {!r}, {!r})"
        started = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-c", command.format(name, str(photos), output, workers)],
            cwd=pathlib.Path(__file__).parent,
            env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        messages = process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            sys.exit(messages.decode())
        return usage.ru_utime + usage.ru_stime, time.monotonic() - started


def build(photos, output, workers, **choices):
    from beam_jobs import build_dataset, build_output

    build_dataset.run(photos, output, build_output.Choices(resize_short_px=SHORT_PX, **choices))


def plain(photos, output, workers):
    import tensorflow as tf

    with tf.io.TFRecordWriter(f"{output}/plain.tfrecord") as writer:
        for path in jpegs(photos):
            writer.write(example(path).SerializeToString())


def example(path):
    import tensorflow as tf
    from PIL import Image

    from carbrand import files
    from carbrand.data import records

    content = path.read_bytes()
    encoded, original = resized(content)
    size = Image.open(io.BytesIO(encoded)).size
    brand = path.parent.name.encode()
    values = {
        "image/class/label": 0,
        "image/class/text": brand,
        "image/encoded": encoded,
        "image/filename": path.name.encode(),
        "image/group": b"",
        "image/hash/perceptual": b"",
        "image/height": size[1],
        "image/key/sha256": files.sha256(content).encode(),
        "image/model": b"",
        "image/source/height": original[1],
        "image/source/label": brand,
        "image/source/width": original[0],
        "image/width": size[0],
    }
    assert values.keys() == records.FEATURES.keys()
    return tf.train.Example(
        features=tf.train.Features(
            feature={
                name: tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
                if isinstance(value, bytes)
                else tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))
                for name, value in values.items()
            }
        )
    )


def resized(content):
    """A file -> its JPEG with a short side of at most `SHORT_PX`, and its original size."""
    from PIL import Image, ImageOps

    image = Image.open(io.BytesIO(content))
    image.load()
    if min(image.size) <= SHORT_PX and image.mode in ("RGB", "L") and image.getexif().get(0x0112, 1) == 1:
        return content, image.size
    upright = ImageOps.exif_transpose(image).convert("RGB")
    scale = min(1, SHORT_PX / min(upright.size))
    small = upright.resize([round(side * scale) for side in upright.size], Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=95)
    return buffer.getvalue(), upright.size


def tfds(photos, output, workers):
    import tensorflow_datasets
    from tensorflow_datasets.core.utils import gcs_utils

    gcs_utils._is_gcs_disabled = True

    class Photos(tensorflow_datasets.core.GeneratorBasedBuilder):
        VERSION = tensorflow_datasets.core.Version("1.0.0")
        pkg_dir_path = pathlib.Path(__file__).parent  # found by itself only for builders in packages

        def _info(self):
            features = tensorflow_datasets.features
            return self.dataset_info_from_configs(
                features=features.FeaturesDict(
                    {
                        "image": features.Image(encoding_format="jpeg"),
                        "filename": features.Text(),
                        "label": features.ClassLabel(
                            names=sorted(path.name for path in pathlib.Path(photos).iterdir())
                        ),
                    }
                )
            )

        def _split_generators(self, _):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for path in jpegs(photos):
                image = io.BytesIO(resized(path.read_bytes())[0])
                yield str(path), {"image": image, "filename": path.name, "label": path.parent.name}

    Photos(data_dir=output).download_and_prepare()


def bound(photos, output, workers):
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        for _ in pool.imap_unordered(normalise, jpegs(photos), chunksize=5):
            pass
        pool.close()
        pool.join()


def normalise(path):
    from carbrand.data import images

    images.normalise(path.read_bytes(), resize_short_px=SHORT_PX)


def jpegs(folder):
    return sorted(pathlib.Path(folder).rglob("*.jpg"))


CONTENDERS = {
    "build": build,
    "no near": functools.partial(build, near_duplicates="off"),
    "plain": plain,
    "tfds": tfds,
    "bound": bound,
}


if __name__ == "__main__":
    main()
