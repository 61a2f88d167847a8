"""MetaImage, as ITK, Slicer and elastix write it: .mha in one file, .mhd with a .raw beside it.

The file's axis order is column, row, slice; each group of three numbers in TransformMatrix is the
direction of one axis in LPS. Source: MetaIO documentation and ITK's metaImage.cxx, release 5.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path, PureWindowsPath
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cddnet.errors import FormatError
from cddnet.formats import ReadOptions, WriteOptions
from cddnet.formats._axes import Axes, axes_from_directions
from cddnet.formats._finite import finite_hu
from cddnet.formats._planes import FileOrder, in_file_order, oriented, turned_as_asked
from cddnet.formats._sidecar import RESEARCH_USE, new_recorded_files, recorded_beside
from cddnet.formats._stored import CompressedSlices, Layout, plain_slices
from cddnet.volume import CTVolume, SliceHU

SUFFIXES = (".mha", ".mhd")
HEADER_BYTES = 1 << 16
LOCAL = "LOCAL"
TYPES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}
_ORIENTATIONS = ("TransformMatrix", "Orientation", "Rotation")
TWO_DIMENSIONAL = "the MetaImage has two dimensions: slice spacing and position are not known"
NO_SPACING = "the MetaImage states no spacing: 1 mm is assumed, distances are not to be measured"


class _Header(NamedTuple):
    """fields: key -> value as text; end: bytes up to the end of the last header line."""

    path: Path
    fields: dict[str, str]
    end: int

    def one_of(self, *keys: str, default: str = "") -> str:
        """The value under the first of several names of one thing; refuses a contradiction."""
        found = {key: self.fields[key] for key in keys if key in self.fields}
        if len({tuple(value.split()) for value in found.values()}) > 1:
            raise self.refusal(f"{found} contradict each other")
        return next(iter(found.values()), default)

    def numbers(self, text: str, count: int) -> list[float]:
        try:
            values = [float(word) for word in text.split()]
        except ValueError:
            values = []
        if len(values) != count:
            raise self.refusal(f"{text!r} should be {count} numbers")
        return values

    def integers(self, text: str, count: int) -> list[int]:
        values = self.numbers(text, count)
        if not all(value.is_integer() for value in values):
            raise self.refusal(f"{text!r} should be whole numbers")
        return [int(value) for value in values]

    def is_true(self, *keys: str, default: str) -> bool:
        value = self.one_of(*keys, default=default).lower()
        if value not in ("true", "false"):
            raise self.refusal(f"{keys[0]} = {value} should be True or False")
        return value == "true"

    def refusal(self, problem: str) -> FormatError:
        return FormatError(f"{self.path}: {problem} in the MetaImage header; repair the header.")


def recognises(head: bytes) -> bool:
    """Lines of `Key = value`, among them NDims or ObjectType."""
    return re.match(rb"(\xef\xbb\xbf)?\s*\w+\s*=", head) is not None and (
        re.search(rb"^(?:\xef\xbb\xbf)?(NDims|ObjectType)\s*=", head, re.MULTILINE) is not None
    )


def read(path: Path, options: ReadOptions) -> CTVolume:
    """HU as stored; slices are read on demand, along the axis nearest to head and feet."""
    header = _header(path)
    _refuse_unusual(header)
    dims = header.integers(header.fields.get("NDims", ""), 1)[0]
    if dims not in (2, 3):
        raise header.refusal(f"NDims = {dims} should be 2 or 3")
    sizes = header.integers(header.fields.get("DimSize", ""), dims)
    if min(sizes) < 1:
        raise header.refusal(f"DimSize = {sizes} should be positive")
    width, height, depth = (*sizes, 1)[:3]
    read_stored = _stored_slices(header, (depth, height, width))
    axes, notes = _axes(header, dims)

    def read_slice(index: int) -> SliceHU:
        return finite_hu(read_stored(index), f"{path}, slice {index + 1}")

    stored = CTVolume(
        shape=(depth, height, width),
        read_slice=read_slice,
        notes=notes,
        derivation=recorded_beside(path),
        **axes._asdict(),
    )
    if any(key in header.fields for key in _ORIENTATIONS):
        return oriented(stored, path)
    return turned_as_asked(stored, options.slice_axis, path, fastest_first=True)


def write(volume: CTVolume, path: Path, options: WriteOptions) -> None:
    """HU as float32, in one file or, for .mhd, in a .raw file beside the header.

    The order of axes is that of the file which the volume was read from.
    """
    raw = path.with_suffix(".raw") if path.suffix.lower() == ".mhd" else None
    held = in_file_order(volume, path)
    # A name that is not UTF-8 goes into the header byte for byte, and comes back so.
    text = _header_text(held, LOCAL if raw is None else raw.name)
    header = text.encode(errors="surrogateescape")
    targets = (path,) if raw is None else (raw, path)
    with new_recorded_files(volume, *targets) as temporaries:
        with temporaries[0].open("wb") as voxels:
            if raw is None:
                voxels.write(header)
            for hu in held.planes:
                voxels.write(hu.astype("<f4").tobytes())
        if raw is not None:
            temporaries[-1].write_bytes(header)


def _header_text(held: FileOrder, data_file: str) -> str:
    axes = held.axes
    fields = {
        "ObjectType": "Image",
        "NDims": "3",
        "Comment": f"HU; {RESEARCH_USE}",
        "BinaryData": "True",
        "BinaryDataByteOrderMSB": "False",
        "CompressedData": "False",
        "TransformMatrix": _words(*(x for axis in reversed(axes.direction) for x in axis)),
        "Offset": _words(*axes.origin_mm),
        "CenterOfRotation": "0 0 0",
        "ElementSpacing": _words(*reversed(axes.spacing_mm)),
        "DimSize": _words(*reversed(held.shape)),
        "ElementType": "MET_FLOAT",
        "ElementDataFile": data_file,
    }
    return "".join(f"{key} = {value}\n" for key, value in fields.items())


def _words(*values: float) -> str:
    return " ".join(map(str, values))


def _header(path: Path) -> _Header:
    with path.open("rb") as file:
        start = file.read(HEADER_BYTES)
    fields: dict[str, str] = {}
    end = 0
    while "ElementDataFile" not in fields:
        line_end = start.find(b"\n", end)
        line = start[end : len(start) if line_end < 0 else line_end]
        end = len(start) if line_end < 0 else line_end + 1
        key, equals, value = line.decode("utf-8-sig", "surrogateescape").partition("=")
        if equals:
            fields[key.strip()] = value.strip()
        elif line.strip() or line_end < 0:
            raise FormatError(
                f"{path}: the MetaImage header ends or breaks off before ElementDataFile; "
                "copy or export the file again."
            )
    return _Header(path, fields, end)


def _refuse_unusual(header: _Header) -> None:
    expected = {
        "ObjectType": "Image",
        "BinaryData": "True",
        "ElementNumberOfChannels": "1",
        "ElementToIntensityFunctionSlope": "1",
        "ElementToIntensityFunctionOffset": "0",
    }
    for key, value in expected.items():
        found = header.fields.get(key, value)
        if found.lower() != value.lower() and not _same_number(found, value):
            raise header.refusal(f"{key} = {found} is not supported, expected {value},")


def _same_number(one: str, other: str) -> bool:
    try:
        return float(one) == float(other)
    except ValueError:
        return False


def _stored_slices(
    header: _Header, shape: tuple[int, int, int]
) -> Callable[[int], NDArray[np.generic]]:
    element = header.fields.get("ElementType", "")
    if element not in TYPES:
        raise header.refusal(f"ElementType = {element} should be one of {', '.join(TYPES)}")
    big_endian = header.is_true("BinaryDataByteOrderMSB", "ElementByteOrderMSB", default="False")
    dtype = np.dtype(TYPES[element]).newbyteorder(">" if big_endian else "<")
    data_file = _data_file(header)
    start = header.integers(header.one_of("HeaderSize", default="0"), 1)[0]
    header_end = header.end if data_file == header.path else 0
    if start < -1 or (start and header.is_true("CompressedData", default="False")):
        raise header.refusal(f"HeaderSize = {start} is not supported here")
    if header.is_true("CompressedData", default="False"):
        return CompressedSlices(Layout(data_file, shape, dtype, 0), stream_start=header_end)
    layout = Layout(data_file, shape, dtype, start or header_end)
    found = data_file.stat().st_size
    if start == -1:
        layout = layout._replace(skip_bytes=max(found - layout.total_bytes, header_end))
    elif found > layout.skip_bytes + layout.total_bytes:
        raise FormatError(
            f"{data_file}: holds {found - layout.skip_bytes} bytes, but the header describes "
            f"{layout.total_bytes}; correct DimSize, ElementType or HeaderSize."
        )
    return plain_slices(layout)


def _data_file(header: _Header) -> Path:
    """The file with the voxels: this one, or one beside it and nowhere else."""
    name = header.fields["ElementDataFile"]
    if name.upper() == LOCAL:
        return header.path
    if PureWindowsPath(name).name != name or name in ("", ".."):
        raise header.refusal(
            f"ElementDataFile = {name} should be {LOCAL} or the name of a file in the same folder"
        )
    data_file = header.path.with_name(name)
    if not data_file.is_file():
        raise FormatError(
            f"{header.path}: its voxels should be in {name} in the same folder, which is missing; "
            "keep the two files together (series given as LIST or pattern are not supported)."
        )
    return data_file


def _axes(header: _Header, dims: int) -> tuple[Axes, tuple[str, ...]]:
    notes = (TWO_DIMENSIONAL,) if dims == 2 else ()
    spacing_text = header.one_of("ElementSpacing") or header.one_of("ElementSize")
    if not spacing_text:
        notes = (*notes, NO_SPACING)
    ones = " ".join(["1"] * dims)
    identity = " ".join(f"{value:g}" for value in np.eye(dims).ravel())
    spacing, origin, matrix = np.ones(3), np.zeros(3), np.eye(3)
    spacing[:dims] = header.numbers(spacing_text or ones, dims)
    origin[:dims] = header.numbers(
        header.one_of("Offset", "Position", "Origin", default=" ".join(["0"] * dims)), dims
    )
    transform = header.one_of(*_ORIENTATIONS, default=identity)
    matrix[:dims, :dims] = np.reshape(header.numbers(transform, dims * dims), (dims, dims))
    # The file lists column, row, slice.
    return axes_from_directions(str(header.path), matrix[::-1], spacing[::-1], origin), notes
