"""One car: its body as curved faces in space, drawn from the rear to the front, and its brand's front on top.

In: a brand, a body, a pen. Out: the car on the pen's image. The bodies are lower and wider than real ones, with a
larger front, so that the brand shows in a small picture.
"""

import dataclasses

import numpy as np

from carbrand.demo.brands import Brand, Finish
from carbrand.demo.sketch import Pen, Points, Surface, inset, oval, shaded

_NOSE_BULGE = 0.3  # how far the corners of the front lie behind its middle
_ROOF_INSET = 0.78  # the width of the roof, of the width of the body
_SQUARE: Points = [(-1, 0), (1, 0), (1, 1), (-1, 1)]


@dataclasses.dataclass(frozen=True)
class Body:
    """The outline of a car, in metres.

    Attributes:
        half_width: from the middle to the side.
        clearance: the lower edge of the bumper.
        nose: the height of the bonnet's front edge.
        belt: the height of the lower edge of the windows.
        roof: the height of the roof.
        cowl: where the windscreen begins, from the front.
        roof_front: where the roof begins.
        roof_rear: where it ends.
        deck: where the rear window ends, at the height of the belt.
        length: of the whole car.
        wheel: the radius of a wheel.
    """

    half_width: float
    clearance: float
    nose: float
    belt: float
    roof: float
    cowl: float
    roof_front: float
    roof_rear: float
    deck: float
    length: float
    wheel: float

    def front(self, points: np.ndarray) -> np.ndarray:
        """The front face: across from -1 to 1, up from 0 (bumper) to 1 (bonnet)."""
        across, up = points.T
        depth = _NOSE_BULGE * across**2 + 0.12 * np.maximum(up, 0) ** 2
        return np.stack([across * self.half_width, self.clearance + up * (self.nose - self.clearance), depth], axis=-1)

    def bonnet(self, points: np.ndarray) -> np.ndarray:
        """The bonnet: across from -1 to 1, back from 0 (nose) to 1 (windscreen)."""
        nose = self.front(np.stack([points[:, 0], np.ones(len(points))], axis=-1))
        cowl = _line_across(points[:, 0] * self.half_width, self.belt, self.cowl)
        return _between(nose, cowl, points[:, 1])

    def windscreen(self, points: np.ndarray) -> np.ndarray:
        """The windscreen: across from -1 to 1, up from 0 (bonnet) to 1 (roof)."""
        across = points[:, 0] * self.half_width
        cowl = _line_across(across, self.belt, self.cowl)
        roof = _line_across(across * _ROOF_INSET, self.roof, self.roof_front)
        return _between(cowl, roof, points[:, 1])

    def top(self, points: np.ndarray) -> np.ndarray:
        """The roof: across from -1 to 1, back from 0 to 1."""
        back = self.roof_front + points[:, 1] * (self.roof_rear - self.roof_front)
        height = self.roof + 0.05 * np.sin(np.pi * points[:, 1])
        return np.stack([points[:, 0] * self.half_width * _ROOF_INSET, height, back], axis=-1)

    def side(self, sign: int) -> Surface:
        """The left (-1) or right (1) side: metres back, metres up; narrower above the belt."""

        def surface(points: np.ndarray) -> np.ndarray:
            back, up = points.T
            above = np.maximum(up - self.belt, 0) / (self.roof - self.belt)
            across = self.half_width * (1 - (1 - _ROOF_INSET) * above)
            return np.stack([sign * across, up, back], axis=-1)

        return surface

    def tyre_face(self, points: np.ndarray) -> np.ndarray:
        """The plane of the front tyres as seen from ahead: metres across, metres up."""
        return np.stack([points[:, 0], points[:, 1], np.full(len(points), 0.5)], axis=-1)

    def ground(self, points: np.ndarray) -> np.ndarray:
        """The ground: metres across, metres back."""
        return np.stack([points[:, 0], np.zeros(len(points)), points[:, 1]], axis=-1)

    def corners(self) -> np.ndarray:
        """Points [N, 3] around the car, for a camera to frame."""
        low = [(x, y, z) for x in (-1, 1) for y in (0.0, self.belt) for z in (_NOSE_BULGE, self.length)]
        high = [(x * _ROOF_INSET, self.roof, z) for x in (-1, 1) for z in (self.roof_front, self.roof_rear)]
        return np.asarray([*low, *high, (0, self.clearance, 0)]) * [self.half_width, 1, 1]


BODIES = {
    "sedan": Body(1.02, 0.20, 0.98, 1.06, 1.46, 1.20, 1.80, 2.95, 3.6, 4.3, 0.34),
    "hatchback": Body(1.00, 0.20, 1.00, 1.08, 1.52, 1.00, 1.6, 3.1, 3.6, 3.7, 0.33),
    "suv": Body(1.08, 0.26, 1.12, 1.20, 1.66, 1.10, 1.55, 3.6, 4.0, 4.1, 0.40),
    "coupe": Body(1.06, 0.16, 0.94, 1.00, 1.34, 1.30, 2.0, 2.6, 3.9, 4.2, 0.36),
    "pickup": Body(1.10, 0.28, 1.16, 1.24, 1.72, 1.20, 1.65, 2.8, 2.95, 4.7, 0.41),
    "van": Body(1.06, 0.22, 1.06, 1.16, 1.74, 0.75, 1.25, 4.1, 4.25, 4.3, 0.35),
}


def draw_car(
    pen: Pen, *, brand: Brand, body: Body, finish: Finish, visible_side: int, rng: np.random.Generator
) -> None:
    """Draws the car with its left (-1) or right (1) side in view."""
    _tyres(pen.on(body.tyre_face), body)
    pen.on(body.top).polygon(_SQUARE, shaded(finish.paint, 1.1))
    _side(pen.on(body.side(visible_side)), body, finish)
    _windscreen(pen.on(body.windscreen), finish, rng)
    _bonnet(pen.on(body.bonnet), finish)
    _front(pen.on(body.front), finish, rng)
    restyled = pen.on(_restyled(body.front, rng))
    brand.grille(restyled, finish)
    brand.lamps(restyled, finish)
    brand.badge(restyled, finish)


def _tyres(pen: Pen, body: Body) -> None:
    inner, outer, top = body.half_width - 0.24, body.half_width - 0.02, body.wheel * 1.6
    pen.pair([(inner, 0), (outer, 0), (outer, top), (inner, top)], (22, 22, 24))
    pen.polygon([(-inner, 0.18), (inner, 0.18), (inner, top), (-inner, top)], (14, 14, 16))


def _side(pen: Pen, body: Body, finish: Finish) -> None:
    start, low, waist = _NOSE_BULGE, body.clearance, (body.belt + body.clearance) / 2
    lower = [(start, low), (body.length - 0.1, low), (body.length, waist), (start, waist)]
    upper = [
        (start, waist),
        (body.length, waist),
        (body.length - 0.1, body.belt),
        (body.cowl, body.belt),
        (start, body.nose),
    ]
    pen.polygon(lower, shaded(finish.paint, 0.55))
    pen.polygon(upper, shaded(finish.paint, 0.78))
    _cabin(pen, body, finish)
    door = (body.roof_front + body.roof_rear) / 2
    for back in (body.cowl + 0.12, door):
        pen.line((back, low + 0.12), (back, body.belt), shaded(finish.paint, 0.45), width_m=0.02)
    for back in (start + 0.55, body.length - 0.75):
        _wheel(pen, (back, body.wheel), body.wheel, finish)


def _cabin(pen: Pen, body: Body, finish: Finish) -> None:
    outline = [
        (body.cowl, body.belt),
        (body.roof_front, body.roof),
        (body.roof_rear, body.roof),
        (body.deck, body.belt),
    ]
    pen.polygon(outline, shaded(finish.paint, 0.85))
    pen.polygon(inset(outline, 0.84), (34, 40, 48))
    post = (body.roof_front + body.roof_rear) / 2
    pen.line((post, body.belt), (post, body.roof), shaded(finish.paint, 0.7), width_m=0.08)


def _wheel(pen: Pen, centre: tuple[float, float], radius: float, finish: Finish) -> None:
    back, up = centre
    pen.polygon(oval((back, up + 0.03), (radius * 1.22, radius * 1.22)), (16, 16, 18))
    pen.polygon(oval(centre, (radius, radius)), (32, 32, 34))
    pen.polygon(oval(centre, (radius * 0.68, radius * 0.68)), finish.rim)
    for angle in np.linspace(0, 2 * np.pi, 5, endpoint=False):
        tip = (back + 0.6 * radius * np.cos(angle), up + 0.6 * radius * np.sin(angle))
        pen.line(centre, tip, shaded(finish.rim, 0.45), width_m=0.05)


def _windscreen(pen: Pen, finish: Finish, rng: np.random.Generator) -> None:
    pen.polygon(_SQUARE, shaded(finish.paint, 0.9))
    glass = [(-0.93, 0.02), (0.93, 0.02), (0.9, 0.9), (-0.9, 0.9)]
    pen.polygon(glass, (38, 46, 56))
    for seat in (-0.45, 0.45):
        pen.polygon(oval((seat, 0.3), (0.2, 0.28), squareness=3), (24, 28, 34))
    left = rng.uniform(-0.8, 0.5)
    pen.polygon([(left, 0.02), (left + 0.25, 0.02), (left + 0.45, 0.9), (left + 0.15, 0.9)], (84, 98, 112))
    for sign in (-1, 1):
        pen.polygon(oval((sign * 1.06, 0.14), (0.12, 0.1), squareness=4), shaded(finish.paint, 0.75))


def _bonnet(pen: Pen, finish: Finish) -> None:
    edges = np.linspace(0, 1, 6)
    for near, far, light in zip(edges[:-1], edges[1:], (1.0, 1.12, 1.2, 1.12, 1.02), strict=True):
        pen.polygon([(-1, near), (1, near), (1, far + 0.02), (-1, far + 0.02)], shaded(finish.paint, light))
    for sign in (-1, 1):
        pen.line((sign * 0.5, 0.05), (sign * 0.7, 0.95), shaded(finish.paint, 0.8), width_m=0.02)


def _front(pen: Pen, finish: Finish, rng: np.random.Generator) -> None:
    outline: Points = [(-1, 0.12), (-0.9, 0), (0.9, 0), (1, 0.12), (1, 1.02), (-1, 1.02)]
    pen.polygon(outline, finish.paint)
    pen.polygon([(-1, 0.12), (-0.9, 0), (0.9, 0), (1, 0.12), (1, 0.3), (-1, 0.3)], shaded(finish.paint, 0.8))
    intake = rng.uniform(0.4, 0.85)
    pen.polygon([(-intake, 0.03), (intake, 0.03), (intake - 0.08, 0.15), (0.08 - intake, 0.15)], finish.dark)
    if rng.random() < 0.7:
        plate = rng.uniform(-0.03, 0.03)
        pen.polygon(oval((plate, 0.19), (0.26, 0.06), squareness=12), (226, 226, 220))
        for letter in np.linspace(-0.18, 0.18, 6):
            pen.polygon(oval((plate + letter, 0.19), (0.02, 0.035), squareness=6), (40, 40, 46))


def _restyled(front: Surface, rng: np.random.Generator) -> Surface:
    """The front with its parts a little larger, smaller, higher or lower, as from one model of a brand to the next."""
    scale = rng.uniform([0.92, 0.9], [1.02, 1.06])
    shift = np.array([0, 0.6 * (1 - scale[1]) + rng.uniform(-0.02, 0.03)])
    return lambda points: front(points * scale + shift)


def _between(start: np.ndarray, end: np.ndarray, fraction: np.ndarray) -> np.ndarray:
    return start + (end - start) * fraction[:, None]


def _line_across(across: np.ndarray, height: float, back: float) -> np.ndarray:
    return np.stack([across, np.full_like(across, height), np.full_like(across, back)], axis=-1)
