"""Finding DICOM files by their content, and the series they form."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from pydicom import Dataset
from pydicom.uid import UID, MediaStorageDirectoryStorage

from cddnet.errors import DicomError, SeriesChoiceError
from cddnet.files import distinct, walk_files
from cddnet.formats import head_of
from cddnet.formats._dicom_commas import read_commas_as_points
from cddnet.formats._dicom_fragments import Closing, closing_of
from cddnet.formats._dicom_frames import (
    Frame,
    Scanned,
    frames_of,
)
from cddnet.formats._dicom_kept import SharedElements, dataset_of, raw_elements
from cddnet.formats._dicom_pixels import find_pixels, quiet, read_up_to_pixels, transfer_syntax_of
from cddnet.formats._dicom_strays import stray_kind
from cddnet.formats._dicom_values import (
    TEXTS,
    image_type,
    joined_text,
    require_short_values,
    texts_of,
)

# A data set without preamble starts with a low tag of the lowest groups, in either byte order.
FIRST_GROUPS = {b"\x08\x00": "little", b"\x02\x00": "little", b"\x00\x08": "big"}
LAST_FIRST_ELEMENT = 0x0018
SHOWN_UID_DIGITS = 12


class SeriesSummary(NamedTuple):
    """One series in a file, folder or tree, without anything that names a patient.

    unfit: why it cannot be denoised, "" if it can as far as its headers tell.
    """

    uid: str
    modality: str
    slices: int
    size: str
    thickness_mm: float | None
    kernel: str
    image_type: str
    unfit: str

    def describe(self) -> str:
        """One line for a list to choose from."""
        parts = [f"...{self.uid[-SHOWN_UID_DIGITS:]}", self.modality or "modality not stated"]
        parts.append(f"{self.slices} slices" if self.slices != 1 else "1 slice")
        if self.size:
            parts.append(self.size)
        if self.thickness_mm is not None:
            parts.append(f"{self.thickness_mm:g} mm")
        if self.kernel:
            parts.append(f"kernel {self.kernel}")
        if self.image_type:
            parts.append(self.image_type)
        return ", ".join(parts)


@dataclass(frozen=True, kw_only=True, slots=True)
class Series:
    """The files of one series. frames: in the order of the files, none where it is unfit.

    strays: kind and number of the objects that are no slices and were left out.
    """

    uid: str
    files: tuple[Scanned, ...] = field(repr=False)
    frames: tuple[Frame, ...] = field(repr=False)
    strays: tuple[tuple[str, int], ...]
    unfit: str

    def summary(self) -> SeriesSummary:
        """What to show of it."""
        first = self.files[0]
        if self.frames:
            first = next(file for file in self.files if file.path == self.frames[0].path)
        rows, columns = first.text("Rows"), first.text("Columns")
        return SeriesSummary(
            uid=self.uid,
            modality=first.text("Modality"),
            slices=len(self.frames) or len(self.files),
            size=f"{rows} x {columns}" if rows and columns else "",
            thickness_mm=self.frames[0].thickness_mm if self.frames else None,
            kernel=joined_text(first.header, "ConvolutionKernel"),
            image_type="\\".join(image_type(first.header)),
            unfit=self.unfit,
        )


def looks_like_dicom(head: bytes) -> bool:
    """True for the preamble of a DICOM file, or a first tag that a data set may start with."""
    if head[128:132] == b"DICM":
        return True
    order = FIRST_GROUPS.get(head[:2])
    if order is None or len(head) < 8:
        return False
    first = head[2:4] if order == "little" else head[3:1:-1]
    # Without a VR there is a length, and the first elements are short.
    explicit = head[4:6].isalpha() and head[4:6].isupper()
    lengths = int.from_bytes(head[4:8], "little"), int.from_bytes(head[4:8], "big")
    return int.from_bytes(first, "little") <= LAST_FIRST_ELEMENT and (
        explicit or min(lengths) <= 256
    )


def find_series(path: Path) -> tuple[Series, ...]:
    """Every series in a file, a folder or a tree of folders, by UID."""
    groups: dict[str, list[Scanned]] = {}
    shared = SharedElements()
    for scanned in _scan(path, shared):
        groups.setdefault(scanned.text("SeriesInstanceUID"), []).append(scanned)
    return tuple(_series(uid, tuple(groups[uid])) for uid in sorted(groups))


def series_of(files: Sequence[Path]) -> Series:
    """The one series of some files.  Raises DicomError where they are several, or unfit."""
    shared = SharedElements()
    scanned = tuple(
        item for file in distinct(files) if (item := read_header(file, shared)) is not None
    )
    uids = {item.text("SeriesInstanceUID") for item in scanned}
    if len(uids) != 1:
        raise DicomError(f"{len(files)} files are of {len(uids)} series; give those of one.")
    series = _series(uids.pop(), scanned)
    if series.unfit:
        raise DicomError(series.unfit)
    return series


def choose_series(path: Path, wanted: str | None) -> tuple[Series, tuple[Series, ...]]:
    """The series to read, and those left out.

    Raises DicomError where none is CT in HU, SeriesChoiceError where several are and none is named.
    """
    every = find_series(path)
    if not every:
        raise DicomError(f"{path}: no DICOM image was found there; give a CT series' folder.")
    if wanted is not None:
        matching = [series for series in every if series.uid == wanted]
        matching = matching or [series for series in every if series.uid.endswith(wanted)]
        if len(matching) != 1:
            what = f"{len(matching)} series end" if matching else "no series ends"
            raise _choice(f"{path}: {what} with {wanted}", tuple(matching) or every)
    else:
        matching = [series for series in every if not series.unfit]
        if len(matching) > 1:
            raise _choice(f"{path}: {len(matching)} CT series were found", tuple(matching))
        if not matching and len(every) > 1:
            reasons = "\n".join(f"  {item.summary().describe()}: {item.unfit}" for item in every)
            raise DicomError(
                f"{path}: none of its {len(every)} series is CT that can be denoised; "
                f"choose a folder with one.\n{reasons}"
            )
        matching = matching or list(every)
    chosen = matching[0]
    if chosen.unfit:
        raise DicomError(chosen.unfit)
    return chosen, tuple(series for series in every if series is not chosen)


def _choice(problem: str, among: tuple[Series, ...]) -> SeriesChoiceError:
    choices = tuple((series.uid, series.summary().describe()) for series in among)
    lines = "\n".join(f"  {line}" for _, line in choices)
    return SeriesChoiceError(
        f"{problem}; choose one with --series and the end of its UID:\n{lines}", choices
    )


def _series(uid: str, files: tuple[Scanned, ...]) -> Series:
    kinds = [_stray_kind(scanned) for scanned in files]
    slices = [scanned for scanned, kind in zip(files, kinds, strict=True) if not kind]
    frames: list[Frame] = []
    refusals: list[str] = []
    for scanned in slices or files:
        try:
            frames.extend(frames_of(scanned))
        except DicomError as error:
            refusals.append(str(error))
    unfit = refusals[0] if refusals else ""
    if frames and unfit:
        unfit = f"{unfit} If it is no slice of the series, take it out."
    return Series(
        uid=uid,
        files=files,
        frames=() if unfit else tuple(frames),
        strays=tuple(sorted(Counter(filter(None, kinds)).items())) if slices else (),
        unfit=unfit,
    )


def _stray_kind(scanned: Scanned) -> str:
    try:
        return stray_kind(scanned.header)
    except Exception:
        # A damaged header is refused where its values are read.
        return ""


def _scan(path: Path, shared: SharedElements) -> Iterator[Scanned]:
    if path.is_file():
        scanned = read_header(path, shared) if looks_like_dicom(head_of(path)) else None
        if scanned is None:
            raise DicomError(f"{path.name}: is no DICOM image; give a CT image or its folder.")
        yield scanned
        return
    if not path.is_dir():
        raise DicomError(f"{path}: no such file or folder; check the name.")
    for file in walk_files(path):
        scanned = read_header(file, shared) if looks_like_dicom(head_of(file)) else None
        if scanned is not None:
            yield scanned


def read_header(path: Path, shared: SharedElements | None = None) -> Scanned | None:
    """A file's header without its pixels; None for what is no DICOM object, or a DICOMDIR.

    shared: of the files that belong together.
    Raises DicomError for a file that says it is DICOM and cannot be read.
    """
    sure = head_of(path)[128:132] == b"DICM"
    header, pixels, deflated = Dataset(), None, False
    closing: Closing = "delimiter"
    commas: tuple[str, ...] = ()
    with quiet(), path.open("rb") as file:
        try:
            header = read_up_to_pixels(file, path.name)
            require_short_values(header, path.name)
            syntax = transfer_syntax_of(header)
            deflated = syntax.is_transfer_syntax and syntax.is_deflated
            commas = read_commas_as_points(header)
            elements = [] if deflated else raw_elements(header, file)
            if syntax.is_transfer_syntax and not deflated:
                pixels = find_pixels(file, header)
            if pixels is not None and pixels.length is None:
                closing, _ = closing_of(file)
            kept = (shared or SharedElements()).keep(header, elements)
            said = dataset_of(kept)
            told = {keyword: texts_of(said, keyword) for keyword in TEXTS}
            directory = _media_class(header) == MediaStorageDirectoryStorage
        except DicomError:
            raise
        except Exception as error:
            if not sure:
                return None
            # Not chained: the library's message may quote a value that names the patient.
            raise DicomError(
                f"{path.name}: is DICOM, but its header cannot be read ({type(error).__name__}); "
                "send or export it again, or take it out of the folder."
            ) from None
    if directory or not (sure or (told["SOPClassUID"] and told["Modality"])):
        return None
    return Scanned(
        path=path,
        kept=kept,
        pixels=pixels,
        file_bytes=path.stat().st_size,
        deflated=deflated,
        commas=commas,
        unclosed=closing in ("zeros", "nothing"),
    )


def _media_class(header: Dataset) -> UID:
    return UID(str(getattr(header, "file_meta", Dataset()).get("MediaStorageSOPClassUID", "")))
