"""What ImageJ writes into the description of a TIFF: how many slices, and what their numbers mean.

Source: the ImageJ user guide (tags of its TIFF files) and `ij.measure.Calibration`.
"""

from __future__ import annotations

import math
import re
from typing import NamedTuple

from cddnet.errors import FormatError

_FIRST_LINE = "ImageJ="
_STRAIGHT_LINE = "0"
# Signed shorts are shown with this offset; in a file with a sign nothing is left to subtract.
_SIGNED = -32768.0
_HU_UNITS = re.compile(r"(gr[ae]y values?|pixels?|hu|hounsfield.*)?", re.IGNORECASE)


class Calibration(NamedTuple):
    """HU = intercept + slope * stored."""

    intercept: float
    slope: float


class Description(NamedTuple):
    """images: slices that the file should hold, 0 where nothing is stated."""

    images: int
    calibration: Calibration | None


def described(text: str, *, signed: bool, where: str) -> Description:
    """Of the description of a file's first page; nothing where ImageJ did not write it.

    signed: whether the numbers are stored with a sign.
    Raises: FormatError for a calibration that yields no HU, or that is no straight line.
    """
    if not text.startswith(_FIRST_LINE):
        return Description(0, None)
    fields = {key.strip(): value.strip() for key, _, value in map(_parted, text.splitlines())}
    images = fields.get("images", "")
    count = int(images) if images.isdecimal() else 0
    return Description(count, _calibration(fields, signed, where))


def _parted(line: str) -> tuple[str, str, str]:
    return line.partition("=")


def _calibration(fields: dict[str, str], signed: bool, where: str) -> Calibration | None:
    if "c0" not in fields or "c1" not in fields:
        return None
    function, unit = fields.get("cf", _STRAIGHT_LINE), fields.get("vunit", "")
    if function != _STRAIGHT_LINE or not _HU_UNITS.fullmatch(unit):
        raise FormatError(
            f"{where}: ImageJ's calibration says '{unit}' by function {function}, expected HU by a "
            "straight line (function 0); calibrate it in HU, or save it as 32-bit HU."
        )
    try:
        found = Calibration(float(fields["c0"]), float(fields["c1"]))
    except ValueError:
        found = Calibration(math.nan, math.nan)
    if not (math.isfinite(found.intercept) and math.isfinite(found.slope) and found.slope):
        raise FormatError(
            f"{where}: ImageJ's calibration is {fields['c0']} + {fields['c1']} x stored, which "
            "gives no HU; calibrate it again, or save it as 32-bit HU."
        )
    if signed and found == (_SIGNED, 1.0):
        return None
    # Stored values as they are: nobody calibrated anything.
    return None if found == (0.0, 1.0) else found
