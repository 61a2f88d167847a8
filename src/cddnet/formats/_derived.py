"""Writing derived CT: a new series of new objects that a PACS keeps beside their source.

One slice is in memory at a time; the output appears whole or not at all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from pydicom import Dataset, dcmwrite

from cddnet.errors import CddnetError, DicomError, FormatError
from cddnet.formats._atomic import flush, new_file, new_folder
from cddnet.formats._derived_headers import (
    Recipe,
    derivation_codes,
    derive_header,
    derived_header,
    file_meta,
    referenced_series,
    require_identity,
    set_pixel_extremes,
    source_image,
)
from cddnet.formats._derived_pixels import derived_stored
from cddnet.formats._dicom_frames import DicomHeaders, group_item, own_header
from cddnet.formats._dicom_pixels import Stored, frame_bytes, quiet
from cddnet.formats._dicom_text import make_explicit
from cddnet.formats._dicom_values import image_type
from cddnet.volume import CTVolume, SliceHU

LONGEST_ELEMENT = 2**32 - 2


def write_derived(volume: CTVolume, path: Path, *, one_file: bool) -> None:
    """Write a derived volume as classic CT where its source is, as Enhanced CT where that is.

    one_file: `path` is a file (Enhanced CT, or a single slice), otherwise a new folder.
    Raises FormatError for a volume without DICOM source, without any processing step, of another
    shape than its source, or with values that cannot be stored.
    """
    headers = source_of(volume, path)
    if one_file and not headers.enhanced and len(headers.frames) > 1:
        raise FormatError(
            f"{path}: is one file, but the series has {len(headers.frames)} slices; "
            "name a folder instead."
        )
    with quiet():
        require_identity(headers.frames)
        recipe = Recipe(volume.derivation, headers, streamed=True)
    with new_file(path) if one_file else new_folder(path) as target:
        count = 1 if headers.enhanced else len(headers.frames)
        digits = max(4, len(str(count)))
        names = [target / f"{number:0{digits}}.dcm" for number in range(1, count + 1)]
        written: list[_Written] = []
        for item in _written(volume, headers, recipe, [target] if one_file else names):
            written.append(item)
            if count > 1:
                # Here, while the network is at the next slices; all at the end would be waited for.
                flush(item.file)
        for index, item in enumerate(written):
            _put_uids(item, recipe.uids(None if headers.enhanced else index))


class _Written(NamedTuple):
    """A derived file, and how long it is up to its pixels."""

    file: Path
    header_bytes: int


def _put_uids(written: _Written, uids: Mapping[str, str]) -> None:
    """Put UIDs in the place of their stand-ins, which are as long."""
    with written.file.open("rb+") as file:
        header = file.read(written.header_bytes)
        for stand_in, uid in uids.items():
            header = header.replace(stand_in.encode(), uid.encode())
        file.seek(0)
        file.write(header)


def source_of(volume: CTVolume, path: Path) -> DicomHeaders:
    headers = volume.headers
    if not isinstance(headers, DicomHeaders):
        raise FormatError(
            f"{path}: only what was read from DICOM can be written as DICOM, because patient, "
            "study and geometry come from there; choose another format, such as .nii.gz."
        )
    if not volume.derivation:
        raise FormatError(
            f"{path}: nothing was done to this series, so there is no derived one to write; "
            "copy its files instead."
        )
    shape = (len(headers.frames), *headers.frames[0].size)
    if volume.shape != shape:
        raise FormatError(
            f"{path}: the result has the shape {volume.shape}, its DICOM source {shape}; "
            "only a series with the slices of its source can be written as DICOM."
        )
    return headers


def _written(
    volume: CTVolume, headers: DicomHeaders, recipe: Recipe, files: list[Path]
) -> Iterator[_Written]:
    """Each file when it is whole but for its UIDs."""
    if headers.enhanced:
        yield _write_enhanced(volume, headers, recipe, files[0])
        return
    slices = zip(files, volume.slices(), strict=True)
    for index, (file, hu) in enumerate(slices):
        yield _write_classic(headers, recipe, (index, hu), file)


@contextmanager
def damage_named(name: str) -> Iterator[None]:
    """What pydicom raises over a damaged header element, as a sentence without the element."""
    try:
        yield
    except (CddnetError, OSError):
        raise
    except Exception as error:
        raise DicomError(
            f"{name}: its header is damaged and cannot be copied ({type(error).__name__}); "
            "send or export this image again."
        ) from error


def _write_classic(
    headers: DicomHeaders, recipe: Recipe, result: tuple[int, SliceHU], file: Path
) -> _Written:
    index, hu = result
    frame = headers.frames[index]
    stored = derived_stored(frame, headers.read_stored(index), hu)
    with quiet(), damage_named(frame.name):
        header = own_header(frame)
        derive_header(header, recipe)
        header.SOPInstanceUID = recipe.sop_uid(index)
        sources = recipe.sources(index)
        header.SourceImageSequence = [source_image(source, False) for source in sources]
        header.ReferencedSeriesSequence = [referenced_series(sources)]
        header.DerivationCodeSequence = [
            *(header.get("DerivationCodeSequence") or []),
            *derivation_codes(recipe.steps),
        ]
        set_pixel_extremes(header, stored)
        pixels = _little_endian(stored)
        pixels += b"\x00" * (len(pixels) % 2)
        header.add_new("PixelData", "OW", pixels)
        save_dicom(header, file, recipe)
    return _Written(file, file.stat().st_size - len(pixels))


def _write_enhanced(
    volume: CTVolume, headers: DicomHeaders, recipe: Recipe, file: Path
) -> _Written:
    with quiet(), damage_named(headers.frames[0].name):
        header = _enhanced_header(headers, recipe)
        source = headers.frames[0].header
        length = frame_bytes(source) * len(headers.frames)
        padded = length + length % 2
        if padded > LONGEST_ELEMENT:
            raise FormatError(
                f"{len(headers.frames)} frames are too much for one uncompressed DICOM file; "
                "ask for the source as one file per slice."
            )
        save_dicom(header, file, recipe)
    header_bytes = file.stat().st_size
    with file.open("ab") as output:
        output.write(b"\xe0\x7f\x10\x00OW\x00\x00" + padded.to_bytes(4, "little"))
        _append_frames(volume, headers, output)
        output.write(b"\x00" * (padded - length))
    return _Written(file, header_bytes)


def _append_frames(volume: CTVolume, headers: DicomHeaders, output: BinaryIO) -> None:
    for index, hu in enumerate(volume.slices()):
        stored = derived_stored(headers.frames[index], headers.read_stored(index), hu)
        output.write(_little_endian(stored))


def _enhanced_header(headers: DicomHeaders, recipe: Recipe) -> Dataset:
    """Header of the derived Enhanced CT; its frames come in slice order."""
    source = headers.frames[0].header
    header = derived_header(source, recipe)
    header.SOPInstanceUID = recipe.sop_uid(None)
    # The only value 2 that Enhanced CT has (PS3.3 C.8.16.1.2).
    header.ImageType[1] = "PRIMARY"
    description = header.DerivationDescription
    for keyword in ("DerivationDescription", "SmallestImagePixelValue", "LargestImagePixelValue"):
        header.pop(keyword, None)
    header.NumberOfFrames = len(headers.frames)
    references = referenced_series(headers.frames)
    header.ReferencedSeriesSequence = [references]
    evidence = Dataset()
    evidence.StudyInstanceUID = source.StudyInstanceUID
    series = Dataset()
    series.SeriesInstanceUID = references.SeriesInstanceUID
    series.ReferencedSOPSequence = references.ReferencedInstanceSequence
    evidence.ReferencedSeriesSequence = [series]
    header.SourceImageEvidenceSequence = [evidence]
    shared = list(header.get("SharedFunctionalGroupsSequence") or [])
    every = list(header.get("PerFrameFunctionalGroupsSequence") or [])
    groups = [every[frame.index] if every else Dataset() for frame in headers.frames]
    for index, group in enumerate(groups):
        item = Dataset()
        item.DerivationDescription = description
        item.DerivationCodeSequence = derivation_codes(recipe.steps)
        item.SourceImageSequence = [source_image(used, True) for used in recipe.sources(index)]
        earlier = group_item(source, headers.frames[index].index, "DerivationImageSequence")
        if earlier.get("DerivationCodeSequence"):
            kept = list(earlier.DerivationCodeSequence)
            item.DerivationCodeSequence = [*kept, *item.DerivationCodeSequence]
        group.DerivationImageSequence = [item]
    for group in (*shared, *groups):
        for frame_type in group.get("CTImageFrameTypeSequence") or ():
            values = image_type(_as_image_type(frame_type))
            frame_type.FrameType = ["DERIVED", header.ImageType[1], *values[2:]]
    for group in shared:
        group.pop("DerivationImageSequence", None)
    header.PerFrameFunctionalGroupsSequence = groups
    return header


def _as_image_type(frame_type: Dataset) -> Dataset:
    named = Dataset()
    named.ImageType = frame_type.get("FrameType")
    return named


def _little_endian(stored: Stored) -> bytes:
    return np.ascontiguousarray(stored, dtype=stored.dtype.newbyteorder("<")).tobytes()


def save_dicom(header: Dataset, file: Path, recipe: Recipe) -> None:
    make_explicit(header)
    header.file_meta = file_meta(header, recipe.steps[-1].version)
    header.preamble = b"\x00" * 128
    dcmwrite(
        file,
        header,
        implicit_vr=False,
        little_endian=True,
        enforce_file_format=True,
        overwrite=False,
    )
