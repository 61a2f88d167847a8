"""NIfTI-1 and NIfTI-2 in one file, plain or gzip compressed; needs nibabel.

A stored array (i, j, k) becomes slices k of rows j and columns i, in the order of the file, with
its axes turned from RAS to LPS. Where another axis is nearer to head and feet, slices follow that
one, and what is written from the volume has the order of the file again (`_planes`). A .nii.gz
cannot be entered in the middle: reading its slices in order unpacks the file once, every step back
unpacks it again from the start.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cddnet.errors import FormatError
from cddnet.formats import ReadOptions, WriteOptions
from cddnet.formats._axes import Axes, axes_from_ras, ras_from_axes, skew_of
from cddnet.formats._finite import REAL_KINDS, finite_hu
from cddnet.formats._optional import optional
from cddnet.formats._planes import in_file_order, oriented, turned_as_asked
from cddnet.formats._sidecar import RESEARCH_USE, new_recorded_files, recorded_beside
from cddnet.formats._stored import CompressedSlices, Layout, plain_slices
from cddnet.volume import CTVolume, SliceHU, Storage

SUFFIXES = (".nii.gz", ".nii")
GZIP = b"\x1f\x8b"
SIZE_1, SIZE_2 = 348, 540
# The four bytes between header and voxels.
NO_EXTENSIONS = b"\0\0\0\0"
MM_PER_UNIT = {"unknown": 1.0, "mm": 1.0, "meter": 1000.0, "micron": 0.001}
ONLY_PIXDIM = (
    "the NIfTI header states no orientation (qform and sform codes are 0): the geometry is its "
    "pixdim only, left and right are not certain"
)
FORMS_DIFFER = "the NIfTI header's qform and sform differ; the sform is used"
# Of xyzt_units: the bits for lengths, and mm.
_SPACE, _MM = 7, 2
_FORMS = (
    *("qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d"),
    *("qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z"),
)


class _Forms(NamedTuple):
    """What the header says of the geometry, kept to be written again.

    shape: (D, H, W) of the file, and axes: what both mean; they hold for no other geometry.
    sizes: of every dimension of the file.  fields: of `_FORMS`, pixdim and xyzt_units.
    """

    shape: tuple[int, int, int]
    axes: Axes
    sizes: tuple[int, ...]
    fields: dict[str, object]


class _Header(NamedTuple):
    layout: Layout
    slope: float
    intercept: float
    forms: _Forms
    notes: tuple[str, ...]
    placed: bool


def recognises(head: bytes) -> bool:
    """The magic at its place, after unpacking if need be."""
    if head.startswith(GZIP):
        try:
            head = zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(head, SIZE_2)
        except zlib.error:
            return False
    return head[344:348] == b"n+1\0" or head[4:8] == b"n+2\0"


def read(path: Path, options: ReadOptions) -> CTVolume:
    """HU as stored with the header's slope and intercept applied; slices are read on demand."""
    header = _header(path)
    read_stored: Callable[[int], NDArray[np.generic]] = (
        CompressedSlices(header.layout) if _is_gzip(path) else plain_slices(header.layout)
    )

    def read_slice(index: int) -> SliceHU:
        return finite_hu(
            read_stored(index),
            f"{path}, slice {index + 1}",
            slope=header.slope,
            intercept=header.intercept,
        )

    stored = CTVolume(
        shape=header.layout.shape,
        read_slice=read_slice,
        notes=header.notes,
        storage=Storage(placed=header.placed, forms=header.forms),
        derivation=recorded_beside(path),
        **header.forms.axes._asdict(),
    )
    if header.placed:
        return oriented(stored, path)
    return turned_as_asked(stored, options.slice_axis, path, fastest_first=True)


def write(volume: CTVolume, path: Path, options: WriteOptions) -> None:
    """HU as float32 with spacing, position and orientation as sform and qform.

    A volume that was read from NIfTI gets the order of axes and both forms of that file.
    """
    shape, axes, planes = in_file_order(volume, path)
    header = optional("nibabel", "nifti").Nifti1Header(endianness="<")
    header.set_data_dtype(np.float32)
    header.set_data_shape(shape[::-1])
    header.set_xyzt_units("mm")
    forms = volume.storage.forms
    if isinstance(forms, _Forms) and (forms.shape, forms.axes) == (shape, axes):
        header.set_data_shape(forms.sizes)
        for name, value in forms.fields.items():
            header[name] = value
    else:
        affine = ras_from_axes(axes)
        header.set_sform(affine, code="scanner")
        # A quaternion cannot hold a skew.
        header.set_qform(affine, code="unknown" if skew_of(axes.direction) else "scanner")
    header.set_slope_inter(1.0, 0.0)
    header["vox_offset"] = SIZE_1 + len(NO_EXTENSIONS)
    header["descrip"] = f"HU; {RESEARCH_USE}".encode()
    packed = path.name.lower().endswith(".gz")
    # Level 1 and no time stamp, like nibabel: noise hardly shrinks further, and the same volume
    # gives the same bytes.
    with (
        new_recorded_files(volume, path) as (temporary,),
        temporary.open("wb") as file,
        gzip.GzipFile("", "wb", 1, file, mtime=0) if packed else nullcontext(file) as out,
    ):
        out.write(header.binaryblock + NO_EXTENSIONS)
        for hu in planes:
            out.write(hu.astype("<f4").tobytes())


def _header(path: Path) -> _Header:
    nibabel = optional("nibabel", "nifti")
    try:
        with gzip.open(path) if _is_gzip(path) else path.open("rb") as file:
            is_second = file.read(8)[4:7] == b"n+2"
            file.seek(0)
            header = (nibabel.Nifti2Header if is_second else nibabel.Nifti1Header).from_fileobj(
                file
            )
        slope, intercept = header.get_slope_inter()
        qform, sform = header.get_qform(coded=True)[0], header.get_sform(coded=True)[0]
        layout = Layout(
            path,
            _shape(path, header.get_data_shape()),
            header.get_data_dtype(),
            int(header.get_data_offset()),
        )
        unit = str(header.get_xyzt_units()[0])
        affine = header.get_best_affine()
        sizes = tuple(map(int, header.get_data_shape()))
        fields = {name: header[name].tolist() for name in _FORMS}
        # Entries of dimensions that are not there may be anything.
        used = header["pixdim"][: len(sizes) + 1].tolist()
        fields["pixdim"] = [*used, *[1.0] * (8 - len(used))]
        fields["xyzt_units"] = int(header["xyzt_units"]) & _SPACE or _MM
    except (PermissionError, FormatError):
        raise
    except Exception as error:
        # The library has errors of its own for each field, and lets others through.
        raise FormatError(
            f"{path}: the NIfTI header is damaged ({error}); export the file again."
        ) from error
    if layout.dtype.kind not in REAL_KINDS:
        raise FormatError(
            f"{path}: the voxels are {layout.dtype}, expected real numbers in HU; save them as "
            "float32 or int16."
        )
    if unit not in MM_PER_UNIT:
        raise FormatError(f"{path}: lengths are in {unit!r}, expected mm; repair the header.")
    with np.errstate(over="ignore"):
        affine[:3] *= MM_PER_UNIT[unit]
    axes = axes_from_ras(str(path), affine)
    notes: tuple[str, ...] = ()
    if qform is None and sform is None:
        notes = (ONLY_PIXDIM,)
    elif qform is not None and sform is not None and not np.allclose(qform, sform, atol=1e-2):
        notes = (FORMS_DIFFER,)
    return _Header(
        layout,
        1.0 if slope is None else float(slope),
        0.0 if intercept is None else float(intercept),
        _Forms(layout.shape, axes, sizes, fields),
        notes,
        placed=qform is not None or sform is not None,
    )


def _shape(path: Path, shape: tuple[int, ...]) -> tuple[int, int, int]:
    """(D, H, W) of stored (W, H), (W, H, D) or (W, H, D, 1)."""
    if len(shape) < 2 or any(length != 1 for length in shape[3:]) or min(shape) < 1:
        raise FormatError(
            f"{path}: the array is {' x '.join(map(str, shape))}, expected three dimensions; "
            "write each time point or channel to a file of its own."
        )
    columns, rows, slices = (*shape, 1)[:3]
    return int(slices), int(rows), int(columns)


def _is_gzip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == GZIP
