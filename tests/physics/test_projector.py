"""The projector against closed forms, a direct sum, and its own transpose."""

# Coordinates are in pixels from the rotation axis, (N - 1) / 2; x along columns, y down the rows.

import numpy as np
import pytest

from cddnet.physics.projector import (
    ParallelBeam,
    adjoint,
    filtered_back_projection,
    forward,
    frequencies,
)

BEAMS = [
    ParallelBeam(size=32, views=24, channels=47),
    ParallelBeam(size=33, views=25, channels=47),
    ParallelBeam(size=33, views=24, channels=50),
    ParallelBeam.covering(17, 7),
]
every_beam = pytest.mark.parametrize("beam", BEAMS, ids=str)
odd_and_even = pytest.mark.parametrize("size", [64, 65])
# Largest error of a Kaiser-Bessel window of width 4 at twofold oversampling (Beatty et al. 2005).
GRIDDING = 1e-3


def axes(size):
    centred = np.arange(size) - (size - 1) / 2
    return centred[None, :], centred[:, None]


def offsets(beam, x, y):
    """Signed distance (V, J) of each ray from a point."""
    along = x * np.cos(beam.angles) + y * np.sin(beam.angles)
    return beam.positions[None, :] - along[:, None]


def blob(size, x, y, width):
    columns, rows = axes(size)
    return np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * width**2))


def disc(size, x, y, radius, finer=16):
    """Share of each pixel inside a disc."""
    fine = (np.arange(size * finer) + 0.5) / finer - size / 2
    inside = (fine[None, :] - x) ** 2 + (fine[:, None] - y) ** 2 <= radius**2
    return inside.reshape(size, finer, size, finer).mean(axis=(1, 3))


def chords(beam, x, y, radius):
    return 2 * np.sqrt(np.clip(radius**2 - offsets(beam, x, y) ** 2, 0, None))


@every_beam
def test_projector_has_its_adjoint(beam, rng):
    image = rng.normal(size=(beam.size, beam.size))
    sinogram = rng.normal(size=(beam.views, beam.channels))
    projected = forward(image, beam)
    gap = np.vdot(projected, sinogram) - np.vdot(image, adjoint(sinogram, beam))
    scale = np.linalg.norm(projected) * np.linalg.norm(sinogram)
    assert scale > 0
    assert abs(gap) <= 1e-10 * scale


@every_beam
def test_projection_is_the_fourier_slice_summed_directly(beam, rng):
    image = rng.normal(size=(beam.size, beam.size))
    padded = 2 * (frequencies(beam).size - 1)
    columns, rows = axes(beam.size)
    expected = []
    for angle in beam.angles:
        wave = -2j * np.pi * frequencies(beam)[:, None]
        along_rows = np.exp(wave * np.sin(angle) * rows.T) @ image
        spectrum = (along_rows * np.exp(wave * np.cos(angle) * columns)).sum(axis=1)
        moved = spectrum * np.exp(-wave[:, 0] * beam.positions[0])
        expected.append(np.fft.irfft(moved, padded)[: beam.channels])
    error = np.linalg.norm(forward(image, beam) - expected)
    assert error <= GRIDDING * np.linalg.norm(expected)


@odd_and_even
@pytest.mark.parametrize("views", [24, 25])
def test_a_gaussian_projects_to_a_gaussian(size, views):
    beam = ParallelBeam.covering(size, views)
    x, y, width = 7.3, -11.2, 3.0
    peak = width * np.sqrt(2 * np.pi)
    expected = peak * np.exp(-(offsets(beam, x, y) ** 2) / (2 * width**2))
    error = np.abs(forward(blob(size, x, y, width), beam) - expected).max()
    assert error <= GRIDDING * peak
    mirrored = np.abs(forward(blob(size, x, -y, width), beam) - expected).max()
    assert mirrored > 0.5 * peak


@odd_and_even
def test_line_integrals_of_a_disc_are_its_chords(size):
    beam = ParallelBeam.covering(size, 90)
    x, y, radius = 4.3, -3.1, 0.35 * size
    error = forward(disc(size, x, y, radius), beam) - chords(beam, x, y, radius)
    inside = np.abs(offsets(beam, x, y)) < 0.8 * radius
    outside = np.abs(offsets(beam, x, y)) > 1.2 * radius
    # A sharp rim rings at Nyquist: sqrt(8 radius) / (pi^2 distance) pixels from either rim.
    ripple = 2 * np.sqrt(8 * radius) / (np.pi**2 * 0.2 * radius)
    assert np.abs(error[inside | outside]).max() <= ripple
    assert abs(error[inside].mean()) <= 1e-3 * 2 * radius
    assert abs(error[outside].mean()) <= 1e-3 * 2 * radius


@odd_and_even
def test_filtered_back_projection_of_chords_is_the_disc(size):
    beam = ParallelBeam.covering(size, 180)
    x, y, radius = 4.3, -3.1, 0.35 * size
    hann = 0.5 * (1 + np.cos(2 * np.pi * frequencies(beam)))
    image = filtered_back_projection(chords(beam, x, y, radius), beam, hann)
    columns, rows = axes(size)
    distance = np.hypot(columns - x, rows - y)
    seen = np.hypot(columns, rows) < size / 2
    assert abs(image[distance < 0.8 * radius].mean() - 1) <= 1e-3
    assert abs(image[(distance > 1.2 * radius) & seen].mean()) <= 1e-3


@odd_and_even
def test_filtered_back_projection_inverts_the_projection(size):
    beam = ParallelBeam.covering(size, 180)
    image = blob(size, 7.3, -11.2, 3.0) - 0.5 * blob(size, -9.0, 2.6, 4.0)
    everything = np.ones_like(frequencies(beam))
    back = filtered_back_projection(forward(image, beam), beam, everything)
    assert np.abs(back - image).max() <= 2 * GRIDDING


@odd_and_even
def test_turning_the_image_shifts_the_views(size, rng):
    beam = ParallelBeam.covering(size, 24)
    image = rng.normal(size=(size, size))
    turned = np.rot90(image, -1)  # x towards y: a quarter turn in the direction of the angles
    expected = np.roll(forward(image, beam), beam.views // 2, axis=0)
    expected[: beam.views // 2] = expected[: beam.views // 2, ::-1]
    error = np.linalg.norm(forward(turned, beam) - expected)
    assert error <= GRIDDING * np.linalg.norm(expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_types_are_kept_and_agree(dtype, rng):
    beam = ParallelBeam.covering(33, 24)
    image = rng.normal(size=(33, 33))
    sinogram = forward(image.astype(dtype), beam)
    back = adjoint(sinogram, beam)
    assert sinogram.dtype == back.dtype == dtype
    error = np.linalg.norm(sinogram - forward(image, beam))
    assert error <= 1e-5 * np.linalg.norm(sinogram)


def test_filters_reach_nyquist_for_any_number_of_channels():
    """Lengths without large factors are odd now and then, as 405 for 201 channels."""
    for channels in range(1, 420):
        found = frequencies(ParallelBeam(size=8, views=4, channels=channels))
        assert found[0] == 0
        assert found[-1] == 0.5
        # Twice the channels at least, so that nothing wraps.
        assert len(found) > channels
