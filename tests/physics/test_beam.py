"""The beam: line integrals, bowtie and tube current against their closed forms."""

import math

import numpy as np
import pytest

from cddnet.physics.beam import MU_WATER_PER_MM, Scanner, beam_filter, line_integrals
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
