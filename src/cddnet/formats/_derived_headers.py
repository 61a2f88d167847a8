"""Headers of derived CT: new identity, the same patient and place, and what was done to it.

Sources: PS3.3 C.7.6.1 (general image), C.12.4.1 (derivation), C.12.1.1.5 (contributing equipment).

Above 300 lines: each attribute of the standard is a line.
"""

from __future__ import annotations

import copy
import json
import secrets
import uuid
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timedelta, timezone
from functools import cached_property
from itertools import count

from pydicom import Dataset, uid
from pydicom.dataset import FileMetaDataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.tag import BaseTag

from cddnet.errors import DicomError
from cddnet.formats._dicom_frames import DicomHeaders, Frame, is_lossy
from cddnet.formats._dicom_pixels import Stored, frame_bytes, frame_count, transfer_syntax_of
from cddnet.formats._dicom_text import shortened, text_bytes, vr_of
from cddnet.formats._dicom_values import image_type
from cddnet.volume import Derivation

# Names of ours in UIDs; a change would make every re-sent object a new one.
NAMESPACE = uuid.UUID("59c760d9-9664-4bee-bc1e-08c6cb2d09f6")
# Version 2: pixels decide too. Series that may grow are named as in version 1, so that slices that
# come after an update join those of before.
PIXELS_NAMESPACE = uuid.uuid5(NAMESPACE, "version 2")
# Of the number in a UID of pixels, so that one can take the place of another in a file.
DIGITS = 39
IMPLEMENTATION_UID = "2.25.107606179735323703433431287355604356581"
MANUFACTURER = "cddnet"
RESEARCH_MARK = "research"
RESEARCH_COMMENT = "Research use only. Not for diagnosis."

SERIES_NUMBER_STEP = 9000
SERIES_NUMBER_RECIPES = 100
LARGEST_IS = 2**31 - 1
LONGEST = {"LO": 64, "ST": 1024, "LT": 10240}

# They describe the old pixels, the old object or its storage, and would be untrue of the new one.
DROPPED = (
    "IconImageSequence",
    "SmallestPixelValueInSeries",
    "LargestPixelValueInSeries",
    "MACParametersSequence",
    "DigitalSignaturesSequence",
    "DataSetTrailingPadding",
    "InstanceCreatorUID",
    "SOPInstanceStatus",
    "SOPAuthorizationDateTime",
    "SOPAuthorizationComment",
    "AuthorizationEquipmentCertificationNumber",
    "ConversionSourceAttributesSequence",
    "ConcatenationUID",
    "SOPInstanceUIDOfConcatenationSource",
    "ConcatenationFrameOffsetNumber",
    "InConcatenationNumber",
    "InConcatenationTotalNumber",
    "ExtendedOffsetTable",
    "ExtendedOffsetTableLengths",
)
LOSSY_METHODS = {
    uid.JPEGLSNearLossless: "ISO_14495_1",
    uid.JPEG2000: "ISO_15444_1",
    uid.HTJ2K: "ISO_15444_15",
}


class Recipe:
    """What was done to a series, as the headers of every derived slice need it.

    UIDs of derived objects follow from the UIDs and pixels of all source slices used, in order, and
    from what was done. That of the series follows from all its slices; where it may still get
    some, from the source's series instead.
    """

    def __init__(
        self, steps: Sequence[Derivation], headers: DicomHeaders, *, streamed: bool = False
    ) -> None:
        """streamed: slices are decoded while they are written. Until the end, stand-ins are in the
        place of UIDs, which `uids` then tells.
        """
        self.steps = tuple(steps)
        self._headers = headers
        self._stand_ins = (_any_uid(), _any_uid()) if streamed else None
        self.frames = headers.frames
        self.created = _created(self.steps, _timezone(headers.frames[0].header))
        self.neighbours = sum(step.neighbours for step in self.steps)
        self._text = json.dumps([_deciding(step) for step in self.steps], sort_keys=True)
        self._grows = self.steps[-1].grows

    @property
    def series_uid(self) -> str:
        """UID of the derived series, or its stand-in."""
        if self._stand_ins is None or self._grows:
            return self._series_uid
        return self._stand_ins[0]

    def sop_uid(self, index: int | None) -> str:
        """UID of derived slice `index`, or of the object that holds them all; or its stand-in."""
        return self._stand_ins[1] if self._stand_ins else self._sop_uid(index)

    def uids(self, index: int | None) -> dict[str, str]:
        """Stand-in -> UID, for the file of `sop_uid(index)`, once all slices were decoded."""
        made = self._series_uid, self._sop_uid(index)
        return dict(zip(self._stand_ins or made, made, strict=True))

    @cached_property
    def _series_uid(self) -> str:
        if self._grows:
            source = self.frames[0].header
            parts = (str(source.StudyInstanceUID), str(source.SeriesInstanceUID))
            return derived_uid("growing series", self._text, *parts)
        return _pixels_uid("series", self._text, *map(self._used, range(len(self.frames))))

    def _sop_uid(self, index: int | None) -> str:
        """The series enters too: the same slice derived alone and within its series is two objects.

        Where the series grows, a neighbour that came late must not make a slice another object.
        """
        if index is None:
            used = list(range(len(self.frames)))
        else:
            used = self._places(index)[:1] if self._grows else self._places(index)
        return _pixels_uid("image", self._series_uid, self._text, *map(self._used, used))

    def _used(self, index: int) -> str:
        frame = self.frames[index]
        return f"{frame.sop_uid}/{frame.index}/{self._headers.digest(index)}"

    def sources(self, index: int) -> tuple[Frame, ...]:
        """The source slices that slice `index` was made from, its own first."""
        return tuple(self.frames[place] for place in self._places(index))

    def _places(self, index: int) -> list[int]:
        first, end = max(0, index - self.neighbours), index + self.neighbours + 1
        around = range(first, min(end, len(self.frames)))
        return [index, *(place for place in around if place != index)]

    def series_number(self) -> int:
        """Source's number + 9000 + a multiple of 10000 that tells recipes apart."""
        try:
            number = max(0, int(self.frames[0].header.get("SeriesNumber") or 0))
        except (TypeError, ValueError):
            number = 0
        which = uuid.uuid5(NAMESPACE, self._text).int % SERIES_NUMBER_RECIPES
        derived = number + SERIES_NUMBER_STEP + 10 * 1000 * which
        return derived if derived <= LARGEST_IS else SERIES_NUMBER_STEP + 10 * 1000 * which


def _created(steps: Sequence[Derivation], zone: timezone | None) -> datetime | None:
    """When the last step that says so ran, in the zone of the header's times."""
    moments = [step.created for step in steps if step.created and not step.timeless]
    return moments[-1].astimezone(zone or moments[-1].tzinfo) if moments else None


def _deciding(step: Derivation) -> dict[str, object]:
    """All of a step that decides what is in the derived objects, and so their UIDs."""
    fields = asdict(step)
    grows, created = fields.pop("grows"), fields.pop("created")
    return fields if grows or created is None else fields | {"created": created.isoformat()}


def derived_uid(*parts: str) -> str:
    """A UID that is the same for the same parts, at most 44 characters (PS3.5 B.2)."""
    return f"2.25.{uuid.uuid5(NAMESPACE, json.dumps(parts)).int}"


def _pixels_uid(*parts: str) -> str:
    """As `derived_uid`, of always 44 characters."""
    for attempt in count():
        number = uuid.uuid5(PIXELS_NAMESPACE, json.dumps([*parts, attempt])).int
        if number >= 10 ** (DIGITS - 1):
            return f"2.25.{number}"
    raise AssertionError


def _any_uid() -> str:
    """A UID that nothing else has, as long as one of pixels."""
    return f"2.25.{10 ** (DIGITS - 1) + secrets.randbelow(10 ** (DIGITS - 1))}"


def require_identity(frames: Sequence[Frame]) -> None:
    """Refuse sources that a derived image could not refer to."""
    for frame in frames:
        for keyword in ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID"):
            if not frame.header.get(keyword):
                raise DicomError(
                    f"{frame.name}: has no {keyword}, so a derived image cannot refer to it; "
                    "export the original series."
                )


def derived_header(source: Dataset, recipe: Recipe) -> Dataset:
    """A copy of a source header with everything changed that is alike in all slices."""
    header = copy.deepcopy(source)
    derive_header(header, recipe)
    return header


def derive_header(header: Dataset, recipe: Recipe) -> None:
    """Change a header of one's own as `derived_header` does a copy, which costs more than that."""
    _drop_untrue(header)
    last = recipe.steps[-1]
    values = image_type(header)
    header.ImageType = ["DERIVED", last.image_type, *(values[2:] or ("AXIAL",))]
    header.SeriesInstanceUID = recipe.series_uid
    header.SeriesNumber = recipe.series_number()
    first = recipe.frames[0].header
    described = text_bytes(first, "SeriesDescription", header)
    header.SeriesDescription = _series_description(described, recipe.steps, header)
    _set_creation(header, recipe.created)
    header.DerivationDescription = _derivation_description(header, recipe.steps)
    header.ImageComments = _joined(header, "ImageComments", RESEARCH_COMMENT, "LT")
    if _text(header, "BurnedInAnnotation") != "YES":
        header.BurnedInAnnotation = "NO"
    _set_lossy(header, recipe.frames[0])
    _set_padding_vr(header, recipe.frames[0])
    equipment = [_equipment(step, recipe.created) for step in recipe.steps]
    header.ContributingEquipmentSequence = [
        *(header.get("ContributingEquipmentSequence") or []),
        *equipment,
    ]


def derivation_codes(steps: Sequence[Derivation]) -> list[Dataset]:
    """Codes of CID 7203: a network smooths; what else is done adds a computed image of noise."""
    found: list[Code] = []
    for step in steps:
        wanted = [codes.DCM.PixelByPixelAddition]
        if step.weights_sha256:
            wanted = [codes.DCM.Smoothing, codes.DCM.ArtificialIntelligence]
        found.extend(code for code in wanted if code not in found)
    return [_coded(code) for code in found]


def source_image(frame: Frame, several_frames: bool) -> Dataset:
    """Reference to a source slice (PS3.3 C.12.4, CID 7202)."""
    item = _reference(frame)
    if several_frames:
        item.ReferencedFrameNumber = frame.index + 1
    purpose = codes.DCM.SourceImageForImageProcessingOperation
    item.PurposeOfReferenceCodeSequence = [_coded(purpose)]
    item.SpatialLocationsPreserved = "YES"
    return item


def referenced_series(frames: Sequence[Frame]) -> Dataset:
    """The source series and those of its instances that are referred to (PS3.3 C.12.2)."""
    item = Dataset()
    item.SeriesInstanceUID = frames[0].header.SeriesInstanceUID
    unique = {frame.sop_uid: frame for frame in frames}
    item.ReferencedInstanceSequence = [_reference(frame) for frame in unique.values()]
    return item


def set_pixel_extremes(header: Dataset, stored: Stored) -> None:
    """Smallest and largest value of the new pixels, where the source told those of its own."""
    signed = header.PixelRepresentation == 1
    for keyword, value in (
        ("SmallestImagePixelValue", stored.min()),
        ("LargestImagePixelValue", stored.max()),
    ):
        if keyword in header:
            header.pop(keyword)
            header.add_new(keyword, "SS" if signed else "US", int(value))


def file_meta(header: Dataset, version: str) -> FileMetaDataset:
    """Meta header of a derived file (PS3.10 7.1)."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = header.SOPClassUID
    meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID
    meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    meta.ImplementationClassUID = uid.UID(IMPLEMENTATION_UID)
    meta.ImplementationVersionName = _ascii(f"CDDNET_{version}")[:16]
    return meta


def _set_creation(header: Dataset, created: datetime | None) -> None:
    """The source's own would be untrue.  Dates of content and series stay: they say what is shown,
    and a clock would give one UID to files that differ.
    """
    for keyword, form in (
        ("InstanceCreationDate", "%Y%m%d"),
        ("InstanceCreationTime", "%H%M%S.%f"),
    ):
        header.pop(keyword, None)
        if created is not None:
            setattr(header, keyword, created.strftime(form))


def _drop_untrue(header: Dataset) -> None:
    for keyword in DROPPED:
        header.pop(keyword, None)
    doomed: list[BaseTag] = []
    for tag in header.keys():  # noqa: SIM118
        # Overlays without data of their own lie in the unused bits of the old pixels; the words of
        # one in a big-endian file would not be turned round with the rest.
        data_tag = BaseTag((tag.group << 16) | 0x3000)
        if _is_overlay(tag) and (data_tag not in header or not header.original_encoding[1]):
            doomed.append(tag)
    for tag in doomed:
        del header[tag]
    _drop_private(header)


def _is_overlay(tag: BaseTag) -> bool:
    return 0x6000 <= tag.group <= 0x601E and tag.group % 2 == 0


def _drop_private(dataset: Dataset) -> None:
    for tag in list(dataset.keys()):
        if tag.is_private:
            del dataset[tag]
            continue
        # Only sequences are taken apart: what is not touched is written as the bytes it was.
        if vr_of(dataset, tag) == "SQ":
            for item in dataset[tag].value or ():
                _drop_private(item)


def _series_description(source: bytes, steps: Sequence[Derivation], header: Dataset) -> bytes:
    labels = " + ".join(_ascii(step.label) for step in steps)
    suffix = f"{labels} {RESEARCH_MARK}"
    if len(suffix) > LONGEST["LO"]:
        suffix = f"{labels[: LONGEST['LO'] - len(RESEARCH_MARK) - 1]} {RESEARCH_MARK}"
    kept = shortened(source, max(0, LONGEST["LO"] - len(suffix) - 1), header)
    return b"%b %b" % (kept, suffix.encode("ascii")) if kept else suffix.encode("ascii")


def _derivation_description(source: Dataset, steps: Sequence[Derivation]) -> bytes:
    texts = []
    for step in steps:
        values = ", ".join(f"{name}={value}" for name, value in step.parameters)
        weights = f", weights {step.weights_sha256[:12]}" if step.weights_sha256 else ""
        texts.append(
            _ascii(f"{step.description} (cddnet {step.version}{weights}; {values})".strip())
        )
    return _joined(source, "DerivationDescription", "; then: ".join(texts), "ST")


def _joined(header: Dataset, keyword: str, sentence: str, vr: str) -> bytes:
    """Ours (ASCII) in full as far as it fits, and what was there before in front of it."""
    before, room = text_bytes(header, keyword, header), LONGEST[vr]
    ours = sentence[:room].encode("ascii")
    if ours in before:
        return before
    if before and len(ours) + 4 < room:
        return b"%b; %b" % (shortened(before, room - len(ours) - 2, header), ours)
    return ours


def _set_lossy(header: Dataset, first: Frame) -> None:
    """Once lossy, always lossy (PS3.3 C.7.6.1.1.5)."""
    lossy, syntax = is_lossy(header), transfer_syntax_of(header)
    header.LossyImageCompression = "01" if lossy else "00"
    if not lossy or header.get("LossyImageCompressionMethod"):
        return
    if "LossyImageCompressionRatio" not in header and syntax.is_compressed:
        raw = frame_bytes(header) * frame_count(header)
        header.LossyImageCompressionRatio = round(max(1.0, raw / first.path.stat().st_size), 1)
    if syntax.is_compressed:
        header.LossyImageCompressionMethod = LOSSY_METHODS.get(syntax, "ISO_10918_1")


def _set_padding_vr(header: Dataset, frame: Frame) -> None:
    signed = header.PixelRepresentation == 1
    for keyword in ("PixelPaddingValue", "PixelPaddingRangeLimit"):
        told = header.get(keyword)
        if told is None:
            continue
        value = int(told) % 0x10000
        del header[keyword]
        value -= 0x10000 if signed and value >= 0x8000 else 0
        header.add_new(keyword, "SS" if signed else "US", value)


def _equipment(step: Derivation, created: datetime | None) -> Dataset:
    item = Dataset()
    item.PurposeOfReferenceCodeSequence = [_coded(codes.DCM.ProcessingEquipment)]
    item.Manufacturer = MANUFACTURER
    item.ManufacturerModelName = _ascii(dict(step.parameters).get("model", step.label))[:64]
    item.SoftwareVersions = _ascii(step.version)[:64]
    # IHE AI Results: the device is another one after every retraining.
    item.DeviceUID = derived_uid("device", step.version, step.weights_sha256)
    if created is not None:
        item.ContributionDateTime = created.strftime("%Y%m%d%H%M%S.%f")
    item.ContributionDescription = _ascii(step.description)[: LONGEST["ST"]]
    return item


def _reference(frame: Frame) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID = frame.header.SOPClassUID
    item.ReferencedSOPInstanceUID = frame.sop_uid
    return item


def _coded(code: Code) -> Dataset:
    item = Dataset()
    item.CodeValue = code.value
    item.CodingSchemeDesignator = code.scheme_designator
    item.CodeMeaning = code.meaning
    return item


def _timezone(header: Dataset) -> timezone | None:
    """Zone that the header's times are in; None for this machine's own."""
    text = _text(header, "TimezoneOffsetFromUTC")
    try:
        minutes = int(text[1:3]) * 60 + int(text[3:5])
        return timezone(timedelta(minutes=-minutes if text[0] == "-" else minutes))
    except (ValueError, IndexError):
        return None


def _text(header: Dataset, keyword: str) -> str:
    value = header.get(keyword)
    return "" if value is None else str(value).strip()


def _ascii(text: str) -> str:
    """Printable ASCII without the backslash, which separates values."""
    kept = "".join(letter if " " <= letter <= "~" else "?" for letter in text)
    return kept.replace("\\", "/").strip()
