"""The fan beam against closed forms, the parallel projector and its own transpose."""

# Lengths in mm from the rotation axis; x along columns, y down the rows.

import numpy as np
import pytest

from cddnet.errors import GeometryError
from cddnet.physics import projector
from cddnet.physics.fan_beam import (
    FanBeam,
    adjoint,
    filtered_back_projection,
    forward,
    frequencies,
)
from cddnet.physics.kernel import CHANNEL_MM

# Views that fold four, one, two and four times by symmetry.
BEAMS = [
    FanBeam(size=32, pixel_mm=3.0, views=24, channels=61, channel_mm=5.0),
    FanBeam(size=33, pixel_mm=3.0, views=25, channels=61, channel_mm=5.0),
    FanBeam(size=33, pixel_mm=3.0, views=26, channels=48, channel_mm=5.0),
    FanBeam(size=17, pixel_mm=20.0, views=8, channels=91, channel_mm=9.0, channel_offset=0.0),
]
every_beam = pytest.mark.parametrize("beam", BEAMS, ids=lambda beam: f"{beam.views}-{beam.size}")
odd_and_even = pytest.mark.parametrize("size", [128, 129])


def axes(beam):
    centred = (np.arange(beam.size) - (beam.size - 1) / 2) * beam.pixel_mm
    return centred[None, :], centred[:, None]


def offsets(beam, x, y):
    """Signed distance (V, J) of each ray from a point."""
    theta = beam.angles[:, None] + beam.fan_angles
    return beam.distances_mm - (x * np.cos(theta) + y * np.sin(theta))


def chords(beam, x, y, radius):
    return 2 * np.sqrt(np.clip(radius**2 - offsets(beam, x, y) ** 2, 0, None))


def disc(beam, x, y, radius, finer=16):
    """Share of each pixel inside a disc."""
    fine = ((np.arange(beam.size * finer) + 0.5) / finer - beam.size / 2) * beam.pixel_mm
    inside = (fine[None, :] - x) ** 2 + (fine[:, None] - y) ** 2 <= radius**2
    return inside.reshape(beam.size, finer, beam.size, finer).mean(axis=(1, 3))


def distance(beam, x, y):
    columns, rows = axes(beam)
    return np.hypot(columns - x, rows - y)


def gaussian(frequency_per_mm, width_mm):
    """Transfer function of a Gaussian blur."""
    return np.exp(-2 * (np.pi * frequency_per_mm * width_mm) ** 2)


@every_beam
def test_projector_has_its_adjoint(beam, rng):
    image = rng.normal(size=(beam.size, beam.size))
    sinogram = rng.normal(size=(beam.views, beam.channels))
    projected = forward(image, beam)
    gap = np.vdot(projected, sinogram) - np.vdot(image, adjoint(sinogram, beam))
    scale = np.linalg.norm(projected) * np.linalg.norm(sinogram)
    assert scale > 0
    assert abs(gap) <= 1e-10 * scale


@odd_and_even
@pytest.mark.parametrize(("x", "y"), [(0.0, 0.0), (31.3, -17.9)])
def test_line_integrals_of_a_disc_are_its_chords(size, x, y):
    beam = FanBeam(size=size, pixel_mm=1.5, views=90, channels=368, channel_mm=2.5716)
    radius = 55.0
    error = forward(disc(beam, x, y, radius), beam) - chords(beam, x, y, radius)
    inside = np.abs(offsets(beam, x, y)) < 0.8 * radius
    outside = np.abs(offsets(beam, x, y)) > radius + 2 * beam.pixel_mm
    # A rim is spread over a pixel and met by steps of at most sqrt(2) pixels at either end.
    assert np.abs(error[inside]).max() <= np.sqrt(2) * beam.pixel_mm / 2
    assert abs(error[inside].mean()) <= 1e-3 * 2 * radius
    assert not error[outside].any()
    if (x, y) != (0.0, 0.0):
        mirrored = forward(disc(beam, x, -y, radius), beam) - chords(beam, x, y, radius)
        assert np.abs(mirrored[inside]).max() > 20 * beam.pixel_mm


@pytest.mark.parametrize("views", [24, 26, 25])
def test_views_that_share_their_geometry_are_those_projected_singly(views, rng):
    single = FanBeam(size=33, pixel_mm=3.0, views=25, channels=61, channel_mm=5.0)
    whole = FanBeam(size=33, pixel_mm=3.0, views=25 * views, channels=61, channel_mm=5.0)
    image = rng.normal(size=(33, 33))
    projected = forward(image, single)
    gap = np.abs(forward(image, whole)[::views] - projected).max()
    assert gap <= 1e-10 * np.abs(projected).max()
    spread = np.zeros((whole.views, whole.channels))
    spread[::views] = projected
    response = np.ones_like(frequencies(single))
    image = filtered_back_projection(projected, single, response)
    gap = np.abs(filtered_back_projection(spread, whole, response) * views - image).max()
    assert gap <= 1e-10 * np.abs(image).max()


@odd_and_even
def test_turning_the_image_shifts_the_views(size, rng):
    beam = FanBeam(size=size, pixel_mm=1.5, views=12, channels=61, channel_mm=5.0)
    image = rng.normal(size=(size, size))
    turned = np.rot90(image, -1)  # x towards y: a quarter turn in the direction of the angles
    expected = np.roll(forward(image, beam), 3, axis=0)
    assert np.abs(forward(turned, beam) - expected).max() <= 1e-10 * np.abs(expected).max()


@odd_and_even
@pytest.mark.parametrize(("x", "y"), [(0.0, 0.0), (21.3, -27.9)])
def test_filtered_back_projection_of_chords_is_the_disc(size, x, y):
    beam = FanBeam.calibrated(size, 1.5)
    radius = 45.0
    response = gaussian(frequencies(beam), 1.0)
    image = filtered_back_projection(chords(beam, x, y, radius), beam, response)
    away = distance(beam, x, y)
    # 1 HU, where water is 1000 above air.
    assert abs(image[away < 0.8 * radius].mean() - 1) < 1e-3
    assert abs(image[away > 1.2 * radius].mean()) < 1e-3
    assert np.abs(image[away < 0.8 * radius] - 1).max() < 5e-3


def test_filtered_back_projection_inverts_the_projection():
    beam = FanBeam.calibrated(129, 1.5)
    width = 6.0
    blob = np.exp(-(distance(beam, 21.3, -27.9) ** 2) / (2 * width**2))
    back = filtered_back_projection(forward(blob, beam), beam, np.ones_like(frequencies(beam)))
    # Linear interpolation along rows and between channels blurs by a variance of pitch^2 / 6 each,
    # which lowers the peak of a Gaussian by that over its own variance.
    blur = (beam.pixel_mm**2 + beam.channel_at_axis_mm**2) / 6 / width**2
    assert np.abs(back - blob).max() <= blur


@pytest.mark.parametrize("size", [256, 257])
def test_fan_and_parallel_rays_show_the_same_object(size):
    pixel_mm, width_mm = 0.5, 2.0
    discs = [(14.3, -9.1, 20.0, 1.0), (-25.2, 8.4, 9.0, -0.4)]
    fan = FanBeam.calibrated(size, pixel_mm)
    response = gaussian(frequencies(fan), width_mm)
    response /= np.sinc(frequencies(fan) * fan.channel_at_axis_mm) ** 2
    rays = sum(value * chords(fan, x, y, radius) for x, y, radius, value in discs)
    by_fan = filtered_back_projection(rays, fan, response)

    parallel = projector.ParallelBeam.covering(size, 360)
    rays = np.zeros((parallel.views, parallel.channels))
    for x, y, radius, value in discs:
        along = x * np.cos(parallel.angles) + y * np.sin(parallel.angles)
        offset = parallel.positions * pixel_mm - along[:, None]
        rays += value * 2 * np.sqrt(np.clip(radius**2 - offset**2, 0, None)) / pixel_mm
    response = gaussian(projector.frequencies(parallel) / pixel_mm, width_mm)
    by_parallel = projector.filtered_back_projection(rays, parallel, response)

    near = distance(fan, 0, 0) < 50
    # The fan's blur goes with the distance from the source, here within 45 / 595 of that of the
    # axis; opposite views leave half the square of it as the change of an edge.
    assert np.abs(by_fan - by_parallel)[near].max() <= (45 / 595) ** 2 / 2
    assert by_parallel[near].max() == pytest.approx(1, abs=0.02)
    assert np.abs(by_fan - by_parallel.T)[near].max() > 0.5


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_types_are_kept_and_agree(dtype, rng):
    beam = BEAMS[1]
    image = rng.normal(size=(33, 33))
    response = np.ones_like(frequencies(beam))
    sinogram = forward(image.astype(dtype), beam)
    results = (
        (sinogram, forward(image, beam)),
        (adjoint(sinogram, beam), adjoint(forward(image, beam), beam)),
        (
            filtered_back_projection(sinogram, beam, response),
            filtered_back_projection(forward(image, beam), beam, response),
        ),
    )
    for found, expected in results:
        assert found.dtype == dtype
        assert np.linalg.norm(found - expected) <= 1e-5 * np.linalg.norm(expected)


def test_the_calibrated_scanner_is_that_of_the_photons():
    beam = FanBeam.calibrated(512, 0.729)
    assert beam.channel_at_axis_mm == pytest.approx(CHANNEL_MM, rel=1e-4)
    # A field of 500 mm.
    assert 250 <= beam.field_mm <= 251
    every_view = np.abs(offsets(beam, beam.field_mm * 0.6, beam.field_mm * 0.8)).min(axis=1)
    assert every_view.max() <= beam.channel_at_axis_mm
    beyond = np.abs(offsets(beam, 256 * 0.6, 256 * 0.8)).min(axis=1)
    assert beyond.max() > beam.channel_at_axis_mm


def test_opposite_rays_lie_half_a_channel_apart():
    beam = FanBeam.calibrated(64, 1.0)
    opposite = -beam.fan_angles[::-1]
    gap = (beam.fan_angles - opposite) / beam.channel_angle
    assert gap == pytest.approx(0.5)


def test_a_source_inside_the_image_is_refused():
    with pytest.raises(GeometryError, match="reaches 707 mm from the axis"):
        FanBeam.calibrated(1000, 1.0)
    with pytest.raises(GeometryError, match="less than 180"):
        FanBeam(size=64, pixel_mm=1.0, views=8, channels=64, channel_mm=60.0)


def test_the_detector_may_span_nearly_half_a_turn():
    widest = int(np.ceil(np.pi / (1.2858 / 1085.6))) - 1
    assert FanBeam(size=8, pixel_mm=1.0, views=4, channels=widest).channels == widest
    with pytest.raises(GeometryError, match="spans 180 degrees"):
        FanBeam(size=8, pixel_mm=1.0, views=4, channels=widest + 1)


def test_an_image_may_reach_nearly_to_the_source():
    reach_pixels = 595.0 * np.sqrt(2)
    assert FanBeam(size=840, pixel_mm=reach_pixels / 840 - 1e-6, views=4, channels=9).size == 840
    with pytest.raises(GeometryError, match="reaches 595 mm"):
        FanBeam(size=840, pixel_mm=reach_pixels / 840 + 1e-6, views=4, channels=9)


def test_filters_reach_nyquist_for_any_number_of_channels():
    for channels in range(1, 420):
        beam = FanBeam(size=8, pixel_mm=1.0, views=4, channels=channels)
        found = frequencies(beam) * beam.channel_at_axis_mm
        assert found[[0, -1]] == pytest.approx([0, 0.5])
        assert len(found) > channels
