"""READ and WRITE: CT series in DICOM and in the other formats people keep them in.

A format is one file with `SUFFIXES`, `recognises(head) -> bool` over a file's first 1024 bytes,
`read(path, options) -> CTVolume` and `write(volume, path, options) -> None`; `FOLDER = True` where
a series is a folder of files. A format refuses what it cannot hold, and never leaves half a file.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from cddnet import plugins
from cddnet.errors import FormatError, SeriesChoiceError
from cddnet.files import lost_link, walk_files
from cddnet.intensity.background import with_background
from cddnet.volume import CTVolume, SliceHU

HEAD_BYTES = 1024
# Volumes, pictures, films and archives that are not written: such names are of files.
NOT_WRITTEN = re.compile(
    r"\.(nrrd|nhdr|hdr|img|mgz|mgh|gipl|vtk|vti|mnc|par|rec|mat|h5|hdf5|zarr|raw|isq"
    r"|bmp|gif|webp|jp2|j2k|j2c|jpx|jls|jxl|jxr|pgm|ppm|pnm|pbm|pfm|exr|hei[cf]|avif|tga|svg|ico"
    r"|eps|psd|pcx|pdf|avi|mp4|mov|mpe?g|mkv|webm|zip|gz|bz2|xz|zst|7z|tar|tgz)",
    re.IGNORECASE,
)


class ReadOptions(NamedTuple):
    """What a file may leave open.

    series: a series UID or its ending; window_hu: (low, high) that the grey levels of a picture
    stand for; acquisition: label of one of several acquisitions at the same places.
    """

    series: str | None = None
    window_hu: tuple[float, float] | None = None
    acquisition: str | None = None
    slice_axis: int | None = None
    """Axis of the slices (0, 1 or 2) in arrays that state no orientation."""


class WriteOptions(NamedTuple):
    """What a volume may leave open. window_hu: (low, high) spread over a picture's grey levels;
    bits: 8 or 16, of a picture; folder: the name stands for a folder, whatever its suffix.
    """

    window_hu: tuple[float, float] | None = None
    bits: int = 16
    folder: bool = False


def head_of(path: Path) -> bytes:
    """The first bytes of a file, by which its format is recognised."""
    try:
        with path.open("rb") as file:
            return file.read(HEAD_BYTES)
    except FileNotFoundError:
        if path.is_symlink():
            raise lost_link(path) from None
        raise


def read_volume(
    path: str | Path,
    *,
    series: str | None = None,
    window_hu: tuple[float, float] | None = None,
    acquisition: str | None = None,
    slice_axis: int | None = None,
) -> CTVolume:
    """A CT series from a file or folder of any format, told by its content, not by its name.

    series: the series UID, or its ending, where a DICOM folder holds several.
    window_hu: (low, high) that the grey levels of pictures stand for.
    acquisition: number or label of one acquisition, where a DICOM series holds several.
    slice_axis: 0, 1 or 2, axis of the slices in arrays and files that state no orientation.
    Raises FormatError where nothing readable is found, else what the format raises.
    """
    source = Path(path)
    try:
        module = _format_in_folder(source) if source.is_dir() else _format_of_file(source)
        if acquisition is not None and not _is_dicom(module):
            raise FormatError(
                f"{source}: only DICOM series hold acquisitions to choose from; leave out "
                "--acquisition."
            )
        options = ReadOptions(series, window_hu, acquisition, slice_axis)
        volume: CTVolume = module.read(source, options)
    except PermissionError as error:
        raise FormatError(
            f"{error.filename or source}: reading is not permitted; change its permissions or "
            "copy it to a folder of yours."
        ) from error
    except OSError as error:
        raise FormatError(f"{source}: reading failed ({error}); try again or copy it.") from error
    return volume if _is_dicom(module) else with_background(volume)


def read_all_series(path: str | Path) -> tuple[CTVolume, ...]:
    """Every CT series of a file or folder, in the order in which a choice would list them."""
    try:
        return (read_volume(path),)
    except SeriesChoiceError:
        from cddnet.formats import dicom

        return dicom.read_all(Path(path))


def write_volume(
    volume: CTVolume,
    path: str | Path,
    *,
    window_hu: tuple[float, float] | None = None,
    bits: int = 16,
) -> None:
    """Write a volume in the format of the suffix; a folder stands for DICOM (`is_folder`).

    window_hu: (low, high) to spread over the grey levels of pictures; bits: 8 or 16 of them.
    Raises FormatError where the target exists or cannot hold the volume.
    """
    target = Path(path)
    folder = is_folder(path, from_folder=volume.headers is not None)
    module = plugins.load("formats", "dicom") if folder else _format_of_name(target)
    if _is_dicom(module) and volume.headers is None:
        raise FormatError(
            f"{target}: this volume was not read from DICOM and carries no DICOM headers; write "
            ".nii.gz or .mha instead, or start from the original series."
        )
    module.write(_checked(volume, target), target, WriteOptions(window_hu, bits, folder))


def is_folder(target: str | Path, *, from_folder: bool) -> bool:
    """Whether the name of an output stands for a folder; every command decides it here.

    A slash at the end, a folder that exists and a name without suffix stand for one. Of other
    names, the suffix of a format that is written stands for a file; any other, as in patient_1.5mm
    or a UID, for a folder if `from_folder`.

    target: text, because Path drops a slash at the end.  from_folder: what is written comes from
    DICOM, or from a folder of pictures.
    Raises: FormatError for the suffix of a format that is not written, and for an unknown one where
    a file is expected.
    """
    path = Path(target)
    slash = str(target).endswith(tuple(filter(None, (os.sep, os.altsep))))
    if slash or path.is_dir() or not path.suffix:
        return True
    if path.name.lower().endswith(tuple(_suffixes())):
        return False
    if from_folder and not NOT_WRITTEN.fullmatch(path.suffix):
        return True
    raise FormatError(
        f"{target}: {path.suffix} files cannot be written; end the name with / for a folder, or "
        f"write {_known_suffixes()}."
    )


def _checked(volume: CTVolume, target: Path) -> CTVolume:
    """The volume with each slice tested as it is read: a file must not hold NaN or a wrong size."""
    from cddnet.formats._finite import require_finite

    def read_slice(index: int) -> SliceHU:
        hu = volume.read_slice(index)
        where = f"{target} is not written: slice {index + 1}"
        if hu.shape != volume.shape[1:]:
            raise FormatError(
                f"{where} has shape {hu.shape}, expected {volume.shape[1:]}; give every slice the "
                "size of the volume."
            )
        require_finite([hu], where)
        return hu

    return replace(volume, read_slice=read_slice)


def _modules() -> list[ModuleType]:
    """All formats, DICOM first: its 128 free bytes may look like another format, such as TIFF."""
    modules = [plugins.load("formats", name) for name in plugins.names("formats")]
    return sorted(modules, key=lambda module: not _is_dicom(module))


def _is_dicom(module: ModuleType) -> bool:
    return module.__name__.endswith(".dicom")


def _suffixes() -> list[str]:
    return [suffix for module in _modules() for suffix in module.SUFFIXES]


def _known_suffixes() -> str:
    return ", ".join(_suffixes())


def _recognised(file: Path, modules: list[ModuleType]) -> ModuleType | None:
    head = head_of(file)
    return next((module for module in modules if module.recognises(head)), None)


def _format_of_file(file: Path) -> ModuleType:
    if not file.exists():
        raise FormatError(f"{file}: no such file or folder; check the name.")
    if not file.is_file():
        raise FormatError(f"{file}: neither a file nor a folder; give the CT series itself.")
    if file.stat().st_size == 0:
        raise FormatError(f"{file}: the file is empty (0 bytes); copy or export it again.")
    module = _recognised(file, _modules())
    if module is None:
        raise FormatError(
            f"{file}: its content is none of the known formats ({_known_suffixes()}); export the "
            "CT series as DICOM or as one of these."
        )
    return module


def _format_in_folder(folder: Path) -> ModuleType:
    """DICOM if any file in the tree is, else what the files directly in the folder are."""
    modules = _modules()
    here: ModuleType | None = None
    found: Counter[str] = Counter()
    for file in walk_files(folder):
        module = _recognised(file, modules)
        if module is not None and _is_dicom(module):
            return module
        if module is not None and getattr(module, "FOLDER", False) and file.parent == folder:
            here = here or module
        found[f"{file.parent.relative_to(folder) / '*'}{file.suffix.lower()}"] += 1
    if here is not None:
        return here
    if not found:
        raise FormatError(f"{folder}: the folder is empty; check the name.")
    listed = ", ".join(f"{count} {kind}" for kind, count in found.most_common(8))
    raise FormatError(
        f"{folder}: no DICOM files in it, and no pictures directly in it; found {listed}. "
        "Give the file or the subfolder that holds the series."
    )


def _format_of_name(target: Path) -> ModuleType:
    name = target.name.lower()
    return next(module for module in _modules() if name.endswith(tuple(module.SUFFIXES)))
