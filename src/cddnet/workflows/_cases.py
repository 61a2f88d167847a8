"""Which images an evaluation compares: series of one patient on one grid, slice by slice.

Whatever does not agree is refused with both values; nothing is resized, moved or left out.

Above 300 lines: each disagreement between series has a refusal of its own.
"""

# Shapes: D slice. Positions are DICOM patient coordinates (LPS), mm.

from __future__ import annotations

import hashlib
import hmac
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, NoReturn

from cddnet import plugins
from cddnet.errors import FormatError, GeometryError, SeriesChoiceError
from cddnet.files import list_folder
from cddnet.formats import ReadOptions, dicom, head_of, read_all_series, read_volume
from cddnet.volume import CTVolume
from cddnet.workflows._pairing import (
    PIXEL_TOLERANCE,
    along_mm,
    differing_orientations,
    nearest,
    positions_of,
    shifts_mm,
    tolerance_of,
)
from cddnet.workflows._pictures import listed, picture_names
from cddnet.workflows._upright import upright
from cddnet.workflows.acquisitions import labels_of, of_acquisition

_ALL_STATED = ReadOptions()
_RELATIVE_TOLERANCE = 0.01
_DIGEST_CHARACTERS = 8
_LISTED = 6


class Found(NamedTuple):
    """A series and its place: folders and file name without suffix, "" for the path itself.

    pictures: name of each slice, where it is a folder of pictures.
    """

    name: str
    volume: CTVolume
    pictures: tuple[str, ...] = ()

    @property
    def patient(self) -> str:
        """Who it is of: the header's patient ID, else the first folder or the file, else study."""
        acquisition = self.volume.acquisition
        return acquisition.patient_id or self.name.split("/")[0] or acquisition.study_uid


@dataclass(frozen=True, kw_only=True)
class Case:
    """One series of the reference and its twins.

    patient, series: names that identify nobody.  rows: name -> series on the grid of the reference.
    slices: name -> slice of that series (D,) for each slice of the reference.
    """

    patient: str
    series: str
    reference: CTVolume
    rows: dict[str, CTVolume]
    slices: dict[str, tuple[int, ...]]

    def aligned(self, row: str) -> CTVolume:
        """A row with the slices of the reference, in their order."""
        volume, slices = self.rows[row], self.slices[row]
        return replace(
            volume,
            shape=(len(slices), *volume.shape[1:]),
            read_slice=lambda index: volume.read_slice(slices[index]),
            read_padding=None
            if volume.read_padding is None
            else lambda index: volume.padding(slices[index]),
            thicknesses_mm=tuple(volume.thickness_of(index) for index in slices)
            if volume.thicknesses_mm
            else (),
            positions_mm=self.reference.positions_mm,
            acquisition_labels=self.reference.acquisition_labels,
        )


def find_cases(
    reference: Path,
    rows: Mapping[str, Path],
    reading: ReadOptions = _ALL_STATED,
) -> tuple[Case, ...]:
    """Every series of the reference with its twin in each row.

    reading: what files may leave open, such as what the grey levels of pictures stand for.
    Raises: GeometryError for what does not agree, naming both values; else what reading raises.
    """
    references, *others = _chosen([reference, *rows.values()], reading)
    patients = _patient_names(references)
    twins = {
        name: _twins(references, found, name) for name, found in zip(rows, others, strict=True)
    }
    numbers: Counter[str] = Counter()
    cases = []
    for index, item in enumerate(references):
        own = {name: found[index] for name, found in twins.items()}
        slices = {name: _matched(item, other, name) for name, other in own.items()}
        patient = patients[item.patient]
        numbers[patient] += 1
        cases.append(
            Case(
                patient=patient,
                series=f"series {numbers[patient]}",
                reference=item.volume,
                rows={name: other.volume for name, other in own.items()},
                slices=slices,
            )
        )
    return tuple(cases)


def _chosen(paths: Sequence[Path], reading: ReadOptions) -> list[tuple[Found, ...]]:
    """The series of each path, with the acquisition that is asked for."""
    found = [found_series(path, reading) for path in paths]
    every = [
        (path, item.volume) for path, items in zip(paths, found, strict=True) for item in items
    ]
    volumes = iter(of_acquisition(every, reading.acquisition))
    return [tuple(item._replace(volume=next(volumes)) for item in items) for items in found]


def found_series(path: Path, reading: ReadOptions) -> tuple[Found, ...]:
    """Every CT series of a file, of a DICOM tree, or of a folder of files or folders."""
    return tuple(_found(path, "", reading))


def _found(path: Path, name: str, reading: ReadOptions) -> list[Found]:
    inside = list_folder(path) if path.is_dir() else []
    inside = [item for item in inside if not item.name.startswith(".")]
    files = [item for item in inside if item.is_file() and _holds_volume(item)]
    if files:
        return [Found(_joined(name, _stem(file)), _read(file, reading)) for file in files]
    try:
        volume = _read(path, reading)
        return [Found(name, volume, picture_names(path, volume) if path.is_dir() else ())]
    except SeriesChoiceError:
        return [Found(name, volume) for volume in read_all_series(path)]
    except FormatError:
        # Folders of pictures, one per patient or series, are no format; anything else is wrong.
        if not inside or any(item.is_file() for item in inside):
            raise
        return [
            found
            for folder in inside
            # A link to where it lies would go round and round.
            if not path.resolve().is_relative_to(folder.resolve())
            for found in _found(folder, _joined(name, folder.name), reading)
        ]


def _read(path: Path, reading: ReadOptions) -> CTVolume:
    volume = read_volume(path, window_hu=reading.window_hu, slice_axis=reading.slice_axis)
    return upright(volume)


def _holds_volume(file: Path) -> bool:
    """True for formats that keep a whole series in one file, other than DICOM."""
    head = head_of(file)
    if dicom.recognises(head):
        return False
    modules = (plugins.load("formats", name) for name in plugins.names("formats"))
    return any(
        module.recognises(head) for module in modules if not getattr(module, "FOLDER", False)
    )


def _joined(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def _stem(file: Path) -> str:
    return Path(file.stem).stem if file.suffix.lower() == ".gz" else file.stem


def _patient_names(references: Sequence[Found]) -> dict[str, str]:
    """Patient -> number and digest, keyed by the data: a short ID cannot be found by trial."""
    marks = sorted(f"{item.name} {item.volume.series_uid}" for item in references)
    key = hashlib.sha256("\n".join(marks).encode()).digest()
    patients = dict.fromkeys(item.patient for item in references)
    return {
        patient: f"patient {number} ({_digest(patient, key)})"
        for number, patient in enumerate(patients, start=1)
    }


def _digest(text: str, key: bytes) -> str:
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()[:_DIGEST_CHARACTERS]


def _twins(references: Sequence[Found], others: Sequence[Found], row: str) -> list[Found]:
    """The series of `others` that belongs to each of the references."""
    if len(references) == len(others) == 1:
        return list(others)
    left = list(others)
    twins = []
    for item in references:
        own = [other for other in left if _belongs(item, other)]
        if len(own) > 1:
            own = [other for other in own if _same_grid(item.volume, other.volume)] or own
        if len(own) != 1:
            _refuse(
                row,
                f"{len(own) or 'no'} series belong to {_called(item)} of the reference, expected "
                f"one among {_listed(left)}",
                "give folders with the same patients and series, or one series each",
            )
        left.remove(own[0])
        twins.append(own[0])
    if left:
        _refuse(
            row,
            f"{_listed(left)} without a reference, which has {_listed(references)}",
            "remove them or complete the reference",
        )
    return twins


def _belongs(reference: Found, other: Found) -> bool:
    """By frame of reference and patient where both say them, else by name."""
    one, two = reference.volume.acquisition, other.volume.acquisition
    if one.frame_of_reference_uid and two.frame_of_reference_uid:
        strangers = one.patient_id and two.patient_id and one.patient_id != two.patient_id
        return one.frame_of_reference_uid == two.frame_of_reference_uid and not strangers
    return bool(reference.name) and reference.name == other.name


def _same_grid(one: CTVolume, two: CTVolume) -> bool:
    if one.acquisition.kernel != two.acquisition.kernel:
        return False
    try:
        _slices(one, two, "")
    except GeometryError:
        return False
    return True


def _called(item: Found) -> str:
    return f"series {item.volume.series_uid}" if item.volume.series_uid else f"'{item.name}'"


def _listed(items: Sequence[Found]) -> str:
    names = [_called(item) for item in items[:_LISTED]]
    more = f" and {len(items) - _LISTED} more" if len(items) > _LISTED else ""
    return ", ".join(names) + more or "none"


def _matched(reference: Found, test: Found, row: str) -> tuple[int, ...]:
    """As `_slices`, but by name where both are folders of pictures: these have no positions."""
    if not (reference.pictures and test.pictures):
        return _slices(reference.volume, test.volume, row)
    _require_one_grid(reference.volume, test.volume, row)
    lacking = [name for name in reference.pictures if name not in test.pictures]
    alone = [name for name in test.pictures if name not in reference.pictures]
    unpaired = [
        f"{folder} has none named {listed(names)}"
        for folder, names in (("it", lacking), ("the reference", alone))
        if names
    ]
    if unpaired:
        _refuse(
            row,
            f"pictures are paired by name, but {' and '.join(unpaired)}",
            "add or remove them; cddnet denoise into a folder keeps names",
        )
    return tuple(test.pictures.index(name) for name in reference.pictures)


def _slices(reference: CTVolume, test: CTVolume, row: str) -> tuple[int, ...]:
    """Slice of the test (D,) at each slice of the reference; refuses what does not agree."""
    _require_one_patient(reference, test, row)
    _require_one_grid(reference, test, row)
    places, test_places = along_mm(reference), along_mm(test)
    tolerance_mm = tolerance_of(reference)
    try:
        labels = labels_of(reference, test)
    except GeometryError as error:
        _refuse(row, str(error), "choose one acquisition with --acquisition")
    pairs = nearest(places, test_places, tolerance_mm, labels)
    for had, lacking, used, place_mm in (
        ("the reference", row, {index for index, _ in pairs}, places),
        (row, "the reference", {index for _, index in pairs}, test_places),
    ):
        missing = [place for index, place in enumerate(place_mm) if index not in used]
        if missing:
            _refuse(
                row,
                f"{len(test_places)} slices but {len(places)} in the reference: {lacking} has none "
                f"within {tolerance_mm:g} mm of {missing[0]:.2f} mm, where {had} has one "
                f"({len(missing)} such)",
                "give complete series at the same positions",
            )
    sideways_mm = shifts_mm(reference, test, pairs)
    worst = int(sideways_mm.argmax())
    if sideways_mm[worst] > PIXEL_TOLERANCE * min(reference.spacing_mm[1:]):
        corners = (positions_of(v)[pairs[worst][n]] for n, v in enumerate((reference, test)))
        its_own, other = (", ".join(f"{value:.2f}" for value in corner) for corner in corners)
        _differ(row, "corner of the image (mm)", f"({its_own})", f"({other})")
    return tuple(index for _, index in sorted(pairs))


def _require_one_patient(reference: CTVolume, test: CTVolume, row: str) -> None:
    one, two = reference.acquisition, test.acquisition
    if one.patient_id and two.patient_id and one.patient_id != two.patient_id:
        # Names of patients are never printed, nor what a short number could be found from.
        key = f"{reference.series_uid} {test.series_uid}".encode()
        digests = (_digest(name, key) for name in (one.patient_id, two.patient_id))
        _differ(row, "patient (as a digest)", *digests)
    frames = one.frame_of_reference_uid, two.frame_of_reference_uid
    if all(frames) and frames[0] != frames[1]:
        _differ(row, "frame of reference", *frames)


def _require_one_grid(reference: CTVolume, test: CTVolume, row: str) -> None:
    if reference.shape[1:] != test.shape[1:]:
        _differ(
            row, "rows and columns", *(f"{v.shape[1]} x {v.shape[2]}" for v in (reference, test))
        )
    pixels = zip(reference.spacing_mm[1:], test.spacing_mm[1:], reference.shape[1:], strict=True)
    if any(abs(one - two) * count > PIXEL_TOLERANCE * one for one, two, count in pixels):
        described = (f"{v.spacing_mm[1]:g} x {v.spacing_mm[2]:g}" for v in (reference, test))
        _differ(row, "pixel spacing (mm)", *described)
    orientations = differing_orientations(reference, test)
    if orientations:
        _differ(row, "orientation", *orientations)
    distances = reference.spacing_mm[0], test.spacing_mm[0]
    if min(reference.shape[0], test.shape[0]) > 1 and _unlike(*distances):
        _differ(row, "slice spacing (mm)", *(f"{value:g}" for value in distances))
    if _unlike(reference.thickness_mm, test.thickness_mm):
        _differ(row, "slice thickness (mm)", reference.thickness_mm, test.thickness_mm)


def _unlike(one: float | None, two: float | None) -> bool:
    return bool(one and two) and abs((one or 0) - (two or 0)) > _RELATIVE_TOLERANCE * (one or 0)


def _differ(row: str, what: str, reference: object, test: object) -> NoReturn:
    _refuse(
        row,
        f"the {what} is {test}, but {reference} in the reference",
        "give series of the same patient on one grid; nothing is resized or moved",
    )


def _refuse(row: str, found: str, remedy: str) -> NoReturn:
    raise GeometryError(f"{row}: {found}; {remedy}.")
