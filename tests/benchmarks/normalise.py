"""CPU time and quality of `images.normalise`, against the plain loop that one writes first with Pillow.

    python tests/benchmarks/normalise.py --input PHOTOS --every 4

The plain loop decodes all pixels, resizes with Lanczos and encodes; it checks nothing, knows no EXIF or profiles, and
makes no signature. Both see the same photos in turns, so that a busy machine slows both; the times are medians of the
rounds. PSNR is that of what each stores of the photos that it shrinks, against the plain loop's pixels before encoding.
"""

import argparse
import functools
import io
import pathlib
import statistics
import time

import numpy as np
from PIL import Image

from carbrand.data import images


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", required=True, help="a folder of JPEGs")
    parser.add_argument("--every", type=int, default=1, help="take every n-th photo only")
    parser.add_argument("--resize_short", type=int, default=256, help="pixels")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    photos = [path.read_bytes() for path in sorted(pathlib.Path(options.input).rglob("*.jpg"))[:: options.every]]
    photos = [photo for photo in photos if is_upright_srgb_jpeg(photo)]
    loops = {
        "plain Pillow": functools.partial(plain, short_px=options.resize_short),
        "images.normalise": lambda photo: images.normalise(photo, resize_short_px=options.resize_short).encoded,
    }
    times = {name: [] for name in loops}
    for _ in range(options.rounds):
        for name, loop in loops.items():
            times[name].append(cpu_ms(loop, photos))
    baseline = statistics.median(times["plain Pillow"])
    print(f"{len(photos)} photos\n\n| | CPU ms per photo | of plain | PSNR, dB: mean | least |\n|---|---|---|---|---|")
    for name, loop in loops.items():
        median = statistics.median(times[name])
        quality = [psnr(photo, loop(photo), options.resize_short) for photo in photos if is_larger(photo, options)]
        mean, least = (f"{statistics.mean(quality):.1f}", f"{min(quality):.1f}") if quality else ("-", "-")
        print(f"| {name} | {median:.2f} | {median / baseline:.2f} | {mean} | {least} |")


def is_upright_srgb_jpeg(photo):
    """Others have no simple reference; they are few."""
    image = Image.open(io.BytesIO(photo))
    return image.format == "JPEG" and not image.info.get("icc_profile") and image.getexif().get(0x0112, 1) == 1


def plain(photo, short_px):
    buffer = io.BytesIO()
    resized(photo, short_px).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def resized(photo, short_px):
    image = Image.open(io.BytesIO(photo)).convert("RGB")
    scale = short_px / min(image.size)
    size = [round(side * scale) for side in image.size]
    return image.resize(size, Image.Resampling.LANCZOS) if scale < 1 else image


def cpu_ms(loop, photos):
    start = time.process_time()
    for photo in photos:
        loop(photo)
    return 1000 * (time.process_time() - start) / len(photos)


def is_larger(photo, options):
    return min(Image.open(io.BytesIO(photo)).size) > options.resize_short


def psnr(photo, encoded, short_px):
    """In dB."""
    stored = np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"), np.float64)
    return 10 * np.log10(255**2 / np.mean((stored - np.asarray(resized(photo, short_px))) ** 2))


if __name__ == "__main__":
    main()
