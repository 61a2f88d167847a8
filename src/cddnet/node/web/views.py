"""The node's queue and results as the page shows them, without anything of patients.

Shown of a series: state, rule, numbers of slices, models and ages in seconds; of a result besides
size, spacing, thickness. Descriptions, dates, callers and UIDs stay inside: they may name people.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import Protocol

from pydantic import BaseModel

from cddnet.errors import CddnetError
from cddnet.formats.dicom import read_files
from cddnet.node.store.records import OutputRow, SeriesRow, Version
from cddnet.node.web.destinations import Destinations
from cddnet.node.web.pairs import Pair, plain

MOST_SERIES = 500
_OPEN_PAIRS = 4


class Removed(CddnetError):
    """Images that were there once."""

    status = 410


class SeriesView(BaseModel):
    """A series in the queue. age_s: since its last slice; expected: 0 where it is not known;
    removed: its images were deleted after their time.
    """

    key: str
    state: str
    rule: str
    received: int
    expected: int
    done: int
    total: int
    age_s: float
    error: str
    removed: bool
    outputs: list[OutputView]


class DestinationView(BaseModel):
    """Objects of an output on their way to a destination."""

    name: str
    queued: int
    sent: int
    failed: int


class VersionView(BaseModel):
    """A result that can be looked at and downloaded, all of it made in one way."""

    key: str
    objects: int


class OutputView(BaseModel):
    """One result of a series. versions: the newest first; several where weights were updated;
    notes: of the reader and the fitness check.
    """

    key: str
    label: str
    state: str
    error: str
    notes: list[str]
    attempts: int
    versions: list[VersionView]
    destinations: list[DestinationView]


class Rows(Protocol):
    """The part of `journal.Journal` that the page reads; its keys are keyed hashes of UIDs."""

    def queue(self) -> list[SeriesRow]: ...

    def retry(self, key: str) -> bool: ...

    def versions(self, output_key: str) -> list[Version]: ...


class NodeSources:
    """Queue, results and uploads of a node.

    folder: of the node.  take: keeps a DICOM file as if it had been sent, and returns the key of
    its series; raises CddnetError where the node refuses it.  destinations: None: not shown.
    """

    first: str | None = None

    def __init__(
        self,
        journal: Rows,
        folder: Path,
        take: Callable[[Path], str],
        destinations: Destinations | None = None,
    ) -> None:
        self._journal, self.folder, self.take = journal, folder, take
        self.destinations = destinations
        self._open: OrderedDict[str, tuple[Version, Pair]] = OrderedDict()
        self._lock = Lock()

    def queue(self) -> list[SeriesView]:
        """The series that changed last."""
        rows = sorted(self._journal.queue(), key=lambda row: row.last_at, reverse=True)
        return [_series_view(row) for row in rows[:MOST_SERIES]]

    def retry(self, key: str) -> bool:
        """Try what failed of a series again; False where nothing had.  Raises: KeyError."""
        if key not in {row.key for row in self._journal.queue()}:
            raise KeyError(key)
        return self._journal.retry(key)

    def results(self, key: str) -> list[Path]:
        """Files of a result, whether or not its originals are there.

        key: of a version, or of an output, which is its newest. Raises: KeyError where there never
        was one, Removed where there is none any more.
        """
        return sorted(self.folder / file for file in self._version(key).results)

    def open(self, key: str) -> Pair:
        version = self._version(key)
        with self._lock:
            held = self._open.get(key)
        # Late slices make it another pair.
        if held is not None and held[0] == version:
            return held[1]
        originals = [self.folder / file for file in version.originals]
        there = originals and all(file.is_file() for file in originals)
        before = read_files(originals) if there else None
        after = read_files([self.folder / file for file in version.results])
        pair = Pair(before, after, self._label(key))
        with self._lock:
            self._open[key] = (version, pair)
            while len(self._open) > _OPEN_PAIRS:
                self._open.popitem(last=False)
        return pair

    def pair(self, key: str) -> Pair:
        with self._lock:
            held = self._open.get(key)
        return held[1] if held else self.open(key)

    def _version(self, key: str) -> Version:
        """By its own key, or the newest of an output."""
        output = "-".join(key.split("-")[:2])
        for version in self._journal.versions(output):
            if key in (version.key, output):
                return version
        if any(row.removed and key.startswith(row.key) for row in self._journal.queue()):
            raise Removed("the images of this result were removed after their time.")
        raise KeyError(key)

    def _label(self, key: str) -> str:
        outputs = (output for row in self._journal.queue() for output in row.outputs)
        return next((item.label for item in outputs if key in (item.key, *item.versions)), "after")


def _series_view(row: SeriesRow) -> SeriesView:
    return SeriesView(
        key=row.key,
        state=row.state,
        rule=row.rule,
        received=row.received,
        expected=row.expected,
        done=row.done,
        total=row.total,
        age_s=max(0.0, round(time.time() - row.last_at, 1)),
        error=plain(row.error),
        removed=row.removed,
        outputs=[_output_view(output) for output in row.outputs],
    )


def _output_view(output: OutputRow) -> OutputView:
    return OutputView(
        key=output.key,
        label=output.label,
        state=output.state,
        error=plain(output.error),
        notes=[plain(note) for note in output.notes],
        attempts=output.attempts,
        versions=[VersionView(key=key, objects=count) for key, count in output.versions.items()],
        destinations=[
            DestinationView(name=name, queued=queued, sent=sent, failed=failed)
            for name, (queued, sent, failed) in sorted(output.destinations.items())
        ],
    )
