"""Sample photos drawn by the program, so that the whole flow runs on a machine with no data.

In: a folder and a seed. Out: FOLDER/BRAND/0001.jpg and on, and a few files that a dataset build has to reject.
"""

import io
import math
import pathlib

import numpy as np
from PIL import Image, ImageDraw

from carbrand import files
from carbrand.demo import scenes
from carbrand.demo.brands import BRANDS, Brand, Finish
from carbrand.demo.cars import BODIES, Body, draw_car
from carbrand.demo.sketch import Camera, Pen, Points
from carbrand.errors import ConfigError

BROKEN = ("arvena/page.jpg", "belmarr/truncated.jpg", "dravik/empty.jpg")
DUPLICATES = ("fennik/copy.jpg", "gorvel/copy.jpg", "tavoq/copy.jpg")

_OVERSAMPLING = 2  # drawn at twice the size, then reduced: Pillow's polygons have hard edges
_PAGE = b"<!DOCTYPE html><html><body><h1>404 Not Found</h1></body></html>\n"


def draw_photos(folder: pathlib.Path, *, photos_per_brand: int, seed: int = 0) -> None:
    """Draws `photos_per_brand` photos of each of `BRANDS` to `folder`/BRAND/0001.jpg and on, and six files to reject.

    Of the six, three are `BROKEN` (a web page, the first half of 0001.jpg, an empty file), and three are `DUPLICATES`:
    exact copies of 0001.jpg beside it. A photo depends on the seed, its brand and its number alone, so that the same
    call writes the same bytes (with the same Pillow), and a larger `photos_per_brand` only adds photos.

    Raises:
        ConfigError: `photos_per_brand` is less than 1.
    """
    if photos_per_brand < 1:
        raise ConfigError(f"photos_per_brand={photos_per_brand} draws nothing. Use 1 or more.")
    for brand in BRANDS:
        (folder / brand.name).mkdir(parents=True, exist_ok=True)
        for number in range(1, photos_per_brand + 1):
            (folder / brand.name / f"{number:04d}.jpg").write_bytes(photo(brand, number=number, seed=seed))
    _write_rejects(folder)


def photo(brand: Brand, *, number: int, seed: int) -> bytes:
    """One photo as JPEG, 240 to 420 pixels wide."""
    rng = np.random.default_rng(int(files.sha256(f"{seed}/{brand.name}/{number}".encode()), 16))
    width = int(rng.integers(240, 421))
    size = width, round(width / rng.choice([3 / 2, 4 / 3]))
    image = scenes.blurred(_scene(brand, size, rng), rng)
    content = io.BytesIO()
    image.save(content, "JPEG", quality=int(rng.integers(40, 96)))
    return content.getvalue()


def _write_rejects(folder: pathlib.Path) -> None:
    page, truncated, empty = (folder / name for name in BROKEN)
    whole = (truncated.parent / "0001.jpg").read_bytes()
    page.write_bytes(_PAGE)
    truncated.write_bytes(whole[: len(whole) // 2])
    empty.write_bytes(b"")
    for copy in (folder / name for name in DUPLICATES):
        copy.write_bytes((copy.parent / "0001.jpg").read_bytes())


def _scene(brand: Brand, size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    body, finish = _body(brand, rng), _finish(rng)
    yaw = _yaw(rng)
    canvas = size[0] * _OVERSAMPLING, size[1] * _OVERSAMPLING
    camera = _camera(body, canvas, yaw=yaw, rng=rng)
    far_away = 1000 * np.array([[math.sin(yaw), 0, math.cos(yaw)]])
    image = scenes.background(canvas, horizon=int(camera.project(far_away)[0, 1]), rng=rng)
    pen = Pen(ImageDraw.Draw(image), camera, body.ground)
    scenes.cast_shadow(image, pen.pixels(_shadow(body)), darkness=rng.uniform(0.45, 0.9))
    draw_car(pen, brand=brand, body=body, finish=finish, visible_side=-1 if yaw > 0 else 1, rng=rng)
    if rng.random() < 0.1:
        scenes.occlude(image, rng)
    lamps = pen.on(body.front).pixels([(-0.74, 0.68), (0.74, 0.68)])
    return scenes.lit(image.reduce(_OVERSAMPLING), [(x / _OVERSAMPLING, y / _OVERSAMPLING) for x, y in lamps], rng)


def _body(brand: Brand, rng: np.random.Generator) -> Body:
    name = brand.body if rng.random() < 0.4 else sorted(BODIES)[rng.integers(len(BODIES))]
    return BODIES[name]


def _finish(rng: np.random.Generator) -> Finish:
    saturation = (0.0, 0.06) if rng.random() < 0.45 else (0.3, 0.8)
    has_chrome = rng.random() < 0.65
    trim, rim, dark, glass = rng.integers([165, 110, 12, 205], [235, 200, 40, 246]).tolist()
    return Finish(
        paint=scenes.random_colour(rng, saturation=saturation, value=(0.16, 0.92)),
        trim=(trim, trim, trim + 4) if has_chrome else (78, 80, 84),
        dark=(dark, dark, dark + 2),
        glass=(glass, glass, glass - 10),
        rim=(rim, rim, rim),
    )


def _yaw(rng: np.random.Generator) -> float:
    """How far the car is turned, in radians: three in four seen from the front, the others from a corner."""
    degrees = rng.uniform(0, 10) if rng.random() < 0.75 else rng.uniform(10, 32)
    return math.radians(degrees) * rng.choice([-1, 1])


def _shadow(body: Body) -> Points:
    """The car's shadow on the ground, as if lit from above and a little from behind."""
    half = body.half_width * 1.05
    return [(-half, -0.15), (half, -0.15), (half, body.length), (-half, body.length)]


def _camera(body: Body, size: tuple[int, int], *, yaw: float, rng: np.random.Generator) -> Camera:
    """A camera that sees the car turned by `yaw`, filling most of a picture of `size` pixels."""
    distance = rng.uniform(5, 10)
    pose = _rotation(0, -math.radians(rng.uniform(2, 14))) @ _rotation(1, yaw)
    centre = np.array([0, 0.6, 0.8])
    to_camera = np.column_stack([pose, np.array([0, 0, distance]) - pose @ centre])
    flip = np.diag([1.0, -1.0, 1.0])  # the image's y points down
    unframed = Camera(flip @ to_camera, pixels_per_metre=1.0)
    seen = unframed.project(body.corners())
    extent = np.ptp(seen, axis=0)
    scale = rng.uniform(0.9, 1.02) * min(size / extent)
    middle = np.asarray(size) * rng.uniform(0.47, 0.53, 2) - scale * (seen.min(axis=0) + extent / 2)
    framing = np.array([[scale, 0, middle[0]], [0, scale, middle[1]], [0, 0, 1]])
    tilt = _rotation(2, math.radians(rng.normal(0, 1.5)))
    return Camera(framing @ tilt @ unframed.matrix, pixels_per_metre=scale / distance)


def _rotation(axis: int, angle: float) -> np.ndarray:
    """A rotation [3, 3] about the x (0), y (1) or z (2) axis, by radians."""
    matrix = np.eye(3)
    plane = [other for other in range(3) if other != axis]
    matrix[np.ix_(plane, plane)] = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
    return matrix
