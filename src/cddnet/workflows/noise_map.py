"""Noise map: the noise predicted in each pixel of a series, from its own level and its depth."""

# Shapes: H row, W column.

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from cddnet.physics.depth import predicted_noise_hu, radiological_depth
from cddnet.training.slices import filled
from cddnet.volume import CTVolume
from cddnet.workflows._matching import match_source


def noise_reader(volume: CTVolume) -> Callable[[int], NDArray[np.float32]]:
    """Reader of the predicted standard deviation of slices (H, W) in HU, as `cddnet depth` maps it.

    The series' kernel and level are matched here, once; a slice is computed on each call.
    Raises: what matching raises, GeometryError where pixels are not square.
    """
    matched = match_source(volume)

    def read(index: int) -> NDArray[np.float32]:
        geometry = matched.geometry_of(index)
        depth = radiological_depth(filled(volume, index), geometry, scanner=matched.scanner)
        return predicted_noise_hu(depth, geometry, scanner=matched.scanner, kernel=matched.kernel)

    return read
