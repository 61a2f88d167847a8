"""DICOM: CT Image and Enhanced CT series in files, folders and trees of folders.

Pixels stay in the files until a slice is asked for. What cannot be trusted to be CT in HU is
refused; what slice-wise work may ignore becomes a note.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from pydicom import Dataset
from pydicom.uid import UID

from cddnet.errors import CddnetError, DicomError
from cddnet.formats import ReadOptions, WriteOptions, head_of
from cddnet.formats._derived import write_derived
from cddnet.formats._dicom_frames import (
    DicomHeaders,
    Frame,
    Scanned,
    group_item,
    is_enhanced,
    is_lossy,
)
from cddnet.formats._dicom_geometry import stack
from cddnet.formats._dicom_pixels import (
    SEND_AGAIN,
    frame_bytes,
    frame_count,
    quiet,
    read_up_to_pixels,
    require_own_syntax,
    skip_meta_header,
    transfer_syntax_of,
    undecodable,
)
from cddnet.formats._dicom_scan import (
    Series,
    SeriesSummary,
    choose_series,
    find_series,
    looks_like_dicom,
    series_of,
)
from cddnet.formats._dicom_strays import LOCALIZER
from cddnet.formats._dicom_text import text_bytes
from cddnet.formats._dicom_values import image_type, joined_text, rounding_degrees
from cddnet.grid import plane_notes
from cddnet.volume import Acquisition, CTVolume

__all__ = [
    "FOLDER",
    "SUFFIXES",
    "DicomHeaders",
    "data_set_of",
    "list_series",
    "read",
    "read_all",
    "read_files",
    "recognises",
    "write",
]

FOLDER = True
SUFFIXES = (".dcm",)
COARSE_STEP_HU = 4.0
# What may say in a description whose images these are.
NAMING = (
    *("PatientName", "PatientID", "PatientBirthDate", "AccessionNumber"),
    *("StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate"),
)


def recognises(head: bytes) -> bool:
    """True for a DICOM file by its preamble, or by a first tag in files that lack one."""
    return looks_like_dicom(head)


class CodedDataSet(NamedTuple):
    """Where the data set of a file begins, and how it is coded."""

    syntax: UID
    offset: int


@quiet()
def data_set_of(path: Path) -> CodedDataSet:
    """The data set of a file, which may lack preamble, meta header or parts of it.

    Raises DicomError where it is no DICOM or cannot be read.
    """
    if not looks_like_dicom(head_of(path)):
        raise DicomError(f"{path.name}: is no DICOM image; give a CT image.")
    try:
        with path.open("rb") as file:
            offset = skip_meta_header(file)
            file.seek(0)
            syntax = transfer_syntax_of(read_up_to_pixels(file, path.name))
    except (CddnetError, OSError):
        raise
    except Exception as error:
        # Not chained: the library's message may quote a value that names the patient.
        raise DicomError(
            f"{path.name}: its header cannot be read ({type(error).__name__}); {SEND_AGAIN}"
        ) from None
    return CodedDataSet(syntax, offset)


@quiet()
def list_series(path: Path) -> tuple[SeriesSummary, ...]:
    """Every series in a file, folder or tree, the unfit ones with the reason."""
    return tuple(series.summary() for series in find_series(path))


@quiet()
def read(path: Path, options: ReadOptions) -> CTVolume:
    """One CT series of a file, folder or tree.

    options: `series` is a series UID or its ending, `acquisition` the label of one of several
    acquisitions at the same places.
    Raises DicomError for what is no CT in HU or damaged, GeometryError where slices do not belong
    on one grid, SeriesChoiceError where several series match.
    """
    chosen, others = choose_series(path, options.series)
    volume = _volume(chosen, others, options.acquisition)
    return _with_choice(volume)


@quiet()
def read_all(path: Path) -> tuple[CTVolume, ...]:
    """Every CT series of a file, folder or tree, which is looked through once."""
    every = find_series(path)
    return tuple(
        _with_choice(_volume(series, tuple(other for other in every if other is not series)))
        for series in every
        if not series.unfit
    )


@quiet()
def read_files(files: Sequence[Path]) -> CTVolume:
    """One CT series from its files.  Raises as `read`, and where they are of several series."""
    return _volume(series_of(files), ())


def write(volume: CTVolume, path: Path, options: WriteOptions) -> None:
    """Write a derived series: a new folder with a file per slice, one file for Enhanced CT.

    A path that ends in .dcm is the file itself, of an Enhanced CT or a single slice, unless
    `options.folder`. Raises FormatError for a volume that does not come from DICOM or that nothing
    was done to.
    """
    write_derived(volume, path, one_file=path.suffix.lower() == ".dcm" and not options.folder)


def _with_choice(volume: CTVolume) -> CTVolume:
    """The volume, whose note on several acquisitions names the option that takes one of them."""
    labels = volume.acquisition_labels
    # Of images that all lie at one place, none has neighbours to be chosen with.
    if len(set(labels)) == len(labels):
        return volume
    shared = volume.volume_problems[0]
    choice = f"{shared}; --acquisition takes one of these"
    return replace(
        volume,
        notes=tuple(choice if note == shared else note for note in volume.notes),
        volume_problems=(choice, *volume.volume_problems[1:]),
    )


def _volume(chosen: Series, others: Sequence[Series], acquisition: str | None = None) -> CTVolume:
    try:
        return _checked_volume(chosen, others, acquisition)
    except CddnetError:
        raise
    except Exception as error:
        # Not chained: the library's message may quote a value that names the patient.
        raise DicomError(
            f"{chosen.frames[0].path.name}: its header is damaged ({type(error).__name__}); "
            f"{SEND_AGAIN}"
        ) from None


def _checked_volume(chosen: Series, others: Sequence[Series], acquisition: str | None) -> CTVolume:
    enhanced = is_enhanced(chosen.frames[0].header)
    _require_one_object(chosen, enhanced)
    used = {frame.path for frame in chosen.frames}
    for scanned in chosen.files:
        if scanned.path in used:
            _require_pixels(scanned)
    slices = stack(chosen.frames, chosen.uid, acquisition=acquisition)
    notes = (
        *slices.notes,
        *plane_notes(slices.direction),
        *_content_notes(slices.frames),
        *_file_notes([scanned for scanned in chosen.files if scanned.path in used]),
        *_left_out(chosen, others),
    )
    headers = DicomHeaders(frames=slices.frames, enhanced=enhanced)
    thicknesses_mm = tuple(frame.thickness_mm for frame in slices.frames)
    return CTVolume(
        shape=(len(slices.frames), *slices.frames[0].size),
        spacing_mm=slices.spacing_mm,
        read_slice=headers.read_hu,
        read_padding=headers.read_padding if headers.may_be_padded else None,
        origin_mm=slices.origin_mm,
        direction=slices.direction,
        thickness_mm=thicknesses_mm[0] if len(set(thicknesses_mm)) == 1 else None,
        thicknesses_mm=thicknesses_mm if len(set(thicknesses_mm)) > 1 else (),
        positions_mm=slices.positions_mm,
        acquisition_labels=slices.labels,
        series_uid=chosen.uid,
        acquisition=_acquisition(slices.frames[0]),
        headers=headers,
        notes=notes,
        volume_problems=slices.problems,
        skew=slices.skew,
    )


def _require_one_object(series: Series, enhanced: bool) -> None:
    files = {frame.path for frame in series.frames}
    patients = _patients([frame.header for frame in series.frames])
    studies = len({_raw(frame.header, "StudyInstanceUID") for frame in series.frames})
    for found, what in ((patients, "patients"), (studies, "studies")):
        if found > 1:
            raise DicomError(
                f"series {series.uid}: its files belong to {found} {what}; "
                "sort them into one folder each, and check where they came from."
            )
    if not enhanced:
        if any(is_enhanced(frame.header) for frame in series.frames):
            raise DicomError(
                f"series {series.uid}: mixes CT Image and Enhanced CT files; give one kind."
            )
        return
    if len(files) > 1:
        raise DicomError(
            f"series {series.uid}: holds {len(files)} Enhanced CT files, "
            "each with its own slices; give one of the files, or put each into a folder of its own."
        )


def _patients(headers: Iterable[Dataset]) -> int:
    """The least number of patients that these headers name.

    A PatientID must be the same everywhere, also where it is empty. Two names or two birth dates
    are two patients under one PatientID as well; one that is left out says nothing.
    """
    ids, births, named = set[str](), set[str](), dict[str, Dataset]()
    for header in headers:
        ids.add(_raw(header, "PatientID"))
        births.add(_raw(header, "PatientBirthDate"))
        named.setdefault(_raw(header, "PatientName"), header)
    # The same name may be coded twice; blanks, capitals and empty parts are as each sender likes.
    names = {
        re.sub(r"[\s^=]+", " ", joined_text(header, "PatientName")).strip().upper()
        for header in named.values()
    }
    return max(len(ids), len(names - {""}), len(births - {""}))


def _raw(header: Dataset, keyword: str) -> str:
    """A value before it is decoded: a wrong character set would change what is copied later."""
    value = header.get_item(keyword).value if keyword in header else None
    if isinstance(value, bytes):
        return value.strip(b" \x00").decode("latin-1")
    return "" if value is None else str(value).strip(" \x00")


def _acquisition(frame: Frame) -> Acquisition:
    header = frame.header
    recon = group_item(header, frame.index, "CTReconstructionSequence")
    return Acquisition(
        patient_id=joined_text(header, "PatientID"),
        study_uid=joined_text(header, "StudyInstanceUID"),
        frame_of_reference_uid=joined_text(header, "FrameOfReferenceUID"),
        manufacturer=joined_text(header, "Manufacturer"),
        model=joined_text(header, "ManufacturerModelName"),
        kernel=joined_text(header, "ConvolutionKernel") or joined_text(recon, "ConvolutionKernel"),
        collection=joined_text(header, "ClinicalTrialProtocolID"),
        series_description=_nameless_description(header),
    )


def _nameless_description(header: Dataset) -> str:
    """SeriesDescription, "" where it repeats what names the patient; compared as bytes, because
    character sets may be stated wrongly.
    """
    told = b" ".join(text_bytes(header, keyword, header) for keyword in NAMING).lower()
    described = text_bytes(header, "SeriesDescription", header).lower()
    if any(word in described for word in re.findall(rb"[^\s^=,;._-]{3,}", told)):
        return ""
    return joined_text(header, "SeriesDescription")


def _content_notes(frames: Sequence[Frame]) -> list[str]:
    notes = []
    types = Counter(image_type(frame.header) for frame in frames)
    if any(values[:1] == ("DERIVED",) for values in types):
        notes.append("the source is itself a derived image, not the scanner's original")
    if any(len(values) > 2 and values[2] not in ("AXIAL", "VOLUME") for values in types):
        others = sorted({values[2] for values in types if len(values) > 2} - {"AXIAL", "VOLUME"})
        notes.append(f"image type says {', '.join(others)} instead of AXIAL")
    if any(is_lossy(frame.header) for frame in frames):
        notes.append("the images were compressed with loss before they came here")
    if len({frame.thickness_mm for frame in frames}) > 1:
        notes.append("slice thickness differs within the series")
    digits = [frame.rounded_digits for frame in frames if frame.rounded_digits]
    if digits:
        notes.append(
            f"direction cosines have {min(digits)} decimals only, so the orientation is known to "
            f"{rounding_degrees(min(digits)):.1g} degrees"
        )
    step_hu = max(abs(frame.slope) for frame in frames)
    if step_hu > COARSE_STEP_HU:
        notes.append(f"values are stored in steps of {step_hu:g} HU, finer changes are lost")
    if any(str(frame.header.get("BurnedInAnnotation") or "") == "YES" for frame in frames):
        notes.append("text is burned into the images and will be processed with them")
    return notes


def _file_notes(files: Sequence[Scanned]) -> list[str]:
    """What was put right in the files that are used."""
    notes = []
    commas = sorted({keyword for scanned in files for keyword in scanned.commas})
    if commas:
        notes.append(f"decimal commas were read as points in {', '.join(commas)}")
    unclosed = sum(scanned.unclosed for scanned in files)
    if unclosed:
        number = "1 file" if unclosed == 1 else f"{unclosed} files"
        notes.append(f"the compressed pixel data of {number} lacks its closing delimiter")
    return notes


def _left_out(chosen: Series, others: Sequence[Series]) -> list[str]:
    notes = []
    for kind, count in chosen.strays:
        if kind == LOCALIZER:
            notes.append(f"{count} localizer images of the series were left out")
        elif count == 1:
            notes.append(f"1 object of the series that is no slice ({kind}) was left out")
        else:
            notes.append(f"{count} objects of the series that are no slices ({kind}) were left out")
    if others:
        kinds = Counter(series.summary().modality or "unknown" for series in others)
        listed = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
        notes.append(f"other series there were left out: {listed}")
    return notes


def _require_pixels(scanned: Scanned) -> None:
    """Refuse a file without pixels or with too few, before work is spent on its series."""
    header, name = scanned.header, scanned.path.name
    if scanned.deflated:
        return
    if not transfer_syntax_of(header).is_transfer_syntax:
        raise undecodable(name, transfer_syntax_of(header))
    if scanned.pixels is None:
        raise DicomError(f"{name}: there is no pixel data in it; {SEND_AGAIN}")
    there = scanned.file_bytes - scanned.pixels.offset
    if scanned.pixels.length == 0 or there == 0:
        raise DicomError(f"{name}: its pixel data is empty; {SEND_AGAIN}")
    require_own_syntax(scanned.pixels, header, name)
    if scanned.pixels.length is None:
        return
    needed = frame_bytes(header) * frame_count(header)
    if min(there, scanned.pixels.length) < needed:
        raise DicomError(
            f"{name}: its pixel data is cut short, {min(there, scanned.pixels.length)} of "
            f"{needed} bytes are there; {SEND_AGAIN}"
        )
    if scanned.pixels.length >= needed + frame_bytes(header):
        raise DicomError(
            f"{name}: its pixel data is longer than {frame_count(header)} slices of "
            f"{header.Rows} x {header.Columns}; {SEND_AGAIN}"
        )
