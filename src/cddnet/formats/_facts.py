"""What a header says of the series its file belongs to, for rules that choose what is denoised."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

from pydicom import Dataset

from cddnet.errors import DicomError
from cddnet.formats._derived_headers import MANUFACTURER
from cddnet.formats._dicom_frames import group_item
from cddnet.formats._dicom_pixels import SEND_AGAIN, quiet
from cddnet.formats._dicom_scan import read_header
from cddnet.formats._dicom_strays import stray_kind
from cddnet.formats._dicom_values import image_type, joined_text

# No text that rules look at may be longer (PS3.5 6.2); a pattern must not be given a book.
LONGEST_TEXT = 256
MARK_IN_DERIVATION = f"({MANUFACTURER} "


@dataclass(frozen=True, kw_only=True, slots=True)
class HeaderFacts:
    """Texts are "" where the header says nothing; they may name a patient and belong in no log.

    image_type: values in capitals.  ours: whether this package derived the image from another.
    stray: what kind of object this is if it cannot be a slice of a CT series, "" for a slice.
    """

    modality: str = ""
    series_description: str = field(default="", repr=False)
    protocol: str = field(default="", repr=False)
    kernel: str = ""
    body_part: str = ""
    manufacturer: str = ""
    scanner: str = ""
    station: str = field(default="", repr=False)
    thickness_mm: float | None = None
    image_type: tuple[str, ...] = ()
    ours: bool = False
    stray: str = ""


def read_facts(path: Path) -> HeaderFacts:
    """Facts of one DICOM file, read without its pixels.  Raises DicomError where it is none."""
    with quiet():
        scanned = read_header(path)
        if scanned is None:
            raise DicomError(f"{path.name}: is no DICOM image; give a CT image.")
        try:
            return _facts(scanned.header)
        except Exception as error:
            # Not chained: the library's message may quote a value that names the patient.
            raise DicomError(
                f"{path.name}: its header is damaged ({type(error).__name__}); {SEND_AGAIN}"
            ) from None


def _facts(header: Dataset) -> HeaderFacts:
    recon = group_item(header, 0, "CTReconstructionSequence")
    anatomy = group_item(header, 0, "FrameAnatomySequence")
    region = next(iter(anatomy.get("AnatomicRegionSequence") or ()), Dataset())
    measures = group_item(header, 0, "PixelMeasuresSequence")
    return HeaderFacts(
        modality=_text(header, "Modality"),
        series_description=_text(header, "SeriesDescription"),
        protocol=_text(header, "ProtocolName"),
        kernel=_text(header, "ConvolutionKernel") or _text(recon, "ConvolutionKernel"),
        body_part=_text(header, "BodyPartExamined") or _text(region, "CodeMeaning"),
        manufacturer=_text(header, "Manufacturer"),
        scanner=_text(header, "ManufacturerModelName"),
        station=_text(header, "StationName"),
        thickness_mm=_number(header, "SliceThickness") or _number(measures, "SliceThickness"),
        image_type=tuple(value[:LONGEST_TEXT] for value in image_type(header)),
        ours=_is_ours(header),
        stray=stray_kind(header),
    )


def _is_ours(header: Dataset) -> bool:
    """An archive may have dropped either mark, hardly both; a phantom is no derived image."""
    equipment = header.get("ContributingEquipmentSequence") or ()
    if any(_text(item, "Manufacturer") == MANUFACTURER for item in equipment):
        return True
    derived = MARK_IN_DERIVATION in joined_text(header, "DerivationDescription")
    return derived and _text(header, "Manufacturer") != MANUFACTURER


def _text(header: Dataset, keyword: str) -> str:
    return joined_text(header, keyword)[:LONGEST_TEXT]


def _number(header: Dataset, keyword: str) -> float | None:
    try:
        number = float(header.get(keyword))
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) and number >= 0 else None
