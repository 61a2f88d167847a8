"""Low-dose noise inserted into a slice that already carries full-dose noise.

The chain is projection, Yu's variance, ramp-filtered noise, sum (Yu et al., J. Comput. Assist.
Tomogr. 36:477, 2012), in parallel geometry: both passes of a fan-beam rotation through a line are
one ray here, with their photons added. `physics/scan.py` is the full reference chain.
"""

# Shapes: H row, W column, N image side, V view, J detector channel.

from __future__ import annotations

import hashlib
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cddnet.physics import projector
from cddnet.physics.beam import (
    DEFAULT_SCANNER,
    MU_WATER_PER_MM,
    Scanner,
    SliceGeometry,
    beam_filter,
    covering,
    flux,
    line_integrals,
)
from cddnet.physics.kernel import SOFT_KERNEL, Kernel
from cddnet.physics.projector import ParallelBeam

# The lowest value scanners store for air; real low-dose series are cut there.
SCANNER_FLOOR_HU = -1024.0

# Below this, the logarithm of a Poisson count is no longer Gaussian.
STARVED_PHOTONS = 25.0

_VIEWS = 720


class LowDose(NamedTuple):
    """hu: (H, W) float32.  fewest_photons: least expected low-dose count of any ray.
    starved: share of the rays with fewer than 25 low-dose photons; their noise is no longer
    Gaussian, and the logarithm shifts their mean.
    """

    hu: NDArray[np.float32]
    fewest_photons: float
    starved: float


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
    photons.  Source: Yu et al. 2012, with the electronic term of both doses; and the next order of
    the variance of a logarithm, which a tenth of the variance is at 25 photons.
    """
    low, full = (
        _log_variance(fraction * photons, electronic_std) for fraction in (dose_fraction, 1.0)
    )
    return low - full


def _log_variance(
    photons: NDArray[np.floating], electronic_std: NDArray[np.floating] | float
) -> NDArray[np.floating]:
    inverse = 1 / photons
    first = inverse * (1 + electronic_std**2 * inverse)
    return first + (2.5 * first**2 - inverse**2)


def inserted_noise(
    photons: NDArray[np.floating],
    electronic_std: float,
    dose_fraction: float,
    rng: np.random.Generator,
) -> NDArray[np.float32]:
    """Noise that takes line integrals from the full dose to a fraction of it.

    Parameters: photons measured behind the object at full dose, any shape; electronic_std in
    photons.  Returns: float32 in the shape of `photons`.
    Rays with 25 low-dose photons or more get Yu's Gaussian. The others are thinned: of each
    full-dose photon a binomial draw keeps the fraction, which is the exact law of a Poisson count
    at lower dose; electronic noise follows, and counts below one photon are read as one.
    """
    seen = np.maximum(photons, np.float32(1.0))
    variance = inserted_variance(seen, dose_fraction, electronic_std)
    noise = rng.standard_normal(photons.shape, dtype=np.float32)
    noise *= np.sqrt(variance, dtype=np.float32)
    starved = photons * dose_fraction < STARVED_PHOTONS
    if dose_fraction < 1 and starved.any():
        full = np.maximum(photons[starved].astype(np.float64), 1e-30)
        whole = np.floor(full + rng.random(full.shape)).astype(np.int64)
        low = rng.binomial(whole, dose_fraction).astype(np.float64)
        # The full dose carries its electronic noise already; thinning leaves a fraction of it.
        low += rng.normal(0.0, electronic_std * np.sqrt(1 - dose_fraction**2), full.shape)
        noise[starved] = np.log(full * dose_fraction / np.maximum(low, 1.0))
    return noise


def measured_noise(
    photons: NDArray[np.floating], electronic_std: float, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Noise of line integrals of an object that carries none: one direct measurement of each ray.

    Parameters: photons expected behind the object at the dose in question, any shape;
    electronic_std in photons.  Returns: float32; counts below one photon are read as one.
    """
    counts = rng.poisson(photons) + rng.normal(0.0, electronic_std, photons.shape)
    noise = np.log(np.maximum(photons, 1e-30, dtype=np.float64) / np.maximum(counts, 1.0))
    return np.asarray(noise, np.float32)


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
    require_fraction(dose_fraction)
    rays = _rays(full_dose_hu, geometry, scanner)
    noise = inserted_noise(rays.photons, rays.electronic_std, dose_fraction, rng)
    low_photons = rays.photons * np.float32(dose_fraction)
    return _low_dose(
        full_dose_hu + _noise_hu(noise, rays.beam, geometry, kernel)[rays.inner], low_photons
    )


def add_noise(  # noqa: PLR0913 - one physical quantity each
    clean_hu: NDArray[np.floating],
    geometry: SliceGeometry,
    rng: np.random.Generator,
    *,
    dose_fraction: float = 1.0,
    scanner: Scanner = DEFAULT_SCANNER,
    kernel: Kernel = SOFT_KERNEL,
) -> LowDose:
    """A noise-free slice, such as a phantom, as it is measured at a fraction of the full dose.

    Parameters, returns and raises as `insert_noise`.
    """
    require_fraction(dose_fraction)
    rays = _rays(clean_hu, geometry, scanner)
    low_photons = rays.photons * np.float32(dose_fraction)
    noise = measured_noise(low_photons, rays.electronic_std, rng)
    return _low_dose(
        clean_hu + _noise_hu(noise, rays.beam, geometry, kernel)[rays.inner], low_photons
    )


class _Rays(NamedTuple):
    beam: ParallelBeam
    photons: NDArray[np.float32]  # (V, J), behind the object at full dose
    electronic_std: float
    inner: tuple[slice, slice]  # of the slice in the beam's square


def _rays(hu: NDArray[np.floating], geometry: SliceGeometry, scanner: Scanner) -> _Rays:
    beam = covering(hu, _VIEWS)
    integrals = line_integrals(hu, geometry.pixel_mm, beam)
    sent = flux(scanner, geometry, beam.views)
    distances_mm = beam.positions * geometry.pixel_mm
    photons = beam_filter(integrals, distances_mm, scanner) * np.exp(-integrals)
    photons *= np.float32(sent.photons)
    return _Rays(beam, photons, sent.electronic_std, np.s_[: hu.shape[0], : hu.shape[1]])


def _noise_hu(
    noise: NDArray[np.float32], beam: ParallelBeam, geometry: SliceGeometry, kernel: Kernel
) -> NDArray[np.float32]:
    """Noise of the image (N, N) in HU from that of the line integrals (V, J)."""
    response = kernel.response(projector.frequencies(beam) / geometry.pixel_mm)
    image = projector.filtered_back_projection(noise, beam, response)
    return np.asarray(image * (1000.0 / (MU_WATER_PER_MM * geometry.pixel_mm)), np.float32)


def _low_dose(hu: NDArray[np.floating], low_photons: NDArray[np.float32]) -> LowDose:
    return LowDose(
        hu=np.asarray(hu, np.float32),
        fewest_photons=float(low_photons.min()),
        starved=float(np.mean(low_photons < STARVED_PHOTONS)),
    )


def require_fraction(dose_fraction: float) -> None:
    if not 0 < dose_fraction <= 1:
        raise ValueError(f"dose fraction {dose_fraction} must lie in (0, 1]")
