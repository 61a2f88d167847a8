"""The file of an uncertainty map: filled while a series is denoised, whole at the end or not there.

A DICOM Parametric Map where the series is DICOM, else an array with its record beside it.
"""

# Shapes: D slice, H row, W column.

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cddnet.errors import FormatError
from cddnet.formats import write_volume
from cddnet.formats._parametric import PREDICTED_ERROR, write_parametric_map
from cddnet.formats._sidecar import sidecar_of
from cddnet.volume import CTVolume, Derivation, SliceHU

Map = NDArray[np.float32]


class Judged(NamedTuple):
    """A slice after the network and its expected error, each (H, W) HU."""

    hu: SliceHU
    error_hu: Map


def require_writable(path: Path, target: Path, volume: CTVolume) -> None:
    """Refuse a place for the map before anything is computed.

    path: of the map.  target: of the denoised series.  Raises: FormatError.
    """
    wanted = (".npy", ".npz") if volume.headers is None else (".dcm",)
    if path.suffix.lower() not in wanted:
        kind = "no DICOM" if volume.headers is None else "DICOM"
        raise FormatError(
            f"{path}: the series is {kind}, its uncertainty is written as "
            f"{' or '.join(wanted)}; choose such a name."
        )
    place, series = path.resolve(), target.resolve()
    if place == series or series in place.parents:
        raise FormatError(
            f"{path}: lies in what the denoised series is written to; choose a place beside it."
        )
    if not path.parent.is_dir():
        raise FormatError(f"{path.parent}: no such folder; check the name or make it first.")
    if path.exists():
        raise FormatError(f"{path}: exists already, and nothing is overwritten; choose another.")


class MapFile:
    """Maps of a series kept on disk until all are there: `add` in slice order, then `write`."""

    def __init__(self, volume: CTVolume, path: Path, file: IO[bytes]) -> None:
        """volume: the denoised series, whose record goes along."""
        self._volume, self._path, self._file = volume, path, file
        self._whole = False

    def add(self, error_hu: Map) -> None:
        """The next slice (H, W).  Raises: FormatError where the disk does not take it."""
        with _told(self._path):
            self._file.write(np.ascontiguousarray(error_hu, np.float32).tobytes())

    def write(self, step: Derivation) -> None:
        """The whole map under its name, or nothing."""
        # Notes and padding are of the pixels that the map takes the place of.
        maps = replace(self._volume.derived(self._read, step), notes=(), read_padding=None)
        if maps.headers is None:
            write_volume(maps, self._path)
        else:
            write_parametric_map(maps, self._path, PREDICTED_ERROR)
        self._whole = True

    def filled(self, judged: Iterator[Judged], step: Derivation) -> Iterator[SliceHU]:
        """The denoised slices of a series; the map is there before the last one is handed out."""
        count = self._volume.shape[0]
        for number, item in enumerate(judged, start=1):
            self.add(item.error_hu)
            if number == count:
                self.write(step)
            yield item.hu

    def take_back(self) -> None:
        """Remove what `write` made, and nothing else."""
        if self._whole:
            for written in (self._path, sidecar_of(self._path)):
                written.unlink(missing_ok=True)

    def _read(self, index: int) -> Map:
        shape = self._volume.shape[1:]
        size = 4 * shape[0] * shape[1]
        with _told(self._path):
            self._file.seek(size * index)
            return np.frombuffer(self._file.read(size), np.float32).reshape(shape)


@contextmanager
def kept_maps(volume: CTVolume, path: Path) -> Iterator[MapFile]:
    """A MapFile beside `path`; a map that is written goes if anything fails before the end."""
    with ExitStack() as stack:
        with _told(path):
            file = stack.enter_context(TemporaryFile(dir=path.parent))
        maps = MapFile(volume, path, file)
        try:
            yield maps
        except BaseException:
            maps.take_back()
            raise


@contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise FormatError(
            f"{path}: the maps cannot be kept ({error.strerror or error}); nothing was written. "
            "Make room or choose another place, and run again."
        ) from error
