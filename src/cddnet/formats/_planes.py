"""Axial slices out of files whose planes are not axial, and back into the order of the file.

A stack is cut along another axis by way of a temporary file with 4 bytes for each voxel: the planes
are read once in the order of the file, and no more than `_BLOCK_BYTES` of them are in memory.
"""

# Shapes: D plane, H row, W column, as the file holds them.

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryFile
from threading import Lock
from typing import IO, NamedTuple, TypeAlias, TypeVar
from weakref import finalize

import numpy as np

from cddnet.errors import FormatError, GeometryError
from cddnet.formats._axes import Axes, axes_of, skew_of
from cddnet.formats._stored import require_slice_size
from cddnet.grid import plane_notes, plane_of
from cddnet.volume import CTVolume, SliceHU

Order: TypeAlias = tuple[int, int, int]
Value = TypeVar("Value")

AS_STORED: Order = (0, 1, 2)
_BLOCK_BYTES = 1 << 26
# Pixels are not longer than this over their width, and sides not shorter, in slices that a scanner
# makes; reformatted planes cut the other way are.
_LONGEST_PIXEL = 2.0
_SHORTEST_SIDE = 32
# Cosine between rows and columns: one degree, more than rounded direction cosines make.
_LARGEST_SKEW = 0.0175
# Difference of two cosines that is only rounding: axes at 45 degrees keep the order of the file.
_TIE = 1e-3


class FileOrder(NamedTuple):
    """A volume as a file holds it: shape (D, H, W), geometry, and its planes in order."""

    shape: tuple[int, int, int]
    axes: Axes
    planes: Iterator[SliceHU]


def oriented(volume: CTVolume, path: Path) -> CTVolume:
    """A volume in the order of its file, with slices across the axis nearest to head and feet.

    Its notes say what is unusual about its planes and axes.  Planes stay as they are where the file
    holds one alone, and where they are like slices but axial ones would have pixels more than twice
    as long as wide or a side below 32 pixels.
    Raises GeometryError where pixels are no rectangles.
    """
    order = _axial_order(volume)
    held = plane_of(volume.direction)
    turned = turned_to(order, volume, path)
    _require_rectangles(turned.direction, path)
    skew = skew_of(turned.direction)
    notes = [*turned.notes, *skew]
    if order != AS_STORED:
        notes.append(
            f"the file is stored in {held} planes: it is processed in axial slices and written "
            "back in its own order"
        )
    return replace(turned, notes=(*notes, *plane_notes(turned.direction)), skew=skew)


def _require_rectangles(direction: Sequence[Sequence[float]], path: Path) -> None:
    cosine = float(np.dot(direction[1], direction[2]))
    if abs(cosine) > _LARGEST_SKEW:
        raise GeometryError(
            f"{path}: rows and columns meet at {np.degrees(np.arccos(cosine)):.1f} degrees, as "
            "after a sheared registration; resample onto a rectangular grid first."
        )


def turned_to(order: Order, volume: CTVolume, path: Path) -> CTVolume:
    """A volume in the order of its file, whose axes `order` become slice, row and column."""
    if order == AS_STORED:
        return volume
    shape = _picked(volume.shape, order)
    require_slice_size(path, *shape[1:])
    planes = _Planes(volume, order, f"{path}: the file")
    return replace(
        volume,
        shape=shape,
        spacing_mm=_picked(volume.spacing_mm, order),
        direction=_picked(volume.direction, order),
        read_slice=planes.read,
        storage=replace(volume.storage, axes=order),
    )


def turned_as_asked(
    volume: CTVolume, asked: int | None, path: Path, *, fastest_first: bool = False
) -> CTVolume:
    """A volume in the order of a file that states no orientation, with slices along axis `asked`.

    asked: None for the usual one, which is the slowest.  fastest_first: the format counts its axes
    from the fastest.
    Raises FormatError where nobody asked for an axis and two equal sides name another.
    """
    numbers = (2, 1, 0) if fastest_first else AS_STORED
    if volume.shape[0] == 1:
        return volume
    if asked is None:
        odd = _odd_axis(volume.shape)
        if odd:
            likely = numbers[odd]
            sides = " x ".join(str(volume.shape[axis]) for axis in numbers)
            raise FormatError(
                f"{path}: the array is {sides} and states no orientation. Slices are usually along "
                f"axis {numbers[0]}, but here axis {likely} has the odd length. Say which it is "
                f"with --slice-axis {likely} or --slice-axis {numbers[0]}, or save the array with "
                f"its slices along axis {numbers[0]}."
            )
        if len(set(volume.shape)) == 1:
            note = f"all sides are equal: slices are taken along axis {numbers[0]} (--slice-axis)"
            volume = replace(volume, notes=(*volume.notes, note))
        asked = numbers[0]
    if asked not in AS_STORED:
        raise FormatError(f"{path}: the slice axis is {asked}; give 0, 1 or 2.")
    through = numbers[asked]
    down, across = (axis for axis in AS_STORED if axis != through)
    return turned_to((through, down, across), volume, path)


def _odd_axis(shape: tuple[int, int, int]) -> int:
    """The axis along which slices seem to lie: the one that has not the length of two others."""
    first, second, third = shape
    if 1 in (second, third):
        return 1 if second == 1 else 2
    if second != third and first in (second, third):
        return 1 if first == third else 2
    return 0


def in_file_order(volume: CTVolume, path: Path) -> FileOrder:
    """The volume as the file that it came from holds it.  Raises GeometryError for gaps."""
    axes = axes_of(volume, str(path))
    back = sorted(range(3), key=volume.storage.axes.__getitem__)
    order = (back[0], back[1], back[2])
    if order == AS_STORED:
        return FileOrder(volume.shape, axes, volume.slices())
    shape = _picked(volume.shape, order)
    planes = _Planes(volume, order, f"{path}: the volume", path.parent)
    turned = Axes(
        spacing_mm=_picked(axes.spacing_mm, order),
        origin_mm=axes.origin_mm,
        direction=_picked(axes.direction, order),
    )
    return FileOrder(shape, turned, map(planes.read, range(shape[0])))


def _axial_order(volume: CTVolume) -> Order:
    """Axes of the file that become slice, row and column."""
    steep = np.abs(np.asarray(volume.direction)[:, 2])
    through = int(np.argmax(steep > steep.max() - _TIE))
    one, other = (axis for axis in range(3) if axis != through)
    kept = _is_like_a_slice(volume, 1, 2) and not _is_like_a_slice(volume, one, other)
    if through == 0 or volume.shape[0] == 1 or kept:
        return AS_STORED
    down = [abs(volume.direction[axis][1]) for axis in (one, other)]
    return (through, one, other) if down[0] >= down[1] else (through, other, one)


def _is_like_a_slice(volume: CTVolume, one: int, other: int) -> bool:
    """Whether planes along two axes have the size and pixels of slices that a scanner makes."""
    sides = volume.shape[one], volume.shape[other]
    pixel_mm = volume.spacing_mm[one], volume.spacing_mm[other]
    return min(sides) >= _SHORTEST_SIDE and max(pixel_mm) <= _LONGEST_PIXEL * min(pixel_mm)


def _picked(values: Sequence[Value], order: Order) -> tuple[Value, Value, Value]:
    slices, rows, columns = order
    return values[slices], values[rows], values[columns]


class _Planes:
    """Planes of a volume along another axis, out of a temporary file that the first one fills."""

    def __init__(
        self, volume: CTVolume, order: Order, what: str, folder: Path | None = None
    ) -> None:
        """folder: of the temporary file, None for that of the system."""
        self._volume, self._order, self._what, self._folder = volume, order, what, folder
        self._file: IO[bytes] | None = None
        self._lock = Lock()

    def read(self, index: int) -> SliceHU:
        """Plane `index` in the new order, (H, W) float32 HU."""
        through, down, _ = self._order
        depth = self._volume.shape[0]
        width = self._volume.shape[3 - through]
        index = range(self._volume.shape[through])[index]
        with self._lock:
            if self._file is None:
                self._file = self._filled()
        # A mapping of its own each time: no position in the file is shared with another thread or a
        # forked process, and no memory is held.
        start = 4 * index * depth * width
        kept = np.memmap(self._file, np.float32, "r", start, (depth, width))
        return np.array(kept if down == 0 else kept.T, order="C")

    def _filled(self) -> IO[bytes]:
        """A file that holds the cut planes one after the other, as (D, width)."""
        volume, through = self._volume, self._order[0]
        depth, height, width = volume.shape
        together = max(1, _BLOCK_BYTES // (4 * height * width))
        with ExitStack() as stack:
            with self._room():
                file = stack.enter_context(TemporaryFile(dir=self._folder))
            for first in range(0, depth, together):
                block = np.empty((min(together, depth - first), height, width), np.float32)
                for place, plane in enumerate(block):
                    plane[:] = volume.read_slice(first + place)
                cut = np.moveaxis(block, through, 0)
                start, length = 4 * first * cut.shape[2], 4 * depth * cut.shape[2]
                with self._room():
                    for place, part in enumerate(cut):
                        file.seek(start + place * length)
                        file.write(part.tobytes())
            with self._room():
                file.flush()
            finalize(self, stack.pop_all().close)
        return file

    @contextmanager
    def _room(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            needed = 4 * math.prod(self._volume.shape)
            raise FormatError(
                f"{self._what} is cut along another axis, which takes {needed} bytes of temporary "
                f"space ({error.strerror or error}); make room, or set TMPDIR to another folder."
            ) from error
