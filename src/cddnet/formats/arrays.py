"""NumPy arrays in HU: .npy holds nothing else, .npz holds the geometry too.

A .npz has `hu` (D, H, W) or (H, W), `spacing_mm` (3,) and optionally `origin_mm` (3,), `direction`
(3, 3) and `derivation` (JSON text), all in the order and units of CTVolume.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from cddnet.errors import FormatError
from cddnet.formats import ReadOptions, WriteOptions
from cddnet.formats._atomic import new_file
from cddnet.formats._axes import Axes, axes_from_directions
from cddnet.formats._finite import REAL_KINDS, finite_hu, require_finite
from cddnet.formats._planes import in_file_order, oriented, turned_as_asked
from cddnet.formats._sidecar import new_recorded_files, record, recorded, recorded_beside
from cddnet.formats._stored import require_slice_size
from cddnet.volume import CTVolume, SliceHU, Storage

SUFFIXES = (".npz", ".npy")
NO_GEOMETRY = (
    "a .npy file holds no geometry: spacing is set to 1 mm and orientation is not known; "
    "distances are not to be measured"
)
UNTURNED = ((0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0))
# Noise shrinks to a third at best, and empty slices to a thousandth.
LARGEST_SUSPECT_BYTES, SUSPECT_RATIO = 1 << 30, 200


def recognises(head: bytes) -> bool:
    """The magic of .npy, or of a zip archive whose first member is an .npy."""
    name_end = 30 + int.from_bytes(head[26:28], "little")
    return head.startswith(b"\x93NUMPY") or (
        head.startswith(b"PK\x03\x04") and head[30:name_end].endswith(b".npy")
    )


def read(path: Path, options: ReadOptions) -> CTVolume:
    """HU as they stand; slices of .npy are read on demand, a .npz is read whole."""
    with path.open("rb") as file:
        is_archive = file.read(2) == b"PK"
    stored, is_oriented = _read_npz(path) if is_archive else _read_npy(path)
    if is_oriented:
        return oriented(stored, path)
    return turned_as_asked(stored, options.slice_axis, path)


def write(volume: CTVolume, path: Path, options: WriteOptions) -> None:
    """HU as float32, in the order of the file that the volume was read from.

    A .npy states no orientation: only what came from an array of this kind gets its order again.
    """
    if path.suffix.lower() == ".npy":
        shape, planes = volume.shape, volume.slices()
        if not volume.storage.placed:
            shape, _, planes = in_file_order(volume, path)
        with new_recorded_files(volume, path) as (temporary,), temporary.open("wb") as file:
            _write_stack(file, shape, planes)
        return
    shape, axes, planes = in_file_order(volume, path)
    with (
        new_file(path) as temporary,
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
    ):
        with archive.open("hu.npy", "w", force_zip64=True) as file:
            _write_stack(file, shape, planes)
        texts = {"derivation": np.array(record(volume.derivation))} if volume.derivation else {}
        for name, values in {**axes._asdict(), **texts}.items():
            with archive.open(f"{name}.npy", "w") as file:
                npy_format.write_array(file, np.asarray(values), allow_pickle=False)


def _write_stack(file: IO[bytes], shape: tuple[int, int, int], planes: Iterator[SliceHU]) -> None:
    header = {"descr": "<f4", "fortran_order": False, "shape": tuple(map(int, shape))}
    npy_format.write_array_header_1_0(file, header)
    for hu in planes:
        file.write(hu.astype("<f4").tobytes())


def _read_npy(path: Path) -> tuple[CTVolume, bool]:
    """The array in its own order, and that it states no orientation."""
    try:
        stored = np.load(path, mmap_mode="r", allow_pickle=False)
    except PermissionError:
        raise
    except Exception as error:
        # The library parses the header as Python, which fails in many ways.
        raise _damaged(path, error) from error
    unknown = Axes((1.0, 1.0, 1.0), (0.0, 0.0, 0.0), UNTURNED)
    volume = _volume(path, stored, unknown)
    volume = replace(
        volume,
        notes=(NO_GEOMETRY,),
        storage=Storage(placed=False),
        derivation=recorded_beside(path),
    )
    return volume, False


def _read_npz(path: Path) -> tuple[CTVolume, bool]:
    """The array in its own order, and whether it states an orientation."""
    try:
        _refuse_bomb(path)
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            held = {name: np.asarray(archive[name]) for name in archive.files}
    except (PermissionError, FormatError):
        raise
    except Exception as error:
        raise _damaged(path, error) from error
    if not {"hu", "spacing_mm"} <= held.keys():
        raise FormatError(
            f"{path}: holds {', '.join(held) or 'nothing'}, expected hu, spacing_mm and, if known, "
            "origin_mm and direction; save it again under these names."
        )
    origin, direction = held.get("origin_mm", np.zeros(3)), held.get("direction", UNTURNED)
    try:
        axes = axes_from_directions(str(path), direction, held["spacing_mm"], origin)
    except (ValueError, TypeError) as error:
        raise _damaged(path, error) from error
    volume = _volume(path, held["hu"], axes)
    if "derivation" in held:
        volume = replace(volume, derivation=recorded(str(held["derivation"]), str(path)))
    return volume, "direction" in held


def _refuse_bomb(path: Path) -> None:
    """An archive is read whole, so it must not unpack to what no packed CT would."""
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(_claimed_bytes(archive, member) for member in archive.infolist())
    packed = path.stat().st_size
    if unpacked > max(LARGEST_SUSPECT_BYTES, SUSPECT_RATIO * packed):
        raise FormatError(
            f"{path}: would unpack from {packed} to {unpacked} bytes, which no CT does; save it "
            "again as .npy."
        )


def _claimed_bytes(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> int:
    """Length of a member as the archive tells, or as the header of its array does if that is more.

    An array is made of that size before its values are looked for.
    """
    with archive.open(member) as file:
        if file.read(len(npy_format.MAGIC_PREFIX)) != npy_format.MAGIC_PREFIX:
            return member.file_size
        version = tuple(file.read(2))
        first = version == (1, 0)
        read_header = (
            npy_format.read_array_header_1_0 if first else npy_format.read_array_header_2_0
        )
        shape, _, dtype = read_header(file)
    return max(member.file_size, math.prod(shape) * dtype.itemsize)


def _volume(path: Path, stored: NDArray[np.generic], axes: Axes) -> CTVolume:
    if stored.dtype.kind not in REAL_KINDS:
        raise FormatError(
            f"{path}: the values are {stored.dtype}, expected real numbers in HU; save them as "
            "float32 or int16."
        )
    stack = stored[None] if stored.ndim == 2 else stored
    if stack.ndim != 3 or 0 in stack.shape:
        raise FormatError(
            f"{path}: the array has shape {stored.shape}, expected (slice, row, column) or "
            "(row, column); save each series to a file of its own."
        )
    if stack.dtype.kind == "f":
        require_finite(stack, str(path))

    def read_slice(index: int) -> SliceHU:
        return finite_hu(stack[index], f"{path}, slice {index + 1}")

    depth, height, width = stack.shape
    require_slice_size(path, height, width)
    return CTVolume(shape=(depth, height, width), read_slice=read_slice, **axes._asdict())


def _damaged(path: Path, error: Exception) -> FormatError:
    return FormatError(
        f"{path}: not an array of numbers, or damaged ({error}); save it again without pickling."
    )
