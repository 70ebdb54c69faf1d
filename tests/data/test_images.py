import base64
import io
import os
import struct
import subprocess
import sys

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms

from carbrand.data import images


def smooth(height=60, width=90, channels=3):
    """A picture without fine detail, which JPEG keeps nearly as it is."""
    rows, columns = np.mgrid[0:height, 0:width]
    planes = [rows * 200 // height, columns * 200 // width, (rows + columns) * 200 // (height + width)]
    return np.stack(planes[:channels], -1).astype(np.uint8).squeeze()


def saved(image, file_format="PNG", **options):
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, file_format, **options)
    return buffer.getvalue()


def exif(orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def pixels(result):
    image = Image.open(io.BytesIO(result.encoded))
    assert image.format in ("JPEG", "MPO")
    assert image.mode in ("RGB", "L")
    assert (image.height, image.width) == (result.height, result.width)
    return np.asarray(image.convert("RGB")).astype(int)


def normalise(content, resize_short_px=None):
    return images.normalise(content, resize_short_px=resize_short_px)


def rejection(content):
    with pytest.raises(images.Rejected) as caught:
        normalise(content)
    return caught.value


@pytest.mark.parametrize(
    "content",
    [
        saved(smooth(), "JPEG"),
        saved(smooth(), "JPEG", progressive=True),
        saved(smooth(channels=1), "JPEG"),
        saved(smooth(), "JPEG", exif=exif(1)),
        saved(smooth(), "JPEG") + b"trailing",
        saved(smooth(), "JPEG", icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()),
        saved(smooth(), "JPEG", icc_profile=b"no profile"),
        saved(smooth(), "JPEG", icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()),
    ],
)
def test_a_plain_jpeg_is_kept_byte_for_byte(content):
    result = normalise(content, resize_short_px=60)
    assert result.encoded == content
    assert (result.height, result.width) == (60, 90)


def palette(colours):
    """32-pixel squares of drawn colours, and how they look."""
    indices = np.arange(96)[:, None] // 32 * 5 + np.arange(160) // 32
    image = Image.fromarray((indices % len(colours)).astype(np.uint8), "P")
    image.putpalette(np.array(colours, np.uint8).tobytes())
    return image, np.array(colours, np.uint8)[indices % len(colours)]


def with_alpha(rgb):
    """Upper half transparent, lower half opaque, and how it looks on white."""
    alpha = np.full(rgb.shape[:2], 255, np.uint8)
    alpha[:32] = 0
    white = rgb.copy()
    white[:32] = 255
    return alpha, white


def profile(primaries, gamma):
    """An ICC profile of RGB with these primaries (xy each, D65 white) and this gamma, by hand; all are called sRGB."""
    to_xyz = adapted_to_d50(primaries)
    tags = {b"desc": b"desc\0\0\0\0" + struct.pack(">I", 5) + b"sRGB\0" + bytes(78), b"cprt": b"text\0\0\0\0none\0"}
    for name, xyz in zip((b"wtpt", b"rXYZ", b"gXYZ", b"bXYZ"), (D50, *to_xyz.T), strict=True):
        tags[name] = b"XYZ \0\0\0\0" + struct.pack(">3i", *np.rint(xyz * 65536).astype(int))
    for name in (b"rTRC", b"gTRC", b"bTRC"):
        tags[name] = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256))
    table, data = b"", b""
    for name, value in tags.items():
        table += name + struct.pack(">II", 132 + 12 * len(tags) + len(data), len(value))
        data += value + bytes(-len(value) % 4)
    header = struct.pack(">I4sI4s4s4s", 132 + len(table) + len(data), b"lcms", 0x02400000, b"mntr", b"RGB ", b"XYZ ")
    header += bytes(12) + b"acsp" + bytes(28) + struct.pack(">3i", *np.rint(D50 * 65536).astype(int))
    return header.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + data


D50 = np.array([0.9642, 1.0, 0.8249])
SRGB = [(0.64, 0.33), (0.30, 0.60), (0.15, 0.06)]
P3 = [(0.68, 0.32), (0.265, 0.69), (0.15, 0.06)]


def adapted_to_d50(primaries):
    """Linear RGB -> XYZ under D50, by Bradford's adaptation from D65."""
    bradford = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
    d65 = np.array([0.3127 / 0.3290, 1, (1 - 0.3127 - 0.3290) / 0.3290])
    columns = np.array([(x / y, 1, (1 - x - y) / y) for x, y in primaries]).T
    adaptation = np.linalg.inv(bradford) @ np.diag((bradford @ D50) / (bradford @ d65)) @ bradford
    return adaptation @ columns * np.linalg.solve(columns, d65)


def seen_in_srgb(rgb, primaries, gamma):
    """How pixels with `profile(primaries, gamma)` look in sRGB."""
    linear = (rgb / 255.0) ** gamma @ adapted_to_d50(primaries).T @ np.linalg.inv(adapted_to_d50(SRGB)).T
    linear = linear.clip(0, 1)
    return 255 * np.where(linear < 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def kinds():
    """Name -> (file, the pixels that it shows)."""
    rgb, grey = smooth(), smooth(channels=1)
    greys = np.dstack([grey] * 3)
    alpha, on_white = with_alpha(rgb)
    alpha_grey, grey_on_white = with_alpha(grey)
    jpeg, bgr_16_bits = {"file_format": "JPEG", "quality": 95}, rgb[..., ::-1].astype(np.uint16) * 257
    plain, comment = saved(rgb, **jpeg), b"\xff\xff\xfe\xff\xff" + bytes(0xFFFD)
    four, four_seen = palette([(200, 150, 140), (120, 140, 160), (250, 250, 250), (60, 60, 60)])
    sixteen, sixteen_seen = palette([(16 * i, 255 - 16 * i, 8 * i) for i in range(16)])
    halves = np.repeat([[0, 255]], 40, axis=1).repeat(64, axis=0).astype(np.uint8)
    cmyk, cmyk_seen = Image.fromarray(rgb).convert("CMYK"), rgb
    frames = [Image.fromarray(rgb), Image.new("RGB", (90, 60), "blue")]
    animated = {"save_all": True, "append_images": frames[1:]}
    see_through = four_seen.copy()
    see_through[(see_through == (200, 150, 140)).all(-1)] = 255
    softer = 40 + rgb // 2  # inside both colour spaces
    pa = Image.merge("LA", (four.convert("L"), Image.new("L", four.size, 255))).convert("PA")
    return {
        "jpeg": (saved(rgb, **jpeg), rgb),
        "progressive jpeg": (saved(rgb, **jpeg, progressive=True), rgb),
        "grey jpeg": (saved(grey, **jpeg), greys),
        "arithmetic jpeg": (ARITHMETIC_JPEG, ARITHMETIC_SEEN),
        "cmyk jpeg": (saved(cmyk, **jpeg), cmyk_seen),
        "cmyk tiff": (saved(cmyk, "TIFF"), cmyk_seen),
        "jpeg of two pictures": (saved(frames[0], "MPO", quality=95, **animated), rgb),
        "jpeg with trailing bytes": (saved(rgb, **jpeg) + b"more", rgb),
        "jpeg with much metadata": (plain[:2] + 40 * comment + plain[2:], rgb),
        "jpeg with a garbage profile": (saved(rgb, **jpeg, icc_profile=b"no profile"), rgb),
        "jpeg with a profile of another space": (saved(rgb, **jpeg, icc_profile=LAB), rgb),
        "grey jpeg with a profile of colours": (saved(grey, **jpeg, icc_profile=profile(P3, 2.2)), greys),
        "jpeg in p3": (saved(softer, **jpeg, icc_profile=profile(P3, 2.2)), seen_in_srgb(softer, P3, 2.2)),
        "jpeg of gamma 1.8": (saved(softer, **jpeg, icc_profile=profile(SRGB, 1.8)), seen_in_srgb(softer, SRGB, 1.8)),
        "jpeg of linear rgb": (saved(softer, **jpeg, icc_profile=profile(SRGB, 1)), seen_in_srgb(softer, SRGB, 1)),
        "png in p3": (saved(softer, icc_profile=profile(P3, 2.2)), seen_in_srgb(softer, P3, 2.2)),
        "png": (saved(rgb), rgb),
        "png of 16-bit grey": (saved(grey.astype(np.uint16) * 257), greys),
        "png of 16-bit colours": (cv2.imencode(".png", bgr_16_bits)[1].tobytes(), rgb),
        "png of 1 bit": (saved(Image.fromarray(halves).convert("1")), np.dstack([halves] * 3)),
        "png of 4 colours": (saved(four, bits=2), four_seen),
        "png of 16 colours": (saved(sixteen, bits=4), sixteen_seen),
        "png of 4 colours, one transparent": (saved(four, transparency=0), see_through),
        "png of rgb, one colour transparent": (saved(four_seen, transparency=(200, 150, 140)), see_through),
        "png of grey with alpha": (saved(np.dstack([grey, alpha_grey])), np.dstack([grey_on_white] * 3)),
        "png of rgb with alpha": (saved(np.dstack([rgb, alpha])), on_white),
        "tiff of 16-bit grey": (saved(grey.astype(np.uint16) * 257, "TIFF"), greys),
        "tiff of 16-bit colours": (cv2.imencode(".tiff", bgr_16_bits)[1].tobytes(), rgb),
        "tiff of floats up to 1": (saved((grey / 255).astype(np.float32), "TIFF"), greys),
        "tiff of floats up to 255": (saved(grey.astype(np.float32), "TIFF"), greys),
        "tiff of 32-bit integers": (saved(grey.astype(np.int32) * 257, "TIFF"), greys),
        "tiff of a palette with alpha": (saved(pa, "TIFF"), np.asarray(four.convert("L").convert("RGB"))),
        "gif": (saved(four, "GIF"), four_seen),
        "animated gif": (saved(four, "GIF", save_all=True, append_images=[sixteen]), four_seen),
        "animated webp": (saved(frames[0], "WEBP", lossless=True, **animated), rgb),
        "webp with alpha": (saved(np.dstack([rgb, alpha]), "WEBP", lossless=True), on_white),
        "avif": (saved(rgb, "AVIF", quality=95), rgb),
        "bmp": (saved(rgb, "BMP"), rgb),
    }


LAB = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()

# Pillow cannot write one: cjpeg -arithmetic -quality 95, of 20 × 30 px with these colours.
ARITHMETIC_JPEG = base64.b64decode(
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAIBAQEBAQIBAQECAgICAgQDAgICAgUEBAMEBgUGBgYFBgYGBwkIBgcJBwYGCAsICQoKCgoKBggL"
    "DAsKDAkKCgr/2wBDAQICAgICAgUDAwUKBwYHCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgr/yQAR"
    "CAAUAB4DASIAAhEBAxEB/8wACgAQEAUBEBEF/9oADAMBAAIRAxEAPwD/APO6DyAGsQ9ey31FNWd4WPNxcy9gnPtcCqi44VqD8U1AVr2gI3NW"
    "ZRILZv3/AEo5PN1HyuKznu44vkRjodt2wOb00vMVzkmPZ0oWBLQLXvia+qecYNJGYviKFryiUhn/APWykEh++nScg2CUZUJ1KXp1lhjJ9Jb5"
    "jmUCvQdtdpmMLC3IYhOM86ws8Vqxcpo3bcYFgP/Z"
)
_ROWS, _COLUMNS = np.mgrid[0:20, 0:30]
ARITHMETIC_SEEN = np.stack([_ROWS * 10, _COLUMNS * 8, (_ROWS + _COLUMNS) * 5], -1)

KINDS = kinds()


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_shows_its_pixels(kind):
    content, expected = KINDS[kind]
    assert psnr(pixels(normalise(content)), expected) > 35


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_shows_its_pixels_when_it_is_shrunk(kind):
    content, expected = KINDS[kind]
    result = pixels(normalise(content, resize_short_px=16))
    reference = Image.fromarray(np.rint(expected).astype(np.uint8)).resize(
        result.shape[1::-1], Image.Resampling.LANCZOS
    )
    assert psnr(result, np.asarray(reference)) > 26  # the drawn edges are sharper than a photo's


def psnr(one, other):
    """In dB."""
    return 10 * np.log10(255**2 / max(np.mean((one - np.asarray(other, float)) ** 2), 1e-6))


def test_tensorflow_decodes_whatever_is_stored():
    import tensorflow as tf

    for content, _ in KINDS.values():
        result = normalise(content)
        assert tf.io.decode_jpeg(result.encoded, channels=3).shape == (result.height, result.width, 3)


def test_tensorflow_decodes_damaged_jpegs_that_are_kept():
    import tensorflow as tf

    rng = np.random.default_rng(0)
    original = np.frombuffer(saved(smooth(120, 160), "JPEG"), np.uint8)
    kept = 0
    for _ in range(200):
        damaged = original.copy()
        damaged[rng.integers(20, len(damaged), 2)] = rng.integers(0, 256, 2)
        result = outcome(damaged.tobytes())
        if not isinstance(result, str) and result.encoded == damaged.tobytes():
            kept += 1
            assert tf.io.decode_jpeg(result.encoded, channels=3).shape == (result.height, result.width, 3)
    assert kept > 50


@pytest.mark.parametrize("kind", ["arithmetic jpeg", "cmyk jpeg", "jpeg in p3"])
def test_a_jpeg_that_others_cannot_read_is_encoded_again(kind):
    content, _ = KINDS[kind]
    encoded = normalise(content).encoded
    assert encoded != content
    assert b"\xff\xc0" in encoded  # baseline


def test_transparent_pixels_become_white():
    rgba = np.dstack([smooth(), np.full((60, 90), 255, np.uint8)])
    rgba[:30, :, 3] = 0
    result = pixels(normalise(saved(rgba)))
    assert result[:25].min() > 245
    assert np.abs(result[35:] - smooth()[35:]).mean() < 3


def test_of_an_animation_the_first_frame_counts():
    frames = [Image.new("RGB", (40, 40), colour) for colour in ("red", "blue")]
    result = pixels(normalise(saved(frames[0], "GIF", save_all=True, append_images=frames[1:])))
    assert result[20, 20, 0] > 245
    assert result[20, 20, 2] < 10


# The stored pixels that each EXIF orientation needs in order to show `picture`: the inverse of what the tag asks for.
STORED = {
    1: lambda picture: picture,
    2: lambda picture: picture[:, ::-1],
    3: lambda picture: picture[::-1, ::-1],
    4: lambda picture: picture[::-1],
    5: lambda picture: picture.swapaxes(0, 1),
    6: lambda picture: np.rot90(picture, 1),
    7: lambda picture: np.rot90(picture, 2).swapaxes(0, 1),
    8: lambda picture: np.rot90(picture, -1),
}


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", STORED)
def test_the_exif_orientation_is_applied(orientation, file_format):
    stored = np.ascontiguousarray(STORED[orientation](smooth()))
    result = normalise(saved(stored, file_format, exif=exif(orientation)))
    assert (result.original_height, result.original_width) == (60, 90)
    assert psnr(pixels(result), smooth()) > 35


def test_a_foreign_colour_profile_is_converted():
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    # The red and blue primaries exchanged.
    swapped = srgb.replace(b"rXYZ", b"tmp!").replace(b"bXYZ", b"rXYZ").replace(b"tmp!", b"bXYZ")
    red = Image.new("RGB", (40, 40), "red")
    result = pixels(normalise(saved(red, "JPEG", quality=95, icc_profile=swapped)))
    assert result[20, 20, 2] > 240
    assert result[20, 20, 0] < 15


@pytest.mark.parametrize(
    ("height", "width", "expected"), [(400, 600, (50, 75)), (601, 400, (75, 50)), (50, 90, (50, 90))]
)
@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
def test_the_short_side_shrinks_and_is_never_enlarged(height, width, expected, file_format):
    result = normalise(saved(smooth(height, width), file_format), resize_short_px=50)
    assert pixels(result).shape[:2] == expected


def test_shrinking_keeps_the_picture():
    result = normalise(saved(smooth(480, 720), "JPEG", quality=95), resize_short_px=60)
    assert np.abs(pixels(result) - smooth(60, 90)).mean() < 4


@pytest.mark.parametrize("file_format", ["PNG", "JPEG"])
def test_fine_stripes_become_grey_and_do_not_alias(file_format):
    stripes = np.zeros((300, 400, 3), np.uint8)
    stripes[:, ::2] = 255
    result = pixels(normalise(saved(stripes, file_format, quality=95), resize_short_px=110))
    assert np.abs(result - 127.5).max() < 12


def test_far_too_large_images_shrink_to_the_picture():
    result = pixels(normalise(saved(smooth(1500, 2250)), resize_short_px=60))
    assert psnr(result, smooth(60, 90)) > 35


def test_the_original_size_is_that_before_shrinking():
    result = normalise(saved(smooth(200, 300), "JPEG", exif=exif(6)), resize_short_px=50)
    assert (result.height, result.width) == (75, 50)
    assert (result.original_height, result.original_width) == (300, 200)


def test_the_mean_colour_is_that_of_the_pixels():
    image = np.zeros((40, 60, 3), np.uint8)
    image[:10] = (200, 100, 40)
    assert normalise(saved(image)).mean_rgb == (50, 25, 10)
    assert normalise(saved(np.full((40, 60), 77, np.uint8), "JPEG")).mean_rgb == (77, 77, 77)


def test_the_perceptual_hash_is_hexadecimal_and_of_the_upright_picture():
    upright, turned = saved(smooth()), saved(np.rot90(smooth()), exif=exif(6))
    assert bytes.fromhex(normalise(upright).perceptual_hash)
    assert normalise(turned).perceptual_hash == normalise(upright).perceptual_hash


def test_no_processor_changes_a_byte():
    code = (
        "import hashlib, numpy, io, threading; from PIL import Image; from carbrand.data import images; "
        "file = io.BytesIO(); noise = numpy.random.default_rng(0).integers(0, 256, (321, 457, 3), dtype=numpy.uint8); "
        "Image.fromarray(noise).save(file, 'PNG'); "
        "digest = lambda size: hashlib.sha256("
        "repr(images.normalise(file.getvalue(), resize_short_px=size)).encode()).hexdigest(); "
        "threading.Thread(target=lambda: print(digest(60), digest(150), digest(280))).start()"  # as Beam does
    )
    processors = [
        {"OPENCV_CPU_DISABLE": "AVX512-SKX,AVX2,FP16,AVX,FMA3"},
        {"OPENCV_IPP": "disabled"},  # as on every processor that is not x86
        {"OPENCV_IPP": "sse42"},
        {"OPENCV_IPP": "avx2"},
    ]
    digests = {
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, **processor}, check=True, capture_output=True
        ).stdout
        for processor in ({}, *processors)
    }
    assert len(digests) == 1
    assert all(digests)


def test_a_grey_thumbnail_shows_means_of_areas():
    squares = np.kron(np.array([[10, 60], [110, 240]]), np.ones((160, 240))).astype(np.uint8)
    thumbnail = images.grey_thumbnail(saved(squares, "JPEG", quality=95), 20)
    assert thumbnail.shape == (20, 20)
    assert thumbnail.dtype == np.uint8
    expected = np.kron(np.array([[10, 60], [110, 240]]), np.ones((10, 10)))
    assert np.abs(thumbnail - expected).max() <= 2


def test_a_grey_thumbnail_may_be_larger_than_the_photo():
    assert images.grey_thumbnail(saved(smooth(20, 30), "JPEG"), 64).shape == (64, 64)


def test_a_grey_thumbnail_of_half_a_jpeg_raises():
    with pytest.raises(ValueError, match="Premature end of JPEG file"):
        images.grey_thumbnail(saved(smooth(300, 300), "JPEG")[:2000], 64)


@pytest.mark.parametrize(
    ("content", "reason", "detail"),
    [
        (b"", "empty", "0 bytes"),
        (b"<!DOCTYPE html>", "not_an_image", "starts with b'<!DOCTYPE html>'"),
        (saved(smooth(15, 40)), "too_small", "40×15 px, the least is 16 px"),
        (saved(Image.new("L", (40_000, 1))), "too_small", "40000×1 px"),
        (saved(Image.new("L", (40_000, 2_000)), "JPEG"), "too_large", "40000×2000 px, the most is 30000 px on a side"),
        (saved(Image.new("1", (9000, 9000))), "too_large", "9000×9000 px, the most is"),
        (saved(Image.new("1", (14000, 14000))), "too_large", "over 80000000 pixels"),
        (saved(smooth(20, 401)), "aspect_ratio", "401×20 px, the most is 20:1"),
        (saved(smooth(300, 300), "JPEG")[:2000], "truncated", "image file is truncated"),
        (saved(smooth(300, 300), "JPEG")[:-2], "truncated", "image file is truncated"),
        (saved(smooth(300, 300), "JPEG", progressive=True)[:-200], "truncated", "image file is truncated"),
        (saved(smooth(300, 300), "GIF")[:2000], "truncated", "truncated"),
        (saved(smooth(300, 300))[:700], "truncated", "truncated"),
        (saved(smooth(channels=1).astype(np.int32) * 65536, "TIFF"), "decode_error", "values up to 1.28451e+07"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n", "not_an_image", "starts with b'%!PS"),
    ],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_what_is_no_photo_is_rejected_with_its_reason(content, reason, detail):
    rejected = rejection(content)
    assert rejected.reason == reason
    assert detail in rejected.detail


def test_no_warning_of_pillow_is_heard_from_any_thread(tmp_path):
    (tmp_path / "large.png").write_bytes(saved(Image.new("1", (9500, 9500))))  # of which Pillow warns
    code = f"""
import pathlib, threading, warnings
from carbrand.data import images
content, filters = pathlib.Path({str(tmp_path / "large.png")!r}).read_bytes(), list(warnings.filters)
def check():
    for _ in range(100):
        try:
            images.normalise(content, resize_short_px=None)
        except images.Rejected as rejected:
            assert rejected.reason == "too_large"
threads = [threading.Thread(target=check) for _ in range(4)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print(warnings.filters == filters)
"""
    done = subprocess.run([sys.executable, "-W", "default", "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("True\n", "")


def test_a_damaged_png_is_rejected():
    content = bytearray(saved(smooth(300, 300)))
    content[60:80] = bytes(20)
    assert rejection(bytes(content)).reason == "decode_error"


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF"])
@pytest.mark.filterwarnings("ignore:Truncated File Read")
def test_random_damage_is_rejected_or_decoded_and_each_time_alike(file_format):
    rng = np.random.default_rng(0)
    original = np.frombuffer(saved(smooth(), file_format), np.uint8)
    for _ in range(40):
        damaged = original.copy()
        damaged[rng.integers(0, len(damaged), 4)] = rng.integers(0, 256, 4)
        content = damaged[: rng.integers(1, len(damaged) + 1)].tobytes()
        assert outcome(content) == outcome(content)


def outcome(content):
    try:
        return normalise(content)
    except images.Rejected as rejected:
        return str(rejected)


def test_the_cache_key_depends_on_content_and_arguments():
    keys = {
        images.cache_key(content, resize_short_px=size, jpeg_quality=quality)
        for content, size, quality in [("a", 256, 95), ("b", 256, 95), ("a", None, 95), ("a", 256, 90)]
    }
    assert len(keys) == 4


def test_real_odd_files_become_photos_unless_they_are_none(real_data):
    odd_files = real_data / "odd_files"
    outcomes = {path.name: outcome(path.read_bytes()) for path in sorted(odd_files.iterdir())}
    rejected = {name: result for name, result in outcomes.items() if isinstance(result, str)}
    assert set(rejected) == {"html_page_named.jpg", "opencv_vec_binary.jpg", "path_text.jpg", "seven_bytes.jpg"}
    assert all(result.startswith("not_an_image: starts with") for result in rejected.values())
    rotated = outcomes["exif_orientation_6.jpg"]
    assert rotated.height > rotated.width
    for name in ("jpeg_l_1.jpg", "jpeg_other_extension_1.webp", "jpeg_trailing_bytes_1.jpg"):
        assert outcomes[name].encoded == (odd_files / name).read_bytes()
