"""What a training set says of itself: its series, their sides, and what was left out of it."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel

from cddnet.formats import dicom
from cddnet.training.manifest import SIDES, Manifest, PreparedSeries
from cddnet.volume import CTVolume
from cddnet.workflows._appearing import write_whole
from cddnet.workflows._layouts import Entry, Job, LeftOut
from cddnet.workflows._pairing import Twin, along_mm
from cddnet.workflows._stacks import Column, Written

SOURCES = "sources.csv"
LEFT_OUT = "left_out.csv"
# Of the reader's notes, the one that speaks of other series, which have jobs of their own.
_OTHERS = "other series"


class Stored(BaseModel, frozen=True, extra="forbid"):
    """Record of one job: the series, if any of it was fit, and what was left out.

    patient_order: hash by which patients are put in order for the split.
    sources: folders of the full and of the low dose.
    """

    series: PreparedSeries | None
    patient_order: str
    sources: tuple[str, str]
    left_out: tuple[LeftOut, ...]


class Content(NamedTuple):
    """What was read of a series, and what was written of it.  column: of the full dose."""

    full: CTVolume
    twin: Twin | None
    column: Column
    written: Written


def series_of(
    job: Job, patient: str, content: Content, digest: Callable[[str], str]
) -> PreparedSeries:
    """What the manifest says of one series.

    patient: its name or number, of which the digest alone is kept.
    """
    full, written = content.full, content.written
    volumes = [full] if content.twin is None else [full, content.twin.volume]
    kept = [content.column.indices[row] for row in written.kept]
    nominal_mm, start_mm = full.slice_positions_mm(), along_mm(full)[0]
    lost = full.shape[0] - len(kept)

    def digests(texts: Iterable[str]) -> tuple[str, ...]:
        return tuple(digest(text) for text in sorted(set(texts)) if text)

    told = full.acquisition
    return PreparedSeries(
        name=content.column.path.stem,
        side=job.side or "train",
        patient_digest=digest(patient),
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
        pixel_mm=full.spacing_mm[2] if job.full.uid or job.full.is_volume else None,
        spacing_mm=full.spacing_mm[0],
        thickness_mm=full.thickness_mm,
        positions_mm=tuple(round(float(start_mm + nominal_mm[index]), 4) for index in kept),
        low_dose="simulated" if content.twin is None else "real",
        full_file=written.files[0],
        low_file=None if content.twin is None else written.files[1],
        notes=tuple(note for note in full.notes if not note.startswith(_OTHERS)),
        volume_problems=(
            *full.volume_problems,
            *full.skew,
            *([f"{lost} slices of the series were left out"] if lost else []),
        ),
    )


def _frames_of_reference(volume: CTVolume) -> list[str]:
    """Of every slice: some series have one each."""
    headers = volume.headers
    if not isinstance(headers, dicom.DicomHeaders):
        return []
    return [str(frame.header.get("FrameOfReferenceUID") or "") for frame in headers.frames]


def dropped_by_reader(entry: Entry, volume: CTVolume) -> list[LeftOut]:
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


def collections_of(stated: Iterable[str], stored: Sequence[Stored]) -> tuple[str, ...]:
    """What people stated, and what only headers name."""
    kept = list(dict.fromkeys(stated))
    named = sorted({r.series.collection for r in stored if r.series and r.series.collection})
    return (
        *kept,
        *(
            f"{name}, named by headers; licence and DOI not stated"
            for name in named
            if not any(name.lower() in text.lower() for text in kept)
        ),
    )


def with_sides(
    stored: Sequence[Stored], split: tuple[float, float, float] | None
) -> tuple[PreparedSeries, ...]:
    """Series with their sides: by the hash order of patients, or without a split those a person
    wrote down.
    """
    every = [(record.patient_order, record.series) for record in stored if record.series]
    if split is None:
        return tuple(series for _, series in every)
    order = sorted({(rank, series.patient_digest) for rank, series in every})
    sides = [
        side
        for side, count in zip(SIDES, side_sizes(len(order), split), strict=True)
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


def write_tables(
    out: Path, manifest: Manifest, stored: Sequence[Stored], left_out: Sequence[LeftOut]
) -> None:
    """Write the two CSV files beside the manifest."""
    _write_csv(out / LEFT_OUT, LeftOut._fields, left_out)
    names = {record.series.name: record.sources for record in stored if record.series}
    rows = [(series.name, series.patient_digest, *names[series.name]) for series in manifest.series]
    _write_csv(out / SOURCES, ("series", "patient", "full_dose", "low_dose"), rows)


def read_tables(out: Path) -> tuple[tuple[tuple[str, int], ...], dict[str, str]]:
    """(kind, slices) of what was left out, and series -> folder of its full dose."""
    with (out / LEFT_OUT).open(encoding="utf-8", newline="") as file:
        counts = counted((row["kind"], int(row["slices"])) for row in csv.DictReader(file))
    with (out / SOURCES).open(encoding="utf-8", newline="") as file:
        return counts, {row["series"]: row["full_dose"] for row in csv.DictReader(file)}


def counted(left_out: Iterable[tuple[str, int]]) -> tuple[tuple[str, int], ...]:
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
