"""What a JPEG, JPEG-LS or JPEG 2000 stream says of its image, read before any decoder sees it.

Decoders of damaged streams end the process or take memory for a size that is in no header.
Sources: ITU-T T.81 annex B, T.87 annex C, T.800 annex A, T.871 clause 10 (JFIF).
"""

from __future__ import annotations

import re
import struct
from typing import NamedTuple

_START, _SCAN, _JPEG_LS = 0xD8, 0xDA, 0xF7
_END_OF_IMAGE = b"\xff\xd9"
_FRAMES = (frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}) | {_JPEG_LS}
# An image of one component has several scans only where it is sent progressively.
_PROGRESSIVE = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
# Tables, comments, restart intervals, application data; all else before a scan is damage.
_SEGMENTS = frozenset({0xC4, 0xCC, 0xDB, 0xDD, 0xF8, 0xFE, *range(0xE0, 0xF0)})
_JFIF = b"JFIF\x00"
_J2K_START = b"\xff\x4f\xff\x51"
_MOST_TILES = 0xFFFF
_MOST_MARKERS = 10_000
# Any number of FF may stand before a marker.
_FILL = re.compile(rb"\xff*(?=\xff)")
# Behind FF, coded data holds 00 or a restart, in JPEG-LS any byte below 80.
_MARKER = re.compile(rb"\xff([^\x00\xd0-\xd7\xff])")
_MARKER_LS = re.compile(rb"\xff([\x80-\xcf\xd8-\xfe])")


class StreamImage(NamedTuple):
    rows: int
    columns: int
    components: int
    # of a value
    bits: int


def image_of(stream: bytes) -> StreamImage | None:
    """What the headers of a stream say; None for a stream of another kind.

    Raises ValueError or struct.error where markers do not follow one another as they must.
    """
    if stream.startswith(_J2K_START):
        return _jpeg_2000(stream)
    if not stream.startswith(bytes((0xFF, _START))):
        return None
    return _jpeg(stream)


def _jpeg_2000(stream: bytes) -> StreamImage:
    """T.800 A.5.1: SIZ."""
    right, bottom, left, top, width, height, tiles_left, tiles_top = struct.unpack_from(
        ">8I", stream, 8
    )
    (components,) = struct.unpack_from(">H", stream, 40)
    if components == 0 or min(width, height) == 0 or tiles_left > left or tiles_top > top:
        raise ValueError("SIZ of no image")
    tiles = -(-(right - tiles_left) // width) * -(-(bottom - tiles_top) // height)
    if not 0 < tiles <= _MOST_TILES:
        raise ValueError(f"{tiles} tiles")
    depth, across, down = struct.unpack_from("3B", stream, 42)
    if (across, down) != (1, 1):
        raise ValueError(f"samples of {across} x {down} pixels")
    # The first bit says whether values are signed.
    return StreamImage(bottom - top, right - left, components, (depth & 0x7F) + 1)


def _jpeg(stream: bytes) -> StreamImage:
    """Read markers up to the end of the image."""
    place, image, kind, scans, last = 2, None, 0, 0, _START
    for _ in range(_MOST_MARKERS):
        fill = _FILL.match(stream, place)
        place = fill.end() if fill else place
        if image is not None and last == _SCAN and stream[place : place + 2] == _END_OF_IMAGE:
            return image
        if stream[place : place + 1] != b"\xff" or place + 4 > len(stream):
            raise ValueError(f"no marker at byte {place}")
        marker, length = struct.unpack_from(">xBH", stream, place)
        behind = place + 2 + length
        if marker in _FRAMES and image is None:
            bits, rows, columns, components = struct.unpack_from(">BHHB", stream, place + 4)
            image, kind = StreamImage(rows, columns, components, bits), marker
        elif marker == _SCAN and image is not None:
            scans += 1
            if scans > 1 and image.components == 1 and kind not in _PROGRESSIVE:
                raise ValueError(f"a second scan at byte {place}")
            behind = _end_of_scan(stream, behind, kind)
        elif marker not in _SEGMENTS:
            raise ValueError(f"marker {marker:02X} at byte {place}")
        # GDCM ends the process at a version of JFIF that does not exist.
        elif stream.startswith(_JFIF, place + 4) and stream[place + 4 + len(_JFIF)] != 1:
            raise ValueError(f"JFIF of no version at byte {place}")
        place, last = behind, marker
    raise ValueError(f"more than {_MOST_MARKERS} markers")


def _end_of_scan(stream: bytes, place: int, kind: int) -> int:
    """Place of the marker behind coded data."""
    found = (_MARKER_LS if kind == _JPEG_LS else _MARKER).search(stream, place)
    if found is None:
        raise ValueError("coded data without an end")
    return found.start()
