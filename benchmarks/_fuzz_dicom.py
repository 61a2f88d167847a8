"""Damage to DICOM files at the level of headers, lengths, pixels and encapsulation."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from random import Random
from typing import NamedTuple

LONG = (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")
PIXELS, ITEM, UNDEFINED = (0x7FE0, 0x0010), (0xFFFE, 0xE000), 0xFFFFFFFF
LENGTHS = (0, 1, 2, 3, 7, 0x7F, 0xFF, 0xFFFE, 0xFFFF, 0x10000, 0x7FFFFFFF, 0xFFFFFFFE, UNDEFINED)
NUMBERS = (0, 1, 2, 7, 8, 12, 15, 16, 17, 32, 255, 1024, 0x7FFF, 0x8000, 0xFFFF)
TEXTS = (
    b"", b"0", b"-1", b"1", b"-0", b"nan", b"inf", b"-inf", b"1e400", b"1e-400", b"1e39", b"1E308",
    b"99999999999999999999", b"2147483648", b"-2147483649", b"65536", b"1.5", b"1,5", b"0x10",
    b"1\\0\\0\\0\\1\\0", b"0\\0\\0\\0\\0\\0", b"1\\1", b"\\", b"\\\\\\", b"1\\nan\\0",
    b"1e300\\1e300\\0",
    b"A" * 70, b"9" * 5000, b"\xff\xfe", b"\x00\x00", b"\x1b$B", b"ISO 2022 IR 87", b"ISO_IR 192",
    b"CT", b"MR", b"HU", b"US", b"ORIGINAL\\PRIMARY\\AXIAL", b"1.2.840.10008.5.1.4.1.1.2",
    b"1.2.840.10008.5.1.4.1.1.2.1", b"1.2.840.10008.1.2", b"1.2.840.10008.1.2.1.99", b"1..2", b".",
)  # fmt: skip
# Tags on which the reading of a CT image hangs.
DECISIVE = {
    (0x0002, 0x0010), (0x0008, 0x0005), (0x0008, 0x0008), (0x0008, 0x0016), (0x0018, 0x0050),
    (0x0020, 0x0032), (0x0020, 0x0037), (0x0028, 0x0002), (0x0028, 0x0004), (0x0028, 0x0008),
    (0x0028, 0x0010), (0x0028, 0x0011), (0x0028, 0x0030), (0x0028, 0x0100), (0x0028, 0x0101),
    (0x0028, 0x0102), (0x0028, 0x0103), (0x0028, 0x0120), (0x0028, 0x0121), (0x0028, 0x1052),
    (0x0028, 0x1053), (0x0028, 0x1054), PIXELS,
}  # fmt: skip


class Element(NamedTuple):
    """A DICOM element by offsets in its file; sequences are followed by their content."""

    tag: tuple[int, int]
    start: int
    length_at: int
    length_bytes: int
    value_at: int
    end: int


def elements(data: bytes) -> list[Element]:
    """Every element that can be found, little endian, explicit or implicit, nested ones too."""
    found: list[Element] = []
    at = 132 if data[128:132] == b"DICM" else 0
    while at + 8 <= len(data):
        tag = struct.unpack_from("<HH", data, at)
        explicit = tag[0] != 0xFFFE and data[at + 4 : at + 6].isalpha()
        if explicit and data[at + 4 : at + 6] not in LONG:
            length_at, length_bytes = at + 6, 2
        else:
            length_at, length_bytes = at + (8 if explicit else 4), 4
        value_at = length_at + length_bytes
        if value_at > len(data):
            break
        length = int.from_bytes(data[length_at:value_at], "little")
        within = tag[0] == 0xFFFE or data[at + 4 : at + 6] == b"SQ"
        # Fragments of pixels are one value each, other items hold elements.
        pixels = any(element.tag == PIXELS for element in found)
        whole = length != UNDEFINED and (not within or (pixels and tag == ITEM))
        end = min(value_at + length, len(data)) if whole else value_at
        found.append(Element(tag, at, length_at, length_bytes, value_at, end))
        at = end
    return found


def dicom(data: bytes, random: Random) -> bytes:
    """One to three changes of header, length, pixels or encapsulation."""
    for _ in range(random.randint(1, 3)):
        found = elements(data)
        if not found:
            return data
        data = random.choices(
            (_value, _length, _structure, _pixels, _encapsulation), (6, 2, 2, 2, 3)
        )[0](data, found, random)
    return data


def _chosen(found: Sequence[Element], random: Random) -> Element:
    decisive = [element for element in found if element.tag in DECISIVE]
    return random.choice(decisive if decisive and random.random() < 0.7 else found)


def _value(data: bytes, found: Sequence[Element], random: Random) -> bytes:
    """Another value, with the length that belongs to it."""
    at = _chosen([item for item in found if item.tag != PIXELS] or found, random)
    old = data[at.value_at : at.end]
    if len(old) == 2 and random.random() < 0.8:
        value = struct.pack("<H", random.choice(NUMBERS))
    else:
        value = random.choice((*TEXTS, old + old, old[: len(old) // 2], old[::-1]))
    value += b" " * (len(value) % 2)
    length = min(len(value), 256**at.length_bytes - 1).to_bytes(at.length_bytes, "little")
    return data[: at.length_at] + length + value + data[at.end :]


def _length(data: bytes, found: Sequence[Element], random: Random) -> bytes:
    """Another length before the same value."""
    at = _chosen(found, random)
    old = int.from_bytes(data[at.length_at : at.value_at], "little")
    new = random.choice((*LENGTHS, old + 1, old - 1, old * 2, old // 2, len(data)))
    length = (new % 256**at.length_bytes).to_bytes(at.length_bytes, "little")
    return data[: at.length_at] + length + data[at.value_at :]


def _structure(data: bytes, found: Sequence[Element], random: Random) -> bytes:
    """An element gone, twice, elsewhere, of another kind, or the end of the file gone."""
    at, other = _chosen(found, random), random.choice(found)
    element = data[at.start : at.end]
    kinds = (b"US", b"DS", b"SQ", b"OB", b"OW", b"UN", b"UI", b"CS", b"FD", b"??", b"\0\0")
    return random.choice(
        (
            data[: at.start] + data[at.end :],
            data[: at.end] + element + data[at.end :],
            data[: other.start] + element + data[other.start :],
            data[: at.start + 4] + random.choice(kinds) + data[at.start + 6 :],
            data[: random.randint(at.start, at.end)],
            data[: at.start] + data[other.start : other.start + 4] + data[at.start + 4 :],
        )
    )


def _pixels(data: bytes, found: Sequence[Element], random: Random) -> bytes:
    """Damaged, cut or longer pixels: also the markers and sizes within a compressed stream."""
    after = [item for item in found if item.tag in (PIXELS, ITEM) and item.end > item.value_at]
    at = after[-1] if after else found[-1]
    value = bytearray(data[at.value_at : at.end])
    if not value:
        return data
    kind = random.randrange(4)
    if kind == 0:
        for _ in range(random.randint(1, 8)):
            value[random.randrange(len(value))] = random.randrange(256)
    elif kind == 1:
        # Markers, precision and sizes of a stream are in its first bytes.
        place = random.randrange(min(len(value), 120))
        value[place : place + 2] = struct.pack(">H", random.choice(NUMBERS))
    elif kind == 2:
        value = value[: random.randrange(len(value))]
    else:
        value += value[: random.randint(1, len(value))]
    return data[: at.value_at] + bytes(value) + data[at.end :]


def _encapsulation(data: bytes, found: Sequence[Element], random: Random) -> bytes:
    """Fragments split, gone, doubled, of another length; an offset table that lies."""
    place = next((n for n, item in enumerate(found) if item.tag == PIXELS), None)
    items = [] if place is None else [item for item in found[place:] if item.tag == ITEM]
    if not items:
        return _structure(data, found, random)
    at, table = random.choice(items), items[0]
    value = data[at.value_at : at.end]
    half = len(value) // 2 & ~1
    split = _item(value[:half]) + _item(value[half:])
    lies = b"".join(struct.pack("<I", random.choice(LENGTHS)) for _ in range(random.randint(1, 4)))
    return random.choice(
        (
            data[: at.start] + split + data[at.end :],
            data[: at.start] + data[at.end :],
            data[: at.end] + data[at.start : at.end] + data[at.end :],
            data[: at.length_at] + struct.pack("<I", random.choice(LENGTHS)) + data[at.value_at :],
            data[: at.start] + b"\xfe\xff\xdd\xe0\0\0\0\0" + data[at.start :],
            data[: table.start] + _item(lies) + data[table.end :],
            data[: at.start] + _item(b"") + data[at.start :],
        )
    )


def _item(value: bytes) -> bytes:
    return b"\xfe\xff\x00\xe0" + struct.pack("<I", len(value)) + value
