"""Whether anything of a patient stands on two sides of a prepared set, by its manifest alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from cddnet.errors import CddnetError
from cddnet.training.manifest import Manifest, PreparedSeries

_SHOWN = 8
_PIXELS = "the pixels"


class LeakError(CddnetError):
    """Something of a patient stands on two sides of a split."""


class Overlap(NamedTuple):
    """Two series that share what only one patient can have.

    what: in words.  shared: number of slices, or of shared UIDs.
    """

    what: str
    first: PreparedSeries
    second: PreparedSeries
    shared: int

    @property
    def is_leak(self) -> bool:
        """Across two sides; the others are one patient under two names on one side."""
        return self.first.side != self.second.side


def overlaps(manifest: Manifest) -> tuple[Overlap, ...]:
    """What series share that differ in side or patient, one entry per kind and pair of patients.

    Shared may be the patient, a header's patient ID, study, frame of reference, series, or the
    pixels of a slice. Slices without tissue have no digest and count for nothing.
    """
    found: dict[tuple[str, ...], Overlap] = {}
    # One series for each patient and side that bears a mark.
    bearers: dict[tuple[str, str], dict[tuple[str, str], PreparedSeries]] = {}
    for series in manifest.series:
        place = (series.patient_digest, series.side)
        for what, digest in _marks(series):
            known = bearers.setdefault((what, digest), {})
            for other_place, other in known.items():
                if other_place != place:
                    key = (what, *other_place, *place)
                    before = found.get(key, Overlap(what, other, series, 0))
                    found[key] = before._replace(shared=before.shared + 1)
            known.setdefault(place, series)
    return tuple(found.values())


def require_apart(manifest: Manifest, names: dict[str, str] | None = None) -> tuple[Overlap, ...]:
    """Overlaps on one side, for a warning.  Raises LeakError for any across sides.

    names: series -> what a person calls it; digests without.
    """
    every = overlaps(manifest)
    leaks = [item for item in every if item.is_leak]
    if leaks:
        lines = [f"  {described(item, names or {})}" for item in leaks[:_SHOWN]]
        if len(leaks) > _SHOWN:
            lines.append(f"  and {len(leaks) - _SHOWN} more")
        raise LeakError(
            f"one patient stands on two sides of the split ({len(leaks)} overlaps):\n"
            + "\n".join(lines)
            + "\nName both as one patient in the file given with --patients, or take one out."
        )
    return every


def described(overlap: Overlap, names: dict[str, str]) -> str:
    """One line for people."""
    first, second = (
        f"{names.get(item.name, item.name)} (patient {item.patient_digest[:12]}, {item.side})"
        for item in (overlap.first, overlap.second)
    )
    slices = f" of {overlap.shared} slices" if overlap.what == _PIXELS else ""
    return f"{first} and {second} share {overlap.what}{slices}"


def _marks(series: PreparedSeries) -> Iterator[tuple[str, str]]:
    """What only one patient can have, (in words, digest), each once."""
    pixels = {digest for file in series.files for digest in file.slices if digest}
    for what, digests in (
        ("the patient", {series.patient_digest}),
        ("the header's patient ID", set(series.header_patient_digests)),
        ("the study", set(series.study_digests)),
        ("the frame of reference", set(series.frame_of_reference_digests)),
        ("the series", set(series.series_digests)),
        (_PIXELS, pixels),
    ):
        yield from ((what, digest) for digest in sorted(digests))
