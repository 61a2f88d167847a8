"""What a record and a header say against denoising: made before, or no plain reconstruction."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from enum import Enum
from typing import NamedTuple

from cddnet.formats._facts import HeaderFacts
from cddnet.volume import Derivation


class Kind(str, Enum):
    """What was found, in a word."""

    denoised = "denoised"
    learned = "deep-learning reconstruction"
    iterative = "iterative reconstruction"
    derived = "derived map"
    localizer = "localizer"
    values = "values"
    levels = "levels"
    small = "small"
    pixel_size = "pixel size"
    thickness = "slice thickness"
    metal = "metal"
    smooth = "smooth texture"
    sharp = "sharp texture"
    noise = "noise level"


class Finding(NamedTuple):
    """kind: in a word.  refuses: or else a note.  text: for people, names no patient."""

    kind: Kind
    refuses: bool
    text: str


def _words(*patterns: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![A-Z])(?:{'|'.join(patterns)})(?![A-Z])")


# Names that vendors print into SeriesDescription, ConvolutionKernel or ImageType.
_LEARNED = _words(
    r"AI ?CE", r"TRUE ?FIDELITY", r"DLIR(?:[ _-]?[LMH])?", r"PRECISE ?IMAGE", r"DLR",
    r"DEEP ?(?:LEARNING|RECON)", r"PIQE", r"U?DEEP ?(?:IMAGE|VIEW)",
)  # fmt: skip
_DENOISED = _words(
    r"DE-?NOIS(?:ED|ING)", r"PIXEL ?SHINE", r"CLARI ?CT", r"SAFE ?CT", r"LOW-DOSE CT DENOISING"
)
_ITERATIVE = _words(
    r"ADMIRE", r"SAFIRE", r"ASIR(?:-?V)?", r"VEO", r"I ?DOSE", r"IMR", r"AIDR(?: ?3D)?E?", r"MBIR",
    r"ITERATIVE", r"3D ?KARL",
)  # fmt: skip
_ENERGIES = _words(
    r"MONO ?E", r"MONO(?:CHROMATIC|ENERGETIC)", r"\d{2,3} ?KEV", r"VNC", r"VIRTUAL NON",
    r"IODINE(?: MAP| NO WATER| DENSITY| \(WATER\))", r"Z ?EFF(?:ECTIVE)?", r"EFFECTIVE Z",
    r"CALCIUM SUPP\w*",
)  # fmt: skip
_MAPS = _words(r"R?CBF", r"R?CBV", r"MTT", r"TTP", r"TMAX", r"MIP", r"MIN ?IP", r"SUBTRACTION")
_LOCALIZER = _words(r"LOCALI[SZ]ER", r"SCOUT", r"TOPOGRAM", r"SURVIEW", r"SCANOGRAM")
# Siemens: kernels I26f to I70f are SAFIRE's, and a second value is ADMIRE's strength.
_SIEMENS_ITERATIVE = re.compile(r"^I\d\d[A-Z]?$|\\[1-5]$")
_SIMULATED_ONLY = re.compile(r"simulated dose x\S+ research$")
_NETWORK_LABEL = re.compile(r" \d{1,3}%")


def header_findings(derivation: Sequence[Derivation], facts: HeaderFacts) -> Iterator[Finding]:
    """What the record of our own steps and the facts of a header say, most certain first."""
    if any(step.weights_sha256 for step in derivation) or _ours(facts):
        text = "it was denoised by cddnet already; give the series that it was made from"
        yield Finding(Kind.denoised, True, text)
        return
    shown = " ".join((facts.series_description, facts.kernel, *facts.image_type)).upper()
    shown = shown.replace("_", " ")
    derived = facts.image_type[:1] == ("DERIVED",)
    for kind, pattern, refuses, text in (
        (Kind.denoised, _DENOISED, True, "its header says {} and so it was denoised already"),
        (Kind.learned, _LEARNED, True, "its header says {}, a reconstruction that denoises"),
        (Kind.iterative, _ITERATIVE, False, "its header says {}: iterative reconstruction"),
        (Kind.derived, _ENERGIES, derived, "its header says {}: computed from several energies"),
        (Kind.derived, _MAPS, derived, "its header says {}: computed, no plain slices"),
        (Kind.localizer, _LOCALIZER, False, "its header says {}; is it a localizer?"),
    ):
        found = pattern.search(shown)
        if found:
            yield Finding(kind, refuses, text.format(found[0]) + _remedy(refuses))
            return
    kernel = facts.kernel.upper()
    if "SIEMENS" in facts.manufacturer.upper() and _SIEMENS_ITERATIVE.search(kernel):
        text = "its kernel is one of an iterative reconstruction"
        yield Finding(Kind.iterative, False, text + _remedy(False))


def _ours(facts: HeaderFacts) -> bool:
    """Whether our mark stands for a network; a simulated low dose carries it as well."""
    if not facts.ours:
        return False
    text = facts.series_description
    return bool(_NETWORK_LABEL.search(text)) or not _SIMULATED_ONLY.search(text)


def _remedy(refuses: bool) -> str:
    return "; give the plain reconstruction" if refuses else ", which training did not cover"
