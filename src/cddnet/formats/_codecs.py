"""Decoding of one compressed frame, by one permissive decoder for each transfer syntax.

Decoders are imported when they are needed, and pydicom never: a decoder process starts fast and
stays small.
"""

# Shapes: H row, W column.

from __future__ import annotations

import io
import struct
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

JPEG_BASELINE = "1.2.840.10008.1.2.4.50"
# Process 2/4 with 12 bits, and the two retired progressive processes.
JPEG_12_BIT = (
    "1.2.840.10008.1.2.4.51",
    "1.2.840.10008.1.2.4.53",
    "1.2.840.10008.1.2.4.55",
)
JPEG_LOSSLESS = ("1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70")
JPEG_LS = ("1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81")
# Part 1 without and with loss, then High-Throughput.
JPEG_2000 = (
    "1.2.840.10008.1.2.4.90",
    "1.2.840.10008.1.2.4.91",
    "1.2.840.10008.1.2.4.201",
    "1.2.840.10008.1.2.4.202",
    "1.2.840.10008.1.2.4.203",
)
RLE = "1.2.840.10008.1.2.5"
DECODABLE = frozenset({JPEG_BASELINE, *JPEG_12_BIT, *JPEG_LOSSLESS, *JPEG_LS, *JPEG_2000, RLE})

_RLE_HEADER_BYTES = 64


class CodedFrame(NamedTuple):
    """One compressed frame of one sample per pixel."""

    syntax: str
    rows: int
    columns: int
    # 8 or 16
    bits_allocated: int
    bits_stored: int
    # 1 where values are signed
    signed: int
    stream: bytes

    @property
    def dtype(self) -> np.dtype[np.integer[Any]]:
        """Type of the stored values."""
        return np.dtype(f"{'iu'[not self.signed]}{self.bits_allocated // 8}")

    @property
    def decoded_bytes(self) -> int:
        """Length of the stored values."""
        return self.rows * self.columns * self.bits_allocated // 8


class _Decoded(NamedTuple):
    """What a decoder returns."""

    values: bytes | bytearray
    # of a value in `values`
    bits: int
    # of these, those that hold the value; the others are to be filled
    used_bits: int


def decode_frame(frame: CodedFrame) -> NDArray[np.integer[Any]]:
    """Stored values (H, W). Bits above the used ones are masked, or filled with the sign.

    Raises ImportError where the decoder is not installed, and whatever decoders raise over a
    damaged stream. A decoder may also end the process, or never return.
    """
    if frame.syntax == RLE:
        decoded = _rle(frame)
    elif frame.syntax in JPEG_LS:
        decoded = _jpeg_ls(frame)
    elif frame.syntax in JPEG_2000:
        decoded = _jpeg_2000(frame)
    elif frame.syntax in JPEG_LOSSLESS or (frame.syntax in JPEG_12_BIT and frame.bits_stored > 8):
        decoded = _by_gdcm(frame)
    else:
        decoded = _jpeg_8_bit(frame)
    if decoded.bits > frame.bits_allocated:
        raise ValueError(f"values of {decoded.bits} bits")
    kind = "iu"[not frame.signed]
    values = np.frombuffer(decoded.values, f"<{kind}{decoded.bits // 8}")
    stored = values.astype(frame.dtype).reshape(frame.rows, frame.columns)
    shift = frame.bits_allocated - decoded.used_bits
    if shift > 0:
        stored <<= shift
        stored >>= shift
    return stored


def _rle(frame: CodedFrame) -> _Decoded:
    """PS3.5 annex G: the bytes of all values, the most significant ones first."""
    count, *starts = struct.unpack_from("<16I", frame.stream)
    size, pixels = frame.bits_allocated // 8, frame.rows * frame.columns
    if count != size:
        raise ValueError(f"{count} segments")
    planes = np.empty((pixels, size), np.uint8)
    ends = [*starts[1:count], len(frame.stream)]
    for place, start, end in zip(reversed(range(size)), starts, ends, strict=False):
        if not _RLE_HEADER_BYTES <= start <= end:
            raise ValueError(f"a segment from {start} to {end}")
        # Some encoders pad a segment beyond the last pixel.
        segment = _packbits(frame.stream[start:end], pixels)[:pixels]
        planes[:, place] = np.frombuffer(segment, np.uint8)
    return _Decoded(planes.tobytes(), frame.bits_allocated, frame.bits_stored)


def _packbits(packed: bytes, enough: int) -> bytearray:
    """PS3.5 G.3.2; ends behind as many bytes as are needed."""
    unpacked, place = bytearray(), 0
    while place < len(packed) and len(unpacked) < enough:
        head = packed[place]
        if head < 128:
            unpacked += packed[place + 1 : place + 2 + head]
            place += 2 + head
        else:
            # 128 stands for nothing.
            unpacked += packed[place + 1 : place + 2] * (257 - head if head > 128 else 0)
            place += 1 + (head > 128)
    return unpacked


def _jpeg_ls(frame: CodedFrame) -> _Decoded:
    import jpeg_ls  # type: ignore[import-untyped]

    values, told = jpeg_ls.decode_pixel_data(frame.stream)
    precision = int(told["bits_per_sample"])
    # JPEG-LS knows no sign: negative values come as large ones.
    used = precision if frame.signed else frame.bits_allocated
    return _Decoded(values, _container(precision), used)


def _jpeg_2000(frame: CodedFrame) -> _Decoded:
    from openjpeg import utils

    told = utils.get_parameters(frame.stream)
    values = cast(bytearray, utils.decode_pixel_data(frame.stream, version=2))
    precision = int(told["precision"])
    # Some encoders do not tell the stream that values are signed.
    used = precision if bool(told["is_signed"]) != bool(frame.signed) else frame.bits_allocated
    return _Decoded(values, _container(precision), used)


def _jpeg_8_bit(frame: CodedFrame) -> _Decoded:
    from PIL import Image

    with Image.open(io.BytesIO(frame.stream), formats=("JPEG",)) as image:
        if image.mode != "L":
            raise ValueError(f"mode {image.mode}")
        return _Decoded(image.tobytes(), 8, frame.bits_stored)


def _by_gdcm(frame: CodedFrame) -> _Decoded:
    import gdcm  # type: ignore[import-untyped]

    fragment = gdcm.Fragment()
    fragment.SetByteStringValue(frame.stream)
    fragments = gdcm.SequenceOfFragments.New()
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())
    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((frame.columns, frame.rows, 1))
    image.SetDataElement(element)
    grey = gdcm.PhotometricInterpretation.GetPIType("MONOCHROME2")
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(grey))
    image.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(frame.syntax)))
    bits = frame.bits_stored
    image.SetPixelFormat(gdcm.PixelFormat(1, frame.bits_allocated, bits, bits - 1, frame.signed))
    # The binding hands bytes over as text.
    values = image.GetBuffer().encode("utf-8", "surrogateescape")
    return _Decoded(values, frame.bits_allocated, bits)


def _container(precision: int) -> int:
    """Bits in which a decoder returns values of that many."""
    return 8 if precision <= 8 else 16 if precision <= 16 else 32
