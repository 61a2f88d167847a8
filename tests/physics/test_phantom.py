"""Phantoms: areas, symmetries and truth of the images, line integrals against closed forms.

Above 300 lines: each kind of phantom has closed forms of its own.
"""

from dataclasses import replace

import numpy as np
import pytest

from cddnet.physics import phantom
from cddnet.physics.phantom import Ellipse, Phantom
from cddnet.physics.projector import ParallelBeam, forward

every_name = pytest.mark.parametrize("name", phantom.names())
odd_and_even = pytest.mark.parametrize("size", [96, 97])

# Off every axis of symmetry; the third lies partly over the second, the fourth in the first alone.
ELLIPSES = (
    Ellipse(centre_mm=(3.3, -5.1), half_axes_mm=(61.3, 47.7), angle_degrees=23.1, hu=0.0),
    Ellipse(
        centre_mm=(-31.7, 14.3), half_axes_mm=(9.1, 21.9), angle_degrees=-37.7, hu=300, name="bone"
    ),
    Ellipse(centre_mm=(-34.9, 16.7), half_axes_mm=(8.3, 8.3), hu=-700, name="lung"),
    Ellipse(centre_mm=(28.3, -13.1), half_axes_mm=(19.7, 6.1), angle_degrees=64.3, hu=-100),
)


def made_of(ellipses):
    return Phantom(
        name="test", field_mm=160.0, ellipses=tuple(ellipses), window_hu=(-1000.0, 1000.0)
    )


def perimeter_mm(ellipse):
    """Ramanujan's second approximation."""
    first, second = ellipse.half_axes_mm
    h = ((first - second) / (first + second)) ** 2
    return np.pi * (first + second) * (1 + 3 * h / (10 + np.sqrt(4 - 3 * h)))


@odd_and_even
@pytest.mark.parametrize("ellipse", ELLIPSES)
def test_the_area_is_pi_a_b(ellipse, size):
    water = replace(ellipse, hu=0.0)
    pixel_mm, supersampling = 1.6, 8
    hu = phantom.render(made_of([water]), size, pixel_mm, supersampling=supersampling)
    area = np.sum(hu / 1000.0 + 1.0, dtype=np.float64) * pixel_mm**2
    # Only sample cells that the rim crosses can be counted wrongly.
    cell_mm = pixel_mm / supersampling
    bound = perimeter_mm(ellipse) * cell_mm * np.sqrt(2)
    assert abs(area - np.pi * np.prod(ellipse.half_axes_mm)) < bound
    assert bound < 0.15 * np.pi * np.prod(ellipse.half_axes_mm)


def test_a_pixel_is_the_mean_of_its_points():
    fine, pixel_mm = 8, 2.5
    made = made_of(ELLIPSES)
    coarse = phantom.render(made, 63, pixel_mm, supersampling=fine)
    axis_mm = phantom.centres_mm(63 * fine, pixel_mm / fine)
    points = phantom.hu_at(made, axis_mm[None, :], axis_mm[:, None])
    means = points.reshape(63, fine, 63, fine).mean(axis=(1, 3))
    assert np.allclose(coarse, means, rtol=0, atol=1e-3)
    assert (np.mod(coarse, 100.0) != 0).sum() > 100


@odd_and_even
def test_mirrored_and_turned_phantoms_give_mirrored_and_turned_images(size):
    image = phantom.render(made_of(ELLIPSES), size, 1.7)
    mirrored = [
        replace(e, centre_mm=(-e.centre_mm[0], e.centre_mm[1]), angle_degrees=-e.angle_degrees)
        for e in ELLIPSES
    ]
    turned = [
        replace(
            e, centre_mm=(-e.centre_mm[1], e.centre_mm[0]), angle_degrees=e.angle_degrees + 90.0
        )
        for e in ELLIPSES
    ]
    assert np.allclose(phantom.render(made_of(mirrored), size, 1.7), image[:, ::-1], atol=1e-3)
    assert np.allclose(
        phantom.render(made_of(turned), size, 1.7), np.rot90(image, -1), rtol=0, atol=1e-3
    )
    assert not np.allclose(image, image[:, ::-1])


def test_line_integrals_of_a_disc_are_its_chords():
    angles, positions_mm = np.array([[0.0], [0.7], [2.9]]), np.linspace(-180, 180, 101)[None, :]
    made = phantom.build("water")
    chords = 2 * np.sqrt(np.clip(150.0**2 - positions_mm**2, 0, None))
    found = phantom.line_integrals(made, angles, positions_mm)
    assert found.shape == (3, 101)
    assert np.allclose(found, np.broadcast_to(chords, (3, 101)), rtol=1e-12, atol=1e-9)


def test_nested_ellipses_are_sums_of_differences():
    outer, inner = ELLIPSES[0], ELLIPSES[3]
    angles, positions_mm = np.arange(0, 3, 0.1)[:, None], np.linspace(-70, 70, 57)[None, :]

    def alone(ellipse):
        return phantom.line_integrals(made_of([replace(ellipse, hu=0.0)]), angles, positions_mm)

    both = phantom.line_integrals(made_of([outer, inner]), angles, positions_mm)
    assert np.allclose(both, alone(outer) - 0.1 * alone(inner), rtol=0, atol=1e-10)
    assert np.abs(both - alone(outer)).max() > 1


@pytest.mark.parametrize("name", ["overlapping", "thorax", "shoulder"])
def test_line_integrals_are_sums_along_any_ray(name, rng):
    made = made_of(ELLIPSES) if name == "overlapping" else phantom.build(name)
    # Rays of a fan: every one has its own angle and its own distance.
    angles, positions_mm = rng.uniform(0, 2 * np.pi, 20), rng.uniform(-45, 45, 20)
    step_mm = 0.02
    along_mm = np.arange(-made.field_mm, made.field_mm, step_mm) + step_mm / 2
    cosine, sine = np.cos(angles)[:, None], np.sin(angles)[:, None]
    hu = phantom.hu_at(
        made,
        positions_mm[:, None] * cosine - along_mm * sine,
        positions_mm[:, None] * sine + along_mm * cosine,
    )
    steps = np.abs(np.diff(hu, axis=1)).sum(axis=1) / 1000.0
    summed = np.sum(hu / 1000.0 + 1.0, axis=1) * step_mm
    found = phantom.line_integrals(made, angles, positions_mm)
    # A sum misses each rim by half a step; rims closer than a step are as many again at most.
    assert np.all(np.abs(found - summed) <= step_mm * (steps + 1.0))
    assert found.min() > 1


def test_line_integrals_agree_with_the_projected_image():
    made, size = made_of(ELLIPSES), 321
    pixel_mm = made.field_mm / size
    beam = ParallelBeam.covering(size, 30)
    image = phantom.render(made, size, pixel_mm) / 1000.0 + 1.0
    projected = forward(image.astype(np.float64), beam) * pixel_mm
    angles, positions = beam.angles[:, None], beam.positions[None, :]
    exact = phantom.line_integrals(made, angles, positions * pixel_mm)
    # A pixel is seen with a width of up to its diagonal, and is cut off at the Nyquist frequency.
    shifted = [
        phantom.line_integrals(made, angles, (positions + shift) * pixel_mm) for shift in (-1, 1)
    ]
    slope = np.maximum(*(np.abs(other - exact) for other in shifted))
    rms = np.sqrt(np.mean((projected - exact) ** 2))
    assert rms < 0.5 * np.sqrt(np.mean(slope**2))
    assert rms < 0.002 * exact.max()
    assert np.sqrt(np.mean((projected[:, ::-1] - exact) ** 2)) > 0.1 * exact.max()


@every_name
@odd_and_even
def test_truth_shows_nothing_but_its_hu(name, size):
    made = phantom.build(name)
    pixel_mm = made.field_mm / size
    hu = phantom.render(made, size, pixel_mm)
    regions = phantom.truth(made, size, pixel_mm, margin_pixels=0.71)
    assert any(region.mask.sum() >= 100 for region in regions)
    seen = np.zeros((size, size), int)
    for region in regions:
        assert np.all(hu[region.mask] == np.float32(region.ellipse.hu))
        seen += region.mask
    assert seen.max() == 1


def test_truth_keeps_its_margin():
    made, pixel_mm = phantom.build("water-200"), 1.3
    regions = phantom.truth(made, 201, pixel_mm, margin_pixels=3.0)
    axis_mm = phantom.centres_mm(201, pixel_mm)
    inside = np.hypot(axis_mm[None, :], axis_mm[:, None]) <= 100 - 3 * pixel_mm
    assert np.array_equal(regions[0].mask, inside)
    with pytest.raises(ValueError, match="margin"):
        phantom.truth(made, 9, pixel_mm, margin_pixels=0.5)


def test_the_background_is_what_lies_below():
    regions = {r.ellipse.name: r for r in phantom.truth(made_of(ELLIPSES), 33, 5.0)}
    assert regions["bone"].background_hu == 0
    assert regions["lung"].background_hu == 300


@every_name
def test_every_phantom_fits_its_field_and_its_names_are_unique(name):
    made = phantom.build(name)
    assert made.name == name
    named = [ellipse.name for ellipse in made.ellipses if ellipse.name]
    assert len(named) == len(set(named)) > 0
    assert all(-1000 <= ellipse.hu <= 3000 for ellipse in made.ellipses)
    edge = np.array([made.field_mm / 2 - 5, made.field_mm / 2, -made.field_mm / 2 + 5])
    outside = phantom.line_integrals(made, np.array([[0.0], [np.pi / 2]]), edge[None, :])
    assert not outside.any()


@pytest.mark.parametrize(("name", "count"), [("low-contrast", 30), ("rods", 5), ("inserts", 10)])
def test_discs_lie_in_the_water_and_clear_of_each_other(name, count):
    water, *discs = phantom.build(name).ellipses
    assert len(discs) == count
    places = np.array([disc.centre_mm for disc in discs])
    radii = np.array([disc.half_axes_mm[0] for disc in discs])
    gaps = np.linalg.norm(places[:, None] - places[None, :], axis=2) - radii[:, None] - radii
    assert (gaps + 1e3 * np.eye(count)).min() > 10
    assert np.all(np.linalg.norm(places, axis=1) + radii < water.half_axes_mm[0] - 10)


def test_the_shoulder_is_wide_and_starves():
    made = phantom.build("shoulder")
    sideways = phantom.line_integrals(made, np.array([np.pi / 2]), np.linspace(-110, 110, 221))
    front = phantom.line_integrals(made, np.array([0.0]), np.linspace(-220, 220, 441))
    assert sideways.max() > 1.5 * front.max()
    wide = np.flatnonzero(phantom.line_integrals(made, np.zeros(1), np.arange(-240.0, 240.0)))
    deep = np.flatnonzero(phantom.line_integrals(made, np.full(1, np.pi / 2), np.arange(-240, 240)))
    assert 455 <= wide.size <= 461
    assert 235 <= deep.size <= 241


def test_an_unknown_phantom_is_refused():
    with pytest.raises(ValueError, match=r"'knee'.*abdomen"):
        phantom.build("knee")


@pytest.mark.parametrize(("name", "fat_mm"), [("thorax", 14.0), ("abdomen", 18.0)])
def test_skin_is_two_millimetres_and_fat_as_thick_as_said(name, fat_mm):
    outer, fat, muscle = phantom.build(name).ellipses[:3]
    assert (fat.name, muscle.name) == ("fat", "muscle")
    for axis in (0, 1):
        skin = outer.half_axes_mm[axis] - fat.half_axes_mm[axis]
        # The abdomen is scaled as a whole.
        assert skin == pytest.approx(2.0, rel=0.06)
        layer = fat.half_axes_mm[axis] - muscle.half_axes_mm[axis]
        assert layer / skin == pytest.approx(fat_mm / 2.0)
    assert outer.centre_mm == fat.centre_mm == muscle.centre_mm


@pytest.mark.parametrize("name", ["thorax", "abdomen"])
def test_the_spinal_canal_lies_behind_its_vertebra(name):
    made = phantom.build(name)
    body = next(ellipse for ellipse in made.ellipses if ellipse.name == "vertebra")
    (x, y), (_, second) = body.centre_mm, body.half_axes_mm
    cord, still_cord, arch = phantom.hu_at(made, np.full(3, x), y + second + np.array([4, 12, 20]))
    assert 0 < cord == still_cord < 60 < 600 < arch
    assert phantom.hu_at(made, np.array([x]), np.array([y])) == body.hu
    # Spongy bone in a shell of two millimetres.
    first = body.half_axes_mm[0]
    rim = phantom.hu_at(made, x + np.array([-1, 1]) * (first + 1), np.full(2, y))
    assert rim.min() > 600 > 300 > body.hu


@pytest.mark.parametrize("name", ["thorax", "abdomen", "shoulder"])
def test_tissues_lie_in_the_usual_ranges(name):
    """HU at 120 kVp: lung, fat, soft tissue and blood with contrast agent, bone."""
    usual = ((-1000, -950), (-950, -700), (-130, -70), (8, 75), (80, 160), (180, 1000))
    for ellipse in phantom.build(name).ellipses:
        assert any(low <= ellipse.hu <= high for low, high in usual), ellipse


@pytest.mark.parametrize(("name", "radius_mm"), [("rods", 60.0), ("inserts", 68.0)])
def test_rings_begin_at_the_top_and_go_round_like_a_clock(name, radius_mm):
    _, *discs = phantom.build(name).ellipses
    places = np.array([disc.centre_mm for disc in discs])
    assert places[0] == pytest.approx((0, -radius_mm))
    assert np.hypot(*places.T) == pytest.approx(radius_mm)
    degrees = np.unwrap(np.rad2deg(np.arctan2(places[:, 0], -places[:, 1])), period=360)
    assert degrees == pytest.approx(np.arange(len(discs)) * 360 / len(discs))


@pytest.mark.parametrize("name", ["rods", "inserts", "low-contrast"])
def test_discs_lie_in_a_cylinder_of_the_size_said(name):
    water, *_ = phantom.build(name).ellipses
    diameter_mm = 300.0 if name == "low-contrast" else 200.0
    assert water.half_axes_mm == (diameter_mm / 2,) * 2
    assert phantom.build(name).field_mm == diameter_mm + 50


@pytest.mark.parametrize("name", ["thorax", "abdomen", "shoulder"])
def test_left_and_right_mirror_each_other_where_they_are_named_so(name):
    ellipses, pairs = phantom.build(name).ellipses, 0
    for left in ellipses:
        x, y = left.centre_mm
        twins = [
            right
            for right in ellipses
            if x > 0 and right.centre_mm == (-x, y) and right.half_axes_mm == left.half_axes_mm
        ]
        for right in twins:
            assert right.angle_degrees == -left.angle_degrees
            assert right.hu == left.hu
            assert right.name.replace("right", "left") == left.name
            pairs += 1
    assert pairs >= 8


@pytest.mark.parametrize(
    ("name", "centre_mm", "wall_mm", "count"),
    [("thorax", (0.0, -2.0), (142.0, 93.0), 12), ("abdomen", (0.0, -4.0), (150.0, 98.0), 8)],
)
def test_ribs_lie_on_their_wall_and_along_it(name, centre_mm, wall_mm, count):
    made = phantom.build(name)
    # Skin to spine of the drawing, before it was scaled as a whole.
    scale = made.ellipses[0].half_axes_mm[0] / {"thorax": 188.0, "abdomen": 180.0}[name]
    ribs = [e for e in made.ellipses if e.half_axes_mm == pytest.approx((14 * scale, 5 * scale))]
    assert len(ribs) == count
    for rib in ribs:
        place = (np.array(rib.centre_mm) / scale - centre_mm) / wall_mm
        assert place @ place == pytest.approx(1.0)
        angle = np.deg2rad(rib.angle_degrees)
        outward = place / wall_mm / np.linalg.norm(place / wall_mm)
        assert outward @ (np.cos(angle), np.sin(angle)) == pytest.approx(0, abs=1e-9)


def test_low_contrast_discs_hold_those_of_the_cct189():
    """Its four rods: 3 mm of 14 HU, 5 mm of 7, 7 mm of 5 and 10 mm of 3."""
    _, *discs = phantom.build("low-contrast").ellipses
    found = {(2 * disc.half_axes_mm[0], disc.hu) for disc in discs}
    assert {(3.0, 14.0), (5.0, 7.0), (7.0, 5.0), (10.0, 3.0)} <= found
    for disc in discs:
        assert disc.name == f"disc {2 * disc.half_axes_mm[0]:g} mm {disc.hu:g} HU"


@pytest.mark.parametrize("name", ["thorax", "abdomen", "shoulder"])
def test_shells_of_bone_are_as_thick_on_all_sides(name):
    ellipses, bones = phantom.build(name).ellipses, 0
    for outer in ellipses:
        for inner in ellipses:
            same = (inner.centre_mm, inner.angle_degrees) == (outer.centre_mm, outer.angle_degrees)
            if same and outer.hu > 600 > inner.hu > 180:
                across, along = np.subtract(outer.half_axes_mm, inner.half_axes_mm)
                assert across == pytest.approx(along)
                assert 0.5 < across < 4
                bones += 1
    assert bones >= 5


def test_lesions_of_the_liver_take_up_less_contrast_agent():
    made = phantom.build("abdomen")
    lesions = [
        region
        for region in phantom.truth(made, 129, made.field_mm / 129)
        if region.ellipse.name.startswith("lesion")
    ]
    assert len(lesions) >= 2
    for lesion in lesions:
        assert 80 <= lesion.background_hu <= 150
        assert 10 <= lesion.background_hu - lesion.ellipse.hu <= 60
