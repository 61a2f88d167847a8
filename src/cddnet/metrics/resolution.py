"""Resolution: the task transfer function of a rod."""

# Shapes: D slice, H row, W column, B bin of the radius, F frequency.

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

ENOUGH_CNR = 15.0

_BIN_PIXELS = 0.1
_FEWEST_PIXELS = 5.0
_STEP_PER_MM = 0.005
_GROUPS = 8
# In radii of the rod: of its plateau, of the profile beyond the edge, and of the background.
_INNER = 0.6
_PROFILE = 0.8
_BACKGROUND = (1.4, 1.8)


class Rod(NamedTuple):
    """A disc in an image: row and column of its centre, in pixels from 0, and its radius."""

    row: float
    column: float
    radius_mm: float


class TaskTransfer(NamedTuple):
    """Transfer (F,) over frequency (F,) up to Nyquist, for one contrast and noise.

    contrast_hu: rod less background.  noise_hu: standard deviation of the background in one slice.
    slices: that the profile was averaged over.
    """

    frequency_per_mm: Floats
    transfer: Floats
    contrast_hu: float
    noise_hu: float
    slices: int

    @property
    def cnr(self) -> float:
        """Contrast over noise, of one slice."""
        return abs(self.contrast_hu) / self.noise_hu if self.noise_hu > 0 else float("inf")

    @property
    def total_cnr(self) -> float:
        """Of the mean slice, where the noise of the slices is independent."""
        return self.cnr * float(np.sqrt(self.slices))

    @property
    def is_sufficient(self) -> bool:
        """Whether the noise is low enough for the transfer to mean something: total CNR >= 15."""
        return self.total_cnr >= ENOUGH_CNR

    @property
    def f50_per_mm(self) -> float | None:
        """Where the transfer first falls to 50 %; None where it does not below Nyquist."""
        return self._falls_to(0.5)

    @property
    def f10_per_mm(self) -> float | None:
        """Where the transfer first falls to 10 %; None where it does not below Nyquist."""
        return self._falls_to(0.1)

    def _falls_to(self, level: float) -> float | None:
        below = np.flatnonzero(self.transfer < level)
        if below.size == 0 or below[0] == 0:
            return None
        high, low = self.transfer[below[0] - 1 : below[0] + 1].tolist()
        share = (high - level) / (high - low)
        return float(self.frequency_per_mm[below[0] - 1] + share * _STEP_PER_MM)


def task_transfer(hu: NDArray[np.floating], pixel_mm: float, rod: Rod) -> TaskTransfer:
    """Task transfer function of a rod, from its edge.

    Parameters: hu (D, H, W) slices that differ in their noise alone, or (H, W); square pixels.
    Mean slice -> edge profile over the radius in bins of 0.1 pixel -> line spread -> window with
    Hann flanks, flat in the middle half -> modulus of the Fourier transform over its value at zero.
    The pixel's aperture belongs to the system; the bins' and the difference's are taken out.
    For anything but a linear system the result holds for this contrast and noise only.
    Raises: ValueError for a rod without contrast, below five pixels of radius, or whose background
    up to 1.8 radii leaves the image.
    Source: Richard et al., Med. Phys. 39:4115, 2012; Samei et al. (AAPM TG 233), Med. Phys.
    46:e735, 2019.
    """
    stack = hu[None] if hu.ndim == 2 else hu
    window, radius_mm = _around(stack.shape[1:], pixel_mm, rod)
    stack = stack[:, window[0], window[1]].astype(np.float64)
    mean = stack.mean(axis=0)
    ring = _ring(radius_mm, rod)
    contrast_hu = float(mean[radius_mm < _INNER * rod.radius_mm].mean() - mean[ring].mean())
    if contrast_hu == 0:
        raise ValueError("the rod is as bright as its background; its edge cannot be seen")
    edge_mm, line_spread = _line_spread(mean, radius_mm, pixel_mm, rod)
    window_mm = _PROFILE * rod.radius_mm
    line_spread *= _hann_flanks((edge_mm - rod.radius_mm) / window_mm)
    frequency = np.arange(0.0, 0.5 / pixel_mm, _STEP_PER_MM)
    wave = np.exp(-2j * np.pi * frequency[:, None] * (edge_mm - rod.radius_mm))
    spectrum = np.abs(wave @ line_spread)
    aperture = np.sinc(frequency * _BIN_PIXELS * pixel_mm) ** 2
    return TaskTransfer(
        frequency_per_mm=frequency,
        transfer=spectrum / spectrum[0] / aperture,
        contrast_hu=contrast_hu,
        noise_hu=float(np.sqrt(stack[:, ring].var(axis=1, ddof=1).mean())),
        slices=len(stack),
    )


def f50_error_per_mm(hu: NDArray[np.floating], pixel_mm: float, rod: Rod) -> float | None:
    """Standard error of f50 by the noise: jackknife over the independent slices (D, H, W).

    Noise of a soft kernel lies where the transfer is measured, so a CNR of 15 is not yet precise.
    None below four slices, or where a part of them has no f50.
    """
    groups = min(len(hu), _GROUPS)
    if groups < 4:
        return None
    group_of = np.arange(len(hu)) * groups // len(hu)
    found = [
        task_transfer(hu[group_of != left], pixel_mm, rod).f50_per_mm for left in range(groups)
    ]
    known = np.array([f50 for f50 in found if f50 is not None])
    if known.size < groups:
        return None
    return float(np.sqrt((groups - 1) * known.var()))


def centred(hu: NDArray[np.floating], pixel_mm: float, rod: Rod) -> Rod:
    """The rod with the centre that a slice (H, W) shows, to a fraction of a pixel.

    Its centre of mass against the background, within 1.4 radii of the last estimate; the first one
    must lie within 0.3 radii of the truth.  Raises: ValueError as `task_transfer`.
    """
    for _ in range(6):
        window, radius_mm = _around(hu.shape, pixel_mm, rod)
        image = hu[window].astype(np.float64)
        background_hu = image[_ring(radius_mm, rod)].mean()
        mass = np.where(radius_mm < _BACKGROUND[0] * rod.radius_mm, image - background_hu, 0.0)
        rows, columns = np.indices(image.shape)
        total = mass.sum()
        if total == 0:
            raise ValueError("the rod is as bright as its background; its edge cannot be seen")
        row = window[0].start + float((mass * rows).sum() / total)
        column = window[1].start + float((mass * columns).sum() / total)
        rod = Rod(row, column, rod.radius_mm)
    return rod


def _around(
    shape: tuple[int, ...], pixel_mm: float, rod: Rod
) -> tuple[tuple[slice, slice], Floats]:
    """The window that holds a rod and its background, and the radius of each of its pixels."""
    reach = _BACKGROUND[1] * rod.radius_mm / pixel_mm
    if rod.radius_mm < _FEWEST_PIXELS * pixel_mm:
        raise ValueError(
            f"a rod of {rod.radius_mm:g} mm radius has fewer than {_FEWEST_PIXELS:g} pixels of "
            f"{pixel_mm:g} mm in it; measure a larger one"
        )
    ends = []
    for centre, size in zip((rod.row, rod.column), shape, strict=True):
        first, last = int(np.floor(centre - reach)), int(np.ceil(centre + reach))
        if first < 0 or last >= size:
            raise ValueError(
                f"the background of the rod at row {rod.row:.1f}, column {rod.column:.1f} reaches "
                f"{reach:.0f} pixels and leaves the image of {shape[0]} x {shape[1]}"
            )
        ends.append(slice(first, last + 1))
    rows, columns = (
        np.arange(end.start, end.stop) - centre
        for end, centre in zip(ends, (rod.row, rod.column), strict=True)
    )
    return (ends[0], ends[1]), pixel_mm * np.hypot(rows[:, None], columns)


def _ring(radius_mm: Floats, rod: Rod) -> NDArray[np.bool_]:
    inner, outer = (share * rod.radius_mm for share in _BACKGROUND)
    return (radius_mm > inner) & (radius_mm < outer)


def _line_spread(
    mean: Floats, radius_mm: Floats, pixel_mm: float, rod: Rod
) -> tuple[Floats, Floats]:
    """Radii (B,) and the derivative of the edge there (B,), as of a straight edge."""
    step_mm = _BIN_PIXELS * pixel_mm
    first_mm = (1 - _PROFILE) * rod.radius_mm
    bins = int(2 * _PROFILE * rod.radius_mm / step_mm)
    index = np.floor((radius_mm - first_mm) / step_mm).astype(np.intp)
    inside = (index >= 0) & (index < bins)
    pixels = np.bincount(index[inside], minlength=bins)
    filled = pixels > 0
    # Where the pixels of a bin lie, not its middle: around a centre on the grid they are few.
    place_mm, value = (
        np.bincount(index[inside], of[inside], minlength=bins)[filled] / pixels[filled]
        for of in (radius_mm, mean)
    )
    edge = np.interp(first_mm + step_mm * (np.arange(bins) + 0.5), place_mm, value)
    edge_mm: Floats = first_mm + step_mm * np.arange(1, bins, dtype=np.float64)
    # A blurred disc is steeper inside its rim than outside: J1 for long arguments.
    straight: Floats = np.diff(edge) * np.sqrt(edge_mm / rod.radius_mm)
    return edge_mm, straight


def _hann_flanks(place: Floats) -> Floats:
    """1 up to half of the way from the edge (0) to the window's end (-1 and 1), 0 there."""
    flank = np.clip(2 * np.abs(place) - 1, 0.0, 1.0)
    window: Floats = 0.5 * (1 + np.cos(np.pi * flank))
    return window
