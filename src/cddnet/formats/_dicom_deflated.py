"""Deflated data sets (PS3.5 A.5): how large one becomes is known before memory is taken for it."""

from __future__ import annotations

import os
import zlib
from contextlib import suppress
from typing import BinaryIO

from pydicom.filereader import read_dataset, read_preamble
from pydicom.tag import BaseTag
from pydicom.uid import DeflatedExplicitVRLittleEndian

from cddnet.errors import DicomError

# Air and padding shrink a thousandfold, but a CT that was measured shrinks two- to fivefold.
LARGEST_RATIO = 20
ALWAYS_ALLOWED_BYTES = 64 << 20
_META_GROUP = 0x0002
_PIECE_BYTES = 1 << 20


def require_bounded(file: BinaryIO, name: str) -> None:
    """Refuse a deflated file, open at its start, that holds far more than its size.

    The file is left at its start. Its data set may take 64 MiB, or 20 times the bytes of the file.
    Raises: DicomError for more, zlib.error for a damaged one.
    """
    try:
        if _is_deflated(file):
            _inflate(file, name)
    finally:
        file.seek(0)


def _is_deflated(file: BinaryIO) -> bool:
    """True where the meta header names the transfer syntax; the file is then behind that header."""
    read_preamble(file, force=True)
    start = file.tell()
    for implicit in (False, True):
        file.seek(start)
        meta = read_dataset(file, implicit, is_little_endian=True, stop_when=_is_no_meta)
        # Where a VR is none, pydicom takes the meta header for implicit too.
        with suppress(NotImplementedError):
            return str(meta.get("TransferSyntaxUID", "")) == DeflatedExplicitVRLittleEndian
    return False


def _is_no_meta(tag: BaseTag, vr: str | None, length: int) -> bool:
    return tag.group != _META_GROUP


def _inflate(file: BinaryIO, name: str) -> None:
    size = os.fstat(file.fileno()).st_size
    allowed = max(ALWAYS_ALLOWED_BYTES, LARGEST_RATIO * size)
    stream, inflated = zlib.decompressobj(-zlib.MAX_WBITS), 0
    while not stream.eof and (piece := stream.unconsumed_tail or file.read(_PIECE_BYTES)):
        inflated += len(stream.decompress(piece, _PIECE_BYTES))
        if inflated > allowed:
            raise DicomError(
                f"{name}: its deflated data set has {size} bytes and would become more than "
                f"{allowed}, which no CT does; export it uncompressed (Explicit VR Little Endian)."
            )
