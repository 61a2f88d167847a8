"""Insert low-dose noise into a series."""

from __future__ import annotations

import numpy as np

from cddnet import __version__
from cddnet.intensity.hu import air_for_padding
from cddnet.physics.beam import DEFAULT_SCANNER
from cddnet.physics.dose import SCANNER_FLOOR_HU, insert_noise, rng_for
from cddnet.physics.kernel import SOFT_KERNEL
from cddnet.training.slices import calibrated_geometry
from cddnet.volume import CTVolume, Derivation, SliceHU


def simulate_volume(volume: CTVolume, dose_fraction: float, seed: int) -> CTVolume:
    """The volume at a fraction of the calibrated full dose, computed as slices are read.

    The noise is absolute: that of the calibrated scanner, its soft kernel and 3 mm slices, whatever
    the source carries itself. Padding stays; air is cut at the scanner's floor, as in real low-dose
    series.  Raises: GeometryError where pixels are not square.
    """
    geometry = calibrated_geometry(volume)
    scanner, kernel = DEFAULT_SCANNER, SOFT_KERNEL

    def read_slice(index: int) -> SliceHU:
        source, padding = volume.read_slice(index), volume.padding(index)
        rng = rng_for(volume.series_uid, index, seed)
        measured = air_for_padding(source, padding)
        inserted = insert_noise(measured, geometry, rng, dose_fraction=dose_fraction)
        cut = np.maximum(inserted.hu, np.minimum(source, np.float32(SCANNER_FLOOR_HU)))
        result: SliceHU = np.where(padding, source, cut)
        return result

    step = Derivation(
        label=f"simulated {dose_fraction:.0%} dose",
        description=(
            f"Simulated low dose, {dose_fraction:.0%} of the calibrated full dose, quantum and "
            f"electronic noise inserted (Yu 2012), cddnet {__version__}. Research use only."
        ),
        parameters=(
            ("dose_fraction", repr(dose_fraction)),
            ("kernel", repr(kernel)),
            ("scanner", repr(scanner)),
            ("seed", str(seed)),
        ),
        version=__version__,
    )
    return volume.derived(read_slice, step)
