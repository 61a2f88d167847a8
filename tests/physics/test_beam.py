"""The beam: line integrals, bowtie and tube current against their closed forms."""

import math

import numpy as np
import pytest

from cddnet.physics.beam import (
    MU_WATER_PER_MM,
    TYPICAL_SCANNER,
    Scanner,
    SliceGeometry,
    beam_filter,
    covering,
    flux,
    line_integrals,
    photons_per_reading,
)
from cddnet.physics.kernel import CHANNEL_MM
from cddnet.physics.projector import ParallelBeam


def ellipse(size, pixel_mm, axes_mm, hu):
    """Uniform ellipse of the given full axes (across, down) in air."""
    across, down = (axis / 2 for axis in axes_mm)
    centred = (np.arange(size) - (size - 1) / 2) * pixel_mm
    inside = (centred[None, :] / across) ** 2 + (centred[:, None] / down) ** 2 <= 1
    return np.where(inside, hu, -1000.0).astype(np.float32)


def test_bowtie_and_modulation_follow_their_closed_forms():
    beam = ParallelBeam.covering(256, 8)
    oval = ellipse(256, 2.0, (300.0, 200.0), 0.0)
    integrals = line_integrals(oval, 2.0, beam)
    longest = integrals.max(axis=1)
    assert longest[0] == pytest.approx(MU_WATER_PER_MM * 200, rel=0.02)  # rays run down
    assert longest[4] == pytest.approx(MU_WATER_PER_MM * 300, rel=0.02)  # rays run across
    distances_mm = beam.positions * 2.0
    bowtie = beam_filter(integrals, distances_mm, Scanner(bowtie_ratio=10.0, bowtie_floor=0.05))
    middle = beam.channels // 2
    assert bowtie[:, middle] == pytest.approx(1.0)
    assert bowtie[0, middle + 125] == pytest.approx(0.1)
    assert bowtie[0, 0] == pytest.approx(0.05)
    modulated = beam_filter(integrals, distances_mm, Scanner(modulation=0.5))
    ratio = modulated[4, middle] / modulated[0, middle]
    assert ratio == pytest.approx(math.exp(0.5 * (longest[4] - longest[0])), rel=1e-5)


def test_what_was_not_measured_counts_as_air_and_noise_of_air_is_kept(rng):
    beam = ParallelBeam.covering(64, 6)
    padding = np.full((64, 64), -2000.0, np.float32)
    assert not line_integrals(padding, 1.0, beam).any()
    oval = ellipse(64, 1.0, (40.0, 30.0), 0.0)
    padded = np.where(oval < 0, np.float32(-1101), oval)
    assert np.array_equal(line_integrals(padded, 1.0, beam), line_integrals(oval, 1.0, beam))
    # Air of -1090 HU was measured: over its 17 pixels it takes away a tenth of their water.
    dark = np.where(oval < 0, np.float32(-1090), oval)
    lost = line_integrals(oval, 1.0, beam)[0, 45] - line_integrals(dark, 1.0, beam)[0, 45]
    assert lost == pytest.approx(0.09 * 34 * MU_WATER_PER_MM, rel=0.05)


def test_a_flat_slice_lies_in_the_corner_of_its_square():
    """Rays straight down pass each column; those across pass each row."""
    slab = np.zeros((20, 33), np.float32)
    beam = covering(slab, 2)
    assert beam.size == 34
    down, across = line_integrals(slab, 0.8, beam) / (MU_WATER_PER_MM * 0.8)
    # Overshoots below zero are cut: the sum is a little too high.
    assert down.sum() == pytest.approx(20 * 33, rel=0.03)
    for rays, side in ((down, 33), (across, 20)):
        assert np.average(beam.positions, weights=rays) == pytest.approx(side / 2 - 17, abs=0.15)


def test_photons_are_shared_by_views_and_grow_with_pixel_and_thickness():
    scanner = Scanner(photons=576e5, electronic_std=8.0)
    thin = SliceGeometry(pixel_mm=CHANNEL_MM, thickness_mm=3.0)
    assert photons_per_reading(scanner, thin) == pytest.approx(1e5)
    assert flux(scanner, thin, 576) == pytest.approx((1e5, 8.0))
    # A quarter of the views: four readings make one ray, and their noise adds in squares.
    assert flux(scanner, thin, 144) == pytest.approx((4e5, 16.0))
    wide = thin._replace(pixel_mm=4 * CHANNEL_MM)
    assert flux(scanner, wide, 576) == pytest.approx((4e5, 16.0))
    thick = thin._replace(thickness_mm=4.5)
    assert flux(scanner, thick, 576) == pytest.approx((1.5e5, 8.0))
    assert photons_per_reading(scanner, thick) == pytest.approx(1.5e5)


def test_the_typical_current_makes_the_least_noise_of_a_dose():
    """Gies et al. 1999: the square root of the attenuation."""
    integrals = np.array([[2.0], [3.0], [7.0]])

    def noise(exponent):
        scanner = Scanner(modulation=exponent, bowtie_ratio=1.0)
        current = beam_filter(integrals, np.zeros(1), scanner)[:, 0].astype(np.float64)
        return np.mean(np.exp(integrals[:, 0]) / (current / current.mean()))

    typical = noise(TYPICAL_SCANNER.modulation)
    assert typical < min(noise(TYPICAL_SCANNER.modulation + step) for step in (-0.02, 0.02))


def test_modulation_spends_the_current_around_its_geometric_mean(rng):
    integrals = rng.uniform(0, 8, (40, 11))
    sent = beam_filter(integrals, np.zeros(11), Scanner(modulation=0.7))
    longest = integrals.max(axis=1)
    assert np.log(sent.astype(np.float64)).mean() == pytest.approx(0, abs=1e-6)
    assert np.log(sent[:, 3] / sent[0, 3]) == pytest.approx(0.7 * (longest - longest[0]), abs=1e-5)
