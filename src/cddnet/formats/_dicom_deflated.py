"""The coding of a data set, known before it is read: byte order, and how large a deflated one is.

A meta header may say another transfer syntax than its data set has. pydicom finds out for itself
whether value representations are explicit; the rest is refused here.
"""

from __future__ import annotations

import os
import struct
import zlib
from contextlib import suppress
from typing import BinaryIO

from pydicom.filereader import read_dataset, read_preamble
from pydicom.tag import BaseTag
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian

from cddnet.errors import DicomError

# Air and padding shrink a thousandfold, but a CT that was measured shrinks two- to fivefold.
LARGEST_RATIO = 20
ALWAYS_ALLOWED_BYTES = 64 << 20
_META_GROUP = 0x0002
_PIECE_BYTES = 1 << 20
# The identification group stands first; a file of commands or a directory starts lower.
_FIRST_GROUPS = (0x0000, 0x0004, 0x0008)
_GROUP_BYTES, _HEAD_BYTES = 2, 1024


def require_bounded(file: BinaryIO, name: str) -> None:
    """Refuse a deflated file, open at its start, that holds far more than its size.

    The file is left at its start. Its data set may take 64 MiB, or 20 times the bytes of the file.
    Raises: DicomError for more, for one that is damaged, and for a transfer syntax that is untrue.
    """
    try:
        syntax = _named_syntax(file)
        if syntax == DeflatedExplicitVRLittleEndian:
            _inflate(file, name)
        elif syntax:
            _require_its_coding(file, UID(syntax), name)
    finally:
        file.seek(0)


def _named_syntax(file: BinaryIO) -> str:
    """Transfer syntax of the meta header, "" without any; the file is then behind that header."""
    read_preamble(file, force=True)
    start = file.tell()
    for implicit in (False, True):
        file.seek(start)
        meta = read_dataset(file, implicit, is_little_endian=True, stop_when=_is_no_meta)
        # Where a VR is none, pydicom takes the meta header for implicit too.
        with suppress(NotImplementedError):
            return str(meta.get("TransferSyntaxUID", ""))
    return ""


def _require_its_coding(file: BinaryIO, syntax: UID, name: str) -> None:
    """Refuse another byte order than that of the transfer syntax, and what is deflated unsaid."""
    head = file.read(_HEAD_BYTES)
    stated = "<" if not syntax.is_transfer_syntax or syntax.is_little_endian else ">"
    other = ">" if stated == "<" else "<"
    if _first_group(head, stated) in _FIRST_GROUPS:
        return
    coding = ""
    if _first_group(head, other) in _FIRST_GROUPS:
        coding = "big endian" if other == ">" else "little endian"
    else:
        with suppress(zlib.error):
            inflated = zlib.decompressobj(-zlib.MAX_WBITS).decompress(head, _GROUP_BYTES)
            coding = "deflated" if _first_group(inflated, "<") in _FIRST_GROUPS else ""
    if coding:
        raise DicomError(
            f"{name}: its data set is {coding}, but its transfer syntax says {syntax.name}; "
            "export it again (Explicit VR Little Endian)."
        )


def _first_group(head: bytes, order: str) -> int:
    return int(struct.unpack(f"{order}H", head[:_GROUP_BYTES])[0]) if len(head) > 1 else 0


def _is_no_meta(tag: BaseTag, vr: str | None, length: int) -> bool:
    return tag.group != _META_GROUP


def _inflate(file: BinaryIO, name: str) -> None:
    size = os.fstat(file.fileno()).st_size
    allowed = max(ALWAYS_ALLOWED_BYTES, LARGEST_RATIO * size)
    stream, inflated = zlib.decompressobj(-zlib.MAX_WBITS), 0
    while not stream.eof and (piece := stream.unconsumed_tail or file.read(_PIECE_BYTES)):
        try:
            inflated += len(stream.decompress(piece, _PIECE_BYTES))
        except zlib.error:
            raise DicomError(
                f"{name}: its transfer syntax says deflated, but its data set is not, or is "
                "damaged; export it again (Explicit VR Little Endian)."
            ) from None
        if inflated > allowed:
            raise DicomError(
                f"{name}: its deflated data set has {size} bytes and would become more than "
                f"{allowed}, which no CT does; export it uncompressed (Explicit VR Little Endian)."
            )
