"""What a DICOM header must say of an image to be CT in HU that may be denoised."""

from __future__ import annotations

from pydicom import Dataset
from pydicom.uid import (
    UID,
    CTImageStorage,
    EnhancedCTImageStorage,
    LegacyConvertedEnhancedCTImageStorage,
)

from cddnet.errors import DicomError
from cddnet.formats._dicom_pixels import SEND_AGAIN
from cddnet.formats._dicom_strays import is_text_page
from cddnet.formats._dicom_values import joined_text, whole

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


def require_ct(header: Dataset, name: str) -> None:
    """Refuse what is no CT image."""
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


def require_hu_content(values: tuple[str, ...], name: str) -> None:
    """Refuse an image type (values in capitals) whose pixels are no slice in HU."""
    found = set(values[2:])
    said = "\\".join(values)
    reasons = (
        ({"LOCALIZER"}, "is a localizer (scout view), no slice"),
        (MAPS, "is a perfusion map, or an image of a perfusion study, and no plain CT slice"),
        (MULTI_ENERGY, "was computed from several X-ray energies"),
        (COMPUTED, "was computed from other images"),
    )
    apply = [reason for terms, reason in reasons if found & terms]
    if is_text_page(values):
        apply.append("is a page of text stored as CT")
    if apply:
        raise DicomError(
            f"{name}: {apply[0]} (image type {said}); choose the original axial series."
        )


def require_grey(header: Dataset, name: str) -> None:
    """Refuse colour, and layouts of bits that no CT image has."""
    samples = whole(header, "SamplesPerPixel", name, default=1)
    photometric = joined_text(header, "PhotometricInterpretation")
    if samples != 1 or photometric not in ("MONOCHROME1", "MONOCHROME2"):
        raise DicomError(
            f"{name}: is a colour or palette image ({samples} samples per pixel, "
            f"{photometric or 'no photometric interpretation'}), no CT in HU; choose a CT series."
        )
    allocated = whole(header, "BitsAllocated", name)
    stored, high = whole(header, "BitsStored", name), whole(header, "HighBit", name)
    if allocated not in (8, 16) or not 1 <= stored <= allocated or high != stored - 1:
        raise DicomError(
            f"{name}: {stored} bits stored in {allocated} with high bit {high} is no layout of a "
            f"CT image; {SEND_AGAIN}"
        )
    if whole(header, "PixelRepresentation", name) not in (0, 1):
        raise DicomError(f"{name}: PixelRepresentation is neither 0 nor 1; {SEND_AGAIN}")
