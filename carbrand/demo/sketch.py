"""A pen that draws flat shapes of a car in space onto a Pillow image, as a pinhole camera sees them.

The car's space is in metres: x to the right of who looks at its front, y up, z to its rear; the origin lies on the
ground below its front bumper.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
from PIL import ImageDraw

Colour = tuple[int, int, int]
Points = list[tuple[float, float]]
Surface = Callable[[np.ndarray], np.ndarray]  # points [N, 2] of a face of the car -> [N, 3] in metres

_EDGE_PIECES = 3  # an edge drawn on a curved face is drawn in this many pieces, to bend
_ANGLES = np.linspace(0, 2 * np.pi, 24, endpoint=False)
_CIRCLE = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], axis=-1)


@dataclasses.dataclass(frozen=True)
class Camera:
    """A pinhole camera.

    Attributes:
        matrix: [3, 4] from the car's space, with a 1 appended, to homogeneous pixels.
        pixels_per_metre: at the front of the car.
    """

    matrix: np.ndarray
    pixels_per_metre: float

    def project(self, points: np.ndarray) -> np.ndarray:
        """Pixels [N, 2] at which `points` [N, 3] in metres are seen."""
        seen = points @ self.matrix[:, :3].T + self.matrix[:, 3]
        return seen[:, :2] / seen[:, 2:]


@dataclasses.dataclass(frozen=True)
class Pen:
    """Draws on one face of the car, in that face's own two coordinates."""

    draw: ImageDraw.ImageDraw
    camera: Camera
    surface: Surface

    def on(self, surface: Surface) -> "Pen":
        """The same pen on another face."""
        return dataclasses.replace(self, surface=surface)

    def pixels(self, points: Points | np.ndarray) -> Points:
        """Where `points` of this face lie on the image."""
        return _as_points(self.camera.project(self.surface(np.asarray(points, np.float64))))

    def polygon(self, corners: Points, colour: Colour) -> None:
        """A filled polygon."""
        self.draw.polygon(self.pixels(_subdivided(corners)), fill=colour)

    def pair(self, corners: Points, colour: Colour) -> None:
        """A filled polygon and its mirror image, left and right."""
        self.polygon(corners, colour)
        self.polygon(mirrored(corners), colour)

    def line(self, start: tuple[float, float], end: tuple[float, float], colour: Colour, *, width_m: float) -> None:
        """A line, at least one pixel wide."""
        width = max(1, round(width_m * self.camera.pixels_per_metre))
        steps = np.linspace(start, end, _EDGE_PIECES + 1)
        self.draw.line(self.pixels(steps), fill=colour, width=width, joint="curve")


def oval(centre: tuple[float, float], radii: tuple[float, float], *, squareness: float = 2.0) -> Points:
    """The outline of an ellipse (`squareness` 2), a box with round corners (5), or a diamond (1)."""
    outline = np.sign(_CIRCLE) * np.abs(_CIRCLE) ** (2 / squareness)
    return _as_points(outline * radii + centre)


def mirrored(corners: Points) -> Points:
    """The mirror image of `corners` about the middle of the car."""
    return [(-x, y) for x, y in corners]


def inset(corners: Points, scale: float) -> Points:
    """`corners` shrunk towards their centre."""
    points = np.asarray(corners)
    centre = points.mean(axis=0)
    return _as_points(centre + (points - centre) * scale)


def shaded(colour: Colour, factor: float) -> Colour:
    """`colour` made darker (`factor` below 1) or lighter."""
    red, green, blue = (min(255, round(channel * factor)) for channel in colour)
    return red, green, blue


def _subdivided(corners: Points) -> np.ndarray:
    """Points along the edges of a closed polygon."""
    points = np.asarray([*corners, corners[0]], np.float64)
    steps = np.arange(_EDGE_PIECES)[:, None] / _EDGE_PIECES
    return (points[:-1, None] * (1 - steps) + points[1:, None] * steps).reshape(-1, 2)


def _as_points(array: np.ndarray) -> Points:
    return [(x, y) for x, y in array.tolist()]
