"""Whether a faster precision stays near float32: on a slice that is drawn, not read."""

# Shapes: B batch, H row, W column.

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np

from cddnet.intensity.normalise import to_hu, to_network
from cddnet.runtime.engines import Images

MEAN_HU, MOST_HU = 0.5, 3.0
TISSUE_HU = -500.0
# The probe is smaller and quieter than what comes; half of what is allowed leaves room for that.
_MARGIN = 0.5
_SIDE = 192


def agrees(fast: Callable[[Images], Images], exact: Callable[[Images], Images]) -> bool:
    """Whether `fast` stays within half of 0.5 HU mean and 3 HU at most of `exact`, over tissue."""
    image = probe()
    difference_hu = np.abs(to_hu(fast(image)) - to_hu(exact(image)))[to_hu(image) > TISSUE_HU]
    mean_hu, most_hu = float(difference_hu.mean()), float(difference_hu.max())
    return mean_hu <= _MARGIN * MEAN_HU and most_hu <= _MARGIN * MOST_HU


@cache
def probe() -> Images:
    """A noisy body with lungs, fat, liver and bone in air, (1, 1, 192, 192) network range."""
    row, column = np.mgrid[-1 : 1 : _SIDE * 1j, -1 : 1 : _SIDE * 1j]
    hu = np.full(row.shape, -1000.0)
    for centre, radius, value in (
        ((0.0, 0.0), 0.9, -100.0),
        ((0.0, 0.0), 0.8, 50.0),
        ((-0.2, -0.4), 0.25, -850.0),
        ((-0.2, 0.4), 0.25, -850.0),
        ((0.45, 0.0), 0.15, 700.0),
        ((0.2, 0.35), 0.2, 120.0),
    ):
        hu[np.hypot(row - centre[0], column - centre[1]) < radius] = value
    noise_hu = np.random.default_rng(0).normal(0.0, 30.0, hu.shape)
    return to_network((hu + noise_hu)[None, None].astype(np.float32))
