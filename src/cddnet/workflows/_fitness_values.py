"""Are the values of a series HU of a body?  One check, in the same words, for every command."""

# Shapes: D slice, H row, W column.

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cddnet.errors import UnfitError
from cddnet.intensity.hu import AIR_HU, air_for_padding
from cddnet.intensity.plausible import POSSIBLE_HU, value_signs
from cddnet.metrics.plausibility import (
    fitting_offsets,
    measured_values,
    not_hu_of_a_body,
    value_levels,
)
from cddnet.volume import CTVolume, Mask, SliceHU
from cddnet.workflows._decoding import decoded_once
from cddnet.workflows._fitness_header import Finding, Kind

SLICES = 5
SMALLEST_SIDE = 64
SOFT_TISSUE_HU = (-200.0, 200.0)
LEAST_TISSUE_OF_DENSE = 0.6
RARE_SHARE = 2e-4

EIGHT_BIT_LEVELS = 256
FEWEST_LEVELS = 16
APART_SHARE = 0.3
CLIPPED_SHARE = 2e-3

# Fat to bone, and soft tissue with its noise, span more.
LEAST_SPAN_HU = 60.0

_GREY_16_BIT = 65535


class Sample(NamedTuple):
    """Slices spread over a series, (H, W) HU with air for padding, and where padding was."""

    slices: list[SliceHU]
    padding: list[Mask]


def sample_of(volume: CTVolume) -> Sample:
    """Up to five slices of a volume."""
    volume, depth = decoded_once(volume), volume.shape[0]
    places = np.linspace(0.1, 0.9, SLICES) * (depth - 1)
    sample = Sample([], [])
    for index in sorted({round(place) for place in places.tolist()}):
        hu, empty = volume.read_slice(index), volume.padding(index)
        sample.slices.append(air_for_padding(hu, empty))
        sample.padding.append(empty)
    return sample


def require_hu(volume: CTVolume, name: str = "this series", *, force: bool = False) -> str:
    """Why the values of a volume are not HU, "" where they can be; for that which needs HU.

    name: of the volume, for the message.
    Raises: UnfitError where they are not HU and nothing forces it.
    """
    reason = why_not_hu(volume)
    if reason and not force:
        raise UnfitError(
            f"{name}: {reason}. Give --force to go on all the same; the result then says so."
        )
    return reason


def why_not_hu(volume: CTVolume) -> str:
    """Why the values of a volume are not HU of a body, in words; "" where they can be."""
    findings = value_findings(sample_of(volume), volume.window_hu)
    return next((finding.text for finding in findings if finding.refuses), "")


def value_findings(
    sample: Sample, window_hu: tuple[float, float] | None = None
) -> Iterator[Finding]:
    """What the values of slices show: that they are no HU, which refuses, or notes.

    window_hu: that they were cut to.
    """
    if min(sample.slices[0].shape) < SMALLEST_SIDE:
        side = f"{SMALLEST_SIDE} pixels"
        yield Finding(Kind.small, False, f"slices below {side} a side cannot be judged")
        return
    if window_hu and (window_hu[1] <= SOFT_TISSUE_HU[0] or window_hu[0] >= SOFT_TISSUE_HU[1]):
        yield Finding(Kind.values, False, "the window leaves no soft tissue to judge the values by")
        return
    shown = sample if window_hu is None else _unclipped(sample, window_hu)
    reason = not_hu_of_a_body(*shown) or _unused(sample, window_hu)
    if reason:
        hints = _hints(sample, window_hu)
        text = "; ".join((f"the values are not HU of a body: {reason}", *hints))
        yield Finding(Kind.values, True, text)
        return
    yield from _doubts(measured_values(*shown))
    yield from _levels(measured_values(*sample))


def _unclipped(sample: Sample, window_hu: tuple[float, float]) -> Sample:
    """The sample with air for black: what was cut off there may be any HU below."""
    black = np.float32(window_hu[0])
    return sample._replace(
        slices=[np.where(hu <= black, np.float32(AIR_HU), hu) for hu in sample.slices]
    )


def _unused(sample: Sample, window_hu: tuple[float, float] | None) -> str:
    """Why a window is not that of the pictures, "" where it may be.

    In its own window, a body spreads over many HU, or from black to white.
    """
    if window_hu is None:
        return ""
    low, high = window_hu
    values = measured_values(*sample)
    grey = values[values > np.float32(low)]
    span_hu = float(np.ptp(grey)) if grey.size else 0.0
    if span_hu < min(LEAST_SPAN_HU, (high - low) / 2):
        return f"all that is not black lies within {span_hu:.3g} HU"
    return ""


def _hints(sample: Sample, window_hu: tuple[float, float] | None) -> Iterator[str]:
    """What values that are no HU look like, and what to do."""
    if window_hu:
        low, high = window_hu
        grey = [(hu - low) / (high - low) * _GREY_16_BIT for hu in sample.slices]
        windows = [f"{-one} {_GREY_16_BIT - one}" for one in fitting_offsets(grey, sample.padding)]
        told = f"here {' or '.join(windows)}" if windows else "such as -160 240"
        yield f"give the --window that the pictures were made with, {told}"
        return
    offsets = fitting_offsets(*sample)
    if offsets:
        looks = " or ".join(f"HU {'+' if one > 0 else '-'} {abs(one)}" for one in offsets)
        yield f"they look like {looks}"
    yield "check RescaleIntercept, RescaleSlope and PixelRepresentation, or that it is CT at all"


def _doubts(values: NDArray[np.float64]) -> Iterator[Finding]:
    signs = value_signs(values)
    if signs.tissue_of_dense < LEAST_TISSUE_OF_DENSE:
        text = (
            f"only {signs.tissue_of_dense:.0%} of what is denser than lung is like soft tissue; "
            "are these HU?"
        )
        yield Finding(Kind.values, False, text)
    rare = float(np.mean((values < POSSIBLE_HU[0]) | (values > POSSIBLE_HU[1])))
    if rare > RARE_SHARE:
        low, high = POSSIBLE_HU
        text = f"{rare:.2%} lie below {low:,.0f} or above {high:,.0f} HU, which no tissue has"
        yield Finding(Kind.values, False, text)


def _levels(values: NDArray[np.float64]) -> Iterator[Finding]:
    levels = value_levels(values)
    coarse = levels.apart > APART_SHARE or levels.at_top > CLIPPED_SHARE
    if FEWEST_LEVELS <= levels.different <= EIGHT_BIT_LEVELS and coarse:
        text = f"only {levels.different} different values: rescaled to 8 bits, fine detail is lost"
        yield Finding(Kind.levels, False, text)
