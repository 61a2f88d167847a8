"""Slices of a file that holds them one after the other, plain or compressed.

Nothing stays open between two reads: a forked process would share the position in the file.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Lock
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cddnet.errors import FormatError

PIECE_BYTES = 1 << 20
# No CT slice is larger than 4096 x 4096; a header that says more must not fill the memory.
LARGEST_SLICE_PIXELS = 1 << 24
# Either of the two headers, zlib or gzip, tells which it is.
ZLIB_OR_GZIP = 47


class Layout(NamedTuple):
    """Where the voxels are: shape (D, H, W), rows first; skip_bytes: before the first voxel."""

    path: Path
    shape: tuple[int, int, int]
    dtype: np.dtype[np.generic]
    skip_bytes: int

    @property
    def slice_bytes(self) -> int:
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    @property
    def total_bytes(self) -> int:
        return self.shape[0] * self.slice_bytes


def require_slice_size(where: object, height: int, width: int) -> None:
    """Refuse slices of no pixel, or of so many that reading one would fill the memory."""
    if min(height, width) < 1 or height * width > LARGEST_SLICE_PIXELS:
        raise FormatError(
            f"{where}: a slice of {height} x {width} pixels is none that is read here (1 to "
            f"{LARGEST_SLICE_PIXELS} pixels); repair the header or export the file again."
        )


def plain_slices(layout: Layout) -> Callable[[int], NDArray[np.generic]]:
    """Reader of a stored slice (H, W) by index; refuses a file that is too short."""
    require_slice_size(layout.path, *layout.shape[1:])
    found = layout.path.stat().st_size - layout.skip_bytes
    if found < layout.total_bytes:
        raise _truncated(layout, max(found, 0))

    def read_slice(index: int) -> NDArray[np.generic]:
        start = layout.skip_bytes + range(layout.shape[0])[index] * layout.slice_bytes
        count = math.prod(layout.shape[1:])
        stored = np.fromfile(layout.path, layout.dtype, count, offset=start)
        if stored.size < count:
            raise _truncated(layout, layout.path.stat().st_size - layout.skip_bytes)
        return stored.reshape(layout.shape[1:])

    return read_slice


class CompressedSlices:
    """Reader of a stored slice (H, W) by index, of a zlib or gzip stream from `stream_start` on.

    Reading onwards unpacks every byte once; going back begins at the first byte again. The
    checksum is tested with the last slice.
    """

    def __init__(self, layout: Layout, *, stream_start: int = 0) -> None:
        require_slice_size(layout.path, *layout.shape[1:])
        self._layout, self._stream_start, self._lock = layout, stream_start, Lock()
        self._rewind()

    def __call__(self, index: int) -> NDArray[np.generic]:
        layout = self._layout
        index = range(layout.shape[0])[index]
        start = layout.skip_bytes + index * layout.slice_bytes
        with self._lock, layout.path.open("rb") as file:
            if start < self._unpacked:
                self._rewind()
            file.seek(self._stream_start + self._consumed)
            for _ in self._pieces(file, start - self._unpacked):
                pass
            stored = b"".join(self._pieces(file, layout.slice_bytes))
            if index == layout.shape[0] - 1:
                self._test_checksum(file)
        return np.frombuffer(stored, layout.dtype).reshape(layout.shape[1:])

    def _rewind(self) -> None:
        self._stream = zlib.decompressobj(ZLIB_OR_GZIP)
        self._packed = b""
        self._consumed = self._unpacked = 0

    def _pieces(self, file: BinaryIO, count: int) -> Iterator[bytes]:
        while count:
            piece = self._unpack(file, min(count, PIECE_BYTES))
            if not piece:
                raise _truncated(self._layout, self._unpacked - self._layout.skip_bytes)
            count -= len(piece)
            yield piece

    def _unpack(self, file: BinaryIO, most: int) -> bytes:
        """Up to `most` bytes; none at the end of the stream or of the file."""
        while True:
            if not self._packed:
                self._packed = file.read(PIECE_BYTES)
                self._consumed += len(self._packed)
            offered = self._packed
            if self._stream.eof:
                # A gzip file may hold several streams (pigz, bgzip), or zeros at its end.
                offered = offered.lstrip(b"\0")
                if not offered:
                    return b""
                self._stream = zlib.decompressobj(ZLIB_OR_GZIP)
            try:
                piece = self._stream.decompress(offered, most)
            except zlib.error as error:
                self._rewind()
                raise FormatError(
                    f"{self._layout.path}: the compressed data are damaged ({error}); copy or "
                    "export the file again."
                ) from error
            self._packed = self._stream.unused_data or self._stream.unconsumed_tail
            self._unpacked += len(piece)
            if piece or not offered:
                return piece

    def _test_checksum(self, file: BinaryIO) -> None:
        if not self._stream.eof and not self._unpack(file, 1) and not self._stream.eof:
            raise _truncated(self._layout, self._unpacked - self._layout.skip_bytes)


def _truncated(layout: Layout, found_bytes: int) -> FormatError:
    return FormatError(
        f"{layout.path}: the file ends too early: {layout.shape} voxels of {layout.dtype} need "
        f"{layout.total_bytes} bytes, found {max(found_bytes, 0)}; copy or export it again."
    )
