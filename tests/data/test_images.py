import io

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
    assert image.format == "JPEG"
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
    ],
)
def test_a_plain_jpeg_is_kept_byte_for_byte(content):
    result = normalise(content, resize_short_px=60)
    assert result.encoded == content
    assert (result.height, result.width) == (60, 90)


@pytest.mark.parametrize("file_format", ["PNG", "WEBP", "AVIF", "BMP", "TIFF", "JPEG"])
def test_every_format_comes_out_with_its_colours(file_format):
    options = {"quality": 95} if file_format in ("WEBP", "AVIF", "JPEG") else {}
    result = normalise(saved(smooth(), file_format, **options))
    assert np.abs(pixels(result) - smooth()).mean() < 3


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1"])
def test_every_mode_becomes_rgb(mode):
    original = Image.fromarray(smooth()).convert(mode)
    result = normalise(saved(original, "TIFF" if mode == "CMYK" else "PNG"))
    assert np.abs(pixels(result) - np.asarray(original.convert("RGB"))).mean() < (
        30 if mode in ("P", "1") else 3
    )  # dithered


def test_a_cmyk_jpeg_becomes_rgb():
    result = normalise(saved(Image.fromarray(smooth()).convert("CMYK"), "JPEG", quality=95))
    assert np.abs(pixels(result) - smooth()).mean() < 4


def test_16_bits_are_scaled_not_clipped():
    grey = smooth(channels=1)
    result = normalise(saved(grey.astype(np.uint16) * 257))
    assert np.abs(pixels(result)[..., 0] - grey).mean() < 2


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


@pytest.mark.parametrize("file_format", ["PNG", "JPEG"])
@pytest.mark.parametrize("orientation", STORED)
def test_the_exif_orientation_is_applied(orientation, file_format):
    stored = np.ascontiguousarray(STORED[orientation](smooth()))
    result = normalise(saved(stored, file_format, exif=exif(orientation)))
    assert (result.height, result.width) == (60, 90)
    assert np.abs(pixels(result) - smooth()).mean() < 4


def test_a_foreign_colour_profile_is_converted():
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    # The red and blue primaries exchanged, and no longer called sRGB.
    swapped = srgb.replace(b"rXYZ", b"tmp!").replace(b"bXYZ", b"rXYZ").replace(b"tmp!", b"bXYZ")
    swapped = swapped.replace("sRGB".encode("utf-16-be"), "swap".encode("utf-16-be"))
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


def test_equal_pixels_have_equal_hashes_whatever_the_file():
    hashes = {
        normalise(content).pixel_hash
        for content in (saved(smooth()), saved(smooth(), "BMP"), saved(smooth(), "WEBP", lossless=True))
    }
    assert len(hashes) == 1
    jpeg = saved(smooth(), "JPEG")
    assert normalise(jpeg).pixel_hash == normalise(saved(Image.open(io.BytesIO(jpeg)))).pixel_hash
    assert normalise(jpeg + b"x").pixel_hash == normalise(jpeg).pixel_hash


def test_other_pixels_or_sizes_have_other_hashes():
    changed = smooth()
    changed[0, 0, 0] += 1
    flat = [np.full(shape, 7, np.uint8) for shape in ((40, 60, 3), (60, 40, 3))]
    assert len({normalise(saved(image)).pixel_hash for image in (smooth(), changed, *flat)}) == 4


@pytest.mark.parametrize(
    ("content", "reason", "detail"),
    [
        (b"", "empty", "0 bytes"),
        (b"<!DOCTYPE html>", "not_an_image", "starts with b'<!DOCTYPE html>'"),
        (saved(smooth(15, 40)), "too_small", "40×15 px, the least is 16 px"),
        (saved(Image.new("1", (9000, 9000))), "too_large", "9000×9000 px, the most is"),
        (saved(Image.new("1", (14000, 14000))), "too_large", "over 80000000 pixels"),
        (saved(smooth(20, 401)), "aspect_ratio", "401×20 px, the most is 20:1"),
        (saved(smooth(300, 300), "JPEG")[:2000], "truncated", "image file is truncated"),
        (saved(smooth(300, 300))[:700], "truncated", "truncated"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n", "not_an_image", "starts with b'%!PS"),
    ],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_what_is_no_photo_is_rejected_with_its_reason(content, reason, detail):
    rejected = rejection(content)
    assert rejected.reason == reason
    assert detail in rejected.detail


def test_a_damaged_png_is_rejected():
    content = bytearray(saved(smooth(300, 300)))
    content[60:80] = bytes(20)
    assert rejection(bytes(content)).reason == "decode_error"


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF"])
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
