"""Pictures: TIFF in HU or grey levels (needs tifffile), PNG and JPEG in grey levels.

A series is a folder of pictures in natural order of their names, or one TIFF with several pages.
Numbers with a sign, whole or not, are HU as they stand, and so are those that ImageJ calibrated;
other grey levels mean nothing without the window they were made with, which the caller gives. A
volume of several slices written to `name.png` becomes a folder of that name with 0001.png, 0002.png
and so on. JPEG is written at quality 95 and changes the values by some grey levels even so: for
looking at, not for measuring.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cddnet.errors import CddnetError, FormatError
from cddnet.files import list_folder
from cddnet.formats import ReadOptions, WriteOptions, head_of
from cddnet.formats._atomic import new_folder
from cddnet.formats._axes import Axes, axes_from_directions
from cddnet.formats._finite import finite_hu
from cddnet.formats._imagej import Calibration, Description, described
from cddnet.formats._optional import optional
from cddnet.formats._planes import in_file_order, oriented, turned_as_asked
from cddnet.formats._sidecar import (
    FOLDER_RECORD,
    RESEARCH_USE,
    new_recorded_files,
    record,
    recorded_beside,
    recorded_in,
)
from cddnet.formats._stored import require_slice_size
from cddnet.intensity.plausible import ADDED_OFFSETS, not_hu
from cddnet.intensity.window import from_grey, to_grey
from cddnet.volume import CTVolume, SliceHU, Storage

if TYPE_CHECKING:
    import tifffile

SUFFIXES = (".tiff", ".tif", ".png", ".jpeg", ".jpg")
FOLDER = True

TIFF_SUFFIXES = (".tiff", ".tif")
JPEG_SUFFIXES = (".jpeg", ".jpg")
TIFF_HEADS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# Photometric interpretations and planar configuration of the TIFF standard, version 6.
MIN_IS_BLACK, RGB, CHUNKY = 1, 2, 1
PNG_HEAD, JPEG_HEAD = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
JPEG_QUALITY = 95
# Compression that keeps every value: none, LZW, deflate (two), PackBits, LZMA, zstd (two).
LOSSLESS = (1, 5, 8, 32946, 32773, 34925, 50000, 34926)
SAMPLED_PAGES = 5
BITS = {"L": 8, "LA": 8, "P": 8, "RGB": 8, "RGBA": 8, "I": 16, "I;16": 16, "I;16B": 16}

NO_GEOMETRY = (
    "pictures hold no geometry: spacing is set to 1 mm and orientation is not known; distances "
    "are not to be measured"
)
COLOUR = "the pictures have channels for colour that are all equal; one of them is used"
LOSSY = "JPEG compression has changed the values before they came here"
WINDOW_UNUSED = "the TIFF holds HU; the window is not used"


class _Page(NamedTuple):
    """One picture, or one slice of the values behind the only page of a TIFF."""

    path: Path
    page: int
    size: tuple[int, int]
    bits: int | None  # of its grey levels, None where it holds HU
    channels: int = 1  # 1 for grey
    start: int | None = None  # byte where its values begin, where no page of its own says so
    calibration: Calibration | None = None

    def __str__(self) -> str:
        return f"{self.path}, page {self.page + 1}" if self.page else str(self.path)

    @property
    def values(self) -> str:
        return "HU" if self.bits is None else f"{self.bits}-bit grey levels"


def recognises(head: bytes) -> bool:
    """The magic of TIFF, BigTIFF, PNG or JPEG."""
    return head.startswith((*TIFF_HEADS, PNG_HEAD, JPEG_HEAD))


def pairs(path: Path) -> list[tuple[Path, Path]]:
    """Pairs (low dose, full dose) of a folder with `IN/` and `GT/`, matched by file name.

    The suffix may differ between the two, the name may not; order decides nothing.
    Raises FormatError where a folder is missing or a file has no twin.
    """
    twins = []
    for name in ("IN", "GT"):
        folder = path / name
        if not folder.is_dir():
            raise FormatError(
                f"{path}: has no folder {name}; give a folder with IN (low dose) and GT (full)."
            )
        files = [file for file in _visible(folder) if file.is_file()]
        stems = {file.stem: file for file in files}
        if len(stems) < len(files):
            twice = sorted({file.stem for file in files if file not in stems.values()})
            raise FormatError(f"{folder}: two files each are named {_some(twice)}; keep one.")
        twins.append(stems)
    low_dose, full_dose = twins
    only = {"IN": low_dose.keys() - full_dose.keys(), "GT": full_dose.keys() - low_dose.keys()}
    if any(only.values()):
        lonely = "; ".join(
            f"only in {name}: {_some(sorted(stems))}" for name, stems in only.items() if stems
        )
        raise FormatError(f"{path}: files without a twin ({lonely}); add or remove them.")
    if not low_dose:
        raise FormatError(f"{path}: IN and GT are empty; put pictures of equal names into both.")
    return [(file, full_dose[stem]) for stem, file in low_dose.items()]


def read(path: Path, options: ReadOptions) -> CTVolume:
    """HU of one picture, of the pages of a TIFF or of a folder of pictures."""
    files, ignored = picture_files(path)
    pages = [page for file in files for page in _pages(file, alone=file == path)]
    _require_alike(pages)
    first = pages[0]
    window = _window_for_reading(pages, options)
    notes = [*_notes(pages, window, options), *ignored]
    for page in pages:
        if page.channels > 1:
            _stored(page)
    axes = _tiff_axes(path) if _is_tiff(first.path) and path.is_file() else None
    placed = axes is not None
    if axes is None:
        notes.append(NO_GEOMETRY)
        axes = axes_from_directions(str(path), np.eye(3)[:, ::-1], np.ones(3), np.zeros(3))

    def read_slice(index: int) -> SliceHU:
        page = pages[index]
        stored = _stored(page)
        if page.bits is None or window is None:
            intercept, slope = page.calibration or (0.0, 1.0)
            return finite_hu(stored, str(page), slope=slope, intercept=intercept)
        return from_grey(stored.astype(np.int64), window, page.bits)

    stored = CTVolume(
        shape=(len(pages), *first.size),
        read_slice=read_slice,
        notes=tuple(notes),
        storage=Storage(placed=placed),
        derivation=recorded_in(path / FOLDER_RECORD) if path.is_dir() else recorded_beside(path),
        window_hu=window,
        **axes._asdict(),
    )
    if placed:
        return oriented(stored, path)
    return turned_as_asked(stored, options.slice_axis, path) if path.is_file() else stored


def write(volume: CTVolume, path: Path, options: WriteOptions) -> None:
    """A TIFF in float32 HU with the geometry in its description, or grey levels of a window."""
    suffix = path.suffix.lower()
    if suffix in TIFF_SUFFIXES:
        _write_tiff(volume, path)
        return
    if options.window_hu is None:
        raise FormatError(
            f"{path}: a picture holds grey levels, not HU; say which HU are black and white, such "
            "as --window -160 240, or write .tif, .nii.gz or .npz."
        )
    window = _checked(options.window_hu, str(path))
    if options.bits not in (8, 16) or (suffix in JPEG_SUFFIXES and options.bits != 8):
        possible = "8 bits (--bits 8)" if suffix in JPEG_SUFFIXES else "8 or 16 bits"
        raise FormatError(
            f"{path}: {options.bits} bits were asked for, {suffix} has {possible}; choose one of "
            "these, or another suffix."
        )
    grey = (to_grey(hu, window, options.bits) for hu in volume.slices())
    if volume.shape[0] == 1:
        with new_recorded_files(volume, path) as (temporary,):
            _save(next(grey), temporary, options.bits)
        return
    digits = max(4, len(str(volume.shape[0])))
    with new_folder(path) as folder:
        for number, levels in enumerate(grey, start=1):
            _save(levels, folder / f"{number:0{digits}}{suffix}", options.bits)
        if volume.derivation:
            (folder / FOLDER_RECORD).write_text(record(volume.derivation), "utf-8")


def _save(grey: NDArray[np.uint16], file: Path, bits: int) -> None:
    from PIL import Image

    image = Image.fromarray(grey.astype(np.uint8) if bits == 8 else grey)
    if file.suffix.lower() in JPEG_SUFFIXES:
        image.save(file, format="JPEG", quality=JPEG_QUALITY)
    else:
        # Noise hardly shrinks further at higher levels, which take eight times as long.
        image.save(file, format="PNG", compress_level=1)


def _write_tiff(volume: CTVolume, path: Path) -> None:
    shape, axes, planes = in_file_order(volume, path)
    _, row_mm, column_mm = axes.spacing_mm
    with new_recorded_files(volume, path) as (temporary,):
        optional("tifffile", "tiff").imwrite(
            temporary,
            planes,
            shape=shape,
            dtype=np.float32,
            photometric="minisblack",
            software="cddnet",
            metadata={"unit": "HU", "use": RESEARCH_USE, **axes._asdict()},
            resolution=(10 / column_mm, 10 / row_mm),
            resolutionunit="CENTIMETER",
        )


def _tiff_axes(path: Path) -> Axes | None:
    """The geometry this module writes into a TIFF's description, or None."""
    with _open_tiff(path) as tiff:
        description = tiff.pages[0].description
    try:
        held = json.loads(description)
        geometry = [held[name] for name in ("direction", "spacing_mm", "origin_mm")]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    try:
        return axes_from_directions(str(path), *geometry)
    except (ValueError, TypeError) as error:
        raise _damaged(path, error) from error


def picture_files(path: Path) -> tuple[list[Path], list[str]]:
    """The pictures of a folder in natural order, or the one given; and a note on what is left.

    Raises: FormatError where the folder holds none, or damaged ones.
    """
    if not path.is_dir():
        return [path], []
    visible = _visible(path)
    files = [file for file in visible if file.is_file() and recognises(head_of(file))]
    if not files:
        raise FormatError(
            f"{path}: holds no TIFF, PNG or JPEG pictures; give the folder that they lie in."
        )
    others = [item.name for item in visible if item not in files and item.name != FOLDER_RECORD]
    broken = [name for name in others if name.lower().endswith(SUFFIXES)]
    if broken:
        raise FormatError(
            f"{path}: empty, damaged or no pictures at all: {_some(broken)}; copy them again."
        )
    return files, [f"left aside in {path.name}: {_some(others)}"] if others else []


def _visible(folder: Path) -> list[Path]:
    found = (item for item in list_folder(folder) if not item.name.startswith("."))
    return sorted(found, key=lambda item: _natural(item.name))


def _natural(name: str) -> tuple[list[str | int], str]:
    """Sort key by which slice2 comes before slice10."""
    parts = re.split(r"([0-9]+)", name.casefold())
    return [int(part) if part.isdecimal() else part for part in parts], name


def _pages(file: Path, *, alone: bool) -> list[_Page]:
    if not _is_tiff(file):
        return [_picture(file)]
    pages = _tiff_pages(file)
    if len(pages) > 1 and not alone:
        raise FormatError(
            f"{file}: has {len(pages)} pages, so that its place among the other pictures of the "
            "folder is open; give this file alone."
        )
    return pages


def _is_tiff(file: Path) -> bool:
    return head_of(file).startswith(TIFF_HEADS)


def _require_alike(pages: list[_Page]) -> None:
    first = pages[0]
    for page in pages:
        if page.size != first.size:
            sizes = " and ".join(f"{one} ({one.size[0]} x {one.size[1]})" for one in (first, page))
            raise FormatError(f"pictures of one series differ in size: {sizes}; separate them.")
        if page.bits != first.bits:
            kinds = " and ".join(f"{one} ({one.values})" for one in (first, page))
            raise FormatError(f"pictures of one series differ in values: {kinds}; separate them.")


def _window_for_reading(pages: list[_Page], options: ReadOptions) -> tuple[float, float] | None:
    first = pages[0]
    if first.bits is None:
        return None
    if options.window_hu is not None:
        return _checked(options.window_hu, str(first))
    raise FormatError(
        f"{first}: holds {first.values}, not HU; say which HU black and white stand for, "
        f"{_suggested(pages)}."
    )


def _suggested(pages: list[_Page]) -> str:
    """Windows to try: no other than those that make these values HU of a body."""
    bits = pages[0].bits or 0
    if bits <= 8:
        return "such as --window -160 240"
    chosen = {round(place) for place in np.linspace(0, len(pages) - 1, SAMPLED_PAGES)}
    values = np.concatenate([_stored(pages[index])[::2, ::2].ravel() for index in sorted(chosen)])
    # The most frequent value is background.
    levels, counts = np.unique(values, return_counts=True)
    varying = values[values != levels[counts.argmax()]].astype(np.float64)
    exact = [
        f"--window {-offset} {2**bits - 1 - offset} for values stored as HU + {offset}"
        for offset in ADDED_OFFSETS
        if not not_hu(varying - offset)
    ]
    if exact:
        return ", or ".join(exact)
    return (
        "with --window LOW HIGH, the window that they were exported with (they are no HU with an "
        "offset of " + ", ".join(map(str, ADDED_OFFSETS)) + ")"
    )


def _checked(window_hu: tuple[float, float], where: str) -> tuple[float, float]:
    low, high = window_hu
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise FormatError(
            f"{where}: the window {low} to {high} HU should be low, then high; give it as "
            "--window -160 240."
        )
    return low, high


def _notes(
    pages: list[_Page], window: tuple[float, float] | None, options: ReadOptions
) -> Iterator[str]:
    bits = pages[0].bits
    if bits is not None and window is not None:
        low, high = window
        step = (high - low) / (2**bits - 1)
        yield (
            f"{bits}-bit grey levels of the window {low:g} to {high:g} HU: one level is {step:.3g} "
            "HU, finer differences and values outside the window are gone"
        )
    elif options.window_hu is not None:
        yield WINDOW_UNUSED
    if pages[0].calibration:
        intercept, slope = pages[0].calibration
        yield f"HU by ImageJ's calibration of the TIFF: {intercept:g} + {slope:g} x stored"
    if any(page.channels > 1 for page in pages):
        yield COLOUR
    if any(head_of(page.path).startswith(JPEG_HEAD) for page in pages):
        yield LOSSY


def _picture(file: Path) -> _Page:
    """A PNG or JPEG by its header."""
    from PIL import Image

    head = head_of(file)
    try:
        with Image.open(file, formats=("PNG", "JPEG")) as image:
            mode, frames = image.mode, getattr(image, "n_frames", 1)
            height, width = image.height, image.width
    except PermissionError:
        raise
    except Exception as error:
        # Its parsers let out whatever a damaged file leads them to.
        raise _damaged(file, error) from error
    require_slice_size(file, height, width)
    # Pillow would cut 16-bit colour to 8 bits without a word.
    if head.startswith(PNG_HEAD) and head[24] == 16 and mode not in ("I", "I;16", "I;16B"):
        raise FormatError(f"{file}: 16 bits with colour or transparency; save it as 16-bit grey.")
    if mode not in BITS or frames != 1:
        raise FormatError(
            f"{file}: has {frames} pictures of mode {mode}, expected one in 8- or 16-bit grey; "
            "save it so."
        )
    channels = {"P": 4, "RGB": 3, "RGBA": 4, "LA": 2}.get(mode, 1)
    return _Page(file, 0, (height, width), BITS[mode], channels)


def _tiff_pages(file: Path) -> list[_Page]:
    pages = []
    with _open_tiff(file) as tiff:
        offsets = set[int]()
        about = Description(0, None)
        for number, page in enumerate(tiff.pages):
            if page.offset in offsets:
                raise FormatError(f"{file}: its pages go round in a circle; export it again.")
            offsets.add(page.offset)
            if number == 0:
                signed = np.dtype(page.dtype).kind == "i"
                about = described(page.description, signed=signed, where=str(file))
            pages.append(_tiff_page(file, number, page, about.calibration))
        if not pages:
            raise FormatError(f"{file}: holds no picture; export it again.")
        if len(pages) == 1 and (count := _slices_of_one_page(tiff, about)) > 1:
            return _undescribed(tiff.pages[0], pages[0], count)
        voxels = sum(math.prod(series.shape) for series in tiff.series)
    if about.images > len(pages):
        raise FormatError(
            f"{file}: describes {about.images} slices, but holds {len(pages)}; copy or export it "
            "again."
        )
    if voxels != sum(math.prod(page.size) * page.channels for page in pages):
        raise FormatError(f"{file}: slices without a page of their own; save one page per slice.")
    return pages


def _tiff_page(
    file: Path, number: int, page: tifffile.TiffPage, calibration: Calibration | None
) -> _Page:
    """One page as tifffile describes it; refuses what its values cannot be told from."""
    size, channels = (page.imagelength, page.imagewidth), page.samplesperpixel
    require_slice_size(file, *size)
    if page.is_tiled:
        require_slice_size(file, page.tilelength, page.tilewidth)
    is_grey_or_rgb = page.photometric in (MIN_IS_BLACK, RGB)
    if not is_grey_or_rgb or channels > 4 or (channels > 1 and page.planarconfig != CHUNKY):
        raise FormatError(
            f"{file}: page {number + 1} has {channels} channels and photometric "
            f"interpretation {page.photometric}; save it as grey levels, black lowest."
        )
    largest, there = max(page.databytecounts, default=0), file.stat().st_size
    if largest > there:
        raise FormatError(
            f"{file}: the picture cannot be read: page {number + 1} names {largest} bytes of data "
            f"in a file of {there}; export it again."
        )
    _require_decodable(file, page)
    dtype = np.dtype(page.dtype)
    bits = _tiff_bits(file, dtype, page.bitspersample)
    if dtype.kind == "f":
        # ImageJ calibrates whole numbers alone.
        calibration = None
    bits = None if calibration else bits
    if bits is None and channels > 1:
        raise FormatError(f"{file}: has {channels} channels of HU; save one of them.")
    return _Page(file, number, size, bits, channels, calibration=calibration)


def _require_decodable(file: Path, page: tifffile.TiffPage) -> None:
    """Refuse compression that changes values, or that no library here reads."""
    if page.compression not in LOSSLESS:
        raise FormatError(
            f"{file}: is compressed as {_compression(page)}, which is not supported; save it "
            "without compression, or with LZW, deflate or zstd."
        )
    codecs = optional("tifffile", "tiff").TIFF
    if page.compression not in codecs.DECOMPRESSORS or page.predictor not in codecs.UNPREDICTORS:
        raise _needs_imagecodecs(file, page)


def _compression(page: tifffile.TiffPage) -> str:
    return str(getattr(page.compression, "name", page.compression))


def _needs_imagecodecs(file: Path, page: tifffile.TiffPage) -> FormatError:
    return FormatError(
        f"{file}: compression {_compression(page)} of {page.bitspersample} bits needs "
        "imagecodecs, which is not installed: pip install cddnet[tiff]"
    )


def _slices_of_one_page(tiff: tifffile.TiffFile, about: Description) -> int:
    """How many slices ImageJ or tifffile say that a file with one page holds."""
    page = tiff.pages.first
    if about.images or not page.is_shaped:
        return about.images
    return int(math.prod(tiff.series[0].shape) // math.prod(page.shape))


def _undescribed(page: tifffile.TiffPage, first: _Page, count: int) -> list[_Page]:
    """Slices that lie one behind the other, of which the first alone has a page."""
    itemsize = np.dtype(page.dtype).itemsize
    length = math.prod(first.size) * itemsize
    ends = [sum(part) for part in zip(page.dataoffsets, page.databytecounts, strict=True)]
    in_one_piece = ends[:-1] == list(page.dataoffsets[1:]) and sum(page.databytecounts) == length
    if page.compression != 1 or page.is_tiled or first.channels > 1 or not in_one_piece:
        raise FormatError(f"{first}: slices without a page of their own; save one page per slice.")
    start, there = page.dataoffsets[0], first.path.stat().st_size
    if start + count * length > there:
        raise FormatError(
            f"{first}: describes {count} slices of {length} bytes, but holds {there - start} bytes "
            "of them; copy or export it again."
        )
    return [first._replace(page=index, start=start + index * length) for index in range(count)]


def _tiff_bits(file: Path, dtype: np.dtype[np.generic], bits: int) -> int | None:
    if dtype.kind in "if":
        return None
    if dtype.kind == "u" and 8 <= bits <= 16:
        return bits
    raise FormatError(
        f"{file}: holds {bits}-bit {dtype}, expected HU with a sign (int16, float32) or 8- to "
        "16-bit grey levels; save it so."
    )


def _stored(page: _Page) -> NDArray[np.generic]:
    """Stored values (H, W); refuses what colour or transparency would add to them."""
    values = _tiff_values(page) if _is_tiff(page.path) else _picture_values(page.path)
    if values.shape[:2] != page.size or values.ndim != 2 + (page.channels > 1):
        raise FormatError(
            f"{page}: decodes to {values.shape}, but its header says {page.size}; export it again."
        )
    if page.channels == 1 or page.bits is None:
        return values
    colours = values[..., : 3 if page.channels > 2 else 1]
    if (colours != colours[..., :1]).any():
        raise FormatError(
            f"{page}: is in colour (its channels differ), which stands for no HU; export it in "
            "grey, without annotations."
        )
    if (values[..., colours.shape[-1] :] != 2**page.bits - 1).any():
        raise FormatError(f"{page}: is transparent in places; export it without transparency.")
    return colours[..., 0]


def _tiff_values(page: _Page) -> NDArray[np.generic]:
    with _open_tiff(page.path) as tiff:
        if page.start is not None:
            stored = np.dtype(tiff.pages[0].dtype).newbyteorder(tiff.byteorder)
            count = math.prod(page.size)
            values = np.fromfile(page.path, stored, count, offset=page.start)
            return values.reshape(page.size)
        found = tiff.pages[page.page]
        try:
            return np.asarray(found.asarray())
        except (ImportError, NotImplementedError) as error:
            raise _needs_imagecodecs(page.path, found) from error


def _picture_values(file: Path) -> NDArray[np.generic]:
    from PIL import Image

    try:
        with Image.open(file, formats=("PNG", "JPEG")) as image:
            return np.asarray(image.convert("RGBA") if image.mode == "P" else image)
    except Exception as error:
        raise _damaged(file, error) from error


@contextmanager
def _open_tiff(file: Path) -> Iterator[Any]:
    tifffile = optional("tifffile", "tiff")
    # It writes a line on every doubt, which the refusal says once.
    logging.getLogger("tifffile").disabled = True
    try:
        with tifffile.TiffFile(file) as tiff:
            yield tiff
    except (PermissionError, CddnetError):
        raise
    except Exception as error:
        raise _damaged(file, error) from error


def _damaged(file: Path, error: Exception) -> FormatError:
    return FormatError(
        f"{file}: the picture cannot be read ({error}); copy or export it again, without "
        "compression if it has an unusual one."
    )


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 6} more" if len(names) > 6 else ""
    return ", ".join(names[:6]) + more
