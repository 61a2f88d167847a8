"""Slices of one series on disk: int16 HU, one after the other, in a .npy that can be mapped."""

# Shapes: D slice, H row, W column.

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cddnet.intensity.hu import air_for_padding
from cddnet.training.manifest import StoredFile, file_sha256, slice_sha256
from cddnet.volume import CTVolume
from cddnet.workflows._appearing import appearing
from cddnet.workflows._pairing import LeftOutError

_LIMITS = np.iinfo(np.int16)

ReadStored = Callable[[int], NDArray[np.int16]]


class Column(NamedTuple):
    """One dose of a series: its file, and the slice of each row."""

    path: Path
    read: ReadStored
    indices: tuple[int, ...]


class Written(NamedTuple):
    """files: one per column.  kept: rows that were written.  repeated: row -> why it was not."""

    files: tuple[StoredFile, ...]
    kept: tuple[int, ...]
    repeated: dict[int, str]


def stored_hu(volume: CTVolume, index: int) -> NDArray[np.int16]:
    """Slice (H, W) rounded to whole HU, padding as air.

    Raises: LeftOutError for values beyond 16 bits; they are not clipped, since a wrong HU would
    teach a wrong HU.
    """
    hu = np.rint(air_for_padding(volume.read_slice(index), volume.padding(index)))
    low, high = float(hu.min()), float(hu.max())
    if not (_LIMITS.min <= low and high <= _LIMITS.max):
        raise LeftOutError(
            "beyond 16 bits", f"its values reach from {low:g} to {high:g} HU, beyond 16 bits"
        )
    return hu.astype("<i2")


def write_rows(columns: Sequence[Column], known: set[str]) -> Written:
    """Write the rows of a series, one file per dose, without those whose pixels were seen before.

    known: SHA-256 of the patient's slices stored so far, of other series.
    Raises: LeftOutError where no slice with tissue is left; then there is no file either.
    """
    seen = set(known)
    kept: list[int] = []
    repeated: dict[int, str] = {}
    digests: list[tuple[str, ...]] = []
    with ExitStack() as stack:
        parts = [stack.enter_context(appearing(column.path)) for column in columns]
        files = [stack.enter_context(part.open("wb")) for part in parts]
        for row in range(len(columns[0].indices)):
            slices = [column.read(column.indices[row]) for column in columns]
            names = tuple(slice_sha256(hu) for hu in slices)
            reason = _repeated(names, seen)
            if reason:
                repeated[row] = reason
                continue
            for file, hu in zip(files, slices, strict=True):
                if not kept:
                    _write_header(file, 0, hu.shape)
                file.write(hu.tobytes())
            kept.append(row)
            digests.append(names)
            seen.update(filter(None, names))
        if not any(map(any, digests)):
            why = next(iter(repeated.values()), "holds no tissue")
            raise LeftOutError("duplicate" if repeated else "unfit", f"each of its slices {why}")
        for file in files:
            file.seek(0)
            _write_header(file, len(kept), slices[0].shape)
    return Written(
        tuple(
            StoredFile(name=column.path.name, sha256=file_sha256(column.path), slices=own)
            for column, own in zip(columns, zip(*digests, strict=True), strict=True)
        ),
        tuple(kept),
        repeated,
    )


def _repeated(names: tuple[str, ...], seen: set[str]) -> str:
    stated = [name for name in names if name]
    if len(set(stated)) < len(stated):
        return "has the same pixels at low and at full dose"
    return "has the pixels of another one of this patient" if seen.intersection(stated) else ""


def _write_header(file: BinaryIO, depth: int, size: tuple[int, ...]) -> None:
    """The head of a .npy, of one length for any number of slices: it is written again at the end.

    Source: NumPy's format, which leaves room for the first axis to grow.
    """
    header = {"descr": "<i2", "fortran_order": False, "shape": (depth, *size)}
    np.lib.format.write_array_header_1_0(file, header)
