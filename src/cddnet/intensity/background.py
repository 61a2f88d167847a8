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


def background(stored: Values, hu: NDArray[np.floating]) -> Mask:
    """Where a slice holds the constant of its edge, connected to the edge: (H, W) bool.

    stored: values (H, W) as the file holds them, which are compared; hu: the same in HU.
    A measured pixel that happens to have the value lies apart, and stays a measurement.
    """
    constant = edge_constant(stored, hu)
    if constant is None:
        return np.zeros(stored.shape, np.bool_)
    # Here: the processes that decode import this file and never need it.
    from scipy import ndimage

    labels, count = ndimage.label(stored == constant, np.ones((3, 3)))
    touching = np.zeros(count + 1, np.bool_)
    touching[_edge(labels)] = True
    touching[0] = False
    mask: Mask = touching[labels]
    return mask


def edge_constant(stored: Values, hu: NDArray[np.floating]) -> np.generic | None:
    """The stored value that the edge of a slice repeats below -1,100 HU; None if there is none."""
    edge, edge_hu = _edge(stored), _edge(hu)
    below = edge_hu < NO_AIR_HU
    if not below.any():
        return None
    edge, edge_hu = edge[below], edge_hu[below]
    values, first, counts = np.unique(edge, return_index=True, return_counts=True)
    commonest = int(counts.argmax())
    nearby = np.abs(edge_hu - edge_hu[first[commonest]]) < _NEARBY_HU
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
        hu = read_slice(index)
        return background(hu, hu)

    return replace(volume, read_slice=read_slice, read_padding=read_padding)


def _edge(values: Values) -> Values:
    """The outermost pixels of a slice (H, W), each once: (N,)."""
    height, width = values.shape
    parts = [values[0]]
    if height > 1:
        parts += [values[-1], values[1:-1, 0]]
        parts += [values[1:-1, -1]] if width > 1 else []
    return np.concatenate(parts)
