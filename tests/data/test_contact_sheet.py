import numpy as np
import pytest
from PIL import Image

from carbrand.data import contact_sheet
from carbrand.data.contact_sheet import GAP_PX, MARGIN_PX, Cell, ContactSheet
from carbrand.errors import ConfigError

FONT = contact_sheet._font(14)


def image(height=224, width=224, value=90):
    return np.full((height, width, 3), value, np.uint8)


def written(sheet, path):
    sheet.write(path)
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


@pytest.mark.parametrize(
    ("side", "columns", "width"),
    [
        (32, 8, 2 * 24 + 8 * 128 + 7 * 8),  # four times as large
        (100, 8, 2 * 24 + 8 * 200 + 7 * 8),  # twice
        (224, 8, 2 * 24 + 8 * 224 + 7 * 8),
        (320, 5, 2 * 24 + 5 * 320 + 4 * 8),
        (2100, 1, 2 * 24 + 2100),
    ],
)
def test_width_follows_from_the_photos(tmp_path, side, columns, width):
    sheet = ContactSheet((side, side))
    sheet.add_text(["x"])
    assert sheet.columns == columns
    assert written(sheet, tmp_path / "sheet.png").shape[1] == width


def test_photos_stand_where_they_should_with_their_exact_pixels(tmp_path):
    photos = np.random.default_rng(0).integers(0, 256, (9, 64, 48, 3), np.uint8)
    sheet = ContactSheet((64, 48))
    sheet.add_photos([Cell(photo) for photo in photos])
    pixels = written(sheet, tmp_path / "sheet.png")
    assert pixels.shape == (2 * MARGIN_PX + 2 * (3 * 64 + 2 * GAP_PX), 2 * MARGIN_PX + 8 * 3 * 48 + 7 * GAP_PX, 3)
    second = pixels[MARGIN_PX:, MARGIN_PX + 3 * 48 + GAP_PX :][: 3 * 64, : 3 * 48]
    ninth = pixels[MARGIN_PX + 3 * 64 + 2 * GAP_PX :, MARGIN_PX:][: 3 * 64, : 3 * 48]
    np.testing.assert_array_equal(second[1::3, 1::3], photos[1])
    np.testing.assert_array_equal(ninth[2::3, ::3], photos[8])


def test_caption_is_drawn_below_its_photo(tmp_path):
    sheet = ContactSheet((224, 224))
    sheet.add_photos([Cell(image()), Cell(image(), ("citroën",))])
    below = written(sheet, tmp_path / "sheet.png")[MARGIN_PX + 224 :]
    assert (below[:, : MARGIN_PX + 224 + GAP_PX] == 255).all()
    assert (below[:, MARGIN_PX + 224 + GAP_PX :] < 100).any()


def test_letters_of_brands_are_in_the_font():
    missing = bytes(FONT.getmask("\uffff"))
    for letter in "ëšŠéüöçłßñ×…ŻщΩ":
        assert bytes(FONT.getmask(letter)) != missing, letter


def test_lines_break_after_commas():
    assert contact_sheet.wrapped(["audi 63 %", "bmw 37 %"], FONT, 200) == ["audi 63 %, bmw 37 %"]
    assert contact_sheet.wrapped(["audi 63 %", "bmw 37 %"], FONT, 100) == ["audi 63 %,", "bmw 37 %"]
    assert contact_sheet.wrapped([], FONT, 100) == []


def test_what_is_too_long_is_cut_short():
    (line,) = contact_sheet.wrapped(["a_brand_with_a_very_long_name"], FONT, 100)
    assert line.startswith("a_brand")
    assert line.endswith("…")
    assert FONT.getlength(line) <= 100


def test_file_name_is_shown_where_there_is_room():
    assert contact_sheet.caption_lines(Cell(image(), ["audi"], "1.jpg"), FONT, 100) == ["audi", "1.jpg"]
    assert contact_sheet.caption_lines(Cell(image(), ["audi"], "1" * 40), FONT, 100) == ["audi"]
    two = ["audi 63 %,", "bmw 37 %"]
    assert contact_sheet.caption_lines(Cell(image(), ["audi 63 %", "bmw 37 %"], "1.jpg"), FONT, 100) == two


def test_format_follows_the_suffix(tmp_path):
    sheet = ContactSheet((64, 64))
    sheet.add_photos([Cell(image(64, 64))])
    for name, kind in (("a.png", "PNG"), ("a.JPG", "JPEG"), ("new/a.jpeg", "JPEG")):
        sheet.write(tmp_path / name)
        with Image.open(tmp_path / name) as picture:
            assert picture.format == kind


def test_other_suffixes_raise():
    with pytest.raises(ConfigError, match=r"sheet\.gif: give a name for a picture, which ends in \.png, \.jpg, \.jpeg"):
        contact_sheet.format_of("sheet.gif")


def test_a_jpeg_that_would_be_too_high_raises(tmp_path):
    sheet = ContactSheet((2000, 2000))
    sheet.add_photos([Cell(np.zeros((2000, 2000, 3), np.uint8), ["a"])] * 40)
    with pytest.raises(ConfigError, match=r"a JPEG cannot be \d+ x \d+ px. Take fewer photos, or a .png"):
        sheet.write(tmp_path / "sheet.jpg")


def test_a_place_that_cannot_be_written_raises(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder.png").mkdir()
    sheet = ContactSheet((64, 64))
    sheet.add_text(["x"])
    for place in ("file/sheet.png", "folder.png"):
        with pytest.raises(ConfigError, match="cannot be written .*Name another file"):
            sheet.write(tmp_path / place)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.png"]
