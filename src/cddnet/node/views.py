"""The node's queue and results as the page shows them, without anything of patients.

Shown of a series: state, rule, numbers of slices, models and ages in seconds; of a result besides
size, spacing, thickness. Descriptions, dates, callers and UIDs stay inside: they may name people.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Lock
from typing import Protocol

from pydantic import BaseModel

from cddnet.formats import read_volume
from cddnet.node.pairs import Pair, plain
from cddnet.node.records import OutputRow, SeriesRow

MOST_SERIES = 500
_OPEN_PAIRS = 4
# States of an output whose objects exist.
_MADE = frozenset({"sending", "done"})


class SeriesView(BaseModel):
    """A series in the queue. age_s: since its last slice; expected: 0 where it is not known."""

    key: str
    state: str
    rule: str
    received: int
    expected: int
    done: int
    total: int
    age_s: float
    error: str
    outputs: list[OutputView]


class DestinationView(BaseModel):
    """Objects of an output on their way to a destination."""

    name: str
    queued: int
    sent: int
    failed: int


class OutputView(BaseModel):
    """One result of a series. made: it can be looked at and downloaded."""

    key: str
    label: str
    state: str
    error: str
    attempts: int
    made: bool
    destinations: list[DestinationView]


class Rows(Protocol):
    """The part of `journal.Journal` that the page reads; its keys are keyed hashes of UIDs."""

    def queue(self) -> list[SeriesRow]: ...

    def retry(self, key: str) -> bool: ...

    def slices(self, key: str) -> list[tuple[str, dict[str, str]]]: ...


class NodeSources:
    """Queue, results and uploads of a node.

    folder: of the node.  take: keeps a DICOM file as if it had been sent, and returns the key of
    its series; raises CddnetError where the node refuses it.
    """

    first: str | None = None

    def __init__(self, journal: Rows, folder: Path, take: Callable[[Path], str]) -> None:
        self._journal, self.folder, self.take = journal, folder, take
        self._open: OrderedDict[str, tuple[Sequence[Path], Pair]] = OrderedDict()
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
        """Files of an output.  Raises: KeyError where there are none."""
        return [after for _, after in self._files(key)]

    def open(self, key: str) -> Pair:
        files = self._files(key)
        results = [after for _, after in files]
        with self._lock:
            held = self._open.get(key)
        # Late slices make it another pair.
        if held is not None and held[0] == results:
            return held[1]
        before, after = (read_volume(file.parent) for file in files[0])
        pair = Pair(before, after, self._label(key))
        with self._lock:
            self._open[key] = (results, pair)
            while len(self._open) > _OPEN_PAIRS:
                self._open.popitem(last=False)
        return pair

    def pair(self, key: str) -> Pair:
        with self._lock:
            held = self._open.get(key)
        return held[1] if held else self.open(key)

    def _files(self, key: str) -> list[tuple[Path, Path]]:
        """(original, result) of each slice of an output, sorted."""
        series, _, _ = key.rpartition("-")
        found = [
            (self.folder / before, self.folder / made[key])
            for before, made in (self._journal.slices(series) if series else [])
            if key in made
        ]
        if not found:
            raise KeyError(key)
        return sorted(found)

    def _label(self, key: str) -> str:
        outputs = (output for row in self._journal.queue() for output in row.outputs)
        return next((output.label for output in outputs if output.key == key), "after")


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
        outputs=[_output_view(output) for output in row.outputs],
    )


def _output_view(output: OutputRow) -> OutputView:
    return OutputView(
        key=output.key,
        label=output.label,
        state=output.state,
        error=plain(output.error),
        attempts=output.attempts,
        made=output.state in _MADE or any(map(sum, output.destinations.values())),
        destinations=[
            DestinationView(name=name, queued=queued, sent=sent, failed=failed)
            for name, (queued, sent, failed) in sorted(output.destinations.items())
        ],
    )
