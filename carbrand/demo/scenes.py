"""Where, when and through what lens a car is photographed: backgrounds, shadow, occlusion, light, blur and noise.

In and out: Pillow images in RGB, changed in place or returned anew; every choice is made by the generator passed in.
"""

import colorsys

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from carbrand.demo.sketch import Colour, Points, shaded


def random_colour(rng: np.random.Generator, *, saturation: tuple[float, float], value: tuple[float, float]) -> Colour:
    """Any hue, within ranges of saturation and value in [0, 1]."""
    red, green, blue = colorsys.hsv_to_rgb(rng.random(), rng.uniform(*saturation), rng.uniform(*value))
    return round(255 * red), round(255 * green), round(255 * blue)


def background(size: tuple[int, int], *, horizon: int, rng: np.random.Generator) -> Image.Image:
    """A street, a field, a showroom or a car park, with clutter; `horizon` in pixels from the top."""
    image = Image.new("RGB", size)
    place = _PLACES[rng.integers(len(_PLACES))]
    place(image, min(max(horizon, size[1] // 10), size[1] * 7 // 10), rng)
    return image


def _street(image: Image.Image, horizon: int, rng: np.random.Generator) -> None:
    width, height = image.size
    _sky(image, horizon, rng)
    draw = ImageDraw.Draw(image)
    left = 0
    while left < width:
        right = left + int(rng.integers(width // 10, width // 3))
        top = int(rng.integers(0, horizon * 3 // 4))
        _building(draw, (left, top, right, horizon + height // 40), rng)
        left = right
    tar = random_colour(rng, saturation=(0, 0.1), value=(0.25, 0.5))
    _blend(image, (horizon + height // 40, height), shaded(tar, 1.2), tar)
    for x in rng.integers(-width, 2 * width, 4).tolist():
        far = width // 2 + (x - width // 2) // 8
        draw.line((far, horizon, x, height), fill=shaded(tar, 1.6), width=height // 80)


def _field(image: Image.Image, horizon: int, rng: np.random.Generator) -> None:
    width, height = image.size
    _sky(image, horizon, rng)
    draw = ImageDraw.Draw(image)
    green = _varied((92, 116, 66), 24, rng)
    for x in rng.integers(0, width, 8).tolist():
        radius = int(rng.integers(height // 12, height // 4))
        draw.ellipse(
            (x - radius, horizon - radius, x + radius, horizon + radius), fill=shaded(green, rng.uniform(0.5, 0.9))
        )
    _blend(image, (horizon, height), shaded(green, 1.15), shaded(green, 0.75))
    if rng.random() < 0.6:
        sand = _varied((150, 136, 116), 30, rng)
        _blend(image, (horizon + (height - horizon) // 4, height), shaded(sand, 0.9), sand)


def _showroom(image: Image.Image, horizon: int, rng: np.random.Generator) -> None:
    width, height = image.size
    wall = random_colour(rng, saturation=(0, 0.35), value=(0.3, 0.95))
    _blend(image, (0, horizon), wall, shaded(wall, 0.8))
    draw = ImageDraw.Draw(image)
    for x in rng.integers(0, width, 4).tolist():
        panel = random_colour(rng, saturation=(0, 0.7), value=(0.3, 1))
        draw.rectangle((x, horizon // 8, x + width // 8, horizon), fill=panel)
    for x in range(0, width, width // 5):
        draw.rectangle((x, 0, x + width // 9, max(2, horizon // 12)), fill=(250, 250, 244))
    floor = random_colour(rng, saturation=(0, 0.2), value=(0.35, 0.9))
    _blend(image, (horizon, height), shaded(floor, 0.8), shaded(floor, 1.1))


def _car_park(image: Image.Image, horizon: int, rng: np.random.Generator) -> None:
    width, height = image.size
    _sky(image, horizon, rng)
    floor = _varied((120, 118, 116), 30, rng)
    _blend(image, (horizon, height), floor, shaded(floor, 0.8))
    draw = ImageDraw.Draw(image)
    for x in rng.integers(-width // 8, width, 6).tolist():
        _parked(draw, (x, horizon), int(rng.integers(width // 8, width // 4)), rng)
    for x in range(-width, 2 * width, width // 3):
        far = width // 2 + (x - width // 2) // 3
        draw.line((far, horizon + height // 12, x, height), fill=(214, 212, 200), width=4)


_PLACES = (_street, _field, _showroom, _car_park)


def _sky(image: Image.Image, horizon: int, rng: np.random.Generator) -> None:
    top = _varied((120, 160, 205), 45, rng)
    _blend(image, (0, horizon), top, _varied((205, 212, 218), 30, rng))


def _building(draw: ImageDraw.ImageDraw, box: tuple[int, int, int, int], rng: np.random.Generator) -> None:
    left, top, right, bottom = box
    wall = random_colour(rng, saturation=(0, 0.45), value=(0.3, 0.85))
    draw.rectangle(box, fill=wall)
    pane = shaded(wall, rng.uniform(0.45, 1.4))
    step = max(8, (right - left) // 4)
    for x in range(left + step // 3, right - step // 2, step):
        for y in range(top + step // 3, bottom, step):
            draw.rectangle((x, y, x + step // 2, y + step // 2), fill=pane)


def _parked(draw: ImageDraw.ImageDraw, place: tuple[int, int], width: int, rng: np.random.Generator) -> None:
    left, bottom = place
    paint = random_colour(rng, saturation=(0, 0.8), value=(0.15, 0.9))
    tall = width // 3
    draw.rounded_rectangle(
        (left + width // 6, bottom - tall, left + width * 5 // 6, bottom), tall // 3, fill=(50, 56, 64)
    )
    draw.rounded_rectangle((left, bottom - tall // 2, left + width, bottom + tall // 4), tall // 5, fill=paint)


def _varied(colour: Colour, spread: int, rng: np.random.Generator) -> Colour:
    red, green, blue = np.clip(np.asarray(colour) + rng.integers(-spread, spread + 1, 3), 0, 255).tolist()
    return red, green, blue


def _blend(image: Image.Image, rows: tuple[int, int], above: Colour, below: Colour) -> None:
    """Fills rows [first, last) with a gradient from one colour to another."""
    first, last = rows
    if last <= first:
        return
    ramp = Image.fromarray(np.array([[above], [below]], np.uint8))
    image.paste(ramp.resize((image.width, last - first), Image.Resampling.BILINEAR), (0, first))


def cast_shadow(image: Image.Image, outline: Points, *, darkness: float) -> None:
    """Darkens `image` inside of `outline`, with a soft edge; `darkness` in [0, 1]."""
    scale = 8  # blurred at an eighth of the size: the edge is soft anyway
    mask = Image.new("L", (image.width // scale, image.height // scale))
    ImageDraw.Draw(mask).polygon([(x / scale, y / scale) for x, y in outline], fill=round(255 * darkness))
    mask = mask.filter(ImageFilter.GaussianBlur(1.5)).resize(image.size, Image.Resampling.BILINEAR)
    image.paste((12, 12, 16), mask=mask)


def occlude(image: Image.Image, rng: np.random.Generator) -> None:
    """Puts a pole, or the edge of another car, before the scene."""
    paint = random_colour(rng, saturation=(0, 0.7), value=(0.1, 0.8))
    hide = _put_pole if rng.random() < 0.6 else _put_neighbour
    hide(image, paint, rng)


def _put_pole(image: Image.Image, paint: Colour, rng: np.random.Generator) -> None:
    left = image.width * rng.uniform(0, 1)
    thick = image.width * rng.uniform(0.015, 0.04)
    draw = ImageDraw.Draw(image)
    draw.rectangle((left, 0, left + thick, image.height), fill=paint)
    draw.rectangle((left, 0, left + thick / 3, image.height), fill=shaded(paint, 1.3))


def _put_neighbour(image: Image.Image, paint: Colour, rng: np.random.Generator) -> None:
    width, height = image.size
    shown = width * rng.uniform(0.04, 0.12)
    left = shown - width if rng.random() < 0.5 else width - shown
    top = height * rng.uniform(0.4, 0.7)
    ImageDraw.Draw(image).rounded_rectangle((left, top, left + width, height * 1.2), height // 8, fill=paint)


def lit(image: Image.Image, glows: Points, rng: np.random.Generator) -> Image.Image:
    """The scene under random light; at night the lamps at `glows`, in pixels, shine."""
    pixels = np.asarray(image, np.float32)
    height, width = pixels.shape[:2]
    across = np.linspace(-1, 1, width, dtype=np.float32)
    down = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    slope_x, slope_y = rng.uniform(-0.2, 0.2, 2).astype(np.float32)
    is_night = rng.random() < 0.08
    gain = rng.uniform(0.45, 0.65) if is_night else rng.uniform(0.8, 1.2)
    warmth = rng.uniform(-0.12, 0.12) - 0.1 * is_night
    tint = np.array([1 + warmth, 1, 1 - warmth], np.float32) * np.float32(gain)
    contrast = np.float32(rng.uniform(0.75, 1.15))
    pixels = ((pixels - 118) * contrast + 118) * (1 + slope_x * across + slope_y * down)[..., None] * tint
    if is_night:
        pixels += _glow(glows, height=height, width=width)
    pixels += _grain((height, width), rng)[..., None]
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _glow(centres: Points, *, height: int, width: int) -> np.ndarray:
    """Light [height, width, 3] around each of `centres`."""
    light = np.zeros((height, width), np.float32)
    for x, y in centres:
        across = np.exp(-(((np.arange(width, dtype=np.float32) - x) / (0.06 * width)) ** 2))
        down = np.exp(-(((np.arange(height, dtype=np.float32) - y) / (0.06 * width)) ** 2))
        light += np.outer(down, across)
    return light[..., None] * np.array([150, 145, 115], np.float32)


def _grain(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    return rng.standard_normal(shape, dtype=np.float32) * np.float32(rng.uniform(0, 7))


def blurred(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The image sharp, out of focus, or moved from left to right."""
    kind = rng.random()
    if kind < 0.6:
        return image
    if kind < 0.85:
        return image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.3)))
    return image.filter(ImageFilter.BoxBlur((rng.uniform(0.5, 3.0), 0)))
