"""Photos of a few pixels, and what a build made of them."""

import io
import json

import numpy as np
from PIL import Image

from carbrand.data import catalogue, manifest


def photo(seed, size=(48, 40), file_format="JPEG"):
    pixels = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR).save(buffer, file_format)
    return buffer.getvalue()


def write_photos(root, per_brand=12, brands=("audi", "BMW", "Aston Martin")):
    for brand in brands:
        (root / brand).mkdir(parents=True)
        for number in range(per_brand):
            (root / brand / f"{number:03d}.jpg").write_bytes(photo([number, *brand.encode()]))
    return root


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def jsonl(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def rows(folder):
    """The catalogue: hash of the file -> (split, row)."""
    return {
        row.sha256: (split, row)
        for split, part in manifest.load(folder).splits.items()
        for shard in part.shards
        for row in catalogue.read(folder / catalogue.name_of(shard.name))
    }
