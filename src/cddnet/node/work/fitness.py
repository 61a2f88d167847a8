"""Whether a complete series may be denoised, by the check that the command line makes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from cddnet.errors import CddnetError
from cddnet.formats.dicom import read_files
from cddnet.volume import CTVolume
from cddnet.workflows.fitness import Fitness, examine


class Verdict(NamedTuple):
    """What the check said of a series, in words that name no patient.

    refusal: why it is refused, "" where it is not.  kinds: of what refuses it, in words of the log.
    notes: of the reader and the check, what a person should know of one that is fit.
    """

    refusal: str
    kinds: str
    notes: tuple[str, ...]


def judged(volumes: Iterable[CTVolume]) -> Verdict:
    """The verdict on the volumes of one series; one that is refused refuses all."""
    found: list[Fitness] = []
    read: list[str] = []
    for volume in volumes:
        found.append(examine(volume))
        read += volume.notes
    refusals = dict.fromkeys(fitness.refusal for fitness in found if fitness.refusal)
    kinds = {kind for fitness in found for kind in fitness.refused_kinds.split(", ") if kind}
    notes = dict.fromkeys((*read, *(note for fitness in found for note in fitness.notes)))
    return Verdict("; ".join(refusals), ", ".join(sorted(kinds)), tuple(notes))


def refused_text(refusal: str) -> str:
    """What people are told of a series that is refused."""
    return (
        f"this series may not be denoised: {refusal}. Give the output `force: true` to denoise it "
        "all the same; the result then says so."
    )


def explained(files: Sequence[Path], *, force: bool) -> list[str]:
    """Lines that say what the check finds in the files of a series."""
    try:
        verdict = judged([read_files(files)])
    except CddnetError as error:
        return [f"fitness check: not possible on these files alone: {error}"]
    lines = [f"fitness check: note: {note}" for note in verdict.notes]
    if not verdict.refusal:
        return [*lines, "fitness check: fit"]
    consequence = "but an output forces it" if force else "and no output forces it: refused"
    return [*lines, f"fitness check: {verdict.refusal}; {consequence}"]
