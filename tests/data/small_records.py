"""Records folders that are written straight, without a build: small photos, all different."""

import io

import numpy as np
from PIL import Image

from carbrand import files
from carbrand.data import manifest, records

BRANDS = ("audi", "bmw", "fiat", "škoda")


def photo(number, size=(48, 40)):
    pixels = np.random.default_rng(number).integers(0, 256, (5, 6, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR).save(buffer, "JPEG")
    return buffer.getvalue()


def labels_of(num_records):
    """Half of the records are of the first brand, a quarter of the second, an eighth of each other."""
    return np.array([0, 1, 0, 2, 0, 1, 0, 3])[np.arange(num_records) % 8]


def record(number, label, encoded):
    return {
        "image/class/label": label,
        "image/class/text": BRANDS[label].encode(),
        "image/encoded": encoded,
        "image/filename": f"{BRANDS[label]}/{number}.jpg".encode(),
        "image/group": b"%064x" % (number // 2),
        "image/hash/perceptual": b"%04x" % (number % 2**16),
        "image/height": 40,
        "image/key/sha256": b"%064x" % number,
        "image/model": b"",
        "image/source/height": 400 + number,
        "image/source/label": BRANDS[label].title().encode(),
        "image/source/width": 480,
        "image/width": 48,
    }


def write(folder, labels, *, num_shards=2, photo=photo):
    """A "train" split with a record for each of `labels` [N], in shards of equal size, as nearly as can be."""
    index = np.zeros(len(labels), records.INDEX_DTYPE)
    index["label"] = labels
    shards = [
        _write_shard(folder / files.shard_name("train", shard, num_shards), shard, numbers, index, photo)
        for shard, numbers in enumerate(np.array_split(np.arange(len(labels)), num_shards))
    ]
    files.write_bytes(folder / manifest.index_name("train"), manifest.index_bytes(index))
    splits = {"train": manifest.Split(tuple(shards), tuple(np.bincount(labels, minlength=len(BRANDS)).tolist()))}
    manifest.write(folder, _manifest(splits))
    return folder


def _write_shard(path, shard, numbers, index, photo):
    offset = 0
    with files.atomic_writer(path) as file:
        for number in numbers.tolist():
            payload = records.encode(record(number, int(index[number]["label"]), photo(number)))
            index[number] = (shard, offset, len(payload), index[number]["label"])
            offset += file.write(records.frame(payload))
    return manifest.Shard(path.name, len(numbers), offset, files.sha256_of_file(path))


def _manifest(splits):
    return manifest.Manifest(
        format_version=records.FORMAT_VERSION,
        carbrand_version="0.1.0",
        version=1,
        ancestors=(),
        brands=BRANDS,
        labels={brand: [brand.title()] for brand in BRANDS},
        near_misses=[],
        splits=splits,
        resize_short_px=None,
        jpeg_quality=75,
        seed=0,
        fractions=(1.0, 0.0, 0.0),
        near_duplicates="off",
        conflicts="keep",
        group_by="none",
        given_splits=(),
        aliases={},
        counts={},
        statistics={},
        source={},
        files={},
        fingerprint=manifest.fingerprint_of(BRANDS, splits),
        command="",
    )


def damage(folder, numbers):
    """Flips one bit in the photo of each of these records."""
    index = manifest.load_index(folder, "train")
    shards = manifest.load(folder).splits["train"].shards
    for row in index[numbers]:
        with (folder / shards[row["shard"]].name).open("r+b") as file:
            place = int(row["offset"]) + int(row["length"]) // 2
            file.seek(place)
            byte = file.read(1)[0]
            file.seek(place)
            file.write(bytes([byte ^ 1]))
