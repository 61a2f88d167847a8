"""DICOM Parametric Map: one 32-bit number per pixel of a CT series, such as its predicted noise.

Sources: PS3.3 A.75 (the object), C.8.32 (its image), C.7.6.24 (floating point pixels) and
C.7.6.16.2.11 (real world values).

Above 300 lines: each attribute of the standard is a line.
"""

# Shapes: D slice, H row, W column.

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pydicom import Dataset, uid
from pydicom.datadict import keyword_for_tag
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from cddnet.errors import DicomError, FormatError, GeometryError
from cddnet.formats._atomic import new_file
from cddnet.formats._derived import LONGEST_ELEMENT, damage_named, save_dicom, source_of
from cddnet.formats._derived_headers import (
    IMPLEMENTATION_UID,
    MANUFACTURER,
    Recipe,
    derivation_codes,
    derived_header,
    derived_uid,
    referenced_series,
    require_identity,
    source_image,
)
from cddnet.formats._dicom_frames import DicomHeaders, Frame, group_item
from cddnet.formats._dicom_pixels import quiet
from cddnet.formats._dicom_text import text_bytes
from cddnet.formats._dicom_values import joined_text
from cddnet.volume import CTVolume

BYTES_PER_PIXEL = 4

# Of the source's header: patient and clinical trial, then what names study, series and space.
KEPT_GROUPS = (0x0010, 0x0012)
KEPT = frozenset(
    {
        "SpecificCharacterSet",
        "TimezoneOffsetFromUTC",
        "InstanceCreationDate",
        "InstanceCreationTime",
        "ContentDate",
        "ContentTime",
        "ImageComments",
        "ContributingEquipmentSequence",
        "LossyImageCompression",
        "LossyImageCompressionRatio",
        "LossyImageCompressionMethod",
        "LongitudinalTemporalInformationModified",
    }
    | {
        "StudyInstanceUID",
        "StudyDate",
        "StudyTime",
        "StudyID",
        "StudyDescription",
        "AccessionNumber",
        "IssuerOfAccessionNumberSequence",
        "ReferringPhysicianName",
        "ReferringPhysicianIdentificationSequence",
        "PhysiciansOfRecord",
        "ReferencedStudySequence",
        "ProcedureCodeSequence",
        "RequestingService",
        "AdmittingDiagnosesDescription",
    }
    | {
        "Modality",
        "SeriesInstanceUID",
        "SeriesNumber",
        "SeriesDescription",
        "SeriesDate",
        "SeriesTime",
        "ProtocolName",
        "BodyPartExamined",
        "PatientPosition",
        "Laterality",
        "FrameOfReferenceUID",
        "PositionReferenceIndicator",
    }
)
# They must be there, be it without a value.
EMPTY_IF_UNKNOWN = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "AccessionNumber",
    "ReferringPhysicianName",
    "PositionReferenceIndicator",
)
ACQUIRED_BY = ("Manufacturer", "ManufacturerModelName", "StationName", "SoftwareVersions")


# What stands for an unknown moment where one must be stated, as in images without identity
# (PS3.15 E.1).
NO_DATE, NO_TIME = "19000101", "000000"
OWN_SCHEME = "99CDDNET"
# CID 7203 is extensible and has nothing that computes a map from attenuation.
PREDICTION = Code("NOISEPREDICT", OWN_SCHEME, "Prediction of noise from attenuation")


class Quantity(NamedTuple):
    """What the numbers of a map are.

    label: capitals, at most 16.  meaning: ASCII, at most 64 characters.
    definition: (concept, its value) pairs.  method: how they were made.
    recognizable: YES where a face could be made out in them; smooth maps show none.
    """

    label: str
    meaning: str
    unit: Code
    definition: tuple[tuple[Code, Code], ...]
    method: Code = PREDICTION
    recognizable: str = "NO"


RADIOLOGICAL_DEPTH = Quantity(
    "RADIOL_DEPTH",
    "Radiological depth: log of the relative noise variance",
    codes.UCUM.NoUnits,
    ((codes.SCT.Quantity, Code("RADIOLDEPTH", OWN_SCHEME, "Radiological depth")),),
)
PREDICTED_NOISE = Quantity(
    "PREDICTED_NOISE",
    "Predicted noise: standard deviation of a pixel in HU",
    codes.UCUM.HounsfieldUnit,
    (
        (codes.SCT.Quantity, codes.DCM.AttenuationCoefficient),
        (codes.DCM.Derivation, codes.SCT.StandardDeviation),
    ),
)
PREDICTED_ERROR = Quantity(
    "EXPECTED_ERROR",
    "Expected error: standard deviation about a noisy full dose in HU",
    codes.UCUM.HounsfieldUnit,
    (
        (codes.SCT.Quantity, codes.DCM.AttenuationCoefficient),
        (codes.DCM.Derivation, codes.SCT.StandardDeviation),
    ),
    Code("ERRORPREDICT", OWN_SCHEME, "Prediction of the error of denoising"),
    "YES",
)


def write_parametric_map(volume: CTVolume, path: Path, quantity: Quantity) -> None:
    """Write maps (H, W) of a CT series from DICOM as one new file, one frame in memory at a time.

    volume: its slices hold `quantity` instead of HU, its last derivation step says how they were
    made; they are read twice.  Frames come in slice order, at the places of their sources.
    Raises FormatError for a volume without DICOM source or with values that are not finite,
    DicomError or GeometryError where the source does not say where it lies, or lies in two spaces.
    """
    headers = source_of(volume, path)
    length = BYTES_PER_PIXEL * int(np.prod(volume.shape))
    if length > LONGEST_ELEMENT:
        raise FormatError(
            f"{path}: {volume.shape[0]} maps of {volume.shape[1]} x {volume.shape[2]} are too much "
            "for one DICOM file; give fewer slices."
        )
    with quiet():
        require_identity(headers.frames)
        _require_one_place(headers)
    range_of_values = _range(volume, path)
    with new_file(path) as file:
        with quiet(), damage_named(headers.frames[0].name):
            recipe = Recipe(volume.derivation, headers)
            header = _header(headers, recipe, quantity)
            _add_groups(header, headers, recipe, (quantity, range_of_values))
            save_dicom(header, file, recipe)
        with file.open("ab") as output:
            output.write(b"\xe0\x7f\x08\x00OF\x00\x00" + length.to_bytes(4, "little"))
            for values in volume.slices():
                output.write(np.ascontiguousarray(values, "<f4").tobytes())


def _require_one_place(headers: DicomHeaders) -> None:
    spaces = {str(frame.header.get("FrameOfReferenceUID") or "") for frame in headers.frames}
    if len(spaces) > 1:
        raise GeometryError(
            f"the slices lie in {len(spaces)} frames of reference, a parametric map in one; "
            "give each part of the series alone."
        )
    for frame in headers.frames:
        if frame.position_mm is None or frame.row_direction is None:
            raise DicomError(
                f"{frame.name}: does not say where it lies in the patient, so its map could not "
                "either; export the original series."
            )


def _range(volume: CTVolume, path: Path) -> tuple[float, float]:
    low, high = np.inf, -np.inf
    for index, values in enumerate(volume.slices()):
        if values.shape != volume.shape[1:] or not np.isfinite(values).all():
            raise FormatError(
                f"{path} is not written: map {index + 1} is not finite or has shape "
                f"{values.shape}, expected {volume.shape[1:]}; compute it again."
            )
        low, high = min(low, float(values.min())), max(high, float(values.max()))
    return low, high


def _header(headers: DicomHeaders, recipe: Recipe, quantity: Quantity) -> Dataset:
    """All of the object but its functional groups and pixels."""
    first = headers.frames[0]
    header = derived_header(first.header, recipe)
    _keep_only(header)
    version = recipe.steps[-1].version
    header.SOPClassUID = uid.ParametricMapStorage
    header.SOPInstanceUID = recipe.sop_uid(None)
    header.InstanceNumber = 1
    if not header.get("FrameOfReferenceUID"):
        # Coordinates need a space; one that is named after the source series is shared by its maps.
        header.FrameOfReferenceUID = derived_uid("space", str(first.header.SeriesInstanceUID))
    header.ImageType = ["DERIVED", "PRIMARY", "VOLUME", "QUANTITY"]
    header.ContentDate, header.ContentTime = _content_moment(first.header, recipe)
    header.ContentLabel = quantity.label
    header.ContentDescription = quantity.meaning
    header.ContentCreatorName = ""
    header.ContentQualification = "RESEARCH"
    header.RecognizableVisualFeatures = quantity.recognizable
    header.BurnedInAnnotation = "NO"
    header.PresentationLUTShape = "IDENTITY"
    header.Manufacturer = MANUFACTURER
    header.ManufacturerModelName = f"{MANUFACTURER} parametric map"
    # Software has no serial number; what names it is the UID of its implementation.
    header.DeviceSerialNumber = IMPLEMENTATION_UID
    header.SoftwareVersions = version
    header.ContributingEquipmentSequence = [
        *_scanner(first.header),
        *header.ContributingEquipmentSequence,
    ]
    header.CodingSchemeIdentificationSequence = [
        _item(CodingSchemeDesignator=OWN_SCHEME, CodingSchemeResponsibleOrganization=MANUFACTURER)
    ]
    header.AcquisitionContextSequence = []
    header.ReferencedSeriesSequence = [referenced_series(headers.frames)]
    header.SamplesPerPixel = 1
    header.PhotometricInterpretation = "MONOCHROME2"
    header.NumberOfFrames = len(headers.frames)
    header.Rows, header.Columns = first.size
    header.BitsAllocated = 8 * BYTES_PER_PIXEL
    return header


def _content_moment(source: Dataset, recipe: Recipe) -> tuple[str, str]:
    """Date and time of the source's content, which a map must state.

    Those of the source's content, acquisition, series or study, or of the map's own creation: the
    first that are stated whole, else the first date.
    """
    scanned = joined_text(source, "AcquisitionDateTime")
    created = recipe.created.strftime("%Y%m%d%H%M%S.%f") if recipe.created else ""
    moments = [
        (joined_text(source, f"{event}Date"), joined_text(source, f"{event}Time"))
        for event in ("Content", "Acquisition", "Series", "Study")
    ]
    moments[1:1] = [(scanned[:8], scanned[8:].partition("+")[0].partition("-")[0])]
    moments += [(created[:8], created[8:])]
    dated = [*filter(all, moments), *((date, NO_TIME) for date, _ in moments if date)]
    return dated[0] if dated else (NO_DATE, NO_TIME)


def _keep_only(header: Dataset) -> None:
    for tag in list(header.keys()):
        if tag.group not in KEPT_GROUPS and keyword_for_tag(tag) not in KEPT:
            del header[tag]
    # Only of a body part that is known can it be known that it is not paired (C.7.3.1).
    side = () if header.get("BodyPartExamined") else ("Laterality",)
    for keyword in (*EMPTY_IF_UNKNOWN, *side):
        if keyword not in header:
            setattr(header, keyword, "")


def _scanner(source: Dataset) -> list[Dataset]:
    texts = {keyword: text_bytes(source, keyword, source) for keyword in ACQUIRED_BY}
    if not texts["Manufacturer"]:
        return []
    item = _item(PurposeOfReferenceCodeSequence=[_coded(codes.DCM.AcquisitionEquipment)])
    for keyword, text in texts.items():
        if text:
            setattr(item, keyword, text)
    return [item]


def _add_groups(
    header: Dataset,
    headers: DicomHeaders,
    recipe: Recipe,
    mapped: tuple[Quantity, tuple[float, float]],
) -> None:
    """Functional groups: what is alike in all frames once, the rest with its frame."""
    quantity, range_of_values = mapped
    frames = headers.frames
    shared, groups = Dataset(), [Dataset() for _ in frames]
    organisation = derived_uid("dimensions", recipe.series_uid)
    header.DimensionOrganizationSequence = [_item(DimensionOrganizationUID=organisation)]
    header.DimensionIndexSequence = [
        _item(
            DimensionOrganizationUID=organisation,
            DimensionIndexPointer=pointer,
            FunctionalGroupPointer=0x00209111,
            DimensionDescriptionLabel=label,
        )
        for pointer, label in ((0x00209056, "Stack"), (0x00209057, "Position in stack"))
    ]
    shared.ParametricMapFrameTypeSequence = [_item(FrameType=list(header.ImageType))]
    shared.PixelValueTransformationSequence = [
        _item(RescaleIntercept="0", RescaleSlope="1", RescaleType="US")
    ]
    shared.RealWorldValueMappingSequence = [_real_world(quantity, range_of_values)]
    for keyword, wanted in (
        ("PixelMeasuresSequence", ("PixelSpacing", "SliceThickness")),
        ("PlaneOrientationSequence", ("ImageOrientationPatient",)),
        ("PlanePositionSequence", ("ImagePositionPatient",)),
    ):
        items = [_told(frame, keyword, wanted, headers.enhanced) for frame in frames]
        alike = all(item == items[0] for item in items) and keyword != "PlanePositionSequence"
        for group, item in zip([shared] if alike else groups, items, strict=False):
            setattr(group, keyword, [item])
    for index, group in enumerate(groups):
        group.FrameContentSequence = [
            _item(
                StackID="1",
                InStackPositionNumber=index + 1,
                DimensionIndexValues=[1, index + 1],
            )
        ]
        group.DerivationImageSequence = [
            _item(
                DerivationDescription=quantity.meaning,
                DerivationCodeSequence=[
                    *derivation_codes(recipe.steps[:-1]),
                    _coded(quantity.method),
                ],
                SourceImageSequence=[
                    source_image(used, headers.enhanced) for used in recipe.sources(index)
                ],
            )
        ]
    header.SharedFunctionalGroupsSequence = [shared]
    header.PerFrameFunctionalGroupsSequence = groups


def _told(frame: Frame, sequence: str, wanted: Sequence[str], enhanced: bool) -> Dataset:
    """What the source says of a frame's place, in its own digits."""
    source = group_item(frame.header, frame.index, sequence) if enhanced else frame.header
    item = Dataset()
    for keyword in wanted:
        if source.get(keyword) not in (None, ""):
            item[keyword] = copy.deepcopy(source[keyword])
    return item


def _real_world(quantity: Quantity, range_of_values: tuple[float, float]) -> Dataset:
    low, high = range_of_values
    return _item(
        LUTLabel=quantity.label,
        LUTExplanation=quantity.meaning,
        MeasurementUnitsCodeSequence=[_coded(quantity.unit)],
        QuantityDefinitionSequence=[
            _item(
                ValueType="CODE",
                ConceptNameCodeSequence=[_coded(concept)],
                ConceptCodeSequence=[_coded(value)],
            )
            for concept, value in quantity.definition
        ],
        DoubleFloatRealWorldValueFirstValueMapped=low,
        DoubleFloatRealWorldValueLastValueMapped=high,
        RealWorldValueIntercept=0.0,
        RealWorldValueSlope=1.0,
    )


def _coded(code: Code) -> Dataset:
    return _item(
        CodeValue=code.value,
        CodingSchemeDesignator=code.scheme_designator,
        CodeMeaning=code.meaning,
    )


def _item(**fields: object) -> Dataset:
    item = Dataset()
    for keyword, value in fields.items():
        setattr(item, keyword, value)
    return item
