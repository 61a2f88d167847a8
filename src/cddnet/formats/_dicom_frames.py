"""What a header says about each slice, and whether it is CT in HU that may be denoised."""

from __future__ import annotations

import copy
import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from pydicom import Dataset
from pydicom.uid import EnhancedCTImageStorage

from cddnet.errors import DicomError, FormatError
from cddnet.formats._dicom_kept import KeptHeader, dataset_of
from cddnet.formats._dicom_pixels import (
    ALWAYS_LOSSY,
    LOSSY,
    SEND_AGAIN,
    PixelElement,
    Stored,
    frame_count,
    read_stored,
    transfer_syntax_of,
)
from cddnet.formats._dicom_refusals import require_ct, require_grey, require_hu_content
from cddnet.formats._dicom_values import (
    CHECKED,
    TEXTS,
    Vector,
    directions,
    image_type,
    joined_text,
    numbers,
    padding,
    rescale,
    whole,
)
from cddnet.formats._stored import require_slice_size
from cddnet.intensity.background import NO_AIR_HU, edge_constant, edge_of, touching_edge
from cddnet.intensity.hu import stored_to_hu
from cddnet.volume import Mask, SliceHU

# Ten times what the longest scans have.
MOST_FRAMES = 20_000

# What is read of the functional groups of a frame.
GROUPS = {
    "PixelMeasuresSequence": ("PixelSpacing", "SliceThickness"),
    "PlanePositionSequence": ("ImagePositionPatient",),
    "PlaneOrientationSequence": ("ImageOrientationPatient",),
    "PixelValueTransformationSequence": ("RescaleSlope", "RescaleIntercept", "RescaleType"),
    "CTAcquisitionDetailsSequence": ("GantryDetectorTilt",),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Scanned:
    """One DICOM file without its pixels, and where they are; `pixels` is None where none were seen.

    deflated: the pixels lie inside a compressed data set, so that nothing is known of them yet.
    commas: keywords of elements whose decimal commas were read as points.
    unclosed: compressed pixel data lacks the delimiter at its end.
    """

    path: Path = field(repr=False)
    kept: KeptHeader | Dataset = field(repr=False)
    pixels: PixelElement | None
    file_bytes: int
    deflated: bool = False
    commas: tuple[str, ...] = ()
    unclosed: bool = False

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
    rounded_digits: decimals of direction cosines that were rounded; None where they are exact.
    position_mm, row_direction, column_direction: None where a lone slice does not say.
    """

    path: Path = field(repr=False)
    index: int
    kept: KeptHeader | Dataset = field(repr=False)
    sop_uid: str = field(repr=False)
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
    rounded_digits: int | None = None

    @property
    def header(self) -> Dataset:
        """The file's header, made anew each time where only its bytes are kept."""
        return dataset_of(self.kept)

    @property
    def name(self) -> str:
        """File name, with the frame's number where the file holds several."""
        several = frame_count(self.header) > 1
        return f"{self.path.name} frame {self.index + 1}" if several else self.path.name

    @property
    def lowest_hu(self) -> float:
        """Lowest HU that a legal stored value stands for."""
        return min(value * self.slope + self.intercept for value in self.legal)

    def hu(self, stored: Stored) -> SliceHU:
        """HU of this slice's stored values."""
        return stored_to_hu(stored, self.slope, self.intercept)

    def padding_mask(self, stored: Stored) -> Mask:
        """Where this slice's stored values are padding (PS3.3 C.7.5.1.1.2)."""
        if self.padding is None:
            return np.zeros(stored.shape, dtype=np.bool_)
        low, high = self.padding
        return np.asarray((stored >= low) & (stored <= high), dtype=np.bool_)

    def digest(self, stored: Stored) -> str:
        """SHA-256 of this slice's stored values (H, W) and of what turns them into HU.

        It is the same in every transfer syntax that keeps the values.
        """
        meaning = repr((stored.shape, self.slope, self.intercept, self.padding))
        digest = hashlib.sha256(meaning.encode())
        digest.update(np.ascontiguousarray(stored, "<i4").data)
        return digest.hexdigest()


@dataclass(frozen=True, kw_only=True, slots=True)
class DicomHeaders:
    """Where the slices of a series came from, in slice order. Its data sets must not be changed.

    frames: path, frame index, pixel-less header and values scale of each slice.
    enhanced: whether all frames lie in one Enhanced CT file.
    digests: of the slices that were decoded so far, by their index.
    """

    frames: tuple[Frame, ...] = field(repr=False)
    enhanced: bool
    digests: dict[int, str] = field(default_factory=dict, repr=False, compare=False)

    @property
    def may_be_padded(self) -> bool:
        """Whether any slice declares padding, or can hold a value that no air has."""
        return any(frame.padding or frame.lowest_hu < NO_AIR_HU for frame in self.frames)

    def read_stored(self, index: int) -> Stored:
        """Stored values (H, W) of slice `index`."""
        frame = self.frames[index]
        stored = read_stored(frame.path, frame.index)
        if index not in self.digests:
            self.digests[index] = frame.digest(stored)
        return stored

    def digest(self, index: int) -> str:
        """Digest of slice `index`, which is decoded for it only if it never was before."""
        if index not in self.digests:
            self.read_stored(index)
        return self.digests[index]

    def read_hu(self, index: int) -> SliceHU:
        """Slice `index` (H, W) in HU."""
        return self.frames[index].hu(self.read_stored(index))

    def read_padding(self, index: int) -> Mask:
        """Where slice `index` is padding (H, W): as declared, or the constant background."""
        frame, stored = self.frames[index], self.read_stored(index)
        declared = frame.padding_mask(stored)
        if frame.lowest_hu >= NO_AIR_HU:
            return declared
        edge = edge_of(stored)
        constant = edge_constant(edge, frame.hu(edge))
        if constant is None or frame.padding_mask(np.asarray(constant)):
            return declared
        return declared | touching_edge(stored == constant)


def own_header(frame: Frame) -> Dataset:
    """A frame's header to be changed, in which all that was checked is decoded, so that it is
    written as it was understood, while everything else is written as the bytes it was.
    """
    header = frame.header
    for keyword in (*TEXTS, *CHECKED):
        header.get(keyword)
    return copy.deepcopy(header) if header is frame.kept else header


def is_enhanced(header: Dataset) -> bool:
    """True for Enhanced CT: many slices in one file."""
    return str(header.get("SOPClassUID", "")) == EnhancedCTImageStorage


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
    require_ct(header, name)
    require_hu_content(image_type(header), name)
    require_grey(header, name)
    require_slice_size(name, whole(header, "Rows", name), whole(header, "Columns", name))
    if is_enhanced(header):
        _require_one_stack(header, name)
        return tuple(_enhanced_frame(scanned, index) for index in range(frame_count(header)))
    if frame_count(header) > 1:
        raise DicomError(
            f"{name}: holds {frame_count(header)} frames, but its kind (CT Image) has one; "
            "ask for an Enhanced CT export or one file per slice."
        )
    return (_frame(scanned, 0, header),)


def is_lossy(header: Dataset) -> bool:
    """True where the header, or a transfer syntax it does not contradict, says pixels were lost."""
    said, syntax = str(header.get("LossyImageCompression") or ""), transfer_syntax_of(header)
    return said == "01" or syntax in ALWAYS_LOSSY or (said != "00" and syntax in LOSSY)


def group_item(header: Dataset, index: int, keyword: str) -> Dataset:
    """Functional group `keyword` of a frame: its own, the shared one, or empty (C.7.6.16)."""
    own = header.get("PerFrameFunctionalGroupsSequence") or ()
    shared = header.get("SharedFunctionalGroupsSequence") or ()
    for group in (*own[index : index + 1], *shared[:1]):
        if group.get(keyword):
            return group[keyword].value[0]  # type: ignore[no-any-return]
    return Dataset()


def _require_one_stack(header: Dataset, name: str) -> None:
    if frame_count(header) > MOST_FRAMES:
        raise DicomError(
            f"{name}: holds {frame_count(header)} frames, at most {MOST_FRAMES} are read; export "
            "it as several series."
        )
    groups = len(header.get("PerFrameFunctionalGroupsSequence") or [])
    if groups != frame_count(header):
        raise DicomError(
            f"{name}: describes {groups} of its {frame_count(header)} frames; {SEND_AGAIN}"
        )
    stacks = {
        str(group_item(header, index, "FrameContentSequence").get("StackID") or "")
        for index in range(groups)
    }
    if len(stacks) > 1:
        raise DicomError(
            f"{name}: its frames form {len(stacks)} stacks; export each as its own series."
        )


def _enhanced_frame(scanned: Scanned, index: int) -> Frame:
    header = scanned.header
    name = f"{scanned.path.name} frame {index + 1}"
    frame_type = group_item(header, index, "CTImageFrameTypeSequence")
    values = frame_type.get("FrameType")
    require_hu_content(tuple(str(value).strip().upper() for value in values or ()), name)
    told = Dataset()
    for sequence, keywords in GROUPS.items():
        item = group_item(header, index, sequence)
        # The others may be many, and are the same for all frames.
        for keyword in keywords:
            if keyword in item:
                told[keyword] = item.get_item(keyword)
    return _frame(scanned, index, told)


def _frame(scanned: Scanned, index: int, told: Dataset) -> Frame:
    """`told`: what says slope, position and the like, the header or the frame's groups."""
    header = scanned.header
    several = frame_count(header) > 1
    name = f"{scanned.path.name} frame {index + 1}" if several else scanned.path.name
    slope, intercept = rescale(told, name)
    spacing = numbers(told, "PixelSpacing", 2, name)
    if spacing is None or min(spacing) <= 0.0:
        raise DicomError(
            f"{name}: PixelSpacing is missing or not positive, so its scale is unknown; "
            "export the original CT series."
        )
    orientation = numbers(told, "ImageOrientationPatient", 6, name)
    position = numbers(told, "ImagePositionPatient", 3, name)
    across = directions(orientation, name)
    thickness = numbers(told, "SliceThickness", 1, name)
    tilt = numbers(told, "GantryDetectorTilt", 1, name)
    signed = whole(header, "PixelRepresentation", name) == 1
    bits = whole(header, "BitsStored", name)
    return Frame(
        path=scanned.path,
        index=index,
        kept=scanned.kept,
        sop_uid=joined_text(header, "SOPInstanceUID"),
        instance_number=joined_text(header, "InstanceNumber"),
        size=(whole(header, "Rows", name), whole(header, "Columns", name)),
        spacing_mm=(spacing[0], spacing[1]),
        thickness_mm=thickness[0] if thickness else None,
        position_mm=None if position is None else (position[0], position[1], position[2]),
        row_direction=across.row,
        column_direction=across.column,
        slope=slope,
        intercept=intercept,
        gantry_tilt_degrees=tilt[0] if tilt else 0.0,
        acquisition=joined_text(header, "AcquisitionNumber"),
        legal=(-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1),
        padding=padding(header, signed, name),
        rounded_digits=across.digits,
    )
