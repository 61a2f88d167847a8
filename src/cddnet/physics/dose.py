"""Low-dose noise inserted into a slice that already carries full-dose noise.

The chain is projection, Yu's variance, ramp-filtered noise, sum (Yu et al., J. Comput. Assist.
Tomogr. 36:477, 2012), in parallel geometry: both passes of a fan-beam rotation through a line are
one ray here, with their photons added.
"""

# Shapes: H row, W column, N image side, V view, J detector channel.

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cddnet.physics import projector
from cddnet.physics.projector import ParallelBeam

# Water at 70 keV (NIST XCOM).
MU_WATER_PER_MM = 0.0192

# One channel of the calibrated scanner: 0.7047 mm at the axis, 576 views, 3 mm slices.
_CHANNEL_MM = 0.7047
_READINGS = 576
_SLICE_MM = 3.0

# The lowest value scanners store for air; real low-dose series are cut there.
SCANNER_FLOOR_HU = -1024.0


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

    photons: float = 6.8e5 * _READINGS
    electronic_std: float = 10.0
    bowtie_ratio: float = 10.0
    bowtie_floor: float = 0.08
    bowtie_radius_mm: float = 250.0
    modulation: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """Reconstruction kernel: ramp times Hann window of `cutoff_per_mm`, times an edge boost.

    A cutoff of 0.70/mm resembles a soft B30f, 1.87/mm with boost a sharp D45.
    `aperture_mm` is the detector's and the interpolation's width (sinc squared).
    """

    cutoff_per_mm: float = 0.70
    boost: float = 0.0
    aperture_mm: float = _CHANNEL_MM

    def response(self, frequency_per_mm: NDArray[np.float64]) -> NDArray[np.float64]:
        """Apodisation at frequencies in cycles per mm."""
        below = np.clip(frequency_per_mm / self.cutoff_per_mm, 0.0, 1.0)
        hann = 0.5 * (1.0 + np.cos(np.pi * below))
        edge = 1.0 + self.boost * (frequency_per_mm / 0.5) ** 2
        return hann * edge * np.sinc(frequency_per_mm * self.aperture_mm) ** 2


class LowDose(NamedTuple):
    """hu: (H, W) float32.  depth: (H, W) radiological depth, the log of the mean over views of
    exp(line integral) over the beam filter.  fewest_photons: least expected low-dose count of any
    ray; below about ten, the logarithm of a real count is no longer Gaussian.
    """

    hu: NDArray[np.float32]
    depth: NDArray[np.float32]
    fewest_photons: float


class SliceGeometry(NamedTuple):
    """pixel_mm: square pixel pitch; thickness_mm: of the slice that collects the photons, that of
    the calibration unless said otherwise.
    """

    pixel_mm: float
    thickness_mm: float = _SLICE_MM


DEFAULT_SCANNER = Scanner()
SOFT_KERNEL = Kernel()
_VIEWS = 720


def rng_for(series_uid: str, slice_index: int, seed: int) -> np.random.Generator:
    """Generator that depends on the slice alone, not on order or workers."""
    digest = hashlib.sha256(f"{seed}/{series_uid}/{slice_index}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "big"))


def inserted_variance(
    photons: NDArray[np.floating],
    dose_fraction: float,
    electronic_std: NDArray[np.floating] | float,
) -> NDArray[np.floating]:
    """Extra variance of a line integral when the dose drops to a fraction.

    Parameters: photons expected behind the object at full dose, any shape; electronic_std in
    photons.  Source: Yu et al. 2012, with the electronic term of both doses.
    """
    quantum = (1 - dose_fraction) / dose_fraction / photons
    return quantum * (1 + (1 + dose_fraction) / dose_fraction * electronic_std**2 / photons)


def insert_noise(  # noqa: PLR0913 - one physical quantity each
    full_dose_hu: NDArray[np.floating],
    geometry: SliceGeometry,
    rng: np.random.Generator,
    *,
    dose_fraction: float = 0.25,
    scanner: Scanner = DEFAULT_SCANNER,
    kernel: Kernel = SOFT_KERNEL,
) -> LowDose:
    """Slice as it would have been at a fraction of the scanner's full dose.

    Parameters: full_dose_hu (H, W); dose_fraction in (0, 1].
    Returns: LowDose; its `hu` is not cut at the scanner's floor.
    Raises: ValueError for a fraction outside (0, 1].
    Source: Yu et al. 2012; the noise of the input stays, so nothing is simulated twice.
    """
    if not 0 < dose_fraction <= 1:
        raise ValueError(f"dose fraction {dose_fraction} must lie in (0, 1]")
    height, width = full_dose_hu.shape
    beam = ParallelBeam.covering(_even(max(height, width)), _VIEWS)
    integrals = line_integrals(full_dose_hu, geometry.pixel_mm, beam)
    filtered = beam_filter(integrals, geometry.pixel_mm, beam, scanner)
    # Every line is read twice in a rotation; a wider pixel or thicker slice collects more photons.
    share = geometry.pixel_mm / _CHANNEL_MM
    per_ray = scanner.photons / _VIEWS * share * geometry.thickness_mm / _SLICE_MM
    photons = np.maximum(per_ray * filtered * np.exp(-integrals), 1e-3)
    electronic = scanner.electronic_std * np.sqrt(_READINGS / _VIEWS * share)
    variance = inserted_variance(photons, dose_fraction, electronic)
    noise = rng.standard_normal(integrals.shape, dtype=np.float32) * np.sqrt(variance)
    response = kernel.response(projector.frequencies(beam) / geometry.pixel_mm)
    image = projector.filtered_back_projection(noise.astype(np.float32), beam, response)
    noise_hu = image[:height, :width] * (1000.0 / (MU_WATER_PER_MM * geometry.pixel_mm))
    attenuation = projector.adjoint((np.exp(integrals) / filtered).astype(np.float32), beam)
    depth = np.log(np.maximum(attenuation[:height, :width] / _VIEWS, 1.0))
    return LowDose(
        hu=(full_dose_hu + noise_hu).astype(np.float32),
        depth=depth.astype(np.float32),
        fewest_photons=float(photons.min() * dose_fraction),
    )


def line_integrals(
    hu: NDArray[np.floating], pixel_mm: float, beam: ParallelBeam
) -> NDArray[np.float32]:
    """Attenuation line integrals (V, J), dimensionless, of a slice (H, W) placed in the corner."""
    attenuation = np.zeros((beam.size, beam.size), np.float32)
    attenuation[: hu.shape[0], : hu.shape[1]] = np.maximum(hu / 1000.0 + 1.0, 0.0)
    projected = projector.forward(attenuation, beam) * np.float32(MU_WATER_PER_MM * pixel_mm)
    integrals: NDArray[np.float32] = np.maximum(projected, np.float32(0.0))
    return integrals


def beam_filter(
    integrals: NDArray[np.floating], pixel_mm: float, beam: ParallelBeam, scanner: Scanner
) -> NDArray[np.float32]:
    """Relative photons sent along each ray (V, J): bowtie times tube-current modulation."""
    radius = beam.positions * pixel_mm / scanner.bowtie_radius_mm
    bowtie = np.maximum(scanner.bowtie_ratio ** -(radius**2), scanner.bowtie_floor)
    longest = integrals.max(axis=1, keepdims=True)
    current = np.exp(scanner.modulation * (longest - longest.mean()))
    filtered: NDArray[np.float32] = (bowtie * current).astype(np.float32)
    return filtered


def _even(size: int) -> int:
    return size + size % 2
