"""How CT data sets are laid out on disk, and which series of them belong together.

Only names and the kind of each file are looked at here; pairs of slices are made by position later.

Above 300 lines: each layout is a rule of its own over the same entries.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from cddnet.config import PatientSplit
from cddnet.errors import CddnetError, FormatError
from cddnet.files import distinct, list_folder, walk
from cddnet.formats import dicom, head_of, metaimage, nifti, raster, read_volume
from cddnet.training.manifest import SIDES

Progress = Callable[[str, int, int], None]

# Mayo 2016: full_3mm, quarter_1mm_sharp and the like; patients are L067 and so on.
_MAYO_KIND = re.compile(r"(full|quarter)_(\d+(?:\.\d+)?mm.*)", re.IGNORECASE)
_MAYO_PATIENT = re.compile(r"[A-Z]\d{3}", re.IGNORECASE)
_TCIA_KIND = re.compile(r"(full|low) dose images", re.IGNORECASE)
_TCIA_PROJECTIONS = re.compile(r"(full|low) dose projections|projections", re.IGNORECASE)

VOLUME_SUFFIXES = (*nifti.SUFFIXES, *metaimage.SUFFIXES)
_NO_PATIENT = (
    "NIfTI and MetaImage files name no patient; give --patient-pattern with one group for the "
    "patient in their path, such as '^([^/]+)/' for its first folder, or a --patients file"
)


class Entry(NamedTuple):
    """One series as it was found. folder: relative to the source, with slashes; uid: "" for
    pictures and volume files; files: names in the folder.
    """

    folder: str
    uid: str
    files: tuple[str, ...]

    @property
    def name(self) -> str:
        """For people and tables."""
        return _readable(self.path if self.is_volume else self.folder) or "."

    @property
    def is_volume(self) -> bool:
        """Whether it is one file that holds a series, NIfTI or MetaImage."""
        return not self.uid and any(
            name.lower().endswith(VOLUME_SUFFIXES) for name in self.files[:1]
        )

    @property
    def path(self) -> str:
        """Of its first file, relative to the source."""
        return str(PurePosixPath(self.folder, self.files[0]))


class LeftOut(NamedTuple):
    """Something that is not in the set. slices: how many images or files it stands for."""

    kind: str
    source: str
    slices: int
    position_mm: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Job:
    """A full-dose series to store, with the candidates for its real low dose.

    patient: "" where the header's PatientID decides; side: "" where the hash order does.
    trusts_header: whether PatientID tells patients apart; in some sets all are anonymous.
    """

    full: Entry
    low: tuple[Entry, ...] = ()
    paired: bool = False
    patient: str = ""
    side: str = ""
    trusts_header: bool = True


@dataclass(frozen=True, kw_only=True)
class Found:
    layout: str
    jobs: tuple[Job, ...]
    left_out: tuple[LeftOut, ...]
    warnings: tuple[str, ...] = ()


class PictureOptions(NamedTuple):
    """window_hu: what black and white stand for; pattern: a group in file names, or in the path of
    a volume file, the patient.
    """

    window_hu: tuple[float, float] | None
    pattern: str | None


def source_sha256(source: Path) -> str:
    """Hash of the names and sizes of every file below a folder, cheap enough for each start."""
    total = hashlib.sha256()
    for file in _files(source):
        size = file.stat().st_size if file.exists() else "link to nothing"
        line = f"{_relative(file, source)}\t{size}\n"
        total.update(line.encode(errors="surrogateescape"))
    return total.hexdigest()


def layout_of(source: Path) -> str:
    """The layout by the names of folders."""
    if (source / "IN").is_dir() and (source / "GT").is_dir():
        return "in-gt"
    names = {source.resolve().name}
    names.update(folder.path.name for folder in walk(source, skip_hidden=True))
    kinds = {match[1].lower() for name in names if (match := _MAYO_KIND.fullmatch(name))}
    if "full" in kinds:
        return "mayo2016"
    if any(_TCIA_KIND.search(name) for name in names):
        return "tcia-ldct"
    return "tree"


def find(
    source: Path,
    layout: str,
    patients: PatientSplit | None,
    *,
    pictures: PictureOptions,
    progress: Progress,
) -> Found:
    """The series to store, and what is left out and why.

    layout: mayo2016, tcia-ldct, tree or in-gt.  Raises: FormatError where nothing can be used.
    """
    if layout == "in-gt":
        if patients is not None:
            raise FormatError(
                f"{source}: pictures have no series folders for a patients file; tell their "
                "patients with --patient-pattern."
            )
        found = _pictures(source, pictures, progress)
    else:
        entries, left_out = _series(source, layout, progress)
        volumes = [entry for entry in entries if entry.is_volume]
        jobs, unused = _JOBS[layout](source, [entry for entry in entries if not entry.is_volume])
        jobs += [Job(full=entry, trusts_header=False) for entry in volumes]
        if patients is not None:
            jobs, others = _assigned(source, jobs, patients)
        else:
            jobs, others = _named(jobs, pictures.pattern)
        unused += others
        found = Found(layout=layout, jobs=tuple(jobs), left_out=tuple(left_out + unused))
    if not found.jobs:
        reasons = sorted({item.reason for item in found.left_out})
        raise FormatError(
            f"{source}: nothing in it can be used as layout {layout}. "
            + ("Found: " + "; ".join(reasons[:5]) if reasons else _nothing(source))
            + ". Give the folder of the data set, or another --layout."
        )
    return found


def _series(source: Path, layout: str, progress: Progress) -> tuple[list[Entry], list[LeftOut]]:
    """Every series of each folder on its own, and the files that are none."""
    entries: dict[tuple[str, str], list[tuple[str, str]]] = {}
    left_out: list[LeftOut] = []
    volumes: list[Entry] = []
    skipped: dict[str, int] = {}
    files = list(distinct(_files(source)))
    for done, file in enumerate(files, start=1):
        progress("reading headers", done, len(files))
        folder = _relative(file.parent, source)
        if layout == "tcia-ldct" and _TCIA_PROJECTIONS.search(folder):
            skipped[folder] = skipped.get(folder, 0) + 1
            continue
        try:
            head = head_of(file)
            if layout == "tree" and _is_volume_file(file, head):
                volumes.append(Entry(folder, "", (file.name,)))
                continue
            if not dicom.recognises(head):
                continue
            summary = dicom.list_series(file)[0]
        except (CddnetError, OSError) as error:
            left_out.append(_left("unreadable", _relative(file, source), str(error)))
            continue
        entries.setdefault((folder, summary.uid), []).append((file.name, summary.unfit))
    for folder, count in sorted(skipped.items()):
        left_out.append(_left("projections", folder, "projections, no images", count))
    series = []
    for (folder, uid), told in sorted(entries.items()):
        entry = Entry(folder, uid, tuple(name for name, _ in told))
        if all(unfit for _, unfit in told):
            left_out.append(_left("unfit", entry.name, told[0][1], len(told)))
        else:
            series.append(entry)
    return series + sorted(volumes), left_out


def _is_volume_file(file: Path, head: bytes) -> bool:
    known = nifti.recognises(head) or metaimage.recognises(head)
    return known and file.name.lower().endswith(VOLUME_SUFFIXES)


def _nothing(source: Path) -> str:
    """What a folder without any series holds."""
    kinds = Counter(file.suffix.lower() or file.name for file in _files(source))
    listed = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(5)) or "nothing"
    return (
        f"It holds no CT series in DICOM, NIfTI or MetaImage (found: {_readable(listed)}); put "
        "pictures into IN/ and GT/, by equal names"
    )


def _named(jobs: list[Job], pattern: str | None) -> tuple[list[Job], list[LeftOut]]:
    """Jobs of volume files with the patient that a pattern finds in their path."""
    named, left_out = [], []
    for job in jobs:
        match = re.search(pattern, job.full.path) if pattern and job.full.is_volume else None
        if not job.full.is_volume:
            named.append(job)
        elif match and match[1]:
            named.append(replace(job, patient=match[1]))
        else:
            reason = (
                f"its path tells no patient by the pattern {pattern}" if pattern else _NO_PATIENT
            )
            left_out.append(_left("unfit", job.full.name, reason))
    return named, left_out


def _tree(source: Path, entries: list[Entry]) -> tuple[list[Job], list[LeftOut]]:
    return [Job(full=entry) for entry in entries], []


def _mayo(source: Path, entries: list[Entry]) -> tuple[list[Job], list[LeftOut]]:
    """Patient and kind are folder names, in either order; headers there name nobody."""
    told: dict[Entry, tuple[str, tuple[str, str]]] = {}
    left_out = []
    for entry in entries:
        parts = (source.resolve().name, *PurePosixPath(entry.folder).parts)
        kinds = [match for part in parts if (match := _MAYO_KIND.fullmatch(part))]
        names = [part.upper() for part in parts if _MAYO_PATIENT.fullmatch(part)]
        if kinds and names:
            told[entry] = kinds[-1][1].lower(), (names[-1], kinds[-1][2].lower())
        else:
            what = "patient folder such as L067" if kinds else "folder such as full_3mm"
            left_out.append(_left("unfit", entry.name, f"has no {what} in its path"))
    jobs, lonely = _paired(told, patient=lambda key: key[0])
    return jobs, left_out + lonely


def _tcia(source: Path, entries: list[Entry]) -> tuple[list[Job], list[LeftOut]]:
    """Patient, study and series are folders in that order; the kind is in the series' name."""
    told: dict[Entry, tuple[str, tuple[str, str]]] = {}
    left_out = []
    for entry in entries:
        parts = (source.resolve() / entry.folder).parts
        kind = _TCIA_KIND.search(parts[-1])
        if kind and len(parts) > 3:
            told[entry] = kind[1].lower(), (parts[-3], parts[-2])
        else:
            reason = "is below no folder such as 'Full Dose Images' of a patient and study"
            left_out.append(_left("unfit", entry.name, reason))
    jobs, lonely = _paired(told, patient=lambda key: "")
    return jobs, left_out + lonely


def _paired(
    told: Mapping[Entry, tuple[str, tuple[str, str]]],
    patient: Callable[[tuple[str, str]], str],
) -> tuple[list[Job], list[LeftOut]]:
    """Full-dose series with the low-dose ones of the same key."""
    full = {entry: key for entry, (kind, key) in told.items() if kind == "full"}
    low = {entry: key for entry, (kind, key) in told.items() if kind != "full"}
    jobs, left_out = [], []
    for entry, key in full.items():
        twins = tuple(other for other, other_key in low.items() if other_key == key)
        name = patient(key)
        if twins:
            job = Job(full=entry, low=twins, paired=True, patient=name, trusts_header=not name)
            jobs.append(job)
        else:
            left_out.append(_left("missing twin", entry.name, "has no low-dose series"))
    for entry, key in low.items():
        if key not in full.values():
            left_out.append(_left("missing twin", entry.name, "has no full-dose series"))
    return jobs, left_out


_JOBS: dict[str, Callable[[Path, list[Entry]], tuple[list[Job], list[LeftOut]]]] = {
    "mayo2016": _mayo,
    "tcia-ldct": _tcia,
    "tree": _tree,
}
LAYOUTS = (*_JOBS, "in-gt")


def _assigned(
    source: Path, jobs: list[Job], patients: PatientSplit
) -> tuple[list[Job], list[LeftOut]]:
    """Jobs with the patient and side that a person wrote down; the others are left out."""
    sides = {side: getattr(patients, side) for side in SIDES}
    owner = {
        PurePosixPath(folder): (patient, side)
        for side, group in sides.items()
        for patient, folders in group.items()
        for folder in folders
    }
    missing = sorted(str(folder) for folder in owner if not (source / folder).is_dir())
    if missing:
        raise FormatError(
            f"{source} lacks {len(missing)} series folders: {', '.join(missing[:5])}; fetch them, "
            "or take them out of the patients file."
        )
    assigned, left_out = [], []
    for job in jobs:
        folder = PurePosixPath(job.full.folder)
        listed = [owner[item] for item in (folder, *folder.parents) if item in owner]
        if listed:
            patient, side = listed[0]
            assigned.append(replace(job, patient=patient, side=side))
        else:
            left_out.append(_left("not listed", job.full.name, "is not in the patients file"))
    return assigned, left_out


def _pictures(source: Path, options: PictureOptions, progress: Progress) -> Found:
    """Pictures of equal names in IN (low dose) and GT, a series per patient and size."""
    low_files, full_files = (_by_stem(source / name) for name in ("IN", "GT"))
    left_out = [
        _left("missing twin", f"{name}/{files[stem]}", f"has no picture of its name in {other}")
        for name, files, other, others in (
            ("IN", low_files, "GT", full_files),
            ("GT", full_files, "IN", low_files),
        )
        for stem in sorted(files.keys() - others.keys())
    ]
    groups: dict[tuple[str, tuple[int, ...]], list[str]] = {}
    notes: dict[str, None] = {}
    stems = sorted(low_files.keys() & full_files.keys())
    for done, stem in enumerate(stems, start=1):
        progress("reading pictures", done, len(stems))
        low_file, full_file = low_files[stem], full_files[stem]
        patient = _patient_in(stem, options.pattern)
        if not patient:
            reason = f"its name tells no patient by the pattern {options.pattern}"
            left_out.append(_left("unfit", f"GT/{full_file}", reason))
            continue
        try:
            low, full = (
                read_volume(source / folder / name, window_hu=options.window_hu)
                for folder, name in (("IN", low_file), ("GT", full_file))
            )
        except CddnetError as error:
            if options.window_hu is None:
                raise
            left_out.append(_left("unreadable", f"GT/{full_file}", str(error)))
            continue
        if low.shape != full.shape or full.shape[0] != 1:
            reason = f"IN has {low.shape}, GT {full.shape} slices, rows and columns"
            left_out.append(_left("geometry", f"GT/{full_file}", reason))
            continue
        groups.setdefault((patient, full.shape), []).append(stem)
        notes |= dict.fromkeys(low.notes + full.notes)
    jobs = tuple(
        Job(
            full=Entry("GT", "", tuple(full_files[stem] for stem in group)),
            low=(Entry("IN", "", tuple(low_files[stem] for stem in group)),),
            paired=True,
            patient=patient,
            trusts_header=False,
        )
        for (patient, _), group in sorted(groups.items())
    )
    warnings = [*notes]
    if options.pattern is None:
        warnings.append(
            "no --patient-pattern was given: all pictures count as one patient and stand on one "
            "side, so nothing can be validated"
        )
    return Found(layout="in-gt", jobs=jobs, left_out=tuple(left_out), warnings=tuple(warnings))


def _by_stem(folder: Path) -> dict[str, str]:
    if not folder.is_dir():
        raise FormatError(
            f"{folder.parent}: has no folder {folder.name}; give a folder with IN and GT."
        )
    names = sorted(
        item.name
        for item in list_folder(folder)
        if item.is_file() and not item.name.startswith(".") and raster.recognises(head_of(item))
    )
    stems = {Path(name).stem: name for name in names}
    if len(stems) < len(names):
        twice = sorted(set(names) - set(stems.values()))
        raise FormatError(f"{folder}: two pictures share a name with {twice[0]}; keep one.")
    return stems


def _patient_in(stem: str, pattern: str | None) -> str:
    """The patient in a picture's name, "" where the pattern finds none."""
    if pattern is None:
        return "one patient"
    match = re.search(pattern, stem)
    return match[1] or "" if match else ""


def require_one_group(pattern: str) -> None:
    """Refuse a pattern that is none, or has not exactly one group."""
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        raise FormatError(
            f"--patient-pattern {pattern}: is no regular expression ({error}); give one such as "
            "'(L[0-9]+)_'."
        ) from error
    if groups != 1:
        raise FormatError(
            f"--patient-pattern {pattern}: has {groups} groups; give one around the patient, "
            "such as '(L[0-9]+)_'."
        )


def _files(source: Path) -> Iterable[Path]:
    """Every regular file below a folder, in a fixed order, hidden ones left aside."""
    return (file for folder in walk(source, skip_hidden=True) for file in folder.files)


def _relative(path: Path, source: Path) -> str:
    text = path.relative_to(source).as_posix()
    return "" if text == "." else text


def _left(kind: str, source: str, reason: str, slices: int = 1) -> LeftOut:
    return LeftOut(kind, _readable(source), slices, "", _readable(reason))


def _readable(name: str) -> str:
    """A name as UTF-8 can hold it; bytes of other encodings are shown as such."""
    return name.encode(errors="backslashreplace").decode()
