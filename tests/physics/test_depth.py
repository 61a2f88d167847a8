"""Radiological depth against closed forms and simulated noise; its rivals for ablations."""

import math

import numpy as np
import pytest
from scipy import integrate, ndimage, stats

from cddnet.formats import read_volume
from cddnet.physics import phantom
from cddnet.physics.beam import MU_WATER_PER_MM, Scanner, SliceGeometry
from cddnet.physics.depth import (
    _log_variance,
    euclidean_depth,
    predicted_noise_hu,
    radiological_depth,
    shuffled_depth,
)
from cddnet.physics.dose import add_noise, insert_noise
from cddnet.physics.kernel import CHANNEL_MM, SOFT_KERNEL, Kernel
from cddnet.workflows.demo import demo_series

GEOMETRY = SliceGeometry(pixel_mm=1.5)
SIZE, DISC_MM = 128, 80.0
QUANTUM = Scanner(electronic_std=0.0, bowtie_ratio=1.0)


def radius_mm(size, pixel_mm):
    centred = (np.arange(size) - (size - 1) / 2) * pixel_mm
    return np.hypot(centred[None, :], centred[:, None])


WATER = np.where(radius_mm(SIZE, GEOMETRY.pixel_mm) <= DISC_MM, 0.0, -1000.0).astype(np.float32)


def test_depth_at_the_axis_is_the_attenuation_of_the_diameter():
    depth = radiological_depth(WATER, GEOMETRY, scanner=QUANTUM)
    middle = depth[SIZE // 2 - 1 : SIZE // 2 + 1, SIZE // 2 - 1 : SIZE // 2 + 1].mean()
    # Its view-average of exp(p) is flat there; the rim of pixels moves p by a pixel at most.
    assert abs(middle - MU_WATER_PER_MM * 2 * DISC_MM) <= MU_WATER_PER_MM * GEOMETRY.pixel_mm


def test_depth_falls_from_the_centre():
    row = radiological_depth(WATER, GEOMETRY)[SIZE // 2]
    inward = row[12 : SIZE // 2 : 13]  # from inside the rim, 10 mm from it, to the centre
    assert (np.diff(inward) > 0).all()


@pytest.mark.parametrize("bowtie_ratio", [1.0, 10.0])
def test_depth_of_empty_air_is_that_of_the_bowtie(bowtie_ratio):
    size, pixel_mm = 127, GEOMETRY.pixel_mm
    air = np.full((size, size), -1000.0, np.float32)
    scanner = Scanner(bowtie_ratio=bowtie_ratio, electronic_std=0.0)
    depth = radiological_depth(air, GEOMETRY, scanner=scanner)
    # The view average of exp(a cos^2) is exp(a / 2) I0(a / 2).
    half = math.log(bowtie_ratio) * (radius_mm(size, pixel_mm) / 250) ** 2 / 2
    expected = half + np.log(np.i0(half))
    inside = radius_mm(size, pixel_mm) < size * pixel_mm / 2
    # The rays end at the corners of the image; interpolation rings there.
    assert np.abs(depth - expected)[inside].max() <= 0.01
    assert (expected[inside].max() > 0.1) == (bowtie_ratio > 1)


def test_the_electronic_floor_adds_its_closed_form_at_the_axis():
    scanner = Scanner(bowtie_ratio=1.0, electronic_std=40.0)
    quiet = radiological_depth(WATER, GEOMETRY, scanner=QUANTUM)
    depth = radiological_depth(WATER, GEOMETRY, scanner=scanner, dose_fraction=0.25)
    rise = (depth - quiet)[SIZE // 2, SIZE // 2]
    attenuation = math.exp(MU_WATER_PER_MM * 2 * DISC_MM)
    expected = math.log1p(40.0**2 * 576 / (0.25 * scanner.photons) * attenuation)
    # The pixels' rim moves the chord by a pixel at most.
    assert abs(rise - expected) <= MU_WATER_PER_MM * GEOMETRY.pixel_mm * expected
    assert rise > 0.05


def test_tube_current_makes_the_long_axis_quieter():
    """With current on the long way, noise hardly varies: the depth of an oval flattens."""
    centred = (np.arange(SIZE) - (SIZE - 1) / 2) * GEOMETRY.pixel_mm
    oval = (centred[None, :] / 90) ** 2 + (centred[:, None] / 45) ** 2 <= 1
    hu = np.where(oval, 0.0, -1000.0).astype(np.float32)
    fixed, modulated = (
        radiological_depth(hu, GEOMETRY, scanner=Scanner(modulation=alpha))[SIZE // 2, SIZE // 2]
        for alpha in (0.0, 0.5)
    )
    assert modulated < fixed - 0.1


def noise_map(hu, geometry, count=40):
    """Standard deviation of quarter-dose noise over realisations, smoothed over 3 pixels."""
    noise = np.stack(
        [
            add_noise(hu, geometry, np.random.default_rng(seed), dose_fraction=0.25).hu - hu
            for seed in range(count)
        ]
    )
    return ndimage.gaussian_filter(noise.std(axis=0, ddof=1), 3)


@pytest.fixture(scope="module")
def oval_with_lungs():
    size, pixel_mm = 191, 1.8
    centred = (np.arange(size) - (size - 1) / 2) * pixel_mm
    x, y = centred[None, :], centred[:, None]
    hu = np.where((x / 160) ** 2 + (y / 110) ** 2 <= 1, 40.0, -1000.0)
    for side in (-1, 1):
        hu = np.where(((x - side * 75) / 60) ** 2 + (y / 80) ** 2 <= 1, -800.0, hu)
    return hu.astype(np.float32), SliceGeometry(pixel_mm=pixel_mm)


def test_depth_predicts_the_noise_where_distance_does_not(oval_with_lungs):
    hu, geometry = oval_with_lungs
    measured = noise_map(hu, geometry)
    depth = radiological_depth(hu, geometry, dose_fraction=0.25)
    predicted = predicted_noise_hu(depth, geometry, dose_fraction=0.25)
    body = ndimage.binary_erosion(euclidean_depth(hu, geometry.pixel_mm) > 0, iterations=6)
    correlation = np.corrcoef(predicted[body], measured[body])[0, 1]
    distance = np.corrcoef(euclidean_depth(hu, geometry.pixel_mm)[body], measured[body])[0, 1]
    assert correlation >= 0.95
    assert distance < 0.8
    # 40 realisations know a standard deviation to 1 / sqrt(78); the kernel spans a few rays, over
    # which the prediction takes the noise as constant: 5 % in all.
    assert np.median(measured[body] / predicted[body]) == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize(
    "name", ["abdomen", "thorax", "shoulder", "first demo slice", "last demo slice"]
)
def test_depth_predicts_the_noise_of_bodies(name):
    """40 realisations, smoothed over 3 pixels; the depth of the noisy slice does as well."""
    if name in phantom.names():
        made = phantom.build(name)
        geometry = SliceGeometry(pixel_mm=made.field_mm / 320)
        hu = phantom.render(made, 320, geometry.pixel_mm)
    else:
        volume = read_volume(demo_series())
        blocks = volume.read_slice(0 if name.startswith("first") else 11).reshape(256, 2, 256, 2)
        hu = blocks.mean(axis=(1, 3))
        geometry = SliceGeometry(pixel_mm=2 * volume.spacing_mm[1])
    measured = noise_map(hu, geometry)
    distance = euclidean_depth(hu, geometry.pixel_mm)
    body = ndimage.binary_erosion(distance > 0, iterations=5)
    depth = radiological_depth(hu, geometry, dose_fraction=0.25)
    predicted = predicted_noise_hu(depth, geometry, dose_fraction=0.25)
    correlation, rival = (
        np.corrcoef(values[body], measured[body])[0, 1] for values in (predicted, distance)
    )
    assert correlation >= 0.95
    assert rival < correlation - 0.03
    noisy = insert_noise(hu, geometry, np.random.default_rng(0)).hu
    seen = radiological_depth(noisy, geometry, dose_fraction=0.25)
    assert np.corrcoef(seen[body], depth[body])[0, 1] >= 0.999


def test_predicted_noise_goes_with_one_over_root_dose_thickness_and_photons(oval_with_lungs):
    hu, geometry = oval_with_lungs
    depth = radiological_depth(hu, geometry, scanner=QUANTUM)
    full = predicted_noise_hu(depth, geometry, scanner=QUANTUM)
    quarter = predicted_noise_hu(depth, geometry, scanner=QUANTUM, dose_fraction=0.25)
    thin = predicted_noise_hu(depth, geometry._replace(thickness_mm=0.75), scanner=QUANTUM)
    assert quarter == pytest.approx(2 * full, rel=1e-5)
    assert thin == pytest.approx(2 * full, rel=1e-5)
    sharp = predicted_noise_hu(depth, geometry, kernel=Kernel(cutoff_per_mm=1.87))
    assert (sharp > predicted_noise_hu(depth, geometry)).all()


def test_depth_of_the_noisy_slice_is_that_of_the_clean_one(oval_with_lungs):
    hu, geometry = oval_with_lungs
    noisy = insert_noise(hu, geometry, np.random.default_rng(0), dose_fraction=0.1).hu
    clean, seen = radiological_depth(hu, geometry), radiological_depth(noisy, geometry)
    body = euclidean_depth(hu, geometry.pixel_mm) > 0
    assert not np.array_equal(clean, seen)
    assert np.corrcoef(clean[body], seen[body])[0, 1] >= 0.999


@pytest.mark.parametrize("shape", [(33, 48), (301, 513), (1, 37), (130, 257)])
def test_any_shape_has_its_depth(shape):
    hu = np.full(shape, 0.0, np.float32)
    depth = radiological_depth(hu, GEOMETRY)
    assert depth.shape == shape
    assert depth.dtype == np.float32
    assert (depth > 0.05).any()
    assert (depth >= 0).all()


def test_the_coarse_grid_gives_the_depth_of_the_fine_one():
    """Of a disc drawn four times as fine: its rim moves a chord by half a fine pixel."""
    fine_mm = GEOMETRY.pixel_mm / 4
    disc = np.where(radius_mm(4 * SIZE, fine_mm) <= DISC_MM, 0.0, -1000.0).astype(np.float32)
    depth = radiological_depth(disc, SliceGeometry(pixel_mm=fine_mm))
    blocks = depth.reshape(SIZE, 4, SIZE, 4).mean(axis=(1, 3))
    inside = radius_mm(SIZE, GEOMETRY.pixel_mm) <= DISC_MM - 3 * GEOMETRY.pixel_mm
    gap = np.abs(blocks - radiological_depth(WATER, GEOMETRY))[inside]
    assert gap.max() <= 2 * MU_WATER_PER_MM * GEOMETRY.pixel_mm


def test_euclidean_depth_of_a_disc_is_the_way_to_its_rim():
    distance = euclidean_depth(WATER, GEOMETRY.pixel_mm)
    expected = np.maximum(DISC_MM - radius_mm(SIZE, GEOMETRY.pixel_mm), 0)
    # From a pixel's centre to that of the first one outside; opening rounds the rim.
    assert np.abs(distance - expected).max() <= 2 * GEOMETRY.pixel_mm
    assert distance.max() > 70


def test_euclidean_depth_counts_lungs_as_body(oval_with_lungs):
    hu, geometry = oval_with_lungs
    distance = euclidean_depth(hu, geometry.pixel_mm)
    assert (distance[hu == -800] > 0).all()


def test_shuffling_keeps_the_values_and_loses_the_places():
    depth = radiological_depth(WATER, GEOMETRY)[:101, :119]
    mixed = shuffled_depth(depth, np.random.default_rng(0))
    assert np.array_equal(np.sort(mixed, axis=None), np.sort(depth, axis=None))
    assert np.corrcoef(mixed.ravel(), depth.ravel())[0, 1] < 0.7
    assert np.array_equal(mixed, shuffled_depth(depth, np.random.default_rng(0)))


def test_shuffling_moves_whole_blocks_and_leaves_the_rim():
    depth = np.arange(23 * 35, dtype=np.float32).reshape(23, 35)
    mixed = shuffled_depth(depth, np.random.default_rng(0), block=5)

    def blocks(values):
        return {
            values[r : r + 5, c : c + 5].tobytes() for r in range(0, 20, 5) for c in range(0, 35, 5)
        }

    assert blocks(mixed) == blocks(depth)
    assert np.array_equal(mixed[20:], depth[20:])
    assert not np.array_equal(mixed, depth)


@pytest.mark.parametrize("electronic_std", [1.0, 10.0, 30.0])
def test_the_variance_of_a_starved_logarithm_is_its_integral(electronic_std):
    """A Gaussian count, read as one below one photon, where rays starve and where they do not."""
    photons = np.concatenate(
        [np.geomspace(0.01, 0.3, 5), np.geomspace(100, 1e4, 5) * electronic_std]
    )
    normal = np.linspace(-9, 9, 40_001)
    law = stats.norm.pdf(normal) / stats.norm.pdf(normal).sum()
    for expected, variance in zip(photons, _log_variance(photons, electronic_std), strict=True):
        count = expected + math.sqrt(expected + electronic_std**2) * normal
        logarithm = np.log(np.maximum(count, 1.0))
        exact = law @ logarithm**2 - (law @ logarithm) ** 2
        assert variance == pytest.approx(exact, rel=0.01)


@pytest.mark.parametrize("kernel", [SOFT_KERNEL, Kernel(cutoff_per_mm=1.87, boost=0.3)])
def test_predicted_noise_is_the_integral_of_the_squared_filter(kernel):
    """Kak and Slaney 1988, chapter 5, where nothing attenuates: depth 0 of one ray per pixel."""
    geometry, scanner = SliceGeometry(pixel_mm=0.8, thickness_mm=2.0), Scanner()
    photons = 0.3 * scanner.photons * (0.8 / CHANNEL_MM) * (2.0 / 3.0)
    ramp_squared, _ = integrate.quad(lambda f: 2 * (f * kernel.response(f / 0.8)) ** 2, 0, 0.5)
    expected = np.pi * math.sqrt(ramp_squared / photons) * 1000 / (MU_WATER_PER_MM * 0.8)
    found = predicted_noise_hu(np.zeros((1, 1)), geometry, dose_fraction=0.3, kernel=kernel)
    assert found[0, 0] == pytest.approx(expected, rel=1e-5)
