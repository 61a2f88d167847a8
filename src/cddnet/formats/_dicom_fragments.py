"""Compressed pixel data as it stands in a file: fragments, and what closes their sequence.

A sequence delimiter closes it (PS3.5 A.4); some systems write zeros in its place, or nothing.
"""

from __future__ import annotations

import os
from typing import BinaryIO, Literal

from pydicom.encaps import get_frame

from cddnet.errors import DicomError

Closing = Literal["delimiter", "zeros", "nothing", "damaged"]

ITEM, DELIMITER = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"
_HEAD_BYTES = 8
_UNDEFINED_LENGTH = 0xFFFFFFFF
_PIECE_BYTES = 1 << 20

OffsetTable = tuple[bytes, bytes]


def closing_of(file: BinaryIO) -> tuple[Closing, int]:
    """What closes the fragments that start where the file stands, and where the last one ends.

    damaged: anything else than a delimiter, zeros before another element, or the end of the file.
    The file is left where it stood.
    """
    start = end = file.tell()
    size = os.fstat(file.fileno()).st_size
    try:
        while True:
            head = file.read(_HEAD_BYTES)
            tag, length = head[:4], int.from_bytes(head[4:], "little")
            if len(head) < _HEAD_BYTES:
                part = not head.strip(b"\0") or DELIMITER.startswith(tag)
                return ("nothing" if part else "damaged"), end
            if tag == ITEM:
                if length == _UNDEFINED_LENGTH or file.tell() + length > size:
                    return "damaged", end
                end = file.seek(length, os.SEEK_CUR)
            elif tag == DELIMITER:
                return "delimiter", end
            elif head.strip(b"\0") or _next_bytes(file) == ITEM:
                return "damaged", end
            else:
                return "zeros", end
    finally:
        file.seek(start)


def _next_bytes(file: BinaryIO) -> bytes:
    """The first four bytes of the next element behind zeros; none where the file ends with them."""
    while piece := file.read(_PIECE_BYTES):
        kept = piece.lstrip(b"\0")
        if kept:
            # An element starts with its group, of which no byte is zero here.
            return (kept + file.read(4))[:4]
    return b""


class _Until:
    """A file that ends at a place before its end."""

    def __init__(self, file: BinaryIO, end: int) -> None:
        self._file, self._end = file, end

    def read(self, size: int = -1, /) -> bytes:
        left = max(0, self._end - self._file.tell())
        return self._file.read(left if size < 0 else min(size, left))

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()


def read_frame(
    file: BinaryIO, frame: int, frames: int, table: OffsetTable | None, *, name: str
) -> bytes:
    """The compressed stream of one frame, of a file that stands at its fragments.

    table: extended offsets and lengths.  Raises DicomError where the fragments are damaged.
    """
    start = file.tell()
    try:
        return get_frame(file, frame, number_of_frames=frames, extended_offsets=table)
    except ValueError:
        file.seek(start)
    closing, end = closing_of(file)
    try:
        if closing == "damaged":
            raise ValueError(closing)
        # pydicom takes the end of a file for the end of the fragments.
        until = _Until(file, end)
        return get_frame(until, frame, number_of_frames=frames, extended_offsets=table)
    except ValueError:
        raise DicomError(
            f"{name}: its compressed pixel data is damaged at byte {end}, where a fragment or the "
            "end of the pixel data was expected; send or export this image again."
        ) from None
