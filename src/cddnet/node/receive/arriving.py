"""What an instance says of itself as it arrives, checked before anything of it is believed."""

from __future__ import annotations

import re
from io import BytesIO
from typing import NamedTuple

from pydicom import Dataset, uid
from pydicom.datadict import keyword_for_tag
from pydicom.filereader import read_dataset
from pydicom.tag import BaseTag
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    CTImageStorage,
    EnhancedCTImageStorage,
)

KINDS = (CTImageStorage, EnhancedCTImageStorage)
# All that formats/ decodes; deflated data sets are left out, for they may unpack to any size.
SYNTAXES = (
    uid.ExplicitVRLittleEndian,
    uid.ImplicitVRLittleEndian,
    uid.JPEGLSLossless,
    uid.JPEG2000Lossless,
    uid.JPEGLosslessSV1,
    uid.JPEGLossless,
    uid.RLELossless,
    uid.HTJ2KLossless,
    uid.HTJ2KLosslessRPCL,
    uid.ExplicitVRBigEndian,
    uid.JPEGLSNearLossless,
    uid.JPEG2000,
    uid.HTJ2K,
    uid.JPEGBaseline8Bit,
    uid.JPEGExtended12Bit,
    uid.UID("1.2.840.10008.1.2.4.53"),
    uid.UID("1.2.840.10008.1.2.4.55"),
)
# Values of C-STORE statuses (PS3.4 table B.2-1).
OUT_OF_RESOURCES = 0xA700
DOES_NOT_MATCH = 0xA900
CANNOT_UNDERSTAND = 0xC000
NOT_AUTHORISED = 0x0124
PROCESSING_FAILURE = 0x0110

LARGEST_FRAME_PIXELS = 1 << 26
MOST_FRAMES = 1 << 16
# A larger count is a mistake of the sender, and is taken as not stated.
MOST_SLICES = 1 << 20
PIXEL_GROUP = 0x7FE0
# SOP class, SOP instance, study, series; instances in the series; what tells the length of pixels.
CLASS, INSTANCE, STUDY, SERIES = 0x00080016, 0x00080018, 0x0020000D, 0x0020000E
EXPECTED = 0x00201209
SAMPLES, FRAMES, ROWS, COLUMNS, ALLOCATED = (
    0x00280002,
    0x00280008,
    0x00280010,
    0x00280011,
    0x00280100,
)
TAGS = (CLASS, INSTANCE, STUDY, SERIES, EXPECTED, SAMPLES, FRAMES, ROWS, COLUMNS, ALLOCATED)
AGAIN = "send or export it again."
# Lenient where it does no harm: some scanners write leading zeros.
_UID = re.compile(r"[0-9]+(\.[0-9]+)*")


class Refused(Exception):
    """An instance that is not taken. status: of the C-STORE response; reason: for log and count.

    The message says to people what is wrong and what to do; it quotes nothing of a patient.
    """

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status, self.reason = status, reason


class Arriving(NamedTuple):
    """Identity of an instance; expected: instances its series says it has, 0 where it does not."""

    sop_class: str
    sop_uid: str
    study_uid: str
    series_uid: str
    expected: int


def arriving(data: BytesIO, syntax: uid.UID, announced: tuple[str, str] | None) -> Arriving:
    """Identity of an encoded data set; only the elements that matter are decoded.

    announced: SOP class and instance UID that the sender's command names, None where there was
    none.  Raises Refused.
    """
    if syntax not in SYNTAXES:
        name = syntax.name if syntax.is_transfer_syntax else "something that is not known"
        message = f"the node does not read images coded as {name}; send this one uncompressed."
        raise Refused(CANNOT_UNDERSTAND, "wrong_syntax", message)
    data.seek(0)
    try:
        header = read_dataset(
            data,
            _is_implicit(data, syntax),
            syntax.is_little_endian,
            stop_when=lambda tag, _vr, _length: tag.group >= PIXEL_GROUP,
            specific_tags=[BaseTag(tag) for tag in TAGS],
        )
        texts = {tag: _text(header, tag) for tag in (CLASS, INSTANCE, STUDY, SERIES)}
        sizes = {tag: _whole(header, tag, syntax) for tag in TAGS[4:]}
    except Exception:
        # Not chained: the library's message may quote a value that names the patient.
        raise Refused(
            CANNOT_UNDERSTAND, "damaged", f"the header of this image cannot be read; {AGAIN}"
        ) from None
    for tag, text in texts.items():
        name = keyword_for_tag(tag)
        if not text:
            raise Refused(CANNOT_UNDERSTAND, "no_uid", f"this image has no {name}; {AGAIN}")
        if len(text) > 64 or not _UID.fullmatch(text):
            raise Refused(
                CANNOT_UNDERSTAND,
                "bad_uid",
                f"the {name} of this image is no UID, which has digits and points and at most 64 "
                f"of them; {AGAIN}",
            )
    # What was confirmed under one UID and kept under another could not be committed to.
    if announced not in (None, (texts[CLASS], texts[INSTANCE])):
        raise Refused(
            DOES_NOT_MATCH,
            "wrong_class",
            "the sender's command names another SOP class or instance than the image has; "
            "correct the sender.",
        )
    _require_ct(texts[CLASS])
    _require_pixels(sizes, len(data.getbuffer()) - data.tell(), syntax)
    expected = sizes[EXPECTED] if 0 <= sizes[EXPECTED] <= MOST_SLICES else 0
    return Arriving(texts[CLASS], texts[INSTANCE], texts[STUDY], texts[SERIES], expected)


def _require_ct(sop_class: str) -> None:
    if sop_class in KINDS:
        return
    name = uid.UID(sop_class).name.removesuffix(" Storage")
    found = f"of the kind {name}" if name != sop_class else "of a kind that is not known"
    message = f"this object is {found} and no CT image; send CT images."
    raise Refused(DOES_NOT_MATCH, "wrong_class", message)


def _is_implicit(data: BytesIO, syntax: uid.UID) -> bool:
    """Whether value representations are left out, by the first element, whatever was announced."""
    with data.getbuffer() as content:
        representation = bytes(content[4:6])
    if len(representation) < 2:
        return bool(syntax.is_implicit_VR)
    return not all(ord("A") <= letter <= ord("Z") for letter in representation)


def _require_pixels(sizes: dict[int, int], left: int, syntax: uid.UID) -> None:
    """Refuse what would burst the memory when it is decoded, or has too few pixels."""
    rows, columns = sizes[ROWS], sizes[COLUMNS]
    frames, samples = sizes[FRAMES] or 1, sizes[SAMPLES] or 1
    said = f"this image says that it has {frames} frames of {rows} x {columns} pixels"
    if min(rows, columns, frames, samples) <= 0:
        raise Refused(CANNOT_UNDERSTAND, "damaged", f"{said}, which is no image; {AGAIN}")
    if rows * columns * samples > LARGEST_FRAME_PIXELS or frames > MOST_FRAMES:
        raise Refused(
            CANNOT_UNDERSTAND,
            "too_large",
            f"{said}; the node takes {LARGEST_FRAME_PIXELS} pixels in a frame and {MOST_FRAMES} "
            "frames. Send one file per slice.",
        )
    needed = rows * columns * samples * frames * sizes[ALLOCATED] // 8
    if not syntax.is_compressed and left < needed:
        raise Refused(
            CANNOT_UNDERSTAND,
            "damaged",
            f"the pixel data of this image is cut short, about {left} of {needed} bytes are there; "
            f"{AGAIN}",
        )


def _bytes(header: Dataset, tag: int) -> bytes:
    if tag not in header:
        return b""
    value = header.get_item(tag).value
    return value if isinstance(value, bytes) else str(value).encode("ascii")


def _text(header: Dataset, tag: int) -> str:
    return _bytes(header, tag).decode("ascii").strip(" \0")


def _whole(header: Dataset, tag: int, syntax: uid.UID) -> int:
    """A number stored as text (IS) or in two bytes (US); 0 where it is absent."""
    value = _bytes(header, tag)
    if tag in (EXPECTED, FRAMES):
        return int(value.decode("ascii").strip(" \0") or 0)
    return int.from_bytes(value[:2], "little" if syntax.is_little_endian else "big")
