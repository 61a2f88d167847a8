"""Can these values be HU of a body?  Answered by shares of values alone."""

# Shapes: N value.

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cddnet.intensity.background import NO_AIR_HU

# What is added to HU so that they need no sign, and what is left where it was taken off twice.
ADDED_OFFSETS = (1024, 1000, 32768)
USUAL_OFFSETS = (*ADDED_OFFSETS, -1024, -1000)

# Soft tissue and fat with their noise; what is denser than nearly all bone; what is no tissue.
_TISSUE_HU = 200.0
_DENSE_HU = 700.0
_AIRY_HU = -500.0

# Soft tissue alone spans more, with its noise, fat and vessels; normalised values span less.
_NORMALISED = 10.0
# Noise of air goes below -1,100 HU as often as above -900 HU; even the streaks of metal, and noise
# of a few photons, hardly reach -2,000 HU.
_MIRRORED_HU = -900.0
_NEVER_HU = -2000.0
# Metal ends at 30,710 HU in the extended CT scale (12 bits in steps of 10 HU, from -10,240 HU). A
# negative number that was read without its sign begins at 31,744 HU (2^15 - 1024).
_EXTENDED_HU = 31_000.0
# Beyond it is no tissue, and no noise of a usual dose.
POSSIBLE_HU = (-1300.0, _EXTENDED_HU)


class ValueSigns(NamedTuple):
    """Shares between 0 and 1 of the pixels that hold a measurement.

    airy: below -500 HU.  negative: below water.  tissue: within 200 HU of water.
    Of the pixels above -500 HU: tissue_of_dense within 200 HU of water, between those from -500 to
    -200 HU, dense above 700 HU.
    """

    airy: float
    negative: float
    tissue: float
    tissue_of_dense: float
    between: float
    dense: float


def value_signs(values: NDArray[np.floating]) -> ValueSigns:
    """Where values (N,) lie on the HU scale; all zero for none."""
    if values.size == 0:
        return ValueSigns(0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    body = values[values > _AIRY_HU]
    total, inside = values.size, max(body.size, 1)

    def share(found: NDArray[np.bool_], among: int) -> float:
        return float(np.count_nonzero(found) / among)

    tissue = np.abs(body) < _TISSUE_HU
    return ValueSigns(
        airy=1 - body.size / total,
        negative=share(values < 0, total),
        tissue=share(tissue, total),
        tissue_of_dense=share(tissue, inside),
        between=share(body <= -_TISSUE_HU, inside),
        dense=share(body > _DENSE_HU, inside),
    )


def not_hu(values: NDArray[np.floating], body: NDArray[np.floating] | None = None) -> str:
    """Why values (N,) cannot be HU of a patient or phantom, in words; "" where they can.

    body: those of the largest object, by which a body is judged that is small in its field of view.
    """
    reason = _impossible(values)
    if reason:
        return reason
    signs = value_signs(values)
    if signs.airy > 0.97 or signs.tissue < 0.03:
        small = value_signs(np.zeros(0) if body is None else body)
        if small.tissue_of_dense < 0.5:
            return f"{signs.tissue:.1%} lie near water (within {_TISSUE_HU:g} HU)"
        signs = small._replace(airy=signs.airy)
    if signs.tissue_of_dense < 0.3:
        return f"of those above -500 HU {signs.tissue_of_dense:.0%} lie near water"
    if signs.between > 0.3:
        return f"of those above -500 HU {signs.between:.0%} lie between lung and fat"
    # A field of view inside the body holds no air, but fat, or noise that reaches below water.
    if signs.airy < 0.005 and (
        signs.negative < 0.001 or signs.dense > 0.06 or signs.tissue_of_dense < 0.5
    ):
        return f"none is air, and {signs.negative:.1%} lie below water"
    return ""


def _impossible(values: NDArray[np.floating]) -> str:
    if values.size == 0:
        return "there is none outside of padding"
    low, high = float(values.min()), float(values.max())
    if high - low <= _NORMALISED:
        return f"all lie between {low:.3g} and {high:.3g}, normalised as by (HU + 1024) / 4096"
    below, never = float(np.mean(values < NO_AIR_HU)), float(np.mean(values < _NEVER_HU))
    mirrored = float(np.mean((values > _MIRRORED_HU) & (values <= _AIRY_HU)))
    if below - mirrored > 0.05 or never > 0.02:
        return f"{below:.0%} lie below {NO_AIR_HU:,.0f} HU, and air is at -1,000 HU"
    above = float(np.mean(values > _EXTENDED_HU))
    if above > 0.001:
        return f"{above:.1%} lie above {_EXTENDED_HU:,.0f} HU, where not even metal is"
    return ""
