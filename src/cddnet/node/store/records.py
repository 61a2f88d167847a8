"""What the parts of the node tell each other, and what the journal shows of itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

Arrival = Literal["new", "again", "different"]
End = Literal["ready", "refused", "failed", "waiting"]
ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2.1"


class Instance(NamedTuple):
    """An original. file: relative to the node's folder; sha256: of the data set as it was sent;
    expected: slices its series says it has, 0 where it does not.
    """

    sop_uid: str
    series_uid: str
    sop_class: str
    file: str
    size: int
    sha256: str
    caller: str
    expected: int = 0


class Recovered(NamedTuple):
    """What a start took up of the run before."""

    # Outputs that were under way.
    again: int
    # UIDs of series that were under way at too many deaths, and wait for a person.
    given_up: tuple[str, ...]


class Due(NamedTuple):
    """A series to decide on. frozen: whether it was, when it was first complete.

    sources: (SOP class, file) of the originals that are there.  attempts: that have failed.
    sender_known: False where the caller is lost and no person has decided to do without.
    """

    series_uid: str
    generation: int
    caller: str
    sources: tuple[tuple[str, str], ...]
    frozen: bool
    attempts: int = 0
    sender_known: bool = True


class Job(NamedTuple):
    """An output to make. sources: (SOP class, file) of the originals that are there.

    created: when the series was first complete, seconds since 1970.
    """

    output_key: str
    series_uid: str
    generation: int
    spec: Mapping[str, object]
    created: float
    attempts: int
    sources: tuple[tuple[str, str], ...]


class Made(NamedTuple):
    """A derived object. recipe: a hash over how it was made; weights: of the network's file."""

    sop_uid: str
    source_uid: str
    recipe: str
    sop_class: str
    file: str
    size: int
    sha256: str
    weights: str = ""


class Parcel(NamedTuple):
    """An object on its way to one destination. attempts: that have failed."""

    sop_uid: str
    sop_class: str
    file: str
    attempts: int


class Waiting(NamedTuple):
    """What a destination has not got."""

    destination: str
    queued: int  # objects on their way, those whose commitment is awaited too
    failed: int  # objects that a person must look at


class Version(NamedTuple):
    """An output made in one way, with the files to show: late slices may have been made in another.

    originals: the series as far as it is there; results: in order of their originals.
    """

    key: str
    originals: tuple[str, ...]
    results: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class OutputRow:
    """An output as people see it. destinations: name -> objects (queued, sent, failed).

    versions: key of each way it was made in -> objects that are there, the newest first.  notes: of
    the fitness check.
    """

    key: str
    label: str
    state: str
    error: str
    attempts: int
    destinations: Mapping[str, tuple[int, int, int]]
    versions: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class SeriesRow:
    """A series as people see it, without anything that names a patient.

    rule: that decided, "" for none.  received, expected: instances, 0 where it is not known how
    many to expect.  done, total: slices over all outputs.  first_at, last_at: of its slices,
    seconds since 1970.  removed: its images were deleted after their time.
    """

    key: str
    state: str
    rule: str
    received: int
    expected: int
    done: int
    total: int
    outputs: tuple[OutputRow, ...]
    first_at: float
    last_at: float
    error: str
    removed: bool = False
