"""`cddnet archive`: denoise every CT series of a population, on any number of workers.

The process that is started finds the series, hands them out and alone writes the manifest; workers
read and write the images. Started again it goes on where it was.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import NamedTuple

from cddnet.errors import CddnetError
from cddnet.models._cards import read_card
from cddnet.node.archive.manifest import FILE, Due, Manifest, Outcome
from cddnet.node.archive.pace import Pace
from cddnet.node.archive.pool import Pool, open_pool
from cddnet.node.archive.query import Query, find, is_query, parse_query
from cddnet.node.archive.report import Report, report_of, write_report
from cddnet.node.archive.scan import roots_of, scan
from cddnet.node.archive.series import SERIES, SPOOL, Recipe, Task
from cddnet.node.settings.parts import ClientTls
from cddnet.runtime import store

DASK = ".dask"
LOG_FILE = "log.jsonl"
LONGEST_WAIT_S = 30.0
NO_DATE = "no date"


@dataclass(frozen=True, kw_only=True)
class ArchiveOptions:
    """source: a folder tree, a text file with a folder on each line, or the address of an archive
    (`https://host/dicom-web?StudyDate=...`, `dicom://TITLE@host:port?...`).  out: a new folder, or
    one that was begun, which goes on.  workers: processes with one thread each; 0: this process.
    scheduler: of a real Dask cluster.  attempts: at one series, `retry_s` apart at first.
    created: the date in the headers; default: none.  calling: our AE title.  tls: of
    https and dicoms addresses.  force: also what the fitness check refuses.
    """

    source: str
    out: Path
    model: str = "default"
    strength: float | None = None
    image_type: str = "SECONDARY"
    workers: int = 2
    scheduler: str | None = None
    pace: Pace = field(default_factory=Pace)
    attempts: int = 3
    retry_s: float = 10.0
    retry_failed: bool = False
    created: datetime | None = None
    calling: str = "CDDNET"
    token_file: Path | None = None
    tls: ClientTls | None = None
    force: bool = False


class Progress(NamedTuple):
    """what: looking, denoising, or waiting (for the pace, for workers, or before a retry).

    total: series known, or folders seen while looking.  left_s: None before it can be told.
    """

    what: str
    done: int
    refused: int
    failed: int
    total: int
    left_s: float | None


Show = Callable[[Progress], None]


def archive(options: ArchiveOptions, progress: Show) -> Report:
    """Denoise every series of the source into `out/series/`, and write the report.

    Raises: CddnetError for a source that is not there, a folder that another run uses, or that was
    begun with another model, strength, image type, force or source.
    """
    began = time.monotonic()
    query = None
    roots: tuple[Path, ...] = ()
    if is_query(options.source):
        query = parse_query(
            options.source,
            calling=options.calling,
            token_file=options.token_file,
            tls=options.tls,
        )
    else:
        roots = roots_of(Path(options.source))
    with _opened(options.out) as manifest:
        recipe = _recipe(options, manifest)
        where = query.remote.address if query else str(Path(options.source).resolve())
        _require_same(manifest, "source", where)
        for key in manifest.count_deaths(options.attempts):
            _log(options.out, series=key, state="failed", error="Died")
        if options.retry_failed:
            manifest.retry_failed()
        run = _Run(options, manifest, recipe, query, progress)
        unreadable = run.look(roots)
        try:
            if manifest.counts()["waiting"]:
                folder = options.out / DASK
                with open_pool(options.workers, options.scheduler, folder) as pool:
                    run.work(pool)
        finally:
            manifest.stop()
            seconds = time.monotonic() - began
            report = report_of(manifest, seconds=seconds, unreadable=unreadable)
            write_report(report, recipe, options.out)
    return report


class _Run:
    """One run: what is due goes to the pool at the pace, what comes back into the manifest."""

    def __init__(
        self,
        options: ArchiveOptions,
        manifest: Manifest,
        recipe: Recipe,
        query: Query | None,
        show: Show,
    ) -> None:
        self._options, self._manifest, self._recipe = options, manifest, recipe
        self._query, self._show = query, show
        self._remote = query.remote if query else None
        self._running: dict[str, Due] = {}
        self._last = manifest.last_begun()
        self._since, self._ended = time.monotonic(), 0

    def look(self, roots: tuple[Path, ...]) -> int:
        """Enter what the source holds; returns how many DICOM files cannot be read."""
        if self._query is not None:
            window = Pace(window=self._options.pace.window)
            while (wait_s := window.wait_s(datetime.now(), None)) > 0:
                self._tell("waiting")
                time.sleep(min(wait_s, LONGEST_WAIT_S))
            self._manifest.add_remote(find(self._query))
            return 0
        out, unreadable, folders = self._options.out.resolve(), 0, 0
        for root in roots:
            before = folders

            def told(seen: int, before: int = before) -> None:
                self._show(Progress("looking", 0, 0, 0, before + seen, None))

            seen, damaged = scan(root, self._manifest, leave_out=out, told=told)
            folders, unreadable = folders + seen, unreadable + damaged
        return unreadable

    def work(self, pool: Pool) -> None:
        """Until nothing waits. A series that failed waits for the next round."""
        self._since, retry_s = time.monotonic(), self._options.retry_s
        while True:
            self._round(pool)
            if not self._manifest.counts()["waiting"]:
                return
            self._tell("waiting")
            time.sleep(retry_s)
            retry_s *= 2

    def _round(self, pool: Pool) -> None:
        due = self._manifest.due("")
        while due is not None or self._running:
            wait_s = self._options.pace.wait_s(datetime.now(), self._last)
            slots = pool.slots()
            if due is not None and wait_s <= 0 and len(self._running) < slots:
                self._submit(due, pool)
                due = self._manifest.due(due.key)
                continue
            patience_s = min(wait_s or LONGEST_WAIT_S, LONGEST_WAIT_S)
            if self._running:
                self._tell("denoising")
                for key, outcome in pool.finished(patience_s if due else LONGEST_WAIT_S):
                    self._finish(key, outcome)
            else:
                self._tell("waiting")
                time.sleep(patience_s if slots else 1.0)

    def _submit(self, due: Due, pool: Pool) -> None:
        self._last = datetime.now()
        self._manifest.begin(due.key, self._last)
        self._running[due.key] = due
        pool.submit(
            Task(
                key=due.key,
                out=self._options.out.resolve(),
                recipe=self._recipe,
                files=self._manifest.files(due.key),
                remote=self._remote if due.study_uid else None,
                study_uid=due.study_uid,
                series_uid=due.series_uid if due.study_uid else "",
            )
        )

    def _finish(self, key: str, outcome: Outcome) -> None:
        attempts = self._running.pop(key).attempts + 1
        again = outcome.state == "failed" and attempts < self._options.attempts
        noted = outcome._replace(state="waiting") if again else outcome
        self._manifest.record(key, noted, datetime.now(timezone.utc))
        self._ended += not again
        _log(
            self._options.out,
            series=key,
            state=noted.state,
            attempts=attempts,
            slices=outcome.slices,
            seconds=round(outcome.seconds, 3),
            error=outcome.error,
        )

    def _tell(self, what: str) -> None:
        counts = self._manifest.counts()
        elapsed = time.monotonic() - self._since
        each = elapsed / self._ended if self._ended else None
        left_s = self._options.pace.left_s(counts["waiting"], each)
        ended = counts["done"], counts["refused"], counts["failed"]
        self._show(Progress(what, *ended, sum(counts.values()), left_s))


@contextmanager
def _opened(out: Path) -> Iterator[Manifest]:
    """The folder of an archive, without what a crash left in it."""
    if out.is_dir() and not (out / FILE).exists() and any(out.iterdir()):
        raise CddnetError(
            f"{out}: holds other things and no archive; choose a new folder, or an archive's to go "
            "on with."
        )
    if out.exists() and not out.is_dir():
        raise CddnetError(f"{out}: is a file; choose a new folder.")
    if not out.parent.is_dir():
        raise CddnetError(f"{out.parent}: no such folder; make it first, or check the name.")
    out.mkdir(mode=0o700, exist_ok=True)
    manifest = Manifest(out)
    try:
        _clean(out)
        (out / SERIES).mkdir(mode=0o700, exist_ok=True)
        yield manifest
        _clean(out)
    finally:
        manifest.close()


def _clean(out: Path) -> None:
    for folder in (out / DASK, out / SPOOL, *(out / SERIES).glob(".*.part.*")):
        shutil.rmtree(folder, ignore_errors=True)


def _recipe(options: ArchiveOptions, manifest: Manifest) -> Recipe:
    """The recipe of the first run.  Raises CddnetError where this one asks for another."""
    weights = store.find(options.model)
    if options.strength is not None and not 0 <= options.strength <= 1:
        raise CddnetError(f"strength is {options.strength}, expected 0 to 1.")
    shipped = not str(options.model).endswith(".safetensors")
    created = options.created
    if created is not None and created.tzinfo is None:
        raise CddnetError(f"created {created}: has no time zone; add one, such as +00:00.")
    digest = read_card(weights).sha256
    _require_same(manifest, "weights", digest)
    _require_same(manifest, "strength", repr(options.strength))
    _require_same(manifest, "image type", options.image_type)
    _require_same(manifest, "force", str(options.force))
    date = manifest.pinned("created", created.isoformat() if created else NO_DATE)
    if created is not None:
        _require_same(manifest, "created", created.isoformat())
    return Recipe(
        model=weights.stem if shipped else str(weights.resolve()),
        weights_sha256=digest,
        strength=options.strength,
        image_type=options.image_type,
        created=None if date == NO_DATE else datetime.fromisoformat(date),
        force=options.force,
    )


def _require_same(manifest: Manifest, what: str, value: str) -> None:
    first = manifest.pinned(what, value)
    if first != value:
        raise CddnetError(
            f"this archive was begun with another {what} ({first}, now {value}); choose a new "
            "folder for it."
        )


def _log(out: Path, **fields: object) -> None:
    """A line of the archive's log."""
    at = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
    handle = os.open(out / LOG_FILE, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    with os.fdopen(handle, "a", encoding="utf-8") as stream:
        stream.write(json.dumps({"at": at, **fields}) + "\n")
