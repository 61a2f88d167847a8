"""Writing CT that no scanner made, such as a phantom: a new series of a patient that is nobody.

Sources: PS3.3 A.3 (CT Image), C.7.6.1 (general image), C.8.2.1 (CT image).
"""

# Shapes: D slice, H row, W column.

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pydicom import Dataset, dcmwrite
from pydicom.uid import CTImageStorage
from pydicom.valuerep import format_number_as_ds

from cddnet.errors import FormatError
from cddnet.formats._atomic import new_folder
from cddnet.formats._derived_headers import (
    LONGEST,
    MANUFACTURER,
    RESEARCH_COMMENT,
    RESEARCH_MARK,
    derived_uid,
    file_meta,
)
from cddnet.formats._dicom_pixels import quiet
from cddnet.formats._sidecar import step_as_json
from cddnet.intensity.hu import hu_to_stored
from cddnet.volume import CTVolume, SliceHU

# Signed, so that noise in air may fall below the intercept.
SLOPE, INTERCEPT = 1.0, -1024.0
LEGAL = (-(2**15), 2**15 - 1)
_NAME = re.compile(r"[a-z0-9-]{1,32}")


class NewSeries(NamedTuple):
    """name: of the phantom, small letters, digits and hyphens.  window_hu: (low, high) for a first
    look.
    """

    name: str
    window_hu: tuple[float, float]


def write_new_series(volume: CTVolume, path: Path, description: NewSeries) -> str:
    """Write a volume without DICOM source as a CT Image series: a new folder, a file per slice.

    What was computed is told by `volume.derivation`, the kernel by `volume.acquisition`. All UIDs
    are a hash over the derivation, the geometry and the description, and no header holds a date, so
    the same recipe gives the same bytes.  Returns the series UID.
    Raises: FormatError for a volume from DICOM, without derivation or thickness, with a name that
    is none, or with HU that are not finite or do not fit into 16 bits.
    """
    _require_new(volume, path, description)
    text = _recipe(volume, description)
    series_uid = derived_uid("new series", text)
    header = _series_header(volume, description)
    header.SeriesInstanceUID = series_uid
    header.StudyInstanceUID = derived_uid("new study", text)
    header.FrameOfReferenceUID = derived_uid("new frame of reference", text)
    digits = max(4, len(str(volume.shape[0])))
    with new_folder(path) as folder, quiet():
        for index, hu in enumerate(volume.slices()):
            _set_slice(header, volume, index)
            header.SOPInstanceUID = derived_uid("new image", text, str(index))
            header.PixelData = _pixels(hu, volume, f"{path}: slice {index + 1}")
            header.file_meta = file_meta(header, volume.derivation[-1].version)
            dcmwrite(
                folder / f"{index + 1:0{digits}}.dcm",
                header,
                implicit_vr=False,
                little_endian=True,
                enforce_file_format=True,
                overwrite=False,
            )
    return series_uid


def _require_new(volume: CTVolume, path: Path, description: NewSeries) -> None:
    problem = ""
    if volume.headers is not None:
        problem = "it comes from DICOM; write a derived series instead"
    elif not volume.derivation:
        problem = "it does not say what it was computed from; add a derivation"
    elif volume.thickness_mm is None:
        problem = "its slice thickness is unknown; state it"
    elif not _NAME.fullmatch(description.name):
        problem = f"'{description.name}' is no name; use small letters, digits and hyphens"
    if problem:
        raise FormatError(f"{path}: this volume cannot become a new series: {problem}.")


def _recipe(volume: CTVolume, description: NewSeries) -> str:
    """Everything that decides the bytes, the HU themselves as far as the derivation says it."""
    geometry = {
        "shape": volume.shape,
        "spacing_mm": volume.spacing_mm,
        "origin_mm": volume.origin_mm,
        "direction": volume.direction,
        "thickness_mm": volume.thickness_mm,
        "positions_mm": volume.slice_positions_mm(),
    }
    steps = [step_as_json(step) for step in volume.derivation]
    told = {"kernel": volume.acquisition.kernel, "window_hu": description.window_hu}
    return json.dumps([description.name, steps, geometry, told], sort_keys=True)


def _series_header(volume: CTVolume, description: NewSeries) -> Dataset:
    last = volume.derivation[-1]
    header = Dataset()
    header.SpecificCharacterSet = "ISO_IR 100"
    header.SOPClassUID = CTImageStorage
    header.PatientName = f"PHANTOM^{description.name}"
    header.PatientID = f"cddnet-phantom-{description.name}"
    for keyword in (
        *("PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID"),
        *("AccessionNumber", "ReferringPhysicianName", "PositionReferenceIndicator"),
        # One energy, not the spectrum of a tube: there is no kVp to state.
        *("AcquisitionNumber", "KVP"),
    ):
        setattr(header, keyword, "")
    header.Modality = "CT"
    header.SeriesNumber = 1
    header.SeriesDescription = f"{last.label[: LONGEST['LO'] - 9]} {RESEARCH_MARK}"
    header.PatientPosition = "HFS"
    header.Manufacturer = MANUFACTURER
    header.ManufacturerModelName = "simulation"
    header.SoftwareVersions = last.version
    header.ImageType = ["DERIVED", last.image_type, "AXIAL"]
    header.QualityControlImage = "YES"
    header.ImageLaterality = "U"
    header.BurnedInAnnotation = "NO"
    header.LossyImageCompression = "00"
    header.DerivationDescription = _derivation_description(volume)
    header.ImageComments = RESEARCH_COMMENT
    if volume.acquisition.kernel:
        header.ConvolutionKernel = volume.acquisition.kernel
    _set_pixel_format(header, volume, description.window_hu)
    return header


def _derivation_description(volume: CTVolume) -> str:
    texts = []
    for step in volume.derivation:
        values = ", ".join(f"{name}={value}" for name, value in step.parameters)
        texts.append(f"{step.description} ({MANUFACTURER} {step.version}; {values})")
    return "; then: ".join(texts).replace("\\", "/")[: LONGEST["ST"]]


def _set_pixel_format(header: Dataset, volume: CTVolume, window_hu: tuple[float, float]) -> None:
    _, row_mm, column_mm = volume.spacing_mm
    low, high = window_hu
    header.SamplesPerPixel = 1
    header.PhotometricInterpretation = "MONOCHROME2"
    header.Rows, header.Columns = volume.shape[1:]
    header.BitsAllocated = header.BitsStored = 16
    header.HighBit = 15
    header.PixelRepresentation = 1
    header.PixelSpacing = [_number(row_mm), _number(column_mm)]
    header.SliceThickness = _number(volume.thickness_mm or 0.0)
    header.RescaleIntercept, header.RescaleSlope = _number(INTERCEPT), _number(SLOPE)
    header.RescaleType = "HU"
    header.WindowCenter, header.WindowWidth = _number((low + high) / 2), _number(high - low)
    _, down, right = volume.direction
    header.ImageOrientationPatient = [_number(value) for value in (*right, *down)]


def _set_slice(header: Dataset, volume: CTVolume, index: int) -> None:
    positions_mm = volume.slice_positions_mm()
    along_mm = positions_mm[index] - positions_mm[0]
    axes = zip(volume.origin_mm, volume.direction[0], strict=True)
    header.InstanceNumber = index + 1
    header.ImagePositionPatient = [_number(start + along_mm * step) for start, step in axes]


def _pixels(hu: SliceHU, volume: CTVolume, name: str) -> bytes:
    if hu.shape != volume.shape[1:]:
        raise FormatError(
            f"{name} has shape {hu.shape}, expected {volume.shape[1:]}; give every slice the size "
            "of the volume."
        )
    lowest, highest = (limit * SLOPE + INTERCEPT for limit in LEGAL)
    if not np.all((hu >= lowest) & (hu <= highest)):
        raise FormatError(
            f"{name} holds values that are not finite, or outside {lowest:g} to {highest:g} HU, "
            "which 16 bits cannot hold; nothing was written. Choose a higher dose."
        )
    stored = hu_to_stored(hu, SLOPE, INTERCEPT, LEGAL).astype("<i2").tobytes()
    return stored + b"\x00" * (len(stored) % 2)


def _number(value: float) -> str:
    """Decimal text of at most 16 characters (PS3.5 6.2)."""
    return str(format_number_as_ds(float(value)))
