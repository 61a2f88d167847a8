"""Build a training set: pairs by position, split by patient, stored as int16 HU, without leaks.

    source tree -> series (headers) -> slices and pairs by position -> .npy -> manifest

Each finished series leaves a record in OUT/.unfinished, so that a killed run goes on where it
stopped; the manifest is written last, and only when no patient stands on two sides.
"""

# Shapes: D slice, H row, W column.

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel

from cddnet import __version__
from cddnet.config import PatientSplit, load_config
from cddnet.errors import CddnetError, FormatError
from cddnet.formats import dicom, read_volume
from cddnet.training.leaks import described, require_apart
from cddnet.training.manifest import (
    MANIFEST,
    SIDES,
    SLICES,
    UNFINISHED,
    Manifest,
    PreparedSeries,
    digest_of,
    load_manifest,
)
from cddnet.volume import CTVolume, SliceHU
from cddnet.workflows._appearing import remove_partial, resumable, write_whole
from cddnet.workflows._layouts import (
    LAYOUTS,
    Entry,
    Job,
    LeftOut,
    PictureOptions,
    Progress,
    find,
    layout_of,
    require_one_group,
    source_sha256,
)
from cddnet.workflows._pairing import LeftOutError, Twin, along_mm, twin_of
from cddnet.workflows._stacks import Column, Written, stored_hu, write_rows

SOURCES = "sources.csv"
LEFT_OUT = "left_out.csv"
_REQUEST = "request"
_SQUARE_TOLERANCE = 0.01
_NAME_DIGITS = 32
# Of the reader's notes, the one that speaks of other series, which have jobs of their own.
_OTHERS = "other series"


@dataclass(frozen=True, kw_only=True)
class PrepareOptions:
    """layout: auto, mayo2016, tcia-ldct, tree or in-gt.  split: shares of patients for training,
    validation and test.  seed: of the order of patients.  patients: a PatientSplit file that
    decides patients and sides instead.  collections: "name, licence, DOI" each.  window_hu and
    patient_pattern: of pictures.
    """

    layout: str = "auto"
    split: tuple[float, float, float] = (0.8, 0.1, 0.1)
    seed: int = 0
    patients: Path | None = None
    collections: tuple[str, ...] = ()
    window_hu: tuple[float, float] | None = None
    patient_pattern: str | None = None


class Prepared(NamedTuple):
    """What a run says at its end. left_out: (kind, slices); doubts: one patient under two names."""

    manifest: Manifest
    left_out: tuple[tuple[str, int], ...]
    doubts: tuple[str, ...]
    was_finished: bool


class _Stored(BaseModel, frozen=True, extra="forbid"):
    """Record of one job: the series, if any of it was fit, and what was left out.

    patient_order: hash by which patients are put in order for the split.
    sources: folders of the full and of the low dose.
    """

    series: PreparedSeries | None
    patient_order: str
    sources: tuple[str, str]
    left_out: tuple[LeftOut, ...]


class _Run(NamedTuple):
    source: Path
    out: Path
    options: PrepareOptions
    key: str  # of the digests

    def digest(self, text: str) -> str:
        return digest_of(text, self.key)


def prepare(source: Path, out: Path, options: PrepareOptions, progress: Progress) -> Prepared:
    """Build the training set of a source tree in the folder out, or finish one begun there.

    progress: called with (what, done, total).
    Raises: LeakError where a patient would stand on two sides; FormatError for a source without
    CT, or an output that holds anything else; ConfigError for a wrong patients file.
    """
    _require_sound(source, out, options)
    patients = None if options.patients is None else load_config(options.patients, PatientSplit)
    layout = layout_of(source) if options.layout == "auto" else options.layout
    with resumable(out):
        request = _request(source, layout, options, patients)
        if (out / MANIFEST).exists():
            return _finished_before(out, request)
        _require_free(out, request)
        pictures = PictureOptions(options.window_hu, options.patient_pattern)
        found = find(source, layout, patients, pictures=pictures, progress=progress)
        _begin(out, request)
        jobs = sorted(found.jobs, key=lambda job: (job.full, job.patient))
        run = _Run(source, out, options, _key(jobs))
        records = _store_all(run, jobs, progress)
        left_out = [*found.left_out, *(item for record in records for item in record.left_out)]
        stored = [record for record in records if record.series is not None]
        manifest = Manifest(
            version=__version__,
            request=request,
            layout=layout,
            collections=_collections(options, patients, stored),
            warnings=found.warnings,
            series=_with_sides(stored, options),
        )
        return _finish(out, manifest, stored, left_out)


def split_shares(text: str) -> tuple[float, float, float]:
    """Shares from "0.8/0.1/0.1".  Raises FormatError for anything else."""
    try:
        train, validation, test = (float(part) for part in text.split("/"))
    except ValueError as error:
        raise FormatError(
            f"split {text}: is no three shares of patients; give such as 0.8/0.1/0.1."
        ) from error
    return train, validation, test


def _require_sound(source: Path, out: Path, options: PrepareOptions) -> None:
    if not source.is_dir():
        raise FormatError(f"{source}: is no folder; give the folder of the data set.")
    if out.resolve().is_relative_to(source.resolve()):
        raise FormatError(f"{out}: lies in the source; choose a folder outside of it.")
    if options.layout not in ("auto", *LAYOUTS):
        raise FormatError(f"layout {options.layout} is unknown; choose auto, {', '.join(LAYOUTS)}.")
    if min(options.split) < 0 or abs(sum(options.split) - 1) > 1e-6:
        raise FormatError(
            f"split {options.split}: shares should be 0 or more, and 1 together; give such as "
            "0.8/0.1/0.1."
        )
    if options.patient_pattern is not None:
        require_one_group(options.patient_pattern)


def _request(
    source: Path, layout: str, options: PrepareOptions, patients: PatientSplit | None
) -> str:
    """Hash of all that decides the result: resuming with anything else would mix two sets."""
    asked = {
        "version": __version__,
        "layout": layout,
        "split": options.split,
        "seed": options.seed,
        "patients": None if patients is None else patients.model_dump(mode="json"),
        "collections": options.collections,
        "window_hu": options.window_hu,
        "patient_pattern": options.patient_pattern,
        "source": source_sha256(source),
    }
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


def _key(jobs: Iterable[Job]) -> str:
    names = [str(entry) for job in jobs for entry in (job.full, *job.low)]
    return hashlib.sha256("\n".join(names).encode()).hexdigest()


def _finished_before(out: Path, request: str) -> Prepared:
    manifest = load_manifest(out)
    if manifest.request != request:
        raise FormatError(
            f"{out}: holds a set of another source or other options; choose a new folder."
        )
    shutil.rmtree(out / UNFINISHED, ignore_errors=True)
    with (out / LEFT_OUT).open(encoding="utf-8", newline="") as file:
        counts = _counted((row["kind"], int(row["slices"])) for row in csv.DictReader(file))
    with (out / SOURCES).open(encoding="utf-8", newline="") as file:
        names = {row["series"]: row["full_dose"] for row in csv.DictReader(file)}
    doubts = tuple(described(item, names) for item in require_apart(manifest, names))
    return Prepared(manifest, counts, doubts, was_finished=True)


def _require_free(out: Path, request: str) -> None:
    """Refuse a folder that holds anything but an unfinished set of the same request."""
    mark = out / UNFINISHED / _REQUEST
    if mark.is_file() and mark.read_text("ascii") != request:
        raise FormatError(
            f"{out}: holds an unfinished set of another source or other options; remove it, or "
            "choose a new folder."
        )
    strangers = out.is_file() or (
        out.is_dir() and any(item.name != UNFINISHED for item in out.iterdir())
    )
    if strangers and not mark.is_file():
        raise FormatError(f"{out}: exists and is no prepared set; choose a new folder.")
    if not out.parent.is_dir():
        raise FormatError(f"{out.parent}: no such folder; check the name or make it first.")


def _begin(out: Path, request: str) -> None:
    """Make the folder, or take up an unfinished one."""
    unfinished = out / UNFINISHED
    unfinished.mkdir(parents=True, exist_ok=True)
    write_whole(unfinished / _REQUEST, request.encode())
    (out / SLICES).mkdir(exist_ok=True)
    for folder in (out, unfinished, out / SLICES):
        remove_partial(folder)


def _store_all(run: _Run, jobs: Sequence[Job], progress: Progress) -> list[_Stored]:
    """Records of every job; those finished by an earlier run are not decoded again."""
    records: list[_Stored] = []
    known: dict[str, set[str]] = {}
    for done, job in enumerate(jobs, start=1):
        name = run.digest(f"{job.full} {job.patient}")[:_NAME_DIGITS]
        path = run.out / UNFINISHED / f"{name}.json"
        if path.is_file():
            record = _Stored.model_validate_json(path.read_bytes())
        else:
            record = _store(run, job, name, known)
            write_whole(path, record.model_dump_json().encode())
        if record.series is not None:
            own = known.setdefault(record.series.patient_digest, set())
            own.update(d for file in record.series.files for d in file.slices if d)
        records.append(record)
        progress("storing series", done, len(jobs))
    return records


def _store(run: _Run, job: Job, name: str, known: dict[str, set[str]]) -> _Stored:
    left_out: list[LeftOut] = []
    slices = 1
    try:
        full = _volume(run, job.full)
        slices = full.shape[0]
        _require_square(full)
        patient = job.patient or full.acquisition.patient_id
        if not patient:
            raise LeftOutError("unfit", "its header names no patient; use a --patients file")
        twin = None
        if job.paired:
            twin = twin_of((job.full, full), [(low, _volume(run, low)) for low in job.low])
            left_out += twin.left_out
            left_out += _dropped_by_reader(twin.entry, twin.volume)
        left_out += _dropped_by_reader(job.full, full)
        columns = _columns(run.out / SLICES / name, full, twin)
        written = write_rows(columns, known.get(run.digest(patient), set()))
    except CddnetError as error:
        kind = error.kind if isinstance(error, LeftOutError) else "unfit"
        left_out = [LeftOut(kind, job.full.name, slices, "", str(error))]
        return _Stored(series=None, patient_order="", sources=("", ""), left_out=tuple(left_out))
    along = along_mm(full)
    for row, reason in written.repeated.items():
        place = f"{along[columns[0].indices[row]]:.3f}"
        left_out.append(LeftOut("duplicate", job.full.name, 1, place, reason))
    return _Stored(
        series=_series(run, job, run.digest(patient), _Content(full, twin, columns[0], written)),
        patient_order=hashlib.sha256(f"{run.options.seed}/{patient}".encode()).hexdigest(),
        sources=(job.full.name, twin.entry.name if twin else ""),
        left_out=tuple(left_out),
    )


def _volume(run: _Run, entry: Entry) -> CTVolume:
    folder = run.source / entry.folder
    if entry.uid:
        return dicom.read_files([folder / name for name in entry.files])
    window_hu = run.options.window_hu
    first = read_volume(folder / entry.files[0], window_hu=window_hu)

    def read_slice(index: int) -> SliceHU:
        return read_volume(folder / entry.files[index], window_hu=window_hu).read_slice(0)

    return replace(first, shape=(len(entry.files), *first.shape[1:]), read_slice=read_slice)


def _dropped_by_reader(entry: Entry, volume: CTVolume) -> list[LeftOut]:
    """Copies of slices and localizers, of which the reader leaves a note with their number."""
    found = [(note, re.search(r"(\d+) .* left out$", note)) for note in volume.notes]
    return [
        LeftOut(
            "duplicate" if note.startswith("copies") else "unfit",
            entry.name,
            int(count[1]),
            "",
            note,
        )
        for note, count in found
        if count and not note.startswith(_OTHERS)
    ]


def _require_square(volume: CTVolume) -> None:
    _, row_mm, column_mm = volume.spacing_mm
    if abs(row_mm - column_mm) > _SQUARE_TOLERANCE * column_mm:
        raise LeftOutError(
            "unfit", f"its pixels are {row_mm:g} x {column_mm:g} mm; simulation needs square ones"
        )


def _columns(stem: Path, full: CTVolume, twin: Twin | None) -> tuple[Column, ...]:
    """The full dose, and beside it the low dose where there is one."""
    path = stem.with_suffix(".npy")
    if twin is None:
        return (Column(path, partial(stored_hu, full), tuple(range(full.shape[0]))),)
    full_rows, low_rows = zip(*twin.rows, strict=True)
    return (
        Column(path, partial(stored_hu, full), full_rows),
        Column(path.with_stem(f"{stem.name}_low"), partial(stored_hu, twin.volume), low_rows),
    )


class _Content(NamedTuple):
    full: CTVolume
    twin: Twin | None
    column: Column
    written: Written


def _series(run: _Run, job: Job, patient_digest: str, content: _Content) -> PreparedSeries:
    full, written = content.full, content.written
    volumes = [full] if content.twin is None else [full, content.twin.volume]
    kept = [content.column.indices[row] for row in written.kept]
    nominal_mm, start_mm = full.slice_positions_mm(), along_mm(full)[0]
    lost = full.shape[0] - len(kept)

    def digests(texts: Iterable[str]) -> tuple[str, ...]:
        return tuple(run.digest(text) for text in sorted(set(texts)) if text)

    told = full.acquisition
    return PreparedSeries(
        name=content.column.path.stem,
        side=job.side or "train",
        patient_digest=patient_digest,
        header_patient_digests=digests(
            volume.acquisition.patient_id for volume in volumes if job.trusts_header
        ),
        study_digests=digests(volume.acquisition.study_uid for volume in volumes),
        series_digests=digests(volume.series_uid for volume in volumes),
        frame_of_reference_digests=digests(
            uid for volume in volumes for uid in _frames_of_reference(volume)
        ),
        manufacturer=told.manufacturer,
        scanner=told.model,
        kernel=told.kernel,
        collection=told.collection,
        shape=(len(kept), full.shape[1], full.shape[2]),
        pixel_mm=full.spacing_mm[2] if job.full.uid else None,
        spacing_mm=full.spacing_mm[0],
        thickness_mm=full.thickness_mm,
        positions_mm=tuple(round(float(start_mm + nominal_mm[index]), 4) for index in kept),
        low_dose="simulated" if content.twin is None else "real",
        full_file=written.files[0],
        low_file=None if content.twin is None else written.files[1],
        notes=tuple(note for note in full.notes if not note.startswith(_OTHERS)),
        volume_problems=(
            *full.volume_problems,
            *([f"{lost} slices of the series were left out"] if lost else []),
        ),
    )


def _frames_of_reference(volume: CTVolume) -> list[str]:
    """Of every slice: some series have one each."""
    headers = volume.headers
    if not isinstance(headers, dicom.DicomHeaders):
        return []
    return [str(frame.header.get("FrameOfReferenceUID") or "") for frame in headers.frames]


def _collections(
    options: PrepareOptions, patients: PatientSplit | None, stored: Sequence[_Stored]
) -> tuple[str, ...]:
    """What people stated, and what only headers name."""
    stated = list(
        dict.fromkeys([*options.collections, *(patients.collections if patients else ())])
    )
    named = sorted({r.series.collection for r in stored if r.series and r.series.collection})
    return (
        *stated,
        *(
            f"{name}, named by headers; licence and DOI not stated"
            for name in named
            if not any(name.lower() in text.lower() for text in stated)
        ),
    )


def _with_sides(stored: Sequence[_Stored], options: PrepareOptions) -> tuple[PreparedSeries, ...]:
    """Series with their sides: those a person wrote down, else by the hash order of patients."""
    every = [(record.patient_order, record.series) for record in stored if record.series]
    if options.patients is not None:
        return tuple(series for _, series in every)
    order = sorted({(rank, series.patient_digest) for rank, series in every})
    sides = [
        side
        for side, count in zip(SIDES, side_sizes(len(order), options.split), strict=True)
        for _ in range(count)
    ]
    side_of = {patient: side for (_, patient), side in zip(order, sides, strict=True)}
    return tuple(
        series.model_copy(update={"side": side_of[series.patient_digest]}) for _, series in every
    )


def side_sizes(patients: int, split: tuple[float, float, float]) -> tuple[int, int, int]:
    """Patients for training, validation and test: nearest to the shares, and none of a wanted side
    without any as long as there are enough.
    """
    exact = [patients * share for share in split]
    sizes = [int(value + 1e-9) for value in exact]
    by_rest = sorted(range(3), key=lambda side: sizes[side] - exact[side])
    for side in by_rest[: patients - sum(sizes)]:
        sizes[side] += 1
    for side in range(3):
        largest = sizes.index(max(sizes))
        if split[side] > 0 and sizes[side] == 0 and sizes[largest] > 1:
            sizes[largest] -= 1
            sizes[side] += 1
    return sizes[0], sizes[1], sizes[2]


def _finish(
    out: Path, manifest: Manifest, stored: Sequence[_Stored], left_out: Sequence[LeftOut]
) -> Prepared:
    """Check for leaks, and make the set valid by writing its manifest."""
    _write_csv(out / LEFT_OUT, LeftOut._fields, left_out)
    names = {record.series.name: record.sources for record in stored if record.series}
    rows = [(series.name, series.patient_digest, *names[series.name]) for series in manifest.series]
    _write_csv(out / SOURCES, ("series", "patient", "full_dose", "low_dose"), rows)
    counts = _counted((item.kind, item.slices) for item in left_out)
    if not manifest.series:
        reasons = ", ".join(f"{kind}: {count}" for kind, count in counts)
        raise FormatError(f"{out}: nothing was fit for training ({reasons}); see its {LEFT_OUT}.")
    labels = {name: folders[0] for name, folders in names.items()}
    doubts = tuple(described(item, labels) for item in require_apart(manifest, labels))
    write_whole(out / MANIFEST, manifest.model_dump_json(indent=1).encode())
    shutil.rmtree(out / UNFINISHED)
    return Prepared(manifest, counts, doubts, was_finished=False)


def _counted(left_out: Iterable[tuple[str, int]]) -> tuple[tuple[str, int], ...]:
    """Slices of each kind."""
    counts: Counter[str] = Counter()
    for kind, slices in left_out:
        counts[kind] += slices
    return tuple(sorted(counts.items()))


def _write_csv(path: Path, head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(rows)
    write_whole(path, text.getvalue().encode())
