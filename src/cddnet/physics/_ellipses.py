"""What a phantom is made of.  x, y and their origin: as in `physics.phantom`."""

from __future__ import annotations

from dataclasses import dataclass

Vector = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Ellipse:
    """centre_mm (x, y); half_axes_mm along its own two directions, the first of which is turned by
    angle_degrees from x towards y; hu replaces what lies below.  name: of a truth region, "" where
    it is none.
    """

    centre_mm: Vector
    half_axes_mm: Vector
    angle_degrees: float = 0.0
    hu: float
    name: str = ""


@dataclass(frozen=True, kw_only=True)
class Phantom:
    """field_mm: side of a square field of view that holds it with a margin.  ellipses: painted in
    order, upon air.  window_hu: (low, high) that shows it.
    """

    name: str
    field_mm: float
    ellipses: tuple[Ellipse, ...]
    window_hu: Vector


def disc(name: str, centre_mm: Vector, diameter_mm: float, hu: float) -> Ellipse:
    """A circle as a truth region."""
    radius_mm = diameter_mm / 2
    return Ellipse(centre_mm=centre_mm, half_axes_mm=(radius_mm, radius_mm), hu=hu, name=name)
