"""Stored values <-> HU. Nobody else applies a slope or an intercept."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

AIR_HU = -1000.0


def air_for_padding(hu: NDArray[np.float32], padding: NDArray[np.bool_]) -> NDArray[np.float32]:
    """The slice (H, W) with air where nothing was measured, as physics and networks need it."""
    return np.where(padding, np.float32(AIR_HU), hu)


def stored_to_hu(
    stored: NDArray[np.generic], slope: float, intercept: float
) -> NDArray[np.float32]:
    """HU of stored values, any shape. Source: DICOM PS3.3 C.11.1.1.2."""
    hu = stored.astype(np.float64)
    hu *= slope
    hu += intercept
    return hu.astype(np.float32)


def hu_to_stored(
    hu: NDArray[np.floating], slope: float, intercept: float, legal: tuple[int, int]
) -> NDArray[np.int64]:
    """Nearest stored values, clipped to the legal range (lowest, highest), never wrapped."""
    stored = hu.astype(np.float64)
    stored -= intercept
    stored /= slope
    np.rint(stored, out=stored)
    return np.clip(stored, *legal, out=stored).astype(np.int64)
