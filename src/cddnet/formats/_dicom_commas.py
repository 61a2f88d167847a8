"""Decimal commas: some systems write decimal strings (DS) in the style of their own country."""

from __future__ import annotations

import re
from collections.abc import Iterator

from pydicom import Dataset
from pydicom.datadict import dictionary_has_tag, dictionary_keyword
from pydicom.dataelem import RawDataElement

from cddnet.formats._dicom_text import vr_of

# Groups that hold what a header says of each frame of an Enhanced CT.
FRAME_GROUPS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
_DECIMAL = re.compile(rb"[-+]?\d*,\d+(?:[eE][-+]?\d+)?")
# May also be a thousand or more, with commas between the groups of three digits.
_THOUSANDS = re.compile(rb"[-+]?[1-9]\d{0,2},\d{3}")


def read_commas_as_points(header: Dataset) -> tuple[str, ...]:
    """Put points in place of the decimal commas of a header just read; keywords of these elements.

    Nothing is changed where a comma may separate thousands: where none of the values is surely a
    decimal (0,7), or one holds a point as well (1,024.5).
    """
    commas = [(part, element) for part in _parts(header) for element in _with_commas(part)]
    every = [value for _, element in commas for value in _values(element) if b"," in value]
    if not all(map(_DECIMAL.fullmatch, every)) or all(map(_THOUSANDS.fullmatch, every)):
        return ()
    for part, element in commas:
        # The same length: where the next element starts is told by it.
        part[element.tag] = element._replace(value=(element.value or b"").replace(b",", b"."))
    tags = dict.fromkeys(element.tag for _, element in commas)
    return tuple(dictionary_keyword(tag) for tag in tags if dictionary_has_tag(tag))


def _parts(header: Dataset) -> Iterator[Dataset]:
    """The header, and the functional groups of its frames."""
    yield header
    for keyword in FRAME_GROUPS:
        for group in header.get(keyword) or ():
            yield from _nested(group)


def _nested(dataset: Dataset) -> Iterator[Dataset]:
    yield dataset
    for tag in list(dataset.keys()):
        if vr_of(dataset, tag) == "SQ":
            for item in dataset[tag].value or ():
                yield from _nested(item)


def _with_commas(dataset: Dataset) -> list[RawDataElement]:
    """Decimal strings that hold a comma."""
    return [
        element
        for element in dataset.values()
        if isinstance(element, RawDataElement)
        and b"," in (element.value or b"")
        and vr_of(dataset, element.tag) == "DS"
    ]


def _values(element: RawDataElement) -> list[bytes]:
    return [value.strip(b" \0") for value in (element.value or b"").split(b"\\")]
