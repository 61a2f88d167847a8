"""Parallel-beam projection, its exact adjoint and filtered back projection, by the Fourier slice.

The image is a grid of samples; a projection is its two-dimensional spectrum along a line through
the origin (Fourier slice theorem), gathered from an oversampled Cartesian spectrum with a
Kaiser-Bessel window (Fessler and Sutton, IEEE Trans. Signal Process. 51:560, 2003; Beatty et al.,
IEEE Trans. Med. Imaging 24:799, 2005).
"""

# Shapes: N image side, V view, J detector channel. Lengths are in pixels.

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import scipy.fft
import scipy.sparse
from numpy.typing import NDArray

Image = NDArray[np.floating]
Sinogram = NDArray[np.floating]

_OVERSAMPLING = 2
_WINDOW_WIDTH = 4


@dataclass(frozen=True, kw_only=True)
class ParallelBeam:
    """size: image side in pixels; views: evenly over 180 degrees; channels: one pixel wide each."""

    size: int
    views: int
    channels: int

    @classmethod
    def covering(cls, size: int, views: int) -> ParallelBeam:
        """Enough channels for the image's inscribed circle and its corners."""
        return cls(size=size, views=views, channels=int(np.ceil(size * np.sqrt(2))) | 1)

    @property
    def angles(self) -> NDArray[np.float64]:
        """View angles in radians (V,)."""
        return np.linspace(0.0, np.pi, self.views, endpoint=False)

    @property
    def positions(self) -> NDArray[np.float64]:
        """Channel centres in pixels from the rotation axis (J,)."""
        return np.arange(self.channels, dtype=np.float64) - (self.channels - 1) / 2


class _Plan(NamedTuple):
    gather: scipy.sparse.csr_array  # (V * frequencies, grid * grid)
    apodisation: NDArray[np.floating]  # (N,)
    shift: NDArray[np.complexfloating]  # (V, frequencies), moves the origin to channel 0
    grid: int
    padded: int


def forward(image: Image, beam: ParallelBeam) -> Sinogram:
    """Line integrals of an image.

    Parameters: image (N, N) values per pixel, float32 or float64.
    Returns: (V, J) values times pixels, in the dtype of the image.
    Source: Fourier slice theorem; Kak and Slaney 1988, section 3.2.
    """
    plan = _plan(beam, image.dtype.char)
    start = (plan.grid - beam.size) // 2
    spread = np.zeros((plan.grid, plan.grid), image.dtype)
    inner = slice(start, start + beam.size)
    spread[inner, inner] = image / np.multiply.outer(plan.apodisation, plan.apodisation)
    spectrum = scipy.fft.fft2(scipy.fft.ifftshift(spread))
    rays = _as_complex(plan.gather @ _as_pairs(spectrum.reshape(-1)))
    rays = rays.reshape(beam.views, -1) * plan.shift
    sinogram: Sinogram = scipy.fft.irfft(rays, plan.padded, axis=1)[:, : beam.channels]
    return sinogram


def adjoint(sinogram: Sinogram, beam: ParallelBeam) -> Image:
    """The transpose of `forward`: unfiltered back projection.

    Parameters: sinogram (V, J), float32 or float64.  Returns: (N, N) in its dtype.
    """
    plan = _plan(beam, sinogram.dtype.char)
    rays = scipy.fft.rfft(sinogram, plan.padded, axis=1)
    rays[:, 1 : (plan.padded + 1) // 2] *= 2
    rays *= np.conj(plan.shift) / plan.padded
    spectrum = _as_complex(plan.gather.T @ _as_pairs(rays.reshape(-1)))
    spread = scipy.fft.ifft2(spectrum.reshape(plan.grid, plan.grid), norm="forward").real
    start = (plan.grid - beam.size) // 2
    inner = slice(start, start + beam.size)
    image: Image = scipy.fft.fftshift(spread)[inner, inner]
    image /= np.multiply.outer(plan.apodisation, plan.apodisation)
    return image


def filtered_back_projection(
    sinogram: Sinogram, beam: ParallelBeam, response: NDArray[np.floating]
) -> Image:
    """Image of a sinogram, ramp filter times an apodisation.

    Parameters: sinogram (V, J) values times pixels; response: apodisation at `frequencies(beam)`.
    Returns: (N, N) values per pixel.  Source: Kak and Slaney 1988, equations 3.34 and 61 to 63.
    """
    padded = _padded(beam)
    # The band-limited ramp, sampled in space: the sampled |f| would lose the mean.
    lag = np.arange(-(padded // 2), padded - padded // 2)
    ramp = np.zeros(padded)
    ramp[lag == 0] = 0.25
    odd = lag % 2 == 1
    ramp[odd] = -1.0 / (np.pi * lag[odd]) ** 2
    transfer = scipy.fft.rfft(scipy.fft.ifftshift(ramp)).real * response
    spectrum = scipy.fft.rfft(sinogram, padded, axis=1)
    spectrum *= transfer.astype(sinogram.dtype)
    filtered = scipy.fft.irfft(spectrum, padded, axis=1)[:, : beam.channels]
    return adjoint(filtered, beam) * sinogram.dtype.type(np.pi / beam.views)


def frequencies(beam: ParallelBeam) -> NDArray[np.float64]:
    """Frequencies of a filter response in cycles per pixel, 0 to 0.5."""
    padded = _padded(beam)
    return np.arange(padded // 2 + 1, dtype=np.float64) / padded


def _padded(beam: ParallelBeam) -> int:
    # A filtered projection must not wrap onto itself; even, so that the last frequency is Nyquist.
    return int(scipy.fft.next_fast_len(2 * beam.channels, real=True) // 2 * 2)


@lru_cache(maxsize=8)
def _plan(beam: ParallelBeam, dtype_char: str) -> _Plan:
    dtype = np.dtype(dtype_char)
    grid = _OVERSAMPLING * beam.size
    padded = _padded(beam)
    radius = np.arange(padded // 2 + 1) / padded
    row = np.multiply.outer(np.sin(beam.angles), radius).reshape(-1) * grid
    column = np.multiply.outer(np.cos(beam.angles), radius).reshape(-1) * grid
    width, beta = _WINDOW_WIDTH, _kaiser_shape()
    first_row, first_column = (np.ceil(axis - width / 2).astype(np.int64) for axis in (row, column))
    steps = np.arange(width)
    row_weight = _kaiser(row[:, None] - (first_row[:, None] + steps), beta)
    column_weight = _kaiser(column[:, None] - (first_column[:, None] + steps), beta)
    rows = (first_row[:, None] + steps) % grid
    columns = (first_column[:, None] + steps) % grid
    index = (rows[:, :, None] * grid + columns[:, None, :]).reshape(-1).astype(np.int32)
    weight = (row_weight[:, :, None] * column_weight[:, None, :]).reshape(-1).astype(dtype)
    starts = np.arange(row.size + 1, dtype=np.int32) * width**2
    gather = scipy.sparse.csr_array((weight, index, starts), shape=(row.size, grid * grid))
    origin = grid // 2 - (grid - beam.size) // 2
    position = (np.arange(beam.size) - origin) / grid
    # Pixel centres lie at i - (N - 1) / 2; the transform's origin lies on a pixel.
    offset = (beam.size - 1) / 2 - origin
    centre = np.cos(beam.angles) + np.sin(beam.angles)
    distance = beam.positions[0] + offset * centre
    shift = np.exp(2j * np.pi * np.multiply.outer(distance, radius))
    return _Plan(
        gather=gather,
        apodisation=_kaiser_transform(position, beta).astype(dtype),
        shift=shift.astype(np.result_type(dtype, np.complex64)),
        grid=grid,
        padded=padded,
    )


def _kaiser_shape() -> float:
    """Window shape of least aliasing (Beatty et al. 2005, equation 5)."""
    ratio = _WINDOW_WIDTH / _OVERSAMPLING * (_OVERSAMPLING - 0.5)
    return float(np.pi * np.sqrt(ratio**2 - 0.8))


def _kaiser(distance: NDArray[np.float64], beta: float) -> NDArray[np.float64]:
    inside = np.clip(1 - (2 * distance / _WINDOW_WIDTH) ** 2, 0, None)
    window: NDArray[np.float64] = np.i0(beta * np.sqrt(inside)) / _WINDOW_WIDTH
    return window * (np.abs(distance) <= _WINDOW_WIDTH / 2)


def _kaiser_transform(position: NDArray[np.float64], beta: float) -> NDArray[np.float64]:
    argument = np.sqrt((beta**2 - (np.pi * _WINDOW_WIDTH * position) ** 2).astype(np.complex128))
    return np.real(np.sinh(argument) / argument)


def _as_pairs(values: NDArray[np.complexfloating]) -> NDArray[np.floating]:
    return np.ascontiguousarray(values).view(values.real.dtype).reshape(-1, 2)


def _as_complex(pairs: NDArray[np.floating]) -> NDArray[np.complexfloating]:
    values: NDArray[np.complexfloating] = np.ascontiguousarray(pairs).view(
        np.result_type(pairs.dtype, np.complex64)
    )
    return values.reshape(-1)
