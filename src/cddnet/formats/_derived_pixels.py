"""Stored values of derived slices."""

from __future__ import annotations

import numpy as np

from cddnet.errors import FormatError
from cddnet.formats._dicom_frames import Frame
from cddnet.formats._dicom_pixels import Stored
from cddnet.intensity.hu import hu_to_stored
from cddnet.volume import SliceHU

# 32 rows of 512: what is computed of them in float64 fits a processor's cache.
PIECE_PIXELS = 1 << 14


def derived_stored(frame: Frame, stored: Stored, hu: SliceHU) -> Stored:
    """Stored values (H, W) for new HU of a slice, on the source's scale and in its legal range.

    Padding, and pixels whose HU did not change, keep their stored value bit for bit; no other
    pixel becomes padding. Raises FormatError for NaN, infinity or a wrong shape.
    """
    if hu.shape != stored.shape:
        raise FormatError(
            f"{frame.name}: the result is {hu.shape}, its source {stored.shape}; "
            "only slices of the same size can be written as DICOM."
        )
    if not np.isfinite(hu).all():
        raise FormatError(
            f"{frame.name}: the result holds NaN or infinite values; nothing was written. "
            "Check the network's weights and precision."
        )
    result = np.empty_like(stored)
    rows = max(1, PIECE_PIXELS // stored.shape[1])
    for first in range(0, stored.shape[0], rows):
        piece = np.s_[first : first + rows]
        result[piece] = _derived_rows(frame, stored[piece], hu[piece])
    return result


def _derived_rows(frame: Frame, stored: Stored, hu: SliceHU) -> Stored:
    kept = frame.padding_mask(stored)
    if not _round_trips(frame):
        kept |= hu == frame.hu(stored)
    new = hu_to_stored(hu, frame.slope, frame.intercept, frame.legal).astype(stored.dtype)
    new = _out_of_padding(new, frame)
    np.copyto(new, stored, where=kept)
    return new


def _round_trips(frame: Frame) -> bool:
    """Whether each stored value is the nearest one to its own HU, which are float32."""
    largest_hu = max(abs(value * frame.slope + frame.intercept) for value in frame.legal)
    return largest_hu * float(np.finfo(np.float32).eps) < 0.5 * abs(frame.slope)


def _out_of_padding(new: Stored, frame: Frame) -> Stored:
    if frame.padding is None:
        return new
    low, high = frame.padding
    inside = (new >= low) & (new <= high)
    if not inside.any():
        return new
    below, above = low - 1, high + 1
    if below < frame.legal[0] and above > frame.legal[1]:
        raise FormatError(
            f"{frame.name}: every legal value is declared as padding, so no result can be stored; "
            "ask the sending system for a correct PixelPaddingValue."
        )
    wide = new[inside].astype(np.int64)
    nearer_below = (wide - low < high - wide) & (below >= frame.legal[0])
    new[inside] = np.where(nearer_below | (above > frame.legal[1]), below, above)
    return new
