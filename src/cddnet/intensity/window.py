"""HU <-> display fraction of a window, and 8/16-bit grey levels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def hu_to_window(hu: NDArray[np.floating], window_hu: tuple[float, float]) -> NDArray[np.float32]:
    """Fraction 0..1 of the window (low, high); values outside are clipped."""
    low, high = window_hu
    fraction: NDArray[np.float32] = np.clip((hu - low) / (high - low), 0.0, 1.0).astype(np.float32)
    return fraction


def window_to_hu(
    fraction: NDArray[np.floating], window_hu: tuple[float, float]
) -> NDArray[np.float32]:
    """HU of fractions 0..1 of the window (low, high)."""
    low, high = window_hu
    return (np.asarray(fraction, np.float64) * (high - low) + low).astype(np.float32)


def to_grey(
    hu: NDArray[np.floating], window_hu: tuple[float, float], bits: int
) -> NDArray[np.uint16]:
    """Grey levels 0..2^bits - 1 of the window, rounded to the nearest."""
    grey: NDArray[np.uint16] = np.rint(hu_to_window(hu, window_hu) * (2**bits - 1)).astype(
        np.uint16
    )
    return grey


def from_grey(
    grey: NDArray[np.integer], window_hu: tuple[float, float], bits: int
) -> NDArray[np.float32]:
    """HU of grey levels 0..2^bits - 1 spread over the window."""
    return window_to_hu(grey / (2.0**bits - 1), window_hu)
