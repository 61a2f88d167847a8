"""Text in DICOM headers as coded bytes, so that a copy says what its source says.

pydicom decodes more than it can encode: katakana and Latin letters in one value of ISO_IR 13, and
bytes that do not belong to the stated character set, would become question marks.
Sources: PS3.5 6.1.2.4 and 6.1.2.5 (code extensions), 6.2 (lengths count characters).
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from itertools import islice

from pydicom import Dataset
from pydicom.charset import convert_encodings, encode_string
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.filewriter import correct_ambiguous_vr
from pydicom.tag import BaseTag

from cddnet.formats._dicom_values import joined_text

# Value representations that the character set applies to (PS3.5 6.1.2.2).
TEXT_VRS = frozenset({"LO", "LT", "PN", "SH", "ST", "UC", "UT"})
# Python's names of the character sets that have several bytes to a character and no escapes.
SEVERAL_BYTES = frozenset({"UTF8", "GB18030", "GBK"})
ESCAPE = re.compile(rb"\x1b([ -/]+)[0-~]")
# Escapes after which the bytes of ASCII mean ASCII: ISO 646 and its Japanese version.
TO_ASCII, ASCII_SETS = b"\x1b(B", (b"\x1b(B", b"\x1b(J")
# They end what an escape began.
NEW_LINES = b"\t\n\f\r"


def text_bytes(header: Dataset, keyword: str, like: Dataset) -> bytes:
    """A header's text without blanks around it, coded as `like`, another header, is.

    b"" where it is absent.
    """
    tag = tag_for_keyword(keyword)
    value = None if tag is None or tag not in header else header.get_item(tag).value
    if isinstance(value, bytes) and _charset(header) == _charset(like):
        return value.strip(b" \0")
    coding = convert_encodings(like.get("SpecificCharacterSet"))
    return encode_string(joined_text(header, keyword), coding)


def shortened(text: bytes, most: int, header: Dataset) -> bytes:
    """The first `most` characters of text of a header, to which ASCII may be added."""
    if len(text) > most:
        coding = convert_encodings(header.get("SpecificCharacterSet"))[0]
        ends = list(islice(_ends(text, coding), most))
        text = text[: ends[-1] if ends else 0].strip(b" ")
    escapes = [found[0] for found in ESCAPE.finditer(text) if found[1][-1:] not in b")-"]
    return text + (TO_ASCII if escapes and escapes[-1] not in ASCII_SETS else b"")


def make_explicit(header: Dataset) -> None:
    """Prepare a header for explicit VR, little endian, with its texts as the bytes they were.

    What pydicom would do on writing decodes and encodes them.
    """
    if header.original_encoding != (False, True):
        _make_explicit(header)
        correct_ambiguous_vr(header, True)


def _make_explicit(dataset: Dataset) -> None:
    for tag in list(dataset.keys()):
        element, vr = dataset.get_item(tag), vr_of(dataset, tag)
        if vr in TEXT_VRS and isinstance(element, RawDataElement) and element.value:
            length = len(element.value)
            dataset[tag] = element._replace(
                VR=vr, length=length, is_implicit_VR=False, is_little_endian=True
            )
        elif vr == "SQ":
            for item in dataset[tag].value or ():
                _make_explicit(item)
        else:
            # Decoded, because its bytes may mean something else now.
            _ = dataset[tag]
    dataset.set_original_encoding(False, True, dataset.original_character_set)


def _charset(header: Dataset) -> str:
    return joined_text(header, "SpecificCharacterSet")


def vr_of(dataset: Dataset, tag: BaseTag) -> str:
    """Value representation of an element, by the dictionary where the file does not say it."""
    if vr := dataset.get_item(tag).VR:
        return str(vr)
    try:
        return dictionary_VR(tag)
    except KeyError:
        return "UN"


def _ends(text: bytes, coding: str) -> Iterator[int]:
    """Where each character ends.  coding: Python's name of the first character set."""
    if coding in SEVERAL_BYTES:
        decoder = codecs.getincrementaldecoder(coding)("replace")
        for at in range(len(text)):
            # Damage comes to light at the byte after it, which is a character of its own.
            if found := len(decoder.decode(text[at : at + 1])):
                yield from [at] * (found - 1)
                yield at + 1
        return
    wide, at = {False: False, True: False}, 0
    while at < len(text):
        if escape := ESCAPE.match(text, at):
            # The last letter says which half of the code table is meant, a dollar two bytes each.
            wide[escape[1][-1:] in b")-"] = escape[1].startswith(b"$")
            at = escape.end()
            continue
        if text[at] in NEW_LINES:
            wide = {False: False, True: False}
        printable = text[at] & 0x7F > 0x20
        at = min(len(text), at + 1 + (printable and wide[text[at] >= 0x80]))
        yield at
