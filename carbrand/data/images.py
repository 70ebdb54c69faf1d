"""The bytes of any image file -> an upright RGB or grey JPEG of limited size, or the reason why not.

The one place that opens an image outside TensorFlow, which reads neither AVIF nor some WebP, and ignores EXIF. Pillow
reads every header, and the pixels of all but ordinary JPEGs. Those are faster in simplejpeg, which also tells whether
they are without fault: OpenCV passes some that TensorFlow refuses. Shrinking is faster in OpenCV.
"""

import contextlib
import dataclasses
import functools
import io
import math
import re
import warnings
from collections.abc import Iterator

import numpy as np
import PIL
import simplejpeg
from PIL import ExifTags, Image, ImageCms

from carbrand import files
from carbrand.data import near_duplicates
from carbrand.data.opencv import cv2

# Of odd metadata, and of sizes, which are checked here. For good: `catch_warnings` does not go with threads.
warnings.filterwarnings("ignore", module=r"PIL\.")

PROCESSING_VERSION = 4  # raise it whenever the same bytes come out differently: cached results then no longer count

# Formats of photos; Pillow opens more, some of them through other programs (EPS starts Ghostscript).
FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF")

MAX_FILE_BYTES = 200 * 2**20  # a guess: a file that is larger is a video or an archive
MAX_PIXELS = 80_000_000  # 240 MB as RGB; a guess, below the 89 million at which Pillow itself begins to warn
MAX_SIDE_PX = 30_000  # a guess: panoramas pass
MIN_SIDE_PX = 16  # a guess: icons and tracking pixels are no photos
MAX_ASPECT_RATIO = 20  # a guess: banners and rulers are no photos

# JPEGs decoded at a scale, and means of areas, are cheap and a little off: used down to this times the target, no
# further. By measurement, with the sharpness: 37.7 dB against Lanczos on photos of 1 megapixel, 39.8 dB on smaller ones
# (what encoding alone leaves: 40.8 and 42.2 dB).
CHEAP_FACTOR = 1.5
# Linear interpolation after the low-pass filter is 42 to 49 dB from Lanczos where a side shrinks by this or more, 34 to
# 38 dB below. There a cubic is worth its time: five times as much in OpenCV without IPP, but the photos are small.
_LINEAR_FACTOR = 1.4
_SHARPNESS = 1.0  # of the low-pass filter; more than a bicubic's usual 0.5 to 0.75: decoding at a scale and lines blur

_DECODING_DIVISORS = (1, 2, 4, 8)  # of both sides: the scales that libjpeg is fast at
_FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_HUFFMAN_MARKERS = (0xC0, 0xC1, 0xC2)  # baseline, extended, progressive; TensorFlow decodes no other

# Levels of 255 by which a profile may differ from sRGB and still count as sRGB: that of most cameras, IEC61966-2.1,
# differs by 1 (measured), one of gamma 2.2 by 9 in the dark (calculated).
_MAX_ROUNDING = 3

_UPRIGHT = {
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
    8: lambda pixels: np.rot90(pixels),
}


@dataclasses.dataclass(frozen=True)
class NormalisedImage:
    """A photo as it is stored, and what is known of it.

    Attributes:
        encoded: JPEG, RGB or grey, upright, sRGB.
        height: in pixels.
        width: in pixels.
        original_height: of the file, upright, before it was shrunk, in pixels.
        original_width: likewise.
        perceptual_hash: `near_duplicates.signature` of the pixels before any encoding, in hexadecimal.
        mean_rgb: the mean colour of these pixels, 0 to 255 each.
    """

    encoded: bytes
    height: int
    width: int
    original_height: int
    original_width: int
    perceptual_hash: str
    mean_rgb: tuple[int, int, int]


class Rejected(Exception):
    """A file that cannot become a photo: `reason` is a short stable code, `detail` is equal in every run."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


@dataclasses.dataclass(frozen=True)
class _Decoded:
    """Pixels [H, W, 3] or [H, W] uint8 as they are in the file, perhaps at a scale, and what is to be done to them."""

    pixels: np.ndarray
    orientation: int
    to_srgb: ImageCms.ImageCmsTransform | None = None
    is_plain_jpeg: bool = False


def normalise(
    content: bytes, *, resize_short_px: int | None, jpeg_quality: int = 95, max_pixels: int = MAX_PIXELS
) -> NormalisedImage:
    """Decodes a whole image file, turns it upright, converts it to sRGB and shrinks it.

    JPEGs that are so already, and of a kind that TensorFlow decodes, are kept byte for byte. Transparent pixels become
    white; of an animation the first frame counts.

    Args:
        content: the file.
        resize_short_px: shrink the short side to this, in pixels; never enlarge. None keeps the size.
        jpeg_quality: of what is encoded again, 1 to 95.
        max_pixels: of an image that is still decoded; at most `MAX_PIXELS`.

    Raises:
        Rejected: "empty", "not_an_image", "too_small", "too_large", "aspect_ratio", "truncated" or "decode_error".
    """
    if len(content) > MAX_FILE_BYTES:
        raise Rejected("too_large", f"over {MAX_FILE_BYTES} bytes")
    image = _open(content)
    _check_size(*image.size, max_pixels)
    target = _target_size(image.size, resize_short_px)
    decoded = _decode_plain_jpeg(content, image, target) or _decode_any(image)
    pixels = _finish(decoded, target)
    height, width = pixels.shape[:2]
    original_width, original_height = image.size[::-1] if decoded.orientation >= 5 else image.size
    return NormalisedImage(
        encoded=content if _is_final(decoded, target) else _encode(pixels, jpeg_quality),
        height=height,
        width=width,
        original_height=original_height,
        original_width=original_width,
        perceptual_hash=near_duplicates.signature(pixels).hex(),
        mean_rgb=_mean_rgb(pixels),
    )


def cache_key(content_hash: str, *, resize_short_px: int | None, jpeg_quality: int) -> str:
    """Names the result of `normalise` for a file with this hash, these arguments, this code and these libraries."""
    versions = [PROCESSING_VERSION, PIL.__version__, simplejpeg.__version__, cv2.__version__]
    return files.fingerprint([content_hash, resize_short_px, jpeg_quality, *versions])


def suffix(content: bytes) -> str:
    """The end of a file name that says the format of an image file, such as ".jpg"; Rejected if it is none."""
    with _open(content) as image:
        kind = (image.format or "").lower()
    return {"jpeg": ".jpg", "mpo": ".jpg"}.get(kind, f".{kind}")


def grey_thumbnail(encoded: bytes, size_px: int) -> np.ndarray:
    """A JPEG from `normalise` -> [size_px, size_px] uint8: means of areas, whatever the aspect ratio.

    Raises:
        ValueError: if it is no JPEG, or damaged.
    """
    height, width, _, _ = simplejpeg.decode_jpeg_header(encoded)
    grey = _decode_jpeg(encoded, "GRAY", (width, height), (size_px, size_px))
    return cv2.resize(grey, (size_px, size_px), interpolation=cv2.INTER_AREA)


def _open(content: bytes) -> Image.Image:
    if not content:
        raise Rejected("empty", "0 bytes")
    with _rejecting():
        try:
            return Image.open(io.BytesIO(content), formats=FORMATS)
        except PIL.UnidentifiedImageError as error:  # its text holds the address of an object
            raise Rejected("not_an_image", f"starts with {content[:16]!r}") from error
        except Image.DecompressionBombError as error:
            raise Rejected("too_large", f"over {MAX_PIXELS} pixels") from error


@contextlib.contextmanager
def _rejecting() -> Iterator[None]:
    """Turns what Pillow raises into `Rejected`."""
    try:
        yield
    except (MemoryError, Rejected):
        raise
    except Exception as error:
        # On damaged bytes Pillow's plugins raise nearly any class: OSError, SyntaxError, ValueError, struct.error, …
        text = re.sub(r"0x[0-9a-f]+", "0x…", f"{type(error).__name__}: {error}")
        raise Rejected("truncated" if "truncated" in text.lower() else "decode_error", text) from error


def _check_size(width: int, height: int, max_pixels: int) -> None:
    """Checks the size that the header states, before any pixel is decoded."""
    size = f"{width}×{height} px"
    if min(width, height) < MIN_SIDE_PX:
        raise Rejected("too_small", f"{size}, the least is {MIN_SIDE_PX} px on each side")
    if max(width, height) > MAX_SIDE_PX or width * height > max_pixels:
        raise Rejected("too_large", f"{size}, the most is {MAX_SIDE_PX} px on a side and {max_pixels} in all")
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise Rejected("aspect_ratio", f"{size}, the most is {MAX_ASPECT_RATIO}:1")


def _target_size(size: tuple[int, int], short_px: int | None) -> tuple[int, int] | None:
    """The size to shrink an image of `size` to, or None if it is to stay as it is."""
    if short_px is None or min(size) <= short_px:
        return None
    width, height = (max(short_px, round(side * short_px / min(size))) for side in size)
    return width, height


def _decode_plain_jpeg(content: bytes, image: Image.Image, target: tuple[int, int] | None) -> _Decoded | None:
    """Decodes a JPEG, at a scale that suffices for the target; None if it is of a rare kind, or damaged."""
    if image.format not in ("JPEG", "MPO") or image.mode not in ("RGB", "L"):
        return None
    if not _is_huffman_coded(content, image.size):
        return None
    try:
        pixels = _decode_jpeg(content, "RGB" if image.mode == "RGB" else "GRAY", image.size, target or image.size)
    except ValueError:
        return None
    to_srgb = _srgb_transform(image.info.get("icc_profile"), image.mode)
    return _Decoded(pixels, _orientation(image), to_srgb, is_plain_jpeg=True)


def _is_huffman_coded(content: bytes, size: tuple[int, int]) -> bool:
    """Whether a JPEG's first frame is Huffman-coded and of this size: then all decoders see what Pillow sees."""
    start = 2
    while content[start : start + 1] == b"\xff":
        marker = int.from_bytes(content[start + 1 : start + 2])
        if marker in _FRAME_MARKERS:
            height, width = (int.from_bytes(content[start + at : start + at + 2]) for at in (5, 7))
            return marker in _HUFFMAN_MARKERS and (width, height) == size
        # Any number of 0xFF may stand before a marker; after it comes the length of its segment.
        start += 1 if marker == 0xFF else 2 + int.from_bytes(content[start + 2 : start + 4])
    return False


def _decode_jpeg(content: bytes, colours: str, size: tuple[int, int], target: tuple[int, int]) -> np.ndarray:
    """All of a JPEG, at the smallest fast scale that leaves `CHEAP_FACTOR` times the target; ValueError if damaged."""
    room = min(have / need for have, need in zip(size, target, strict=True)) / CHEAP_FACTOR
    divisor = max(divisor for divisor in _DECODING_DIVISORS if divisor <= max(room, 1))
    width, height = (math.ceil(side / divisor) for side in size)
    pixels = simplejpeg.decode_jpeg(content, colours, min_height=height, min_width=width)
    return pixels[..., 0] if colours == "GRAY" else pixels


def _decode_any(image: Image.Image) -> _Decoded:
    """Decodes an image of any format and mode to RGB in sRGB."""
    with _rejecting():
        image.load()
        flat = _flatten(_to_8_bits(image))
        to_srgb = _srgb_transform(image.info.get("icc_profile"), flat.mode)
        rgb = ImageCms.applyTransform(flat, to_srgb) if to_srgb else flat.convert("RGB")
        return _Decoded(np.asarray(rgb), _orientation(image))


def _to_8_bits(image: Image.Image) -> Image.Image:
    if not image.mode.startswith(("I", "F")):
        return image
    # Image.convert would clip 16 bits at 255: nearly all would be white.
    pixels = np.nan_to_num(np.asarray(image, np.float32))
    most = pixels.max()
    if most > 65535:
        raise Rejected("decode_error", f"values up to {most:g}, the most is 65535")
    if image.mode == "F" and most < 2:  # of 1, which what resizes photos oversteps a little
        pixels *= 255
    elif most > 255:
        pixels /= 257
    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))


def _flatten(image: Image.Image) -> Image.Image:
    """Puts transparent images on white, and turns palettes into colours; L, RGB, CMYK and others stay as they are."""
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB") if image.mode in ("P", "1") else image


@functools.lru_cache(maxsize=16)  # Most photos share few profiles, and to prepare one takes 5 ms.
def _srgb_transform(profile: bytes | None, mode: str) -> ImageCms.ImageCmsTransform | None:
    """From `profile` to sRGB; None if there is none, or it is sRGB, damaged, or of another mode than the pixels."""
    if not profile:
        return None
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
        return transform if _changes_colours(transform, mode) else None
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None


def _changes_colours(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    """Whether any of 4096 colours moves. The profile's name says little: "linear sRGB", "Rec2020 srgbtrc"."""
    levels = 17 * np.indices((16, 16, 16), np.uint8)
    colours = Image.fromarray(levels.reshape(3, 64, 64).transpose(1, 2, 0).copy()).convert(mode)
    before, after = colours.convert("RGB"), ImageCms.applyTransform(colours, transform)
    return bool(np.abs(np.asarray(after, int) - np.asarray(before, int)).max() > _MAX_ROUNDING)


def _orientation(image: Image.Image) -> int:
    """EXIF's, 1 to 8; 1 is upright."""
    try:
        orientation = int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # Damaged EXIF raises nearly any class, and says nothing about the orientation.
        return 1
    return orientation if orientation in _UPRIGHT else 1


def _is_final(decoded: _Decoded, target: tuple[int, int] | None) -> bool:
    """Whether the file is already what `normalise` would make of it."""
    return decoded.is_plain_jpeg and target is None and decoded.to_srgb is None and decoded.orientation == 1


def _finish(decoded: _Decoded, target: tuple[int, int] | None) -> np.ndarray:
    """Pixels [H, W, 3] uint8: RGB, in sRGB, of the target's size, upright."""
    pixels = _shrink(decoded.pixels, *target) if target else decoded.pixels
    if decoded.to_srgb:
        pixels = np.asarray(ImageCms.applyTransform(Image.fromarray(pixels), decoded.to_srgb))
    elif pixels.ndim == 2:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB)
    return np.ascontiguousarray(_UPRIGHT[decoded.orientation](pixels)) if decoded.orientation != 1 else pixels


def _shrink(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    """Resizes to a size that is nowhere larger: removes what would alias, then interpolates."""
    cv2.ipp.setUseIPP(False)  # of this thread alone; Intel's IPP rounds cubics by the kind of processor
    if min(pixels.shape[0] / height, pixels.shape[1] / width) > 2 * CHEAP_FACTOR:
        cheap_size = (round(CHEAP_FACTOR * width), round(CHEAP_FACTOR * height))
        pixels = cv2.resize(pixels, cheap_size, interpolation=cv2.INTER_AREA)
    across, down = pixels.shape[1] / width, pixels.shape[0] / height
    smooth = cv2.sepFilter2D(pixels, -1, _low_pass(across), _low_pass(down))
    interpolation = cv2.INTER_LINEAR if min(across, down) >= _LINEAR_FACTOR else cv2.INTER_CUBIC
    return cv2.resize(smooth, (width, height), interpolation=interpolation)


@functools.lru_cache(maxsize=256)  # Photos of one collection share few sizes, and the weights take 30 µs.
def _low_pass(ratio: float) -> np.ndarray:
    """The weights of a filter for shrinking by `ratio`: a cubic (Keys 1981, doi:10.1109/TASSP.1981.1163711) as wide.

    In 128ths: then float32 sums over uint8 pixels are exact, and the same with every instruction set.
    """
    reach = math.ceil(2 * ratio) - 1
    x = np.abs(np.arange(-reach, reach + 1) / ratio)
    near = (2 - _SHARPNESS) * x**3 - (3 - _SHARPNESS) * x**2 + 1
    far = -_SHARPNESS * (x**3 - 5 * x**2 + 8 * x - 4)
    weights = np.where(x < 1, near, far)
    in_128ths = np.rint(128 * weights / weights.sum())
    in_128ths[reach] += 128 - in_128ths.sum()
    return (in_128ths / 128).astype(np.float32)


def _encode(pixels: np.ndarray, jpeg_quality: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=jpeg_quality)
    return buffer.getvalue()


def _mean_rgb(pixels: np.ndarray) -> tuple[int, int, int]:
    red, green, blue, _ = cv2.mean(pixels)
    return round(red), round(green), round(blue)


def preview(encoded: bytes, max_side_px: int) -> bytes:
    """A normalised photo as a JPEG of at most this size, for people to look at; equal in every run."""
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(encoded), formats=("JPEG",)) as image:
        image.thumbnail((max_side_px, max_side_px))
        image.convert("RGB").save(buffer, "JPEG", quality=75)
    return buffer.getvalue()
