"""What a JPEG, JPEG-LS or JPEG 2000 stream says of its image, read before any decoder sees it.

Decoders of damaged streams end the process or take memory for a size that is in no header.
Sources: ITU-T T.81 annex B, T.87 annex C, T.800 annex A, T.871 clause 10 (JFIF).
"""

from __future__ import annotations

import re
import struct
from typing import NamedTuple

_START, _END, _SCAN, _JPEG_LS = 0xD8, 0xD9, 0xDA, 0xF7
_FRAMES = (frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}) | {_JPEG_LS}
_LOSSLESS = 0xC3
# Tables, comments, restart intervals, application data; all else before a scan is damage.
_SEGMENTS = frozenset({0xC4, 0xCC, 0xDB, 0xDD, 0xF8, 0xFE, *range(0xE0, 0xF0)})
_JFIF = b"JFIF\x00"
_J2K_START = b"\xff\x4f\xff\x51"
# Behind FF, coded data holds 00 or a restart, in JPEG-LS any byte below 80.
_MARKER = re.compile(rb"\xff([^\x00\xd0-\xd7\xff])")
_MARKER_LS = re.compile(rb"\xff([\x80-\xcf\xd8-\xfe])")


class StreamImage(NamedTuple):
    """Image of a stream. bits: of a value, 0 where it was not read."""

    rows: int
    columns: int
    components: int
    bits: int


def image_of(stream: bytes) -> StreamImage | None:
    """What the headers of a stream say; None for one that is not told here.

    Raises ValueError where markers do not follow one another as they must.
    """
    if stream.startswith(_J2K_START):
        right, bottom, left, top = struct.unpack_from(">4I", stream, 8)
        (components,) = struct.unpack_from(">H", stream, 40)
        return StreamImage(bottom - top, right - left, components, 0)
    if not stream.startswith(bytes((0xFF, _START))):
        return None
    return _jpeg(stream)


def _jpeg(stream: bytes) -> StreamImage:
    place, image, kind = 2, None, 0
    while True:
        while stream[place : place + 2] == b"\xff\xff":
            place += 1
        if stream[place : place + 1] != b"\xff" or place + 4 > len(stream):
            raise ValueError(f"no marker at byte {place}")
        marker, length = struct.unpack_from(">xBH", stream, place)
        if marker in _FRAMES and image is None:
            bits, rows, columns, components = struct.unpack_from(">BHHB", stream, place + 4)
            image, kind = StreamImage(rows, columns, components, bits), marker
        elif marker == _SCAN and image is not None:
            _require_sound_scan(stream, place + 2 + length, kind)
            return image
        elif marker not in _SEGMENTS:
            raise ValueError(f"marker {marker:02X} at byte {place}")
        # GDCM ends the process at a version of JFIF that does not exist.
        elif stream.startswith(_JFIF, place + 4) and stream[place + 4 + len(_JFIF)] != 1:
            raise ValueError(f"JFIF of no version at byte {place}")
        place += 2 + length


def _require_sound_scan(stream: bytes, place: int, kind: int) -> None:
    found = (_MARKER_LS if kind == _JPEG_LS else _MARKER).search(stream, place)
    marker = found[1][0] if found else _END
    # One scan holds an image of one component, except where it is sent progressively.
    if marker != _END and (kind in (_LOSSLESS, _JPEG_LS) or marker in _FRAMES):
        raise ValueError(f"marker {marker:02X} in coded data")
