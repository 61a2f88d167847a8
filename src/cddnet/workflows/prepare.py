"""Build a training set: pairs by position, split by patient, stored as int16 HU, without leaks.

    source tree -> series (headers) -> slices and pairs by position -> .npy -> manifest

Each finished series leaves a record in OUT/.unfinished, so that a killed run goes on where it
stopped; the manifest is written last, and only when no patient stands on two sides.

Above 300 lines: one verb, with what it may go on from.
"""

# Shapes: D slice, H row, W column.

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from cddnet import __version__
from cddnet.config import ConfigError, PatientSplit, load_config
from cddnet.errors import CddnetError, FormatError
from cddnet.formats import dicom, read_volume
from cddnet.intensity.background import with_background
from cddnet.training.leaks import described, require_apart
from cddnet.training.manifest import (
    MANIFEST,
    SLICES,
    UNFINISHED,
    Manifest,
    digest_of,
    load_manifest,
)
from cddnet.training.slices import require_axial
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
from cddnet.workflows._prepared import (
    LEFT_OUT,
    Content,
    Stored,
    collections_of,
    counted,
    dropped_by_reader,
    read_tables,
    series_of,
    with_sides,
    write_tables,
)
from cddnet.workflows._stacks import Column, stored_hu, write_rows
from cddnet.workflows.fitness import why_not_hu

_REQUEST = "request"
_SQUARE_TOLERANCE = 0.01
_NAME_DIGITS = 32
NOT_HU = "not in HU"


@dataclass(frozen=True, kw_only=True)
class PrepareOptions:
    """layout: auto, mayo2016, tcia-ldct, tree or in-gt.  split: shares of patients for training,
    validation and test.  seed: of the order of patients.  patients: a PatientSplit file that
    decides patients and sides instead.  collections: "name, licence, DOI" each.  window_hu: of
    pictures.  patient_pattern: of pictures and volume files.
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
    if patients is not None and patients.cut:
        raise ConfigError(
            f"{options.patients}: {', '.join(patients.cut[:3])} cut the body, which a prepared set "
            "cannot say; take them out, or name the file as `split` of a recipe and train from the "
            "folder itself."
        )
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
            collections=collections_of(
                (*options.collections, *(patients.collections if patients else ())), stored
            ),
            warnings=found.warnings,
            series=with_sides(stored, options.split if patients is None else None),
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
    counts, names = read_tables(out)
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


def _store_all(run: _Run, jobs: Sequence[Job], progress: Progress) -> list[Stored]:
    """Records of every job; those finished by an earlier run are not decoded again."""
    records: list[Stored] = []
    known: dict[str, set[str]] = {}
    for done, job in enumerate(jobs, start=1):
        name = run.digest(f"{job.full} {job.patient}")[:_NAME_DIGITS]
        path = run.out / UNFINISHED / f"{name}.json"
        if path.is_file():
            record = Stored.model_validate_json(path.read_bytes())
        else:
            record = _store(run, job, name, known)
            write_whole(path, record.model_dump_json().encode())
        if record.series is not None:
            own = known.setdefault(record.series.patient_digest, set())
            own.update(d for file in record.series.files for d in file.slices if d)
        records.append(record)
        progress("storing series", done, len(jobs))
    return records


def _store(run: _Run, job: Job, name: str, known: dict[str, set[str]]) -> Stored:
    left_out: list[LeftOut] = []
    slices = 1
    try:
        full = _volume(run, job.full)
        slices = full.shape[0]
        require_axial(full)
        _require_hu("the full dose" if job.paired else "it", full)
        _require_square(full)
        patient = job.patient or full.acquisition.patient_id
        if not patient:
            raise LeftOutError("unfit", "its header names no patient; use a --patients file")
        twin = None
        if job.paired:
            twin = twin_of((job.full, full), [(low, _volume(run, low)) for low in job.low])
            _require_hu("the low dose", twin.volume)
            left_out += twin.left_out
            left_out += dropped_by_reader(twin.entry, twin.volume)
        left_out += dropped_by_reader(job.full, full)
        columns = _columns(run.out / SLICES / name, full, twin)
        written = write_rows(columns, known.get(run.digest(patient), set()))
    except CddnetError as error:
        kind = error.kind if isinstance(error, LeftOutError) else "unfit"
        left_out = [LeftOut(kind, job.full.name, slices, "", str(error))]
        return Stored(series=None, patient_order="", sources=("", ""), left_out=tuple(left_out))
    along = along_mm(full)
    for row, reason in written.repeated.items():
        place = f"{along[columns[0].indices[row]]:.3f}"
        left_out.append(LeftOut("duplicate", job.full.name, 1, place, reason))
    return Stored(
        series=series_of(job, patient, Content(full, twin, columns[0], written), run.digest),
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
    if entry.is_volume:
        return first

    def read_slice(index: int) -> SliceHU:
        return read_volume(folder / entry.files[index], window_hu=window_hu).read_slice(0)

    shape = (len(entry.files), *first.shape[1:])
    return with_background(replace(first, shape=shape, read_slice=read_slice))


def _require_hu(name: str, volume: CTVolume) -> None:
    reason = why_not_hu(volume)
    if reason:
        raise LeftOutError(NOT_HU, f"{name}: {reason}")


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


def _finish(
    out: Path, manifest: Manifest, stored: Sequence[Stored], left_out: Sequence[LeftOut]
) -> Prepared:
    """Check for leaks, and make the set valid by writing its manifest."""
    write_tables(out, manifest, stored, left_out)
    counts = counted((item.kind, item.slices) for item in left_out)
    if not manifest.series:
        reasons = ", ".join(f"{kind}: {count}" for kind, count in counts)
        raise FormatError(f"{out}: nothing was fit for training ({reasons}); see its {LEFT_OUT}.")
    labels = {record.series.name: record.sources[0] for record in stored if record.series}
    doubts = tuple(described(item, labels) for item in require_apart(manifest, labels))
    write_whole(out / MANIFEST, manifest.model_dump_json(indent=1).encode())
    shutil.rmtree(out / UNFINISHED)
    return Prepared(manifest, counts, doubts, was_finished=False)
