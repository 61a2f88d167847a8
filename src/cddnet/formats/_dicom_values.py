"""Values of a DICOM header, each checked where it is read."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from pydicom import Dataset
from pydicom.multival import MultiValue

from cddnet.errors import DicomError
from cddnet.formats._dicom_pixels import SEND_AGAIN

Vector = tuple[float, float, float]

# 16-bit values with the steepest slope that means HU stay far below.
LARGEST_HU = 1e8

# Decoded at once, so that a damaged header is found early.
TEXTS = (
    "SpecificCharacterSet",
    "ImageType",
    "SOPClassUID",
    "SOPInstanceUID",
    "SeriesInstanceUID",
    "FrameOfReferenceUID",
    "Modality",
    "ConvolutionKernel",
    "InstanceNumber",
    "AcquisitionNumber",
    "NumberOfFrames",
    "Rows",
    "Columns",
    "PhotometricInterpretation",
    "BurnedInAnnotation",
    "LossyImageCompression",
)
# Decoded with their checks, which say more of what is wrong.
CHECKED = (
    "StudyInstanceUID",
    "SamplesPerPixel",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "PixelPaddingValue",
    "PixelPaddingRangeLimit",
    "PixelSpacing",
    "SliceThickness",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "GantryDetectorTilt",
    "RescaleSlope",
    "RescaleIntercept",
    "RescaleType",
)


def texts_of(header: Dataset, keyword: str) -> tuple[str, ...]:
    """Values of a header element as text; none where it is absent, empty, or coded as no text.

    A sequence in its place is not shown: what it holds may name a patient.
    """
    value = header.get(keyword)
    values = value if isinstance(value, MultiValue) else [value]
    texts = tuple(str(item).strip() for item in values if isinstance(item, str | int | float))
    return texts if any(texts) else ()


def joined_text(header: Dataset, keyword: str) -> str:
    """A header value as text, several joined by a backslash, "" where it is absent or empty."""
    return "\\".join(texts_of(header, keyword))


def numbers(told: Dataset, keyword: str, count: int, name: str) -> tuple[float, ...] | None:
    """A header's decimal numbers; None where they are absent or empty."""
    try:
        value = told.get(keyword)
        if value is None or value == "" or (not isinstance(value, str | float) and not len(value)):
            return None
        several = isinstance(value, Iterable) and not isinstance(value, str)
        found: tuple[float, ...] = tuple(float(item) for item in (value if several else [value]))
    except (TypeError, ValueError, AttributeError):
        found = ()
    if len(found) != count or not all(map(math.isfinite, found)):
        expected = "a number" if count == 1 else f"{count} numbers"
        raise DicomError(f"{name}: {keyword} is not {expected}; {SEND_AGAIN}")
    return found


def whole(header: Dataset, keyword: str, name: str, default: int | None = None) -> int:
    """A whole number, or the default where it is absent.  Raises DicomError for anything else."""
    try:
        value = header.get(keyword)
        if value is None or value == "":
            if default is not None:
                return default
            raise DicomError(f"{name}: {keyword} is missing; {SEND_AGAIN}")
        return int(value)
    except (TypeError, ValueError):
        raise DicomError(f"{name}: {keyword} is not a whole number; {SEND_AGAIN}") from None


def rescale(told: Dataset, name: str) -> tuple[float, float]:
    """Slope and intercept to HU.  Raises DicomError where the values are no HU."""
    slope = numbers(told, "RescaleSlope", 1, name)
    intercept = numbers(told, "RescaleIntercept", 1, name)
    if slope is None or intercept is None:
        missing = "RescaleSlope" if slope is None else "RescaleIntercept"
        raise DicomError(
            f"{name}: {missing} is missing, so its values cannot be turned into HU; "
            "export the original CT series."
        )
    if slope[0] == 0:
        raise DicomError(
            f"{name}: RescaleSlope is 0, so its values cannot be turned into HU; "
            "export the original CT series."
        )
    if abs(slope[0]) * 0x10000 + abs(intercept[0]) > LARGEST_HU:
        raise DicomError(
            f"{name}: RescaleSlope {slope[0]:g} and RescaleIntercept {intercept[0]:g} give values "
            f"beyond {LARGEST_HU:g}, which are no HU; export the original CT series."
        )
    unit = joined_text(told, "RescaleType") or "HU"
    if unit != "HU":
        raise DicomError(
            f"{name}: its values are in {unit} (RescaleType), not in HU; choose a CT series in HU."
        )
    return slope[0], intercept[0]


def padding(header: Dataset, signed: bool, name: str) -> tuple[int, int] | None:
    """Padding in stored values; some senders write -2000 of signed pixels as unsigned 63536."""
    if header.get("PixelPaddingValue") is None:
        return None
    ends = [whole(header, "PixelPaddingValue", name)]
    if header.get("PixelPaddingRangeLimit") is not None:
        ends.append(whole(header, "PixelPaddingRangeLimit", name))
    unsigned = [end % 0x10000 for end in ends]
    ends = [end - 0x10000 if signed and end >= 0x8000 else end for end in unsigned]
    return min(ends), max(ends)


def directions(
    orientation: tuple[float, ...] | None, name: str
) -> tuple[Vector | None, Vector | None]:
    """Unit vectors along a row and a column.  Raises DicomError unless they are perpendicular."""
    if orientation is None:
        return None, None
    row, column = np.asarray(orientation[:3]), np.asarray(orientation[3:])
    lengths = float(np.linalg.norm(row)), float(np.linalg.norm(column))
    if max(abs(lengths[0] - 1), abs(lengths[1] - 1), abs(float(row @ column))) > 1e-3:
        raise DicomError(
            f"{name}: ImageOrientationPatient {list(orientation)} is no pair of perpendicular unit "
            f"vectors; {SEND_AGAIN}"
        )
    row, column = row / lengths[0], column / lengths[1]
    return (row[0], row[1], row[2]), (column[0], column[1], column[2])
