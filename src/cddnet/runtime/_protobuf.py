"""As much of the protobuf wire format as it takes to put weights into an ONNX graph.

Source: protobuf encoding (varints, tag = number << 3 | wire type) and onnx.proto3.
"""

from __future__ import annotations

from collections.abc import Iterator

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def fields(message: bytes) -> Iterator[tuple[int, bytes | int, bytes]]:
    """(number, value, the field as it stands) of every field of a message.

    Raises: ValueError where the bytes are no message.
    """
    at = 0
    while at < len(message):
        start = at
        tag, at = _read_varint(message, at)
        number, wire = tag >> 3, tag & 7
        value: bytes | int
        if wire == _VARINT:
            value, at = _read_varint(message, at)
        else:
            if wire == _BYTES:
                size, at = _read_varint(message, at)
            elif wire in (_FIXED64, _FIXED32):
                size = 8 if wire == _FIXED64 else 4
            else:
                raise ValueError(f"wire type {wire}")
            value, at = message[at : at + size], at + size
        if at > len(message):
            raise ValueError("the message is cut short")
        yield number, value, message[start:at]


def field(number: int, value: bytes | int) -> bytes:
    """One field of a message."""
    if isinstance(value, int):
        return varint(number << 3 | _VARINT) + varint(value)
    return varint(number << 3 | _BYTES) + varint(len(value)) + value


def varint(value: int) -> bytes:
    """A number, seven bits a byte, the lowest first."""
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*parts, value))


def _read_varint(message: bytes, at: int) -> tuple[int, int]:
    value = 0
    for index, byte in enumerate(message[at : at + 10]):
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return value, at + index + 1
    raise ValueError("a number is cut short")
