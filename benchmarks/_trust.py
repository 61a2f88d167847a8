"""What all measures of trust share: methods, lines of a table, images of a slice.

A method makes a slice (H, W) in HU of another. A measure gives Lines, one figure a method; the
input and the reference are methods of their own, LOW_DOSE and FULL_DOSE.
"""

# Shapes: H row, W column, N image.

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cddnet.training.pairs import FullDoseSlice, calibrated_low_dose

Image = NDArray[np.float32]
Method = Callable[[Image], Image]
Methods = Mapping[str, Method]
Patients = Mapping[str, Sequence[FullDoseSlice]]

LOW_DOSE, FULL_DOSE = "low dose", "full dose"
WINDOW_HU = (-160.0, 240.0)
DOSE_FRACTION = 0.25


class Line(NamedTuple):
    """One measure.  values: method -> figure.  over: what it was measured on."""

    measure: str
    unit: str
    values: dict[str, float]
    over: str


def images_of(
    source: FullDoseSlice, methods: Methods, dose: float = DOSE_FRACTION
) -> dict[str, Image]:
    low = calibrated_low_dose(source, dose)
    made = {name: method(low) for name, method in methods.items()}
    return {LOW_DOSE: low, **made, FULL_DOSE: source.hu}
