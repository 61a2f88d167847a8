"""Damage that knows the format, with sound checksums around it; that to DICOM is in `_fuzz_dicom`.

Each function takes an input and a generator, and returns a damaged one. Damage without knowledge
of the format is left to the fuzzer.
"""

from __future__ import annotations

import gzip
import io
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from random import Random

from _fuzz_dicom import LENGTHS, NUMBERS, TEXTS, UNDEFINED, dicom

Damage = Callable[[bytes, Random], bytes]

__all__ = ["config", "dicom", "image", "nifti", "node"]


def node(data: bytes, random: Random) -> bytes:
    """As `dicom`, behind the byte that says how it arrives."""
    first = data[:1] if random.random() < 0.9 else bytes([random.randrange(20)])
    return first + dicom(data[1:], random)


def nifti(data: bytes, random: Random) -> bytes:
    """Another number in the header, packed again where it was."""
    packed = data[:2] == b"\x1f\x8b"
    whole = bytearray(_unpacked(data) if packed else data)
    if len(whole) < 8:
        return data
    for _ in range(random.randint(1, 3)):
        kind = random.choice(("<h", ">h", "<i", "<f", "<q", "<d"))
        value = random.choice((*LENGTHS, -1, -2, 4, 16, 64, 512, 1792, 1e39, float("nan"), 0.5))
        number = struct.pack(kind, value) if kind[1] in "fd" and abs(value) < 3e38 else b""
        number = number or (
            int(value) % 256 if value == value and abs(value) < 1e9 else 255
        ).to_bytes(1, "little") * random.choice((2, 4, 8))
        place = random.randrange(0, min(len(whole), 540), 2)
        whole[place : place + len(number)] = number
    return gzip.compress(bytes(whole), 1, mtime=0) if packed else bytes(whole)


def _unpacked(data: bytes) -> bytes:
    try:
        return zlib.decompressobj(47).decompress(data, 1 << 20)
    except zlib.error:
        return data


def image(data: bytes, random: Random) -> bytes:
    """By the kind of picture or array it is."""
    if data.startswith(b"\x89PNG"):
        return _png(data, random)
    if data.startswith(b"PK"):
        return _npz(data, random)
    if data.startswith((b"II", b"MM")):
        return _tiff(data, random)
    if data.startswith(b"\xff\xd8"):
        return _jpeg(data, random)
    return _words(data, random)


def _png(data: bytes, random: Random) -> bytes:
    """A chunk changed, gone or doubled; checksums hold, so that what is behind them is reached."""
    chunks, at = [], 8
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    if not chunks:
        return data
    place = random.randrange(len(chunks))
    kind, body = chunks[place]
    if kind == b"IDAT" and random.random() < 0.5:
        body = zlib.compress(_flipped(_unpacked(body), random), 1)
    elif body and random.random() < 0.8:
        body = _flipped(body, random)
    else:
        kind = random.choice((b"IHDR", b"PLTE", b"tRNS", b"acTL", b"iCCP", b"zTXt", b"IEND", kind))
    chunks[place] = kind, body
    parts = (
        len(b).to_bytes(4, "big") + k + b + zlib.crc32(k + b).to_bytes(4, "big") for k, b in chunks
    )
    return data[:8] + b"".join(parts)


def _jpeg(data: bytes, random: Random) -> bytes:
    at = random.randrange(min(len(data), 640))
    return data[:at] + struct.pack(">H", random.choice(NUMBERS)) + data[at + 2 :]


def _tiff(data: bytes, random: Random) -> bytes:
    """An entry of the first directory changed."""
    order = "<" if data[:2] == b"II" else ">"
    try:
        first = struct.unpack_from(f"{order}I", data, 4)[0]
        count = struct.unpack_from(f"{order}H", data, first)[0]
        at = first + 2 + 12 * random.randrange(max(count, 1))
        field, kind, number, value = struct.unpack_from(f"{order}HHII", data, at)
    except struct.error:
        return _flipped(data, random)
    changed = [field, kind, number, value]
    place = random.choices((0, 1, 2, 3), (1, 2, 2, 5))[0]
    largest = 0xFFFF if place < 2 else UNDEFINED
    changed[place] = min(random.choice((*NUMBERS, *LENGTHS, value + 1, 32773, 5, 7)), largest)
    return data[:at] + struct.pack(f"{order}HHII", *changed) + data[at + 12 :]


def _npz(data: bytes, random: Random) -> bytes:
    """A member changed, renamed, gone or packed in another way."""
    held = io.BytesIO()
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(held, "w") as new:
            names = old.namelist()
            chosen = random.choice(names)
            for name in names:
                body = old.read(name)[: 1 << 20]
                if name == chosen:
                    body = _words(body, random) if random.random() < 0.7 else _flipped(body, random)
                    name = random.choice((name, name, name, "hu.npy", "spacing_mm.npy", "x.npy"))
                new.writestr(name, body, random.choice((0, 8)))
    except Exception:
        return _flipped(data, random)
    return held.getvalue()


def _words(data: bytes, random: Random) -> bytes:
    """A number or word of a text header changed."""
    found = list(re.finditer(rb"[-+.\w]+", data[:2048]))
    if not found:
        return _flipped(data, random)
    at = random.choice(found)
    new = random.choice((*TEXTS, b"<f2", b">f8", b"|O", b"(1,)", b"True", b"LOCAL", b"MET_CHAR"))
    return data[: at.start()] + new + data[at.end() :]


def _flipped(data: bytes, random: Random) -> bytes:
    whole = bytearray(data)
    for _ in range(random.randint(1, 6) if whole else 0):
        whole[random.randrange(len(whole))] = random.randrange(256)
    return bytes(whole)


YAML = (
    b"&a [*a]", b"*a", b"<<: *a", b"!!python/object/apply:os.system [x]", b"!!binary A",
    b"!!float x", b"2001-99-99", b"2001-01-01T99:99:99Z", b"0b", b"0x", b"0o9", b"1:99:99",
    b".nan", b"-.inf", b"[" * 3000, b"{" * 500, b"- " * 2000, b"9" * 5000, b"!!int _",
    b"!!timestamp 1", b"? : ?", b"!!set", b"%YAML 9.9\n---\n", b"\xef\xbb\xbf", b"\xff\xfe",
    b"\x00", b"\t", b"---\n", b"...\n", b"~", b"yes",
)  # fmt: skip


def config(data: bytes, random: Random) -> bytes:
    """A word replaced, a line gone, doubled or moved."""
    first, text = data[:1], data[1:]
    if random.random() < 0.6:
        found = list(re.finditer(rb"[^\s:,\[\]]+", text))
        if found:
            at = random.choice(found)
            new = random.choice((*YAML, *TEXTS))
            return first + text[: at.start()] + new + text[at.end() :]
    lines = text.split(b"\n")
    one, other = random.randrange(len(lines)), random.randrange(len(lines))
    lines[one] = random.choice((b"", lines[other], b"  " + lines[one], lines[one].lstrip()))
    return first + b"\n".join(lines)
