"""The X-ray beam: attenuation of a slice, photons sent and received along each ray."""

# Shapes: H row, W column, N image side, V view, J detector channel.

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cddnet.physics import projector
from cddnet.physics.kernel import CHANNEL_MM
from cddnet.physics.projector import ParallelBeam

# Water at 70 keV (NIST XCOM).
MU_WATER_PER_MM = 0.0192

# The calibrated scanner: readings of one channel in a rotation, slice thickness.
READINGS = 576
_SLICE_MM = 3.0

_UNMEASURED_HU = -1100.0


@dataclass(frozen=True, kw_only=True)
class Scanner:
    """Photon statistics of the full dose.

    photons: per channel and rotation at full dose behind no object, calibrated so that a B30f-like
        kernel gives 17 HU in the liver of a 3 mm slice, and a quarter of the dose 37 HU.
    electronic_std: in photons per reading.  bowtie_ratio: centre over edge of the field of view.
    bowtie_floor: least transmission.  modulation: tube-current exponent alpha, current as
        exp(alpha (p - mean p)) with p the largest line integral of a view.
    Source: photons and electronic noise calibrated on real quarter- and full-dose slices; bowtie
    range from Zeng et al., IEEE Trans. Nucl. Sci. 62:2226, 2015; its Gaussian shape is ours.
    """

    photons: float = 6.8e5 * READINGS
    electronic_std: float = 10.0
    bowtie_ratio: float = 10.0
    bowtie_floor: float = 0.08
    bowtie_radius_mm: float = 250.0
    modulation: float = 0.0


class SliceGeometry(NamedTuple):
    """pixel_mm: square pixel pitch; thickness_mm: of the slice that collects the photons, that of
    the calibration unless said otherwise.
    """

    pixel_mm: float
    thickness_mm: float = _SLICE_MM


class Flux(NamedTuple):
    """Full-dose photons of one ray behind no object and no filter, and electronic noise in photons,
    for parallel rays one pixel wide that share a rotation among the views.
    """

    photons: float
    electronic_std: float


DEFAULT_SCANNER = Scanner()

# Tube current is modulated in nearly every clinical series; the square root of the attenuation
# makes the least noise of a dose (Gies et al., Med. Phys. 26:2235, 1999).
TYPICAL_SCANNER = Scanner(modulation=0.5)


def flux(scanner: Scanner, geometry: SliceGeometry, views: int) -> Flux:
    """Photons and electronic noise of one ray among so many views of a rotation.

    Parallel: every line is read twice, and both readings are one ray of half a turn. A wider ray,
    here a pixel, or a thicker slice collects more photons.
    """
    share = geometry.pixel_mm / CHANNEL_MM
    per_ray = scanner.photons / views * share * geometry.thickness_mm / _SLICE_MM
    electronic = scanner.electronic_std * np.sqrt(READINGS / views * share)
    return Flux(per_ray, float(electronic))


def photons_per_reading(scanner: Scanner, geometry: SliceGeometry) -> float:
    """Full-dose photons of one channel in one view behind no object and no filter."""
    return scanner.photons / READINGS * geometry.thickness_mm / _SLICE_MM


def covering(hu: NDArray[np.floating], views: int) -> ParallelBeam:
    """Rays for a slice (H, W): the smallest even square that holds it."""
    size = max(hu.shape)
    return ParallelBeam.covering(size + size % 2, views)


def line_integrals(
    hu: NDArray[np.floating], pixel_mm: float, beam: ParallelBeam
) -> NDArray[np.float32]:
    """Attenuation line integrals (V, J), dimensionless, of a slice (H, W) placed in the corner.

    What lies below -1100 HU was not measured and counts as air.
    """
    attenuation = np.zeros((beam.size, beam.size), np.float32)
    # Noise of air is kept: cut at zero its mean would be matter.
    attenuation[: hu.shape[0], : hu.shape[1]] = np.where(
        hu < _UNMEASURED_HU, 0.0, hu / 1000.0 + 1.0
    )
    projected = projector.forward(attenuation, beam) * np.float32(MU_WATER_PER_MM * pixel_mm)
    integrals: NDArray[np.float32] = np.maximum(projected, np.float32(0.0))
    return integrals


def beam_filter(
    integrals: NDArray[np.floating], distances_mm: NDArray[np.floating], scanner: Scanner
) -> NDArray[np.float32]:
    """Relative photons sent along each ray (V, J): bowtie times tube-current modulation.

    distances_mm: of the channels' rays from the axis (J,).
    """
    radius = distances_mm / scanner.bowtie_radius_mm
    bowtie = np.maximum(scanner.bowtie_ratio ** -(radius**2), scanner.bowtie_floor)
    longest = integrals.max(axis=1, keepdims=True)
    current = np.exp(scanner.modulation * (longest - longest.mean()))
    filtered: NDArray[np.float32] = (bowtie * current).astype(np.float32)
    return filtered
