"""How many altered copies of photos are found as such, how many other pairs are taken for copies, and what it costs.

    python tests/benchmarks/near_duplicates.py --input PHOTOS --copies 300

Of a random choice of the photos, one altered copy of each kind is made in memory and stored as a JPEG. Signatures,
keys, candidates and confirmation are those of the build. The pairs found among the photos themselves are listed: look
at them, since there may be real copies among the photos.
"""

import argparse
import collections
import io
import itertools
import pathlib
import random
import time

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from carbrand.data import images, near_duplicates

RESIZE_SHORT_PX = 256


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", required=True, help="a folder of photos")
    parser.add_argument("--copies", type=int, default=300, help="of each kind")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    paths = sorted(path for path in pathlib.Path(options.input).rglob("*") if path.is_file())
    photos = {str(path.relative_to(options.input)): path.read_bytes() for path in paths}
    originals = normalise(photos)
    rng = random.Random(options.seed)
    chosen = rng.sample(sorted(originals), min(options.copies, len(originals)))
    copies = {f"{name}#{kind}": altered(photos[name], kind, rng) for name in chosen for kind in ALTERATIONS}
    found = find_copies(originals | normalise(copies))
    print_recall(copies, found)
    print_pairs_of_originals(originals)
    print_costs(originals)
    print_bucket_sizes(originals)


def print_recall(copies, found):
    print("| kind | recall, % |\n|---|---|")
    for kind in ALTERATIONS:
        names = [name for name in copies if name.endswith(f"#{kind}")]
        print(f"| {kind} | {100 * sum((original_of(name), name) in found for name in names) / len(names):.1f} |")


def print_pairs_of_originals(originals):
    candidates = find_candidates(originals)
    copies = confirm(originals, candidates)
    print(f"\n{len(candidates) / len(originals):.3f} candidates per photo; {len(copies)} pairs confirmed:")
    for pair in sorted(copies):
        print("   ", *pair, f"{near_duplicates.similarity(*(thumbnail(originals[name]) for name in pair)):.3f}")


def print_costs(originals):
    some = dict(itertools.islice(originals.items(), 200))
    pixels = [np.asarray(as_image(image.encoded).resize((400, 256))) for image in some.values()]
    thumbnails = [thumbnail(image) for image in some.values()]
    members = [(name, bytes.fromhex(image.perceptual_hash)) for name, image in some.items()]
    pairs = len(some) * (len(some) - 1) / 2
    print(
        f"\nsignature of 400 × 256 px: {cpu_s(lambda: list(map(near_duplicates.signature, pixels))) / len(some):.2e} s"
    )
    print(f"a pair within a bucket: {cpu_s(lambda: near_duplicates.candidate_pairs(members)) / pairs:.2e} s")
    confirmed = cpu_s(lambda: list(itertools.starmap(near_duplicates.are_copies, itertools.pairwise(thumbnails))))
    print(f"confirming a candidate, without loading it: {confirmed / (len(some) - 1):.2e} s")


def print_bucket_sizes(originals):
    buckets = collections.Counter(
        key for image in originals.values() for key in near_duplicates.bucket_keys(bytes.fromhex(image.perceptual_hash))
    )
    rows, meetings = buckets.total(), sum(size * (size - 1) for size in buckets.values())
    print(f"\n{rows / len(originals):.1f} keys per photo, largest bucket {max(buckets.values())}")
    print("| photos, all different | others in a photo's bucket, mean over photos |\n|---|---|")
    for count in (10**5, 10**6, 10**8):
        print(f"| {count:,} | {meetings / rows * count / len(originals):,.0f} |")


def cpu_s(function):
    start = time.process_time()
    function()
    return time.process_time() - start


def normalise(photos):
    """File names and contents -> names and NormalisedImages; files that are no photos are left out."""
    normalised = {}
    for name, content in photos.items():
        try:
            normalised[name] = images.normalise(content, resize_short_px=RESIZE_SHORT_PX)
        except images.Rejected as error:
            print(f"left out {name}: {error}")
    return normalised


def find_copies(normalised):
    """The pairs of names that the whole chain takes for copies, (smaller, larger)."""
    return confirm(normalised, find_candidates(normalised))


def find_candidates(normalised):
    buckets = collections.defaultdict(list)
    for name, image in normalised.items():
        signature = bytes.fromhex(image.perceptual_hash)
        for key in near_duplicates.bucket_keys(signature):
            buckets[key].append((name, signature))
    return {pair for members in buckets.values() for pair in near_duplicates.candidate_pairs(members)}


def confirm(normalised, candidates):
    thumbnails = {name: thumbnail(normalised[name]) for name in set(itertools.chain(*candidates))}
    return {(a, b) for a, b in candidates if near_duplicates.are_copies(thumbnails[a], thumbnails[b])}


def thumbnail(image):
    return images.grey_thumbnail(image.encoded, near_duplicates.THUMBNAIL_PX)


def original_of(name):
    return name.rpartition("#")[0]


def altered(content, kind, rng):
    """One photo's file -> the file of an altered copy, a JPEG."""
    return ALTERATIONS[kind](as_image(content), rng)


def as_image(content):
    return Image.open(io.BytesIO(content)).convert("RGB")


def scaled(image, factor):
    return image.resize([round(side * factor) for side in image.size], Image.Resampling.LANCZOS)


def cropped(image, fraction, rng):
    width, height = (round(side * (1 - fraction)) for side in image.size)
    left, top = rng.randint(0, image.width - width), rng.randint(0, image.height - height)
    return image.crop((left, top, left + width, top + height))


def brightened(image, factor):
    return ImageEnhance.Brightness(image).enhance(factor)


def jpeg(image, quality=90):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


ALTERATIONS = {
    "resize": lambda image, rng: jpeg(scaled(image, 0.6)),
    "quality": lambda image, rng: jpeg(image, 50),
    "mirror": lambda image, rng: jpeg(ImageOps.mirror(image)),
    "crop": lambda image, rng: jpeg(cropped(image, 0.05, rng)),
    "brightness": lambda image, rng: jpeg(brightened(image, rng.choice((1.25, 0.8)))),
    "crop+resize+quality": lambda image, rng: jpeg(scaled(cropped(image, 0.05, rng), 0.6), 50),
    "crop+mirror+brightness": lambda image, rng: jpeg(brightened(ImageOps.mirror(cropped(image, 0.05, rng)), 1.2), 70),
    "crop of 10 %": lambda image, rng: jpeg(cropped(image, 0.1, rng)),
}


if __name__ == "__main__":
    main()
