"""HU <-> network range, in one place.

Network range is HU / 1024: water 0, air about -1, never clipped, the same for every network that
is trained here. The divisor is a power of two, so that the round trip is exact in any float type.
"""

from __future__ import annotations

from typing import Protocol, TypeVar

HU_PER_UNIT = 1024.0


class _Scalable(Protocol):
    def __truediv__(self: Values, other: float, /) -> Values: ...
    def __mul__(self: Values, other: float, /) -> Values: ...


Values = TypeVar("Values", bound="_Scalable")


def to_network(hu: Values) -> Values:
    """Network range of HU; array or tensor, same shape and type."""
    return hu / HU_PER_UNIT


def to_hu(network: Values) -> Values:
    """HU of network range, the inverse of `to_network`."""
    return network * HU_PER_UNIT
