"""The invented brands of the sample photos: what a brand puts on the front of its cars, whatever their colour or body.

Each grille, lamp and badge draws on the front of a car in its own coordinates: across from -1 to 1, up from 0 (the
lower edge of the bumper) to 1 (the edge of the bonnet).
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from carbrand.demo.sketch import Colour, Pen, Points, inset, oval, shaded


@dataclasses.dataclass(frozen=True)
class Finish:
    """The colours of one car."""

    paint: Colour
    trim: Colour
    dark: Colour
    glass: Colour
    rim: Colour


Part = Callable[[Pen, Finish], None]


@dataclasses.dataclass(frozen=True)
class Brand:
    """What all cars of a brand share.

    Attributes:
        name: the folder's name.
        body: the body, of `cars.BODIES`, that the brand sells most; it sells the others too.
    """

    name: str
    grille: Part
    lamps: Part
    badge: Part
    body: str


def kidney_grille(pen: Pen, finish: Finish) -> None:
    """Two tall openings side by side."""
    for side in (-1, 1):
        frame = oval((side * 0.2, 0.6), (0.185, 0.27), squareness=3.2)
        _opening(pen, finish, frame, scale=0.82)
        for across in np.linspace(0.09, 0.31, 5):
            pen.line((side * across, 0.42), (side * across, 0.78), shaded(finish.trim, 0.6), width_m=0.015)


def hexagon_grille(pen: Pen, finish: Finish) -> None:
    """One large six-cornered opening filled with a mesh."""
    frame = [(-0.47, 0.62), (-0.34, 0.9), (0.34, 0.9), (0.47, 0.62), (0.3, 0.2), (-0.3, 0.2)]
    _opening(pen, finish, frame, scale=0.9)
    mesh = shaded(finish.trim, 0.55)
    for x in np.linspace(-0.28, 0.28, 6):
        pen.line((x - 0.1, 0.27), (x + 0.1, 0.84), mesh, width_m=0.012)
        pen.line((x + 0.1, 0.27), (x - 0.1, 0.84), mesh, width_m=0.012)


def bar_grille(pen: Pen, finish: Finish) -> None:
    """A wide opening with three thick horizontal bars."""
    _opening(pen, finish, oval((0, 0.62), (0.55, 0.24), squareness=6), scale=0.94)
    for height in (0.48, 0.62, 0.76):
        pen.polygon(oval((0, height), (0.51, 0.035), squareness=6), finish.trim)


def shield_grille(pen: Pen, finish: Finish) -> None:
    """A narrow shield, pointed below, between two low side openings."""
    pen.pair([(0.24, 0.42), (0.6, 0.46), (0.64, 0.34), (0.3, 0.26)], finish.dark)
    _opening(pen, finish, [(-0.24, 0.93), (0.24, 0.93), (0.2, 0.55), (0, 0.16), (-0.2, 0.55)], scale=0.8)
    for height in (0.5, 0.66):
        pen.line((-0.15, height), (0.15, height), shaded(finish.trim, 0.5), width_m=0.015)


def slat_grille(pen: Pen, finish: Finish) -> None:
    """Seven upright slots cut in the painted front."""
    for across in np.linspace(-0.45, 0.45, 7):
        slot = oval((across, 0.6), (0.052, 0.26), squareness=4)
        pen.polygon(slot, shaded(finish.paint, 1.25))
        pen.polygon(inset(slot, 0.85), finish.dark)


def closed_grille(pen: Pen, finish: Finish) -> None:
    """No opening: a smooth painted nose over a thin low slit."""
    pen.polygon(oval((0, 0.62), (0.5, 0.24), squareness=4), shaded(finish.paint, 1.12))
    pen.polygon(oval((0, 0.24), (0.62, 0.045), squareness=5), finish.dark)


def round_lamps(pen: Pen, finish: Finish) -> None:
    """One large round lamp on each side."""
    for side in (-1, 1):
        _lamp(pen, finish, oval((side * 0.73, 0.68), (0.175, 0.2)))


def twin_lamps(pen: Pen, finish: Finish) -> None:
    """Two round lamps on each side, under one dark cover."""
    for side in (-1, 1):
        pen.polygon(oval((side * 0.68, 0.7), (0.25, 0.14), squareness=5), finish.dark)
        for across in (0.57, 0.79):
            _lamp(pen, finish, oval((side * across, 0.7), (0.095, 0.115)))


def blade_lamps(pen: Pen, finish: Finish) -> None:
    """A narrow slanted lamp that rises outwards."""
    blade = [(0.5, 0.64), (0.62, 0.6), (0.93, 0.74), (0.95, 0.9), (0.8, 0.84)]
    for side in (-1, 1):
        _lamp(pen, finish, [(side * x, y) for x, y in blade])


def box_lamps(pen: Pen, finish: Finish) -> None:
    """A rectangular lamp, and an orange indicator outside of it."""
    for side in (-1, 1):
        _lamp(pen, finish, oval((side * 0.74, 0.66), (0.15, 0.16), squareness=8))
        pen.polygon(oval((side * 0.93, 0.66), (0.03, 0.15), squareness=6), (235, 140, 40))


def strip_lamps(pen: Pen, finish: Finish) -> None:
    """One thin line of light across the whole front, with a small lamp below each end."""
    pen.polygon(oval((0, 0.84), (0.94, 0.075), squareness=6), finish.dark)
    pen.polygon(oval((0, 0.84), (0.9, 0.03), squareness=6), finish.glass)
    for side in (-1, 1):
        _lamp(pen, finish, oval((side * 0.76, 0.62), (0.12, 0.06), squareness=4))


def hook_lamps(pen: Pen, finish: Finish) -> None:
    """A lamp that runs down the corner of the car, like the letter L upside down."""
    hook = [(0.5, 0.88), (0.94, 0.9), (0.96, 0.4), (0.85, 0.36), (0.8, 0.7), (0.52, 0.74)]
    for side in (-1, 1):
        _lamp(pen, finish, [(side * x, y) for x, y in hook])


def ring_badge(pen: Pen, finish: Finish) -> None:
    """A ring on the edge of the bonnet."""
    pen.polygon(oval((0, 0.95), (0.085, 0.1)), finish.trim)
    pen.polygon(oval((0, 0.95), (0.05, 0.06)), shaded(finish.dark, 1.5))


def diamond_badge(pen: Pen, finish: Finish) -> None:
    """A diamond in the middle of the grille."""
    pen.polygon(oval((0, 0.58), (0.12, 0.17), squareness=1), finish.trim)
    pen.polygon(oval((0, 0.58), (0.06, 0.085), squareness=1), finish.dark)


def wing_badge(pen: Pen, finish: Finish) -> None:
    """Two wings above the grille."""
    pen.pair([(0, 0.9), (0.28, 1.0), (0.22, 0.9), (0, 0.85)], finish.trim)
    pen.polygon(oval((0, 0.92), (0.06, 0.08)), finish.dark)


def cross_badge(pen: Pen, finish: Finish) -> None:
    """A cross at the head of the grille."""
    pen.polygon(oval((0, 0.78), (0.12, 0.035), squareness=8), finish.trim)
    pen.polygon(oval((0, 0.78), (0.035, 0.13), squareness=8), finish.trim)


def bar_badge(pen: Pen, finish: Finish) -> None:
    """A broad plate on the edge of the bonnet."""
    pen.polygon(oval((0, 0.95), (0.24, 0.05), squareness=8), finish.trim)
    pen.polygon(oval((0, 0.95), (0.19, 0.022), squareness=8), shaded(finish.trim, 0.4))


def arrow_badge(pen: Pen, finish: Finish) -> None:
    """An arrowhead in the middle of the nose."""
    pen.polygon([(-0.15, 0.48), (0, 0.74), (0.15, 0.48), (0, 0.56)], finish.trim)


BRANDS = (
    Brand("arvena", kidney_grille, twin_lamps, ring_badge, "sedan"),
    Brand("belmarr", hexagon_grille, blade_lamps, diamond_badge, "coupe"),
    Brand("dravik", bar_grille, box_lamps, wing_badge, "van"),
    Brand("fennik", shield_grille, hook_lamps, cross_badge, "hatchback"),
    Brand("gorvel", slat_grille, round_lamps, bar_badge, "suv"),
    Brand("tavoq", closed_grille, strip_lamps, arrow_badge, "pickup"),
)


def _opening(pen: Pen, finish: Finish, frame: Points, *, scale: float) -> None:
    pen.polygon(frame, finish.trim)
    pen.polygon(inset(frame, scale), finish.dark)


def _lamp(pen: Pen, finish: Finish, outline: Points) -> None:
    pen.polygon(outline, shaded(finish.dark, 1.6))
    pen.polygon(inset(outline, 0.86), finish.glass)
    pen.polygon(inset(outline, 0.4), shaded(finish.glass, 1.25))
