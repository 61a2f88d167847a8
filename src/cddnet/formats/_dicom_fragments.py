"""Compressed pixel data as it stands in a file: fragments, and what closes their sequence.

A sequence delimiter closes it (PS3.5 A.4); some systems write zeros in its place, or nothing.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from itertools import islice, pairwise
from typing import BinaryIO, Literal, NamedTuple

from pydicom.encaps import get_frame, parse_basic_offsets

from cddnet.errors import DicomError

Closing = Literal["delimiter", "zeros", "nothing", "damaged"]

ITEM, DELIMITER = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"
_HEAD_BYTES = 8
_UNDEFINED_LENGTH = 0xFFFFFFFF
_PIECE_BYTES = 1 << 20
END_OF_IMAGE = b"\xff\xd9"
# A fragment that ends an image may be padded behind the marker.
_LAST_BYTES = 10
_MOST_FRAGMENTS = 1_000_000

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
        raise damaged_at(end, name) from None


def damaged_at(place: int, name: str) -> DicomError:
    """The refusal of fragments that do not follow one another."""
    return DicomError(
        f"{name}: its compressed pixel data is damaged at byte {place}, where a fragment or the "
        "end of the pixel data was expected; send or export this image again."
    )


class FrameIndex(NamedTuple):
    """Where the fragments of every frame are, so that none is looked for twice."""

    # (start, length) of each, in the order of the file
    fragments: tuple[tuple[int, int], ...]
    # (first, behind the last) of each frame
    spans: tuple[tuple[int, int], ...]

    def read(self, file: BinaryIO, frame: int) -> bytes:
        """The compressed stream of one frame.  Raises IndexError where there is none."""
        first, behind = self.spans[frame]
        parts = []
        for start, length in self.fragments[first:behind]:
            file.seek(start)
            parts.append(file.read(length))
        return b"".join(parts)


def index_frames(
    file: BinaryIO, frames: int, table: OffsetTable | None, *, name: str
) -> FrameIndex:
    """The index of a file of several frames, which stands at its fragments.

    Frames are told apart as pydicom does: by extended offsets, by basic ones, one to a fragment, or
    by the marker that ends each. Raises DicomError where the fragments are damaged.
    """
    closing, end = closing_of(file)
    if closing == "damaged":
        raise damaged_at(end, name)
    try:
        return _index(file, frames, table, end)
    except (KeyError, ValueError, struct.error):
        raise DicomError(
            f"{name}: its compressed pixel data does not hold the {frames} frames that its header "
            "tells of; send or export this image again."
        ) from None


def _index(file: BinaryIO, frames: int, table: OffsetTable | None, end: int) -> FrameIndex:
    offsets = parse_basic_offsets(file)
    begin = file.tell() + _HEAD_BYTES
    if table:
        starts, lengths = (struct.unpack(f"<{len(part) // 8}Q", part) for part in table)
        places = zip((begin + start for start in starts), lengths, strict=True)
        return FrameIndex(tuple(places), tuple((place, place + 1) for place in range(len(starts))))
    fragments = tuple(islice(_fragments(file, end), _MOST_FRAGMENTS))
    if offsets:
        number_of = {start - begin: number for number, (start, _) in enumerate(fragments)}
        firsts = [number_of[offset] for offset in offsets]
    elif len(fragments) == frames:
        firsts = list(range(frames))
    else:
        ends = [number for number, place in enumerate(fragments, 1) if _ends_image(file, place)]
        firsts = [0, *ends[:-1]]
    spans = tuple(pairwise([*firsts, len(fragments)]))
    if len(spans) < frames or any(first >= behind for first, behind in spans):
        raise ValueError(f"{len(spans)} frames")
    return FrameIndex(fragments, spans)


def _fragments(file: BinaryIO, end: int) -> Iterator[tuple[int, int]]:
    """(start, length) of each fragment from where the file stands."""
    while file.tell() < end:
        length = int.from_bytes(file.read(_HEAD_BYTES)[4:], "little")
        yield file.tell(), length
        file.seek(length, os.SEEK_CUR)


def _ends_image(file: BinaryIO, place: tuple[int, int]) -> bool:
    start, length = place
    last = min(length, _LAST_BYTES)
    file.seek(start + length - last)
    return END_OF_IMAGE in file.read(last)
