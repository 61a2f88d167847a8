"""Uniformity of cylinders whose cupping is known in closed form."""

import math

import numpy as np
import pytest

from cddnet.metrics.uniformity import REGION_MM, RIM_MM, Cylinder, uniformity

PIXEL_MM = 0.8
SHAPE = (271, 285)
CYLINDER = Cylinder(133.4, 144.8, 90.0)
REACH_MM = 90.0 - RIM_MM - REGION_MM / 2


def places():
    """Distances (down, right) of every pixel from the cylinder's centre, in mm."""
    rows, columns = np.indices(SHAPE)
    return (rows - CYLINDER.row) * PIXEL_MM, (columns - CYLINDER.column) * PIXEL_MM


def free():
    return np.hypot(*places()) < CYLINDER.radius_mm - 2 * PIXEL_MM


@pytest.mark.parametrize(("level_hu", "cup_hu"), [(0.0, 12.0), (-3.0, -7.5)])
def test_a_cup_is_as_deep_as_planted(level_hu, cup_hu):
    squared = (np.hypot(*places()) / CYLINDER.radius_mm) ** 2
    found = uniformity(level_hu + cup_hu * squared, PIXEL_MM, CYLINDER, free())
    # The mean of r^2 over a disc is its centre's plus the disc's own; both discs have the same.
    depth = cup_hu * (REACH_MM / CYLINDER.radius_mm) ** 2
    assert found.edge_less_centre_hu == pytest.approx(depth, rel=0.01)
    own = cup_hu * (REGION_MM / 2 / CYLINDER.radius_mm) ** 2 / 2
    assert found.centre_hu == pytest.approx(level_hu + own, abs=0.01 * abs(cup_hu))
    assert found.mean_hu == pytest.approx(level_hu + own + 0.8 * depth, rel=0.01)


@pytest.mark.parametrize(
    ("down", "right", "number"), [(-1, 0, 0), (0, 1, 1), (1, 0, 2), (0, -1, 3)]
)
@pytest.mark.parametrize("sign", [1, -1])
def test_the_side_that_differs_most_is_told_with_its_sign(down, right, number, sign):
    rows_mm, columns_mm = places()
    tilted = 5.0 * (down * rows_mm + right * columns_mm) / REACH_MM
    tilted = np.where(tilted > 0, tilted, 0.5 * tilted)
    found = uniformity(sign * tilted, PIXEL_MM, CYLINDER, free())
    assert found.edges_hu[number] == max(found.edges_hu, key=lambda hu: sign * hu)
    # A slope's fold in the centre raises its mean by the half disc's, 4 / (3 pi) radii.
    fold = 2.5 * 4 * (REGION_MM / 2) / (3 * math.pi) / REACH_MM / 2
    assert found.centre_hu == pytest.approx(sign * fold, rel=0.1)
    assert found.edge_less_centre_hu == pytest.approx(sign * (5 - fold), rel=0.02)


def test_noise_alone_is_even(rng):
    found = uniformity(rng.normal(-2, 10, SHAPE), PIXEL_MM, CYLINDER, free())
    error = 10 / math.sqrt(math.pi * (REGION_MM / 2 / PIXEL_MM) ** 2)
    assert abs(found.edge_less_centre_hu) < 4 * math.sqrt(2) * error
    assert found.mean_hu == pytest.approx(-2, abs=4 * error / math.sqrt(5))


def test_what_lies_outside_the_regions_does_not_matter(rng):
    hu = np.zeros(SHAPE)
    away = np.hypot(*places())
    hu[(away > 20) & (away < 50)] = 500
    hu[away > CYLINDER.radius_mm] = -1000
    assert uniformity(hu, PIXEL_MM, CYLINDER, free()) == (0, (0, 0, 0, 0))


@pytest.mark.parametrize("at_mm", [(0.0, 5.0), (0.0, -REACH_MM), (REACH_MM - 6, 0.0)])
def test_another_material_in_a_region_is_refused(at_mm):
    rows_mm, columns_mm = places()
    rod = np.hypot(rows_mm - at_mm[0], columns_mm - at_mm[1]) < 3
    with pytest.raises(ValueError, match="more than the cylinder's material"):
        uniformity(np.zeros(SHAPE), PIXEL_MM, CYLINDER, free() & ~rod)


def test_a_cylinder_outside_the_image_is_refused():
    with pytest.raises(ValueError, match="more than the cylinder's material"):
        uniformity(np.zeros(SHAPE), PIXEL_MM, Cylinder(20.0, 144.8, 90.0), free())


def test_regions_end_four_millimetres_inside_the_edge_and_are_sixteen_wide():
    """On a plane of 1 HU per mm a region shows the place of its middle; on a parabola its width."""
    pixel_mm, radius_mm = 0.25, 60.0
    centred_mm = (np.arange(601) - 300) * pixel_mm
    across_mm, down_mm = np.meshgrid(centred_mm, centred_mm)
    free = np.ones(across_mm.shape, bool)
    cylinder = Cylinder(300, 300, radius_mm)
    plane = uniformity(across_mm + 3 * down_mm, pixel_mm, cylinder, free)
    assert plane.centre_hu == pytest.approx(0, abs=1e-9)
    above, right, below, left = plane.edges_hu
    assert (above, below) == pytest.approx((-3 * 48, 3 * 48), abs=0.1)
    assert (right, left) == pytest.approx((48, -48), abs=0.1)
    # The mean square of the distance over a disc is half its radius squared.
    square = uniformity(across_mm**2 + down_mm**2, pixel_mm, cylinder, free)
    assert square.centre_hu == pytest.approx(8.0**2 / 2, rel=0.02)
