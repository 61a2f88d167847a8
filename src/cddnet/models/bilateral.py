"""Bilateral filter: each pixel becomes the mean of neighbours that are near in place and in HU.

Source: Tomasi, Manduchi, "Bilateral Filtering for Gray and Color Images", ICCV 1998. Written here
and not taken from scikit-image, whose table of spatial weights (0.26) has a column more than its
window, so that the weights lie on a slant. Nothing is learned.
"""

# Shapes: H row, W column.

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np

from cddnet.models._classical import Classical, Slice, require_positive

_REACH_STD = 3


@dataclass(frozen=True, kw_only=True)
class Config:
    """near_pixels: standard deviation of nearness in place; neighbours end at three of it.
    near_per_noise: the same in HU, over the noise of the slice.

    Defaults: the best of `python benchmarks/tune_classical.py`, validation patients.
    """

    near_pixels: float = 2.0
    near_per_noise: float = 2.0


def build(config: Config) -> Classical:
    """Raises: ModelError for an option that is not above 0."""
    require_positive(**asdict(config))
    return Classical("the bilateral filter", partial(_restore, config))


def _restore(config: Config, hu: Slice, noise_hu: float) -> Slice:
    height, width = hu.shape
    reach = math.ceil(_REACH_STD * config.near_pixels)
    padded = np.pad(hu, reach, mode="edge")
    range_hu = config.near_per_noise * noise_hu
    weights, change = np.zeros_like(hu), np.zeros_like(hu)
    for row, column in np.ndindex(2 * reach + 1, 2 * reach + 1):
        far = ((row - reach) ** 2 + (column - reach) ** 2) / config.near_pixels**2
        if far > _REACH_STD**2:
            continue
        difference = padded[row : row + height, column : column + width] - hu
        weight = np.exp(-0.5 * (far + (difference / range_hu) ** 2))
        weights += weight
        change += weight * difference
    restored: Slice = hu + change / weights
    return restored
