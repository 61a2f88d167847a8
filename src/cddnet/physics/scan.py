"""The full reference chain for noise-free objects: fan-beam projection, photons, reconstruction.

`physics/dose.py` is the fast route for series that are noisy already; here nothing is inserted,
the object is measured. Its limits: one energy, one slice, thin rays, no scatter, no helix.
"""

# Shapes: H row, W column, N image side, V view, J detector channel.

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cddnet.errors import GeometryError
from cddnet.physics import fan_beam
from cddnet.physics.beam import (
    DEFAULT_SCANNER,
    MU_WATER_PER_MM,
    Scanner,
    SliceGeometry,
    beam_filter,
    flux,
)
from cddnet.physics.dose import STARVED_PHOTONS, measured_noise, require_fraction
from cddnet.physics.fan_beam import FanBeam
from cddnet.physics.kernel import SOFT_KERNEL, Kernel

_AIR_HU = -1000.0

# What absorbs a tenth of water or more may not lie where some views cannot see it.
_MATTER_HU = -900.0


class Scan(NamedTuple):
    """hu: (H, W) float32.  fewest_photons: least expected count of any reading at this dose.
    starved: share of the readings with fewer than 25 expected photons; the logarithm shifts their
    mean, and so that of the image, which is left as it is.
    """

    hu: NDArray[np.float32]
    fewest_photons: float
    starved: float


class Exposure(NamedTuple):
    """integrals: true attenuation line integrals (V, J).  photons: expected behind the object at
    full dose (V, J).  electronic_std: of one reading, in photons.
    """

    beam: FanBeam
    integrals: NDArray[np.float32]
    photons: NDArray[np.float32]
    electronic_std: float


def scan(  # noqa: PLR0913 - one physical quantity each
    clean_hu: NDArray[np.floating],
    geometry: SliceGeometry,
    rng: np.random.Generator,
    *,
    dose_fraction: float = 1.0,
    scanner: Scanner = DEFAULT_SCANNER,
    kernel: Kernel = SOFT_KERNEL,
) -> Scan:
    """A noise-free slice, such as a phantom, as the scanner measures and reconstructs it.

    Parameters: clean_hu (H, W), its centre on the rotation axis; dose_fraction in (0, 1].
    Returns: Scan; `hu` is not cut at the scanner's floor, and is air beyond the field of view.
    Raises: ValueError for a fraction outside (0, 1]; GeometryError for an object that leaves the
    field of view.
    Source: Zeng et al., IEEE Trans. Nucl. Sci. 62:2226, 2015, for the counts; Kak and Slaney 1988,
    section 3.4.1, for the image.
    """
    exposure = expose(clean_hu, geometry, scanner)
    measured = measure(exposure, dose_fraction, rng)
    low_photons = exposure.photons * np.float32(dose_fraction)
    return Scan(
        hu=reconstruct(measured, exposure.beam, kernel)[_inner(clean_hu)],
        fewest_photons=float(low_photons.min()),
        starved=float(np.mean(low_photons < STARVED_PHOTONS)),
    )


def expose(
    clean_hu: NDArray[np.floating],
    geometry: SliceGeometry,
    scanner: Scanner = DEFAULT_SCANNER,
) -> Exposure:
    """Line integrals and expected photons of a noise-free slice (H, W).

    Raises: GeometryError for an object that leaves the field of view; thinner matter there, below
    -900 HU, is taken as vacuum.
    """
    beam = FanBeam.calibrated(max(clean_hu.shape), geometry.pixel_mm)
    attenuation = np.zeros((beam.size, beam.size), np.float32)
    attenuation[_inner(clean_hu)] = np.maximum(clean_hu / 1000.0 + 1.0, 0.0) * MU_WATER_PER_MM
    outside = ~_in_field(beam)
    _require_inside(attenuation, outside, beam)
    attenuation[outside] = 0.0
    integrals = np.asarray(fan_beam.forward(attenuation, beam), np.float32)
    # One reading is a ray one channel wide.
    width = geometry._replace(pixel_mm=beam.channel_at_axis_mm)
    sent = flux(scanner, width, beam.views)
    photons = beam_filter(integrals, beam.distances_mm, scanner) * np.exp(-integrals)
    photons *= np.float32(sent.photons)
    return Exposure(beam, integrals, photons, sent.electronic_std)


def measure(
    exposure: Exposure, dose_fraction: float, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Line integrals (V, J) from Poisson counts with electronic noise.

    Counts below one photon are read as one. The mean of the logarithm is off the truth by about
    1 / (2 photons), and by more behind fewer than 25 photons; nothing hides it.
    Raises: ValueError for a fraction outside (0, 1].
    """
    require_fraction(dose_fraction)
    photons = exposure.photons * np.float32(dose_fraction)
    noise = measured_noise(photons, exposure.electronic_std, rng)
    return exposure.integrals + noise


def reconstruct(
    integrals: NDArray[np.floating], beam: FanBeam, kernel: Kernel = SOFT_KERNEL
) -> NDArray[np.float32]:
    """Slice (N, N) in HU of attenuation line integrals (V, J), air beyond the field of view.

    The kernel states the response of the whole chain. Back projection interpolates between the
    channels, which is a sinc squared of their pitch already; only the rest is applied here, so
    that the default aperture costs nothing twice.
    """
    frequency_per_mm = fan_beam.frequencies(beam)
    interpolation = np.sinc(frequency_per_mm * beam.channel_at_axis_mm) ** 2
    response = kernel.response(frequency_per_mm) / interpolation
    attenuation = fan_beam.filtered_back_projection(integrals, beam, response)
    hu = np.asarray((attenuation / MU_WATER_PER_MM - 1.0) * 1000.0, np.float32)
    hu[~_in_field(beam)] = _AIR_HU
    return hu


def _inner(hu: NDArray[np.floating]) -> tuple[slice, slice]:
    """Where a slice lies in the middle of its square."""
    rows, columns = ((max(hu.shape) - side) // 2 for side in hu.shape)
    return np.s_[rows : rows + hu.shape[0], columns : columns + hu.shape[1]]


def _in_field(beam: FanBeam) -> NDArray[np.bool_]:
    """Pixels (N, N) that every view sees."""
    squared = np.square((np.arange(beam.size) - (beam.size - 1) / 2) * beam.pixel_mm)
    inside: NDArray[np.bool_] = squared[:, None] + squared < beam.field_mm**2
    return inside


def _require_inside(
    attenuation: NDArray[np.float32], outside: NDArray[np.bool_], beam: FanBeam
) -> None:
    matter = attenuation > (_MATTER_HU / 1000.0 + 1.0) * MU_WATER_PER_MM
    lost = int(np.count_nonzero(matter & outside))
    if lost:
        raise GeometryError(
            f"{lost} pixels of the object lie beyond the field of view of "
            f"{2 * beam.field_mm:.0f} mm; centre the object, crop it, or make it smaller."
        )
