"""A DICOM slice that several ask for in turn is decoded once."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from numpy.typing import NDArray

from cddnet.formats.dicom import DicomHeaders
from cddnet.volume import CTVolume

# Decoded slices that wait for a writer, which may not be one that asks for them.
_MOST_KEPT = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class _DecodedOnce(DicomHeaders):
    """Keeps what was decoded until the slice is written: its HU, its padding, then its bits."""

    kept: dict[int, tuple[int, NDArray[Any]]] = field(default_factory=dict)
    uses: int

    def read_stored(self, index: int) -> NDArray[Any]:
        left, stored = self.kept.pop(index, (self.uses, None))
        if stored is None:
            # Not super(): slots give the class another identity.
            stored = DicomHeaders.read_stored(self, index)
        if left > 1:
            self.kept[index] = left - 1, stored
            self.kept.pop(index - _MOST_KEPT, None)
        return stored


def decoded_once(volume: CTVolume) -> CTVolume:
    """The volume with DICOM slices that are decoded once for all that is read of them in turn."""
    headers = volume.headers
    if not isinstance(headers, DicomHeaders):
        return volume
    padded = volume.read_padding is not None
    once = _DecodedOnce(
        frames=headers.frames,
        enhanced=headers.enhanced,
        digests=headers.digests,
        uses=2 + padded,
    )
    return replace(
        volume,
        headers=once,
        read_slice=once.read_hu,
        read_padding=once.read_padding if padded else None,
    )
