"""What a header says about each slice, and whether it is CT in HU that may be denoised."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom import Dataset
from pydicom.multival import MultiValue
from pydicom.uid import (
    UID,
    CTImageStorage,
    EnhancedCTImageStorage,
    LegacyConvertedEnhancedCTImageStorage,
)

from cddnet.errors import DicomError, FormatError
from cddnet.formats._dicom_kept import KeptHeader, dataset_of
from cddnet.formats._dicom_pixels import (
    ALWAYS_LOSSY,
    LOSSY,
    SEND_AGAIN,
    PixelElement,
    Stored,
    frame_bytes,
    frame_count,
    read_stored,
    transfer_syntax_of,
    undecodable,
)
from cddnet.formats._stored import require_slice_size
from cddnet.intensity.hu import stored_to_hu
from cddnet.volume import Mask, SliceHU

Vector = tuple[float, float, float]

# Defined terms of ImageType from value 3 on whose pixels are no CT image in HU, or whose noise is
# not that of one: CT localizers and multi-energy images (PS3.3 C.8.2.1.1.1), derived pixel contrast
# (C.8.16.1.4), and the perfusion maps and text pages that scanners store as CT.
MAPS = frozenset({"RCBF", "RCBV", "CBF", "CBV", "MTT", "TTP", "TMAX", "PERFUSION"})
MULTI_ENERGY = frozenset(
    {
        "VMI",
        "MAT_SPECIFIC",
        "MAT_REMOVED",
        "MAT_FRACTIONAL",
        "MAT_MODIFIED",
        "MAT_VALUE_BASED",
        "EFF_ATOMIC_NUM",
        "ELECTRON_DENSITY",
        "ENERGY_PROP_WT",
    }
)
COMPUTED = frozenset(
    {"ADDITION", "SUBTRACTION", "DIVISION", "MULTIPLICATION", "MASKED", "STD_DEVIATION", "QUANTITY"}
    | {"MAXIMUM", "MINIMUM", "MIP", "MINIP", "PROJECTION IMAGE"}
)
# 16-bit values with the steepest slope that means HU stay far below.
LARGEST_HU = 1e8
TEXT_PAGES = frozenset({"SCREEN SAVE", "CT_SOM5 PROT", "DOSE REPORT", "DOSE_INFO"})

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


@dataclass(frozen=True, kw_only=True, slots=True)
class Scanned:
    """One DICOM file without its pixels, and where they are; `pixels` is None where none were seen.

    deflated: the pixels lie inside a compressed data set, so that nothing is known of them yet.
    """

    path: Path
    kept: KeptHeader | Dataset
    pixels: PixelElement | None
    file_bytes: int
    deflated: bool = False

    @property
    def header(self) -> Dataset:
        """The header, made anew each time where only its bytes are kept."""
        return dataset_of(self.kept)

    def text(self, keyword: str) -> str:
        """A header value as text, "" where it is absent or empty."""
        return joined_text(self.header, keyword)


@dataclass(frozen=True, kw_only=True, slots=True)
class Frame:
    """One slice: where its pixels are and what turns them into HU.

    index: of the frame in its file, 0 in a classic CT image.
    legal: lowest and highest stored value that BitsStored and PixelRepresentation allow.
    padding: lowest and highest stored value that mean nothing was measured; None without any.
    position_mm, row_direction, column_direction: None where a lone slice does not say.
    """

    path: Path
    index: int
    kept: KeptHeader | Dataset
    sop_uid: str
    instance_number: str
    size: tuple[int, int]
    spacing_mm: tuple[float, float]
    thickness_mm: float | None
    position_mm: Vector | None
    row_direction: Vector | None
    column_direction: Vector | None
    slope: float
    intercept: float
    gantry_tilt_degrees: float
    acquisition: str
    legal: tuple[int, int]
    padding: tuple[int, int] | None

    @property
    def header(self) -> Dataset:
        """The file's header, made anew each time where only its bytes are kept."""
        return dataset_of(self.kept)

    @property
    def name(self) -> str:
        """File name, with the frame's number where the file holds several."""
        several = frame_count(self.header) > 1
        return f"{self.path.name} frame {self.index + 1}" if several else self.path.name

    def hu(self, stored: Stored) -> SliceHU:
        """HU of this slice's stored values."""
        return stored_to_hu(stored, self.slope, self.intercept)

    def padding_mask(self, stored: Stored) -> Mask:
        """Where this slice's stored values are padding (PS3.3 C.7.5.1.1.2)."""
        if self.padding is None:
            return np.zeros(stored.shape, dtype=np.bool_)
        low, high = self.padding
        return np.asarray((stored >= low) & (stored <= high), dtype=np.bool_)


@dataclass(frozen=True, kw_only=True, slots=True)
class DicomHeaders:
    """Where the slices of a series came from, in slice order. Its data sets must not be changed.

    frames: path, frame index, pixel-less header and values scale of each slice.
    enhanced: whether all frames lie in one Enhanced CT file.
    """

    frames: tuple[Frame, ...]
    enhanced: bool

    def read_stored(self, index: int) -> Stored:
        """Stored values (H, W) of slice `index`."""
        frame = self.frames[index]
        return read_stored(frame.path, frame.index)

    def read_hu(self, index: int) -> SliceHU:
        """Slice `index` (H, W) in HU."""
        return self.frames[index].hu(self.read_stored(index))

    def read_padding(self, index: int) -> Mask:
        """Where slice `index` is padding (H, W)."""
        return self.frames[index].padding_mask(self.read_stored(index))


def own_header(frame: Frame) -> Dataset:
    """A frame's header to be changed, in which all that was checked is decoded, so that it is
    written as it was understood, while everything else is written as the bytes it was.
    """
    header = frame.header
    for keyword in (*TEXTS, *CHECKED):
        header.get(keyword)
    return copy.deepcopy(header) if header is frame.kept else header


def is_localizer(scanned: Scanned) -> bool:
    """True for a scout view: it is CT, but a projection and no slice."""
    return "LOCALIZER" in image_type(scanned.header)[2:]


def is_enhanced(header: Dataset) -> bool:
    """True for Enhanced CT: many slices in one file."""
    return str(header.get("SOPClassUID", "")) == EnhancedCTImageStorage


def image_type(header: Dataset) -> tuple[str, ...]:
    """Values of ImageType, without the blanks some senders leave in them."""
    return tuple(text.upper() for text in texts_of(header, "ImageType"))


def frames_of(scanned: Scanned) -> tuple[Frame, ...]:
    """The slices of a file. Raises DicomError where they are no CT in HU, or nothing to rely on."""
    try:
        return _frames_of(scanned)
    except DicomError:
        raise
    except FormatError as error:
        raise DicomError(str(error)) from None
    except Exception as error:
        # Not chained: the library's message may quote a value that names the patient.
        raise DicomError(
            f"{scanned.path.name}: its header is damaged ({type(error).__name__}); {SEND_AGAIN}"
        ) from None


def _frames_of(scanned: Scanned) -> tuple[Frame, ...]:
    header, name = scanned.header, scanned.path.name
    _require_ct(header, name)
    _require_hu_content(image_type(header), name)
    _require_grey(header, name)
    require_slice_size(name, _whole(header, "Rows", name), _whole(header, "Columns", name))
    if is_enhanced(header):
        _require_one_stack(header, name)
        return tuple(_enhanced_frame(scanned, index) for index in range(frame_count(header)))
    if frame_count(header) > 1:
        raise DicomError(
            f"{name}: holds {frame_count(header)} frames, but its kind (CT Image) has one; "
            "ask for an Enhanced CT export or one file per slice."
        )
    return (_frame(scanned, 0, header),)


def require_pixels(scanned: Scanned) -> None:
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


def is_lossy(header: Dataset) -> bool:
    """True where the header, or a transfer syntax it does not contradict, says pixels were lost."""
    said, syntax = str(header.get("LossyImageCompression") or ""), transfer_syntax_of(header)
    return said == "01" or syntax in ALWAYS_LOSSY or (said != "00" and syntax in LOSSY)


def group_item(header: Dataset, index: int, keyword: str) -> Dataset:
    """Functional group `keyword` of a frame: its own, the shared one, or empty (C.7.6.16)."""
    groups = list(header.get("PerFrameFunctionalGroupsSequence") or [])[index : index + 1]
    for group in [*groups, *(header.get("SharedFunctionalGroupsSequence") or [])]:
        if group.get(keyword):
            return group[keyword].value[0]  # type: ignore[no-any-return]
    return Dataset()


def _require_ct(header: Dataset, name: str) -> None:
    sop_class, modality = joined_text(header, "SOPClassUID"), joined_text(header, "Modality")
    if sop_class == LegacyConvertedEnhancedCTImageStorage:
        raise DicomError(
            f"{name}: is a Legacy Converted Enhanced CT, put together from older images; "
            "send the original CT images instead."
        )
    if sop_class in (CTImageStorage, EnhancedCTImageStorage) and modality == "CT":
        return
    kind = UID(sop_class).name.removesuffix(" Storage") if sop_class else "object of no stated kind"
    raise DicomError(
        f"{name}: is no CT image but: {kind}, modality {modality or 'not stated'}; "
        "choose a CT series."
    )


def _require_hu_content(values: tuple[str, ...], name: str) -> None:
    found = set(values[2:])
    said = "\\".join(values)
    reasons = (
        ({"LOCALIZER"}, "is a localizer (scout view), no slice"),
        (MAPS, "is a perfusion map, or an image of a perfusion study, and no plain CT slice"),
        (MULTI_ENERGY, "was computed from several X-ray energies"),
        (COMPUTED, "was computed from other images"),
        (TEXT_PAGES, "is a page of text stored as CT"),
    )
    for terms, reason in reasons:
        if found & terms:
            raise DicomError(
                f"{name}: {reason} (image type {said}); choose the original axial series."
            )


def _require_grey(header: Dataset, name: str) -> None:
    samples = _whole(header, "SamplesPerPixel", name, default=1)
    photometric = joined_text(header, "PhotometricInterpretation")
    if samples != 1 or photometric not in ("MONOCHROME1", "MONOCHROME2"):
        raise DicomError(
            f"{name}: is a colour or palette image ({samples} samples per pixel, "
            f"{photometric or 'no photometric interpretation'}), no CT in HU; choose a CT series."
        )
    allocated = _whole(header, "BitsAllocated", name)
    stored, high = _whole(header, "BitsStored", name), _whole(header, "HighBit", name)
    if allocated not in (8, 16) or not 1 <= stored <= allocated or high != stored - 1:
        raise DicomError(
            f"{name}: {stored} bits stored in {allocated} with high bit {high} is no layout of a "
            f"CT image; {SEND_AGAIN}"
        )
    if _whole(header, "PixelRepresentation", name) not in (0, 1):
        raise DicomError(f"{name}: PixelRepresentation is neither 0 nor 1; {SEND_AGAIN}")


def _require_one_stack(header: Dataset, name: str) -> None:
    groups = len(header.get("PerFrameFunctionalGroupsSequence") or [])
    if groups != frame_count(header):
        raise DicomError(
            f"{name}: describes {groups} of its {frame_count(header)} frames; {SEND_AGAIN}"
        )
    for keyword, what in (("StackID", "stacks"), ("TemporalPositionIndex", "points in time")):
        values = {
            str(group_item(header, index, "FrameContentSequence").get(keyword) or "")
            for index in range(groups)
        }
        if len(values) > 1:
            raise DicomError(
                f"{name}: its frames form {len(values)} {what}; export each as its own series."
            )


def _enhanced_frame(scanned: Scanned, index: int) -> Frame:
    header = scanned.header
    name = f"{scanned.path.name} frame {index + 1}"
    frame_type = group_item(header, index, "CTImageFrameTypeSequence")
    values = frame_type.get("FrameType")
    _require_hu_content(tuple(str(value).strip().upper() for value in values or ()), name)
    keywords = (
        "PixelMeasuresSequence",
        "PlanePositionSequence",
        "PlaneOrientationSequence",
        "PixelValueTransformationSequence",
        "CTAcquisitionDetailsSequence",
    )
    told = Dataset()
    for keyword in keywords:
        told.update(group_item(header, index, keyword))
    return _frame(scanned, index, told)


def _frame(scanned: Scanned, index: int, told: Dataset) -> Frame:
    """`told`: what says slope, position and the like, the header or the frame's groups."""
    header = scanned.header
    several = frame_count(header) > 1
    name = f"{scanned.path.name} frame {index + 1}" if several else scanned.path.name
    slope, intercept = _rescale(told, name)
    spacing = _numbers(told, "PixelSpacing", 2, name)
    if spacing is None or min(spacing) <= 0.0:
        raise DicomError(
            f"{name}: PixelSpacing is missing or not positive, so its scale is unknown; "
            "export the original CT series."
        )
    orientation = _numbers(told, "ImageOrientationPatient", 6, name)
    position = _numbers(told, "ImagePositionPatient", 3, name)
    row, column = _directions(orientation, name)
    thickness = _numbers(told, "SliceThickness", 1, name)
    tilt = _numbers(told, "GantryDetectorTilt", 1, name)
    signed = _whole(header, "PixelRepresentation", name) == 1
    bits = _whole(header, "BitsStored", name)
    return Frame(
        path=scanned.path,
        index=index,
        kept=scanned.kept,
        sop_uid=joined_text(header, "SOPInstanceUID"),
        instance_number=joined_text(header, "InstanceNumber"),
        size=(_whole(header, "Rows", name), _whole(header, "Columns", name)),
        spacing_mm=(spacing[0], spacing[1]),
        thickness_mm=thickness[0] if thickness else None,
        position_mm=None if position is None else (position[0], position[1], position[2]),
        row_direction=row,
        column_direction=column,
        slope=slope,
        intercept=intercept,
        gantry_tilt_degrees=tilt[0] if tilt else 0.0,
        acquisition=joined_text(header, "AcquisitionNumber"),
        legal=(-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1),
        padding=_padding(header, signed, name),
    )


def _rescale(told: Dataset, name: str) -> tuple[float, float]:
    slope = _numbers(told, "RescaleSlope", 1, name)
    intercept = _numbers(told, "RescaleIntercept", 1, name)
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


def _padding(header: Dataset, signed: bool, name: str) -> tuple[int, int] | None:
    """Padding in stored values; some senders write -2000 of signed pixels as unsigned 63536."""
    if header.get("PixelPaddingValue") is None:
        return None
    ends = [_whole(header, "PixelPaddingValue", name)]
    if header.get("PixelPaddingRangeLimit") is not None:
        ends.append(_whole(header, "PixelPaddingRangeLimit", name))
    unsigned = [end % 0x10000 for end in ends]
    ends = [end - 0x10000 if signed and end >= 0x8000 else end for end in unsigned]
    return min(ends), max(ends)


def _directions(
    orientation: tuple[float, ...] | None, name: str
) -> tuple[Vector | None, Vector | None]:
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


def _numbers(told: Dataset, keyword: str, count: int, name: str) -> tuple[float, ...] | None:
    """A header's decimal numbers; None where they are absent or empty."""
    try:
        value = told.get(keyword)
        if value is None or value == "" or (not isinstance(value, str | float) and not len(value)):
            return None
        several = isinstance(value, Iterable) and not isinstance(value, str)
        numbers: tuple[float, ...] = tuple(float(item) for item in (value if several else [value]))
    except (TypeError, ValueError, AttributeError):
        numbers = ()
    if len(numbers) != count or not all(map(math.isfinite, numbers)):
        expected = "a number" if count == 1 else f"{count} numbers"
        raise DicomError(f"{name}: {keyword} is not {expected}; {SEND_AGAIN}")
    return numbers


def _whole(header: Dataset, keyword: str, name: str, default: int | None = None) -> int:
    try:
        value = header.get(keyword)
        if value is None or value == "":
            if default is not None:
                return default
            raise DicomError(f"{name}: {keyword} is missing; {SEND_AGAIN}")
        return int(value)
    except (TypeError, ValueError):
        raise DicomError(f"{name}: {keyword} is not a whole number; {SEND_AGAIN}") from None
