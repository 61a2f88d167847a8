"""Stored numbers -> float32 HU that are all finite."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from cddnet.errors import FormatError
from cddnet.intensity.hu import stored_to_hu

REAL_KINDS = "iuf"


def finite_hu(
    stored: NDArray[np.generic], where: str, *, slope: float = 1.0, intercept: float = 0.0
) -> NDArray[np.float32]:
    """HU of stored values, same shape; raises FormatError where any is NaN or infinite."""
    if stored.dtype == np.float32 and (slope, intercept) == (1.0, 0.0):
        hu = stored.astype(np.float32)
    else:
        with np.errstate(over="ignore", invalid="ignore"):
            hu = stored_to_hu(stored, slope, intercept)
    require_finite([hu], where)
    return hu


def require_finite(slices: Iterable[NDArray[np.floating]], where: str) -> None:
    """Refuse NaN and infinity, which no scanner measures and every network spreads."""
    count = size = 0
    for hu in slices:
        size += hu.size
        count += hu.size - int(np.count_nonzero(np.isfinite(hu)))
    if count:
        raise FormatError(
            f"{where}: {count} of {size} values are NaN or infinite; give them an HU first, "
            "such as that of air."
        )
