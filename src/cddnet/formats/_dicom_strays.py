"""Objects that carry the UID of a CT series and are no slices of it: plans, reports, pages."""

from __future__ import annotations

import re

from pydicom import Dataset
from pydicom.uid import (
    UID,
    CTImageStorage,
    EnhancedCTImageStorage,
    LegacyConvertedEnhancedCTImageStorage,
)

from cddnet.formats._dicom_values import image_type, joined_text

CT_CLASSES = (CTImageStorage, EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage)
LOCALIZER = "localizer"
TEXT_PAGE = re.compile(
    r"SCREEN[ _]?SAVE|CT_SOM\d+ PROT|DOSE(?:[ _](?:REPORT|INFO))?|PATIENT[ _]PROTOCOL"
)
# A palette has one sample per pixel.
COLOURS = re.compile(r"RGB|YBR_\w+|PALETTE COLOR|HSV|ARGB|CMYK")
PLACE = ("ImagePositionPatient", "ImageOrientationPatient")
SCALE = ("RescaleSlope", "RescaleIntercept")


def stray_kind(header: Dataset) -> str:
    """What an object is that cannot be a slice, "" for one that may be.

    A damaged slice may still be one: what is wrong with it is said where its values are checked.
    """
    sop_class = joined_text(header, "SOPClassUID")
    if sop_class not in CT_CLASSES:
        name = UID(sop_class).name
        if name != sop_class:
            return name.removesuffix(" Storage")
        return "" if not sop_class or header.get("Rows") else "object of a private kind"
    values = image_type(header)
    if "LOCALIZER" in values[2:]:
        return LOCALIZER
    if is_text_page(values):
        return "page of text"
    if COLOURS.fullmatch(joined_text(header, "PhotometricInterpretation")):
        return "colour image"
    if sop_class != CTImageStorage or any(_states(header, keyword) for keyword in PLACE):
        return ""
    # What was captured from a screen says so in one of these.
    burned_in = joined_text(header, "BurnedInAnnotation") == "YES"
    scaled = any(_states(header, keyword) for keyword in SCALE)
    captured = burned_in or _states(header, "ConversionType") or not scaled
    return "page without position" if captured else ""


def is_text_page(values: tuple[str, ...]) -> bool:
    """Whether values of ImageType, in capitals, are those of a page that scanners store as CT."""
    return any(map(TEXT_PAGE.fullmatch, values[2:]))


def _states(header: Dataset, keyword: str) -> bool:
    """Whether an element has a value, which may be damaged."""
    value = header.get_item(keyword).value if keyword in header else None
    if isinstance(value, bytes):
        value = value.strip(b" \0")
    return value is not None and value not in ("", b"")
