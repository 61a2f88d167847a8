"""The patient in a slice: where quality is measured."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

_BODY_HU = -500.0


def body_mask(hu: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Largest object above -500 HU with its holes (lungs, bowel gas) filled: (H, W) bool.

    The table is opened away first; every pixel where no object is found.
    """
    solid = ndimage.binary_opening(hu > _BODY_HU, iterations=3)
    labels, count = ndimage.label(solid)
    if count == 0:
        return np.ones(hu.shape, np.bool_)
    sizes = np.bincount(labels.reshape(-1))[1:]
    filled: NDArray[np.bool_] = ndimage.binary_fill_holes(labels == 1 + int(np.argmax(sizes)))
    return filled
