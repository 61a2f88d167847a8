"""Headers of the files of a series in little memory: what they have in common is kept once.

A header as pydicom reads it takes tens of kilobytes, and next to nothing of it differs between the
slices of a series.
"""

from __future__ import annotations

from collections.abc import MutableSequence
from dataclasses import dataclass, field
from typing import BinaryIO

from pydicom import Dataset
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import FileMetaDataset
from pydicom.uid import EnhancedCTImageStorage
from pydicom.valuerep import EXPLICIT_VR_LENGTH_32

from cddnet.formats._dicom_pixels import UNDEFINED_LENGTH

SHORT, LONG = 8, 12
DELIMITER_BYTES = 8
SEQUENCE_DELIMITERS = (b"\xfe\xff\xdd\xe0" + bytes(4), b"\xff\xfe\xe0\xdd" + bytes(4))


@dataclass(frozen=True, slots=True)
class Coding:
    """How a header's elements are coded.  meta: the transfer syntax, where the file told it."""

    implicit: bool
    little: bool
    charset: str | MutableSequence[str]
    meta: FileMetaDataset


@dataclass(frozen=True, slots=True)
class KeptHeader:
    """A header as the bytes it was read from, without the meta header's other elements."""

    elements: tuple[RawDataElement, ...] = field(repr=False)
    coding: Coding

    def dataset(self) -> Dataset:
        """The header; a new data set each time, so that what is decoded in it is not kept."""
        header = Dataset({element.tag: element for element in self.elements})
        header.set_original_encoding(self.coding.implicit, self.coding.little, self.coding.charset)
        header.file_meta = self.coding.meta
        return header


def dataset_of(kept: KeptHeader | Dataset) -> Dataset:
    """The header itself; not to be changed."""
    return kept if isinstance(kept, Dataset) else kept.dataset()


class SharedElements:
    """Elements of all headers that are kept by it, equal ones as one object."""

    def __init__(self) -> None:
        self._elements: dict[RawDataElement, RawDataElement] = {}
        self._codings: dict[tuple[object, ...], Coding] = {}

    def keep(self, header: Dataset, elements: list[RawDataElement]) -> KeptHeader | Dataset:
        """A header, of which `elements` are the `raw_elements`.

        One of several frames is kept as it is: it is alone, and its groups are looked at again and
        again. So is one that has no `raw_elements`.
        """
        enhanced = header.get("SOPClassUID") == EnhancedCTImageStorage
        if enhanced or header.get("NumberOfFrames") not in (None, "", 1) or not elements:
            return header
        return KeptHeader(tuple(map(self._shared, elements)), self._coding(header))

    def _shared(self, element: RawDataElement) -> RawDataElement:
        placeless = element._replace(value_tell=0)
        return self._elements.setdefault(placeless, placeless)

    def _coding(self, header: Dataset) -> Coding:
        implicit, little = header.original_encoding
        charset = header.original_character_set
        syntax = header.file_meta.get("TransferSyntaxUID")
        key = implicit, little, str(charset), syntax
        if key not in self._codings:
            meta = FileMetaDataset()
            if syntax is not None:
                meta.TransferSyntaxUID = syntax
            self._codings[key] = Coding(bool(implicit), bool(little), charset, meta)
        return self._codings[key]


def raw_elements(header: Dataset, file: BinaryIO) -> list[RawDataElement]:
    """Elements of a header just read from a file that is not deflated; the file stays where it is.

    What pydicom takes apart at once, sequences of undefined length and the character set, is cut
    out of the file. Empty where that fails, as where a file repeats an element.
    """
    behind = end = file.tell()
    raw: list[RawDataElement] = []
    for tag in reversed(list(header.keys())):
        found = header.get_item(tag)
        element = _cut_out(found, end, file, header) if isinstance(found, DataElement) else found
        if element is None or element.value_tell > end:
            raw = []
            break
        raw.append(element)
        end = element.value_tell - _head_bytes(element.VR, element.is_implicit_VR)
    file.seek(behind)
    return raw[::-1]


def _cut_out(
    element: DataElement, end: int, file: BinaryIO, header: Dataset
) -> RawDataElement | None:
    """An element as bytes, where the next one starts at `end` if its own length is not told."""
    implicit, little = map(bool, header.original_encoding)
    start = element.file_tell or 0
    if element.is_undefined_length:
        length = UNDEFINED_LENGTH
        file.seek(start)
        value = file.read(max(0, end - start))
        if value[-DELIMITER_BYTES:] not in SEQUENCE_DELIMITERS:
            return None
        value = value[:-DELIMITER_BYTES]
    else:
        told = 2 if _head_bytes(element.VR, implicit) == SHORT and not implicit else 4
        file.seek(start - told)
        length = int.from_bytes(file.read(told), "little" if little else "big")
        value = file.read(length)
        if len(value) != length:
            return None
    return RawDataElement(element.tag, element.VR, length, value, start, implicit, little)


def _head_bytes(vr: str | None, implicit: bool) -> int:
    """Length of tag, VR and length (PS3.5 7.1)."""
    return LONG if not implicit and vr in EXPLICIT_VR_LENGTH_32 else SHORT
