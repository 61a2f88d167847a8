"""READ and WRITE: CT series in DICOM and in the other formats people keep them in.

A format is one file with `SUFFIXES`, `recognises(head) -> bool` over a file's first 1024 bytes,
`read(path, options) -> CTVolume` and `write(volume, path, options) -> None`; `FOLDER = True` where
a series is a folder of files. A format refuses what it cannot hold, and never leaves half a file.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

HEAD_BYTES = 1024


class ReadOptions(NamedTuple):
    """What a file may leave open. series: a series UID or its ending; window_hu: (low, high) that
    the grey levels of a picture stand for.
    """

    series: str | None = None
    window_hu: tuple[float, float] | None = None


class WriteOptions(NamedTuple):
    """What a volume may leave open. window_hu: (low, high) spread over a picture's grey levels;
    bits: 8 or 16, of a picture.
    """

    window_hu: tuple[float, float] | None = None
    bits: int = 16


def head_of(path: Path) -> bytes:
    """The first bytes of a file, by which its format is recognised."""
    with path.open("rb") as file:
        return file.read(HEAD_BYTES)
