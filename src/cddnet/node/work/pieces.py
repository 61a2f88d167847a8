"""A denoised series in pieces that become one derived object each, and what tells them apart."""

# Shapes: D slice, H row, W column.

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import asdict, replace
from datetime import datetime
from typing import NamedTuple

from cddnet.errors import FormatError
from cddnet.formats.dicom import DicomHeaders
from cddnet.volume import CTVolume


class Piece(NamedTuple):
    """What becomes one derived object: a slice as a volume (1, H, W), or a whole Enhanced CT."""

    source_uid: str
    sop_class: str
    volume: CTVolume


def pieces(derived: CTVolume) -> Iterator[Piece]:
    """What becomes one derived object each, in slice order."""
    headers = derived.headers
    if not isinstance(headers, DicomHeaders):
        raise FormatError("it came as no DICOM and cannot be sent on; convert the series to DICOM.")
    for index, frame in enumerate(headers.frames):
        sop_class = str(frame.header.SOPClassUID)
        if headers.enhanced:
            yield Piece(frame.sop_uid, sop_class, derived)
            return
        yield Piece(frame.sop_uid, sop_class, _one_slice(derived, index, headers))


def recipe_of(derived: CTVolume) -> str:
    """A hash over all that decides the pixels and UIDs of derived objects, their source apart."""
    steps = [asdict(replace(step, created=None)) for step in derived.derivation]
    for step in steps:
        del step["grows"]
    return hashlib.sha256(repr(steps).encode()).hexdigest()


def _one_slice(volume: CTVolume, index: int, headers: DicomHeaders) -> CTVolume:
    return replace(
        volume,
        shape=(1, *volume.shape[1:]),
        read_slice=lambda _: volume.read_slice(index),
        read_padding=None if volume.read_padding is None else lambda _: volume.padding(index),
        thickness_mm=volume.thickness_of(index),
        thicknesses_mm=(),
        positions_mm=(),
        acquisition_labels=(),
        headers=DicomHeaders(frames=(headers.frames[index],), enhanced=False),
    )


def dated(volume: CTVolume, created: datetime) -> CTVolume:
    """The volume, whose derivation was at that moment, and whose series may still grow."""
    steps = tuple(replace(step, created=created, grows=True) for step in volume.derivation)
    return replace(volume, derivation=steps)


def object_count(volume: CTVolume) -> int:
    """How many pieces a volume from DICOM has."""
    headers = volume.headers
    return 1 if isinstance(headers, DicomHeaders) and headers.enhanced else volume.shape[0]
