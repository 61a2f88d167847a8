"""The constant that a slice holds where nothing was measured, although no header declares it.

Scanners and converters fill what lies outside the round field of view with one value, such as
-2000, -2048 or -3024 HU, and many files declare another value or none.
"""

# Shapes: H row, W column.

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cddnet.volume import CTVolume, Mask

# Air lies above, even with its noise: what is constant below is no measurement.
NO_AIR_HU = -1100.0

# On the edge of a slice: noise repeats no value so often, and has other values nearby.
_FEWEST_PIXELS = 4
_NEARBY_HU = 50.0

# A slice and the padding of it are asked for one after the other.
_KEPT_SLICES = 2

Values = NDArray[Any]


def background(hu: NDArray[np.floating]) -> Mask:
    """Where a slice (H, W) holds the constant of its edge, connected to the edge: (H, W) bool.

    A measured pixel that happens to have the value lies apart, and stays a measurement.
    """
    edge = edge_of(hu)
    constant = edge_constant(edge, edge)
    if constant is None:
        return np.zeros(hu.shape, np.bool_)
    return touching_edge(hu == constant)


def touching_edge(mask: Mask) -> Mask:
    """The parts of a mask (H, W) that are connected to the edge of the slice."""
    # Here: the processes that decode import this file and never need it.
    from scipy import ndimage

    labels, count = ndimage.label(mask, np.ones((3, 3)))
    touching = np.zeros(count + 1, np.bool_)
    touching[edge_of(labels)] = True
    touching[0] = False
    connected: Mask = touching[labels]
    return connected


def edge_constant(stored: Values, hu: NDArray[np.floating]) -> np.generic | None:
    """The value that the edge of a slice repeats below -1,100 HU; None where it repeats none.

    stored: values (N,) of the edge as the file holds them, which are compared; hu: the same in HU.
    """
    below = hu < NO_AIR_HU
    if not below.any():
        return None
    stored, hu = stored[below], hu[below]
    values, first, counts = np.unique(stored, return_index=True, return_counts=True)
    commonest = int(counts.argmax())
    nearby = np.abs(hu - hu[first[commonest]]) < _NEARBY_HU
    if counts[commonest] < max(_FEWEST_PIXELS, np.count_nonzero(nearby) / 2):
        return None
    constant: np.generic = values[commonest]
    return constant


def with_background(volume: CTVolume) -> CTVolume:
    """The volume with its background as padding, slice by slice.

    The last slices read are kept, because a file that is compressed as a whole cannot go back
    without being unpacked from its start.
    """
    read_slice = lru_cache(maxsize=_KEPT_SLICES)(volume.read_slice)

    def read_padding(index: int) -> Mask:
        return background(read_slice(index))

    return replace(volume, read_slice=read_slice, read_padding=read_padding)


def edge_of(values: Values) -> Values:
    """The outermost pixels of a slice (H, W), each once: (N,)."""
    height, width = values.shape
    parts = [values[0]]
    if height > 1:
        parts += [values[-1], values[1:-1, 0]]
        parts += [values[1:-1, -1]] if width > 1 else []
    return np.concatenate(parts)
