"""Photos and captions -> one picture on white, in which the photos keep their exact pixels."""

import dataclasses
import os
import pathlib
from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from carbrand import files
from carbrand.errors import ConfigError

MARGIN_PX, GAP_PX = 24, 8
MAX_COLUMNS = 8

_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}
_MAX_WIDTH_PX = 2000
MAX_JPEG_PX = 65_500  # of libjpeg
_MIN_CELL_PX = 128  # photos of less are enlarged: a caption needs the room
_TEXT_SIZE_PX, _CAPTION_SIZE_PX, _CAPTION_LINES = 15, 14, 2
_BLACK, _GREY = "#111111", "#777777"
# Pillow's own font has no ë, š or ×; matplotlib's has the Latin, Greek and Cyrillic letters.
_FONTS = pathlib.Path(mpl.get_data_path()) / "fonts" / "ttf"


@dataclasses.dataclass(frozen=True)
class Cell:
    """A photo [H, W, 3] uint8, the parts of its caption, and a file's name that is shown where there is room."""

    image: np.ndarray
    caption: Sequence[str] = ()
    file_name: str = ""


class ContactSheet:
    """A picture that grows downward; its photos are all of one size.

    Attributes:
      columns: Photos side by side.
      size_in_words: Of the photos.
    """

    def __init__(self, height_width: tuple[int, int]) -> None:
        """Begins a sheet of photos of this size: up to 8 columns, at most 2,000 pixels wide if a photo is not wider."""
        height, width = height_width
        self._scale = -(-_MIN_CELL_PX // width)
        enlarged = f" shown {self._scale} times as large" if self._scale > 1 else ""
        self.size_in_words = f"images of {height} × {width} px{enlarged}"
        self._cell_px = (height * self._scale, width * self._scale)
        step = self._cell_px[1] + GAP_PX
        self.columns = min(max((_MAX_WIDTH_PX - 2 * MARGIN_PX + GAP_PX) // step, 1), MAX_COLUMNS)
        self._width = 2 * MARGIN_PX + self.columns * step - GAP_PX
        self._blocks: list[Image.Image] = []

    def add_heading(self, text: str, size_px: int = 18) -> None:
        """Adds a heading, with some space above it unless it is the first."""
        if self._blocks:
            self._add_block(2 * GAP_PX)
        self._add_lines([text], size_px, _font(size_px, is_bold=True))

    def add_text(self, parts: Sequence[str]) -> None:
        """Adds a paragraph: `parts` with commas between them, and line breaks where they are needed."""
        font = _font(_TEXT_SIZE_PX)
        self._add_lines(wrapped(parts, font, self._width - 2 * MARGIN_PX), _TEXT_SIZE_PX, font)

    def add_photos(self, cells: Sequence[Cell]) -> None:
        """Adds photos, row by row."""
        for first in range(0, len(cells), self.columns):
            self._add_row(cells[first : first + self.columns])

    def write(self, path: str | os.PathLike[str]) -> None:
        """Writes the sheet, in the format that the path ends in; ConfigError if that cannot be."""
        height = sum(block.height for block in self._blocks) + 2 * MARGIN_PX
        if format_of(path) == "JPEG" and max(height, self._width) > MAX_JPEG_PX:
            raise ConfigError(f"{path}: a JPEG cannot be {self._width} x {height} px. Take fewer photos, or a .png.")
        sheet = Image.new("RGB", (self._width, height), "white")
        top = MARGIN_PX
        for block in self._blocks:
            sheet.paste(block, (0, top))
            top += block.height
        try:
            with files.atomic_writer(path) as file:
                sheet.save(file, format_of(path), quality=95, subsampling=0)  # of a JPEG
        except OSError as error:
            raise ConfigError(f"{path}: cannot be written ({error.strerror or error}). Name another file.") from error

    def _add_lines(self, lines: Sequence[str], size_px: int, font: ImageFont.FreeTypeFont) -> None:
        draw = self._add_block(len(lines) * _line_px(size_px) + GAP_PX // 2)
        for number, line in enumerate(lines):
            draw.text((MARGIN_PX, number * _line_px(size_px)), line, _BLACK, font)

    def _add_row(self, cells: Sequence[Cell]) -> None:
        height, width = self._cell_px
        font = _font(_CAPTION_SIZE_PX)
        lines = [caption_lines(cell, font, width) for cell in cells]
        line_px = _line_px(_CAPTION_SIZE_PX)
        draw = self._add_block(height + max(map(len, lines)) * line_px + 2 * GAP_PX)
        for column, cell in enumerate(cells):
            left = MARGIN_PX + column * (width + GAP_PX)
            pixels = cell.image.repeat(self._scale, 0).repeat(self._scale, 1)
            self._blocks[-1].paste(Image.fromarray(pixels), (left, 0))
            for number, line in enumerate(lines[column]):
                colour = _GREY if line == cell.file_name else _BLACK
                draw.text((left, height + GAP_PX // 2 + number * line_px), line, colour, font)

    def _add_block(self, height: int) -> ImageDraw.ImageDraw:
        self._blocks.append(Image.new("RGB", (self._width, height), "white"))
        return ImageDraw.Draw(self._blocks[-1])


def format_of(path: str | os.PathLike[str]) -> str:
    """Pillow's name of the format that a picture's path ends in; ConfigError if it is none of ours."""
    suffix = pathlib.Path(path).suffix.lower()
    if suffix not in _FORMATS:
        raise ConfigError(f"{path}: give a name for a picture, which ends in {', '.join(_FORMATS)}.")
    return _FORMATS[suffix]


def caption_lines(cell: Cell, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """The caption in at most two lines, and the file's name if there is a line left that holds it."""
    lines = wrapped(cell.caption, font, width)[:_CAPTION_LINES]
    if cell.file_name and len(lines) < _CAPTION_LINES and font.getlength(cell.file_name) <= width:
        lines.append(cell.file_name)
    return lines


def wrapped(parts: Sequence[str], font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Lines of `parts` with commas between them, broken after a comma only; a part that is too long is cut short."""
    lines: list[str] = []
    for part in parts:
        if lines and font.getlength(f"{lines[-1]}, {part},") <= width:
            lines[-1] += f", {part}"
        else:
            lines[-1:] = [*(f"{line}," for line in lines[-1:]), _shortened(part, font, width)]
    return lines


def _shortened(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text}…"


def _font(size_px: int, *, is_bold: bool = False) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(_FONTS / ("DejaVuSans-Bold.ttf" if is_bold else "DejaVuSans.ttf")), size_px)


def _line_px(size_px: int) -> int:
    return round(1.4 * size_px)
