"""Values of a DICOM header, each checked where it is read."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.charset import default_encoding
from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import DataElement, RawDataElement, convert_raw_data_element
from pydicom.multival import MultiValue
from pydicom.tag import Tag
from pydicom.valuerep import PersonName

from cddnet.errors import DicomError
from cddnet.formats._dicom_charset import take_defined_terms_only, without_surrogates
from cddnet.formats._dicom_pixels import SEND_AGAIN

Vector = tuple[float, float, float]

take_defined_terms_only()

# 16-bit values with the steepest slope that means HU stay far below.
LARGEST_HU = 1e8

# RescaleType is free text. US is its defined term for "unspecified" (PS3.3 C.11.1.1.2), which ITK
# and GDCM write into every CT; the others are no units either.
HU_NAMES = frozenset({"HU", "HOUNSFIELD", "HOUNSFIELD UNIT", "HOUNSFIELD UNITS"})
NO_UNIT = frozenset({"", "US", "UNSPECIFIED", "NONE"})

# 1024 characters (ST, the longest text that is looked at) of four bytes.
LONGEST_VALUE_BYTES = 4096
_TEXTS = (str, int, float, PersonName)

# A text of a header is shown only where it cannot be a name.
LOOKS_LIKE_NUMBERS = re.compile(r"(?:[-+0-9.,;: \\/eE]|inf|nan|mm|cm|hu)*", re.IGNORECASE)
LONGEST_SHOWN = 64

# Of lengths and of the product of two direction vectors; what a rounded cosine may add is more.
DIRECTION_TOLERANCE = 1e-3
FEWEST_DIGITS, MOST_DIGITS = 2, 3

# Decoded at once, so that a damaged header is found early.
TEXTS = (
    "SpecificCharacterSet",
    "ImageType",
    "SOPClassUID",
    "SOPInstanceUID",
    "SeriesInstanceUID",
    "FrameOfReferenceUID",
    "Modality",
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
_LOOKED_AT = {Tag(keyword): keyword for keyword in (*TEXTS, *CHECKED)}


def require_short_values(header: Dataset, name: str) -> None:
    """Refuse a header in which a value that is looked at is far longer than it may be."""
    for element in header.values():
        if element.tag in _LOOKED_AT:
            _require_short(element, _LOOKED_AT[element.tag], name)


def _require_short(element: DataElement | RawDataElement, keyword: str, name: str) -> None:
    value = element.value
    if isinstance(value, bytes) and len(value) > LONGEST_VALUE_BYTES:
        raise DicomError(
            f"{name}: its header is damaged, {keyword} holds {len(value)} bytes; {SEND_AGAIN}"
        )


def texts_of(header: Dataset, keyword: str) -> tuple[str, ...]:
    """Values of a header element as text; none where it is absent, empty, or coded as no text.

    A sequence in its place is not shown: what it holds may name a patient.
    """
    tag = tag_for_keyword(keyword)
    element = None if tag is None or tag not in header else header.get_item(tag)
    if isinstance(element, RawDataElement) and isinstance(element.value, bytes):
        # Cut first, because decoding takes a multiple of its memory.
        short = element._replace(value=element.value[:LONGEST_VALUE_BYTES], value_tell=0)
        return _decoded(short, _encoding(header, keyword))
    return _texts(None if element is None else element.value)


@lru_cache(maxsize=1024)
def _decoded(element: RawDataElement, encoding: tuple[str, ...]) -> tuple[str, ...]:
    """Decoded apart from its header, where it stays the bytes it was.

    Slices of a series share most of their texts.
    """
    return _texts(convert_raw_data_element(element, encoding=list(encoding)).value)


def _texts(value: object) -> tuple[str, ...]:
    values = value if isinstance(value, MultiValue) else [value]
    found = (str(item).strip() for item in values if isinstance(item, _TEXTS))
    texts = tuple(map(without_surrogates, found))
    return texts if any(texts) else ()


def _encoding(header: Dataset, keyword: str) -> tuple[str, ...]:
    """Python's names of the character sets of a text."""
    stated = header.original_character_set
    if keyword == "SpecificCharacterSet" or not stated:
        return (default_encoding,)
    return (stated,) if isinstance(stated, str) else tuple(stated)


def joined_text(header: Dataset, keyword: str) -> str:
    """A header value as text, several joined by a backslash, "" where it is absent or empty."""
    return "\\".join(texts_of(header, keyword))


def image_type(header: Dataset) -> tuple[str, ...]:
    """Values of ImageType in capitals, without the blanks some senders leave in them."""
    return tuple(text.upper() for text in texts_of(header, "ImageType"))


def numbers(told: Dataset, keyword: str, count: int, name: str) -> tuple[float, ...] | None:
    """A header's decimal numbers; None where they are absent or empty."""
    if keyword in told:
        _require_short(told.get_item(keyword), keyword, name)
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
        raise DicomError(
            f"{name}: {keyword} is not {expected}{_shown(told, keyword)}; {SEND_AGAIN}"
        )
    return found


def _shown(header: Dataset, keyword: str) -> str:
    """What an element holds, as " but ...", "" where it may be more than numbers."""
    try:
        value = header.get_item(keyword).value
    except (AttributeError, KeyError):
        return ""
    if isinstance(value, bytes):
        value = value.decode("latin-1")
    several = isinstance(value, list | tuple | MultiValue)
    text = "\\".join(map(str, value)) if several else str(value)
    text = text.strip(" \0")
    if not LOOKS_LIKE_NUMBERS.fullmatch(text):
        return ""
    return f" but {text[:LONGEST_SHOWN]}" if text else " but empty"


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
        shown = _shown(header, keyword)
        raise DicomError(f"{name}: {keyword} is not a whole number{shown}; {SEND_AGAIN}") from None


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
    unit = joined_text(told, "RescaleType")
    if unit.upper() not in HU_NAMES | NO_UNIT:
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


def rounding_degrees(digits: int) -> float:
    """How far a direction may be off whose three cosines are rounded to so many decimals."""
    return math.degrees(3**0.5 * 0.5 * 10.0**-digits)


class Directions(NamedTuple):
    """Unit vectors along a row and a column, None where the header gives none.

    digits: decimals of rounded cosines, which were made perpendicular; None where they are exact.
    """

    row: Vector | None = None
    column: Vector | None = None
    digits: int | None = None


def directions(orientation: tuple[float, ...] | None, name: str) -> Directions:
    """Directions of a slice from its six cosines; some systems write these with two digits.

    Raises DicomError unless they are perpendicular unit vectors, apart from such rounding.
    """
    if orientation is None:
        return Directions()
    row, column = np.asarray(orientation[:3]), np.asarray(orientation[3:])
    lengths = float(np.linalg.norm(row)), float(np.linalg.norm(column))
    longer, slant = max(abs(length - 1) for length in lengths), abs(float(row @ column))
    digits = None
    if max(longer, slant) > DIRECTION_TOLERANCE:
        digits = _digits(np.asarray(orientation))
        # Each of three cosines may be wrong by half of its last digit, in both vectors.
        if digits is None or max(2 * longer, slant) > 3**0.5 * 10**-digits:
            raise DicomError(
                f"{name}: ImageOrientationPatient {list(orientation)} is no pair of perpendicular "
                f"unit vectors; {SEND_AGAIN}"
            )
        column = column - (column @ row) / lengths[0] ** 2 * row
    row, column = row / lengths[0], column / float(np.linalg.norm(column))
    return Directions((row[0], row[1], row[2]), (column[0], column[1], column[2]), digits)


def _digits(cosines: NDArray[np.float64]) -> int | None:
    """Decimals that all of them are rounded to; None where they have more."""
    for digits in range(FEWEST_DIGITS, MOST_DIGITS + 1):
        if np.allclose(cosines, np.round(cosines, digits), rtol=0, atol=1e-9):
            return digits
    return None
