"""The bytes of any image file -> an upright RGB or grey JPEG of limited size, or the reason why not.

The one place that opens an image outside TensorFlow, which reads neither AVIF nor some WebP, and ignores EXIF.
"""

import dataclasses
import hashlib
import io
import re
import warnings

import numpy as np
import PIL
from PIL import ExifTags, Image, ImageCms

from carbrand import files

PROCESSING_VERSION = 1  # raise it whenever the same bytes come out differently: cached results then no longer count

# Formats of photos; Pillow opens more, some of them through other programs (EPS starts Ghostscript).
FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF")

MAX_FILE_BYTES = 200 * 2**20  # a guess: a file that is larger is a video or an archive
MAX_PIXELS = 80_000_000  # 240 MB as RGB; a guess, below the 89 million at which Pillow itself begins to warn
MAX_SIDE_PX = 30_000  # a guess: panoramas pass
MIN_SIDE_PX = 16  # a guess: icons and tracking pixels are no photos
MAX_ASPECT_RATIO = 20  # a guess: banners and rulers are no photos

DRAFT_FACTOR = 2  # JPEGs are decoded at no less than this times the target; 1.9 to 4.4 times faster, 35 dB against full

_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclasses.dataclass(frozen=True)
class NormalisedImage:
    """A photo as it is stored.

    Attributes:
        encoded: JPEG, RGB or grey, upright, sRGB.
        height: in pixels.
        width: in pixels.
        pixel_hash: SHA-256 of size and RGB pixels before any encoding: equal for a PNG and a copy of it in WebP.
    """

    encoded: bytes
    height: int
    width: int
    pixel_hash: str


class Rejected(Exception):
    """A file that cannot become a photo: `reason` is a short stable code, `detail` is equal in every run."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


def normalise(content: bytes, *, resize_short_px: int | None, jpeg_quality: int = 95) -> NormalisedImage:
    """Decodes a whole image file, turns it upright, converts it to sRGB and shrinks it.

    JPEGs that are so already are kept byte for byte. Transparent pixels become white; of an animation the first frame
    counts.

    Args:
        content: the file.
        resize_short_px: shrink the short side to this, in pixels; never enlarge. None keeps the size.
        jpeg_quality: of what is encoded again, 1 to 95.

    Raises:
        Rejected: "empty", "not_an_image", "too_small", "too_large", "aspect_ratio", "truncated" or "decode_error".
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of odd metadata, and of sizes that are checked here.
        if len(content) > MAX_FILE_BYTES:
            raise Rejected("too_large", f"over {MAX_FILE_BYTES} bytes")
        image = _open(content)
        _check_size(*image.size)
        target = _target_size(image.size, resize_short_px)
        is_plain_jpeg = _decode(image, target)
        upright = _convert(image, target)
        encoded = content if is_plain_jpeg and target is None else _encode(upright, jpeg_quality)
    return NormalisedImage(encoded, upright.height, upright.width, _pixel_hash(upright))


def cache_key(content_hash: str, *, resize_short_px: int | None, jpeg_quality: int) -> str:
    """Names the result of `normalise` for a file with this hash, these arguments, this code and this Pillow."""
    return files.fingerprint([content_hash, resize_short_px, jpeg_quality, PROCESSING_VERSION, PIL.__version__])


def _open(content: bytes) -> Image.Image:
    if not content:
        raise Rejected("empty", "0 bytes")
    try:
        return Image.open(io.BytesIO(content), formats=FORMATS)
    except PIL.UnidentifiedImageError as error:  # its text holds the address of an object
        raise Rejected("not_an_image", f"starts with {content[:16]!r}") from error
    except Image.DecompressionBombError as error:
        raise Rejected("too_large", f"over {MAX_PIXELS} pixels") from error
    except MemoryError:
        raise
    except Exception as error:
        raise _undecodable(error) from error


def _check_size(width: int, height: int) -> None:
    """Checks the size that the header states, before any pixel is decoded."""
    size = f"{width}×{height} px"
    if min(width, height) < MIN_SIDE_PX:
        raise Rejected("too_small", f"{size}, the least is {MIN_SIDE_PX} px on each side")
    if max(width, height) > MAX_SIDE_PX or width * height > MAX_PIXELS:
        raise Rejected("too_large", f"{size}, the most is {MAX_SIDE_PX} px on a side and {MAX_PIXELS} in all")
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise Rejected("aspect_ratio", f"{size}, the most is {MAX_ASPECT_RATIO}:1")


def _target_size(size: tuple[int, int], short_px: int | None) -> tuple[int, int] | None:
    """The size to shrink an image of `size` to, or None if it is to stay as it is."""
    if short_px is None or min(size) <= short_px:
        return None
    width, height = (max(short_px, round(side * short_px / min(size))) for side in size)
    return width, height


def _decode(image: Image.Image, target: tuple[int, int] | None) -> bool:
    """Decodes all pixels, a JPEG's at a scale that suffices for the target; whether the file can be stored as it is."""
    try:
        if target is not None:
            image.draft("RGB", (DRAFT_FACTOR * target[0], DRAFT_FACTOR * target[1]))
        image.load()
        return _is_plain_jpeg(image)
    except MemoryError:
        raise
    except Exception as error:
        raise _undecodable(error) from error


def _undecodable(error: Exception) -> Rejected:
    # On damaged bytes Pillow's plugins raise nearly any class: OSError, SyntaxError, ValueError, struct.error, …
    text = re.sub(r"0x[0-9a-f]+", "0x…", f"{type(error).__name__}: {error}")
    return Rejected("truncated" if "truncated" in text.lower() else "decode_error", text)


def _is_plain_jpeg(image: Image.Image) -> bool:
    is_jpeg = image.format in ("JPEG", "MPO") and image.mode in ("RGB", "L")
    return is_jpeg and _orientation(image) not in _TRANSPOSE and _foreign_profile(image) is None


def _convert(image: Image.Image, target: tuple[int, int] | None) -> Image.Image:
    """A decoded image of any mode -> RGB, in sRGB, shrunk to `target`, upright."""
    try:
        rgb = _to_srgb(_flatten(_to_8_bits(image)), _foreign_profile(image))
        return _upright(rgb.resize(target, Image.Resampling.BICUBIC) if target else rgb, _orientation(image))
    except MemoryError:
        raise
    except Exception as error:
        raise _undecodable(error) from error


def _to_8_bits(image: Image.Image) -> Image.Image:
    if not image.mode.startswith(("I", "F")):
        return image
    # Image.convert would clip 16 bits at 255: nearly all would be white.
    pixels = np.asarray(image).astype(np.float64)
    scale = 257 if pixels.max() > 255 else 1
    return Image.fromarray(np.clip(np.rint(pixels / scale), 0, 255).astype(np.uint8))


def _flatten(image: Image.Image) -> Image.Image:
    """Puts transparent images on white, and turns palettes into colours; L, RGB, CMYK and others stay as they are."""
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB") if image.mode in ("P", "1") else image


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    if profile is not None:
        try:
            srgb = ImageCms.createProfile("sRGB")
            converted = ImageCms.profileToProfile(image, io.BytesIO(profile), srgb, outputMode="RGB")
            return converted or image.convert("RGB")
        except (ImageCms.PyCMSError, OSError, ValueError):
            pass  # A profile that is damaged, or of another colour space than the pixels: as if there were none.
    return image.convert("RGB")


def _foreign_profile(image: Image.Image) -> bytes | None:
    """The colour profile of `image` if it has one that can be read and is not sRGB."""
    profile = image.info.get("icc_profile")
    if not profile:
        return None
    try:
        description = ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(io.BytesIO(profile)))
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None
    return None if "srgb" in description.lower() else profile


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # Damaged EXIF raises nearly any class, and says nothing about the orientation.
        return 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    return image.transpose(_TRANSPOSE[orientation]) if orientation in _TRANSPOSE else image


def _encode(image: Image.Image, jpeg_quality: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=jpeg_quality)
    return buffer.getvalue()


def _pixel_hash(image: Image.Image) -> str:
    digest = hashlib.sha256(f"{image.width}x{image.height}:".encode())
    digest.update(image.tobytes())
    return digest.hexdigest()
