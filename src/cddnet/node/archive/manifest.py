"""The manifest of an archive run: what is to be done, what became of it; SQLite, one writer.

It lies beside the images and names their files and series, so its owner alone may read it.
"""

from __future__ import annotations

import json
import os
import sqlite3
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Literal, NamedTuple

from cddnet.errors import CddnetError
from cddnet.node.store.images import hidden

State = Literal["waiting", "done", "refused", "failed"]
FILE = "manifest.sqlite"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS folders (path BLOB PRIMARY KEY, changed_ns INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS pieces (
    key TEXT NOT NULL, folder BLOB NOT NULL, count INTEGER NOT NULL, names BLOB NOT NULL,
    PRIMARY KEY (key, folder));
CREATE TABLE IF NOT EXISTS series (
    key TEXT PRIMARY KEY, series_uid TEXT NOT NULL, study_uid TEXT NOT NULL DEFAULT '',
    state TEXT NOT NULL DEFAULT 'waiting', attempts INTEGER NOT NULL DEFAULT 0,
    reason TEXT NOT NULL DEFAULT '', error TEXT NOT NULL DEFAULT '',
    output TEXT NOT NULL DEFAULT '', files INTEGER NOT NULL DEFAULT 0,
    slices INTEGER NOT NULL DEFAULT 0, seconds REAL NOT NULL DEFAULT 0,
    cpu_seconds REAL NOT NULL DEFAULT 0,
    noise_before_hu REAL, noise_after_hu REAL, weights_sha256 TEXT NOT NULL DEFAULT '',
    manufacturer TEXT NOT NULL DEFAULT '', model TEXT NOT NULL DEFAULT '',
    kernel TEXT NOT NULL DEFAULT '', engine TEXT NOT NULL DEFAULT '',
    started_at TEXT NOT NULL DEFAULT '', finished_at TEXT NOT NULL DEFAULT '');
CREATE INDEX IF NOT EXISTS by_state ON series (state, key);
"""
# Of a later version: 1 while a series is worked on, so that the next run sees what ended this one.
_BEGUN = "ALTER TABLE series ADD COLUMN begun INTEGER NOT NULL DEFAULT 0"
DIED = (
    "the run ended while it worked on this series, at each attempt; look at the memory of the "
    "machine, then run again with --retry-failed"
)


class Outcome(NamedTuple):
    """What became of one attempt at a series. reason: in words without names, for people.

    error: class of the error. output: folder in the archive's. noise: HU, None where there is no
    flat soft tissue. seconds: of work; cpu_seconds: of the worker's process meanwhile.
    """

    state: State
    reason: str = ""
    error: str = ""
    output: str = ""
    files: int = 0
    slices: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    noise_before_hu: float | None = None
    noise_after_hu: float | None = None
    weights_sha256: str = ""
    manufacturer: str = ""
    model: str = ""
    kernel: str = ""
    engine: str = ""


class Due(NamedTuple):
    """A series that waits. study_uid: "" where its files are at hand."""

    key: str
    series_uid: str
    study_uid: str
    attempts: int


class Manifest:
    """Opened by one process at a time; every change is on the disk when a method returns."""

    def __init__(self, folder: Path) -> None:
        """Raises CddnetError where another run has it open, or the file is no manifest."""
        path = folder / FILE
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        path.chmod(0o600)
        self._database = sqlite3.connect(path, timeout=1.0, isolation_level=None)
        self._database.row_factory = sqlite3.Row
        try:
            self._database.execute("PRAGMA locking_mode = EXCLUSIVE")
            self._database.execute("BEGIN EXCLUSIVE")
            self._database.execute("COMMIT")
            self._database.executescript(_SCHEMA)
            columns = self._database.execute("SELECT name FROM pragma_table_info('series')")
            if "begun" not in {row["name"] for row in columns}:
                self._database.execute(_BEGUN)
        except sqlite3.OperationalError:
            self._database.close()
            raise CddnetError(
                f"{folder}: another run works on this archive; wait for it, or end it first."
            ) from None
        except sqlite3.DatabaseError:
            self._database.close()
            raise CddnetError(
                f"{path}: is no manifest of an archive, or damaged; choose a new folder."
            ) from None

    def close(self) -> None:
        """Let another process open it."""
        self._database.close()

    @contextmanager
    def together(self) -> Iterator[None]:
        """Changes inside are made all or not at all, and with one wait for the disk."""
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._database.execute("ROLLBACK")
            raise
        self._database.execute("COMMIT")

    def pinned(self, name: str, value: str) -> str:
        """The value that was first given for a name, in this run or an earlier one."""
        self._database.execute("INSERT OR IGNORE INTO meta VALUES (?, ?)", (name, value))
        row = self._database.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return str(row["value"])

    def scanned(self, folder: Path) -> int:
        """When a folder was changed last before it was looked through, 0 if never."""
        query = "SELECT changed_ns FROM folders WHERE path = ?"
        row = self._database.execute(query, (os.fsencode(folder),)).fetchone()
        return int(row["changed_ns"]) if row else 0

    def add_folder(
        self, folder: Path, changed_ns: int, found: Iterable[tuple[str, Sequence[str]]]
    ) -> None:
        """What one folder holds: (series UID, file names in it), in place of what it held before.

        A series that is done stays so; one that was refused or failed waits again.
        """
        # A name on disk may be in an encoding that is no UTF-8.
        place = os.fsencode(folder)
        with self.together():
            self._database.execute("DELETE FROM pieces WHERE folder = ?", (place,))
            for series_uid, names in found:
                key = self._add(series_uid)
                packed = zlib.compress(json.dumps(list(names)).encode())
                piece = (key, place, len(names), packed)
                self._database.execute("INSERT INTO pieces VALUES (?, ?, ?, ?)", piece)
                self._database.execute(
                    "UPDATE series SET state = 'waiting', attempts = 0 "
                    "WHERE key = ? AND state IN ('refused', 'failed')",
                    (key,),
                )
            row = (place, changed_ns)
            self._database.execute("INSERT OR REPLACE INTO folders VALUES (?, ?)", row)

    def add_remote(self, found: Iterable[tuple[str, str]]) -> None:
        """Series in another archive: (study UID, series UID)."""
        with self.together():
            for study_uid, series_uid in found:
                self._add(series_uid, study_uid)

    def _add(self, series_uid: str, study_uid: str = "") -> str:
        key = hidden(series_uid)
        self._database.execute(
            "INSERT OR IGNORE INTO series (key, series_uid, study_uid) VALUES (?, ?, ?)",
            (key, series_uid, study_uid),
        )
        return key

    def files(self, key: str) -> tuple[Path, ...]:
        """Files of a series that are at hand."""
        query = "SELECT folder, names FROM pieces WHERE key = ? ORDER BY folder"
        return tuple(
            Path(os.fsdecode(row["folder"]), name)
            for row in self._database.execute(query, (key,)).fetchall()
            for name in json.loads(zlib.decompress(row["names"]))
        )

    def due(self, after: str) -> Due | None:
        """The waiting series that follows a key, in the order of keys."""
        query = "SELECT * FROM series WHERE state = 'waiting' AND key > ? ORDER BY key LIMIT 1"
        row = self._database.execute(query, (after,)).fetchone()
        return (
            Due(row["key"], row["series_uid"], row["study_uid"], row["attempts"]) if row else None
        )

    def begin(self, key: str, moment: datetime) -> None:
        """Note that a series is taken from its source and worked on."""
        change = "UPDATE series SET started_at = ?, begun = 1 WHERE key = ?"
        self._database.execute(change, (moment.isoformat(), key))

    def stop(self) -> None:
        """Nothing is worked on any more: the run ends in order."""
        self._database.execute("UPDATE series SET begun = 0 WHERE begun")

    def count_deaths(self, most_attempts: int) -> tuple[str, ...]:
        """What was worked on when the run before ended, not in order, has one attempt more.

        Returns the keys of those that were at their last one: they are failed now.
        """
        died = "begun AND state = 'waiting'"
        with self.together():
            query = f"SELECT key FROM series WHERE {died} AND attempts + 1 >= ?"
            found = tuple(row["key"] for row in self._database.execute(query, (most_attempts,)))
            change = f"UPDATE series SET attempts = attempts + 1 WHERE {died}"
            self._database.execute(change)
            self._database.execute(
                "UPDATE series SET state = 'failed', reason = ?, error = 'Died' "
                f"WHERE {died} AND attempts >= ?",
                (DIED, most_attempts),
            )
            self.stop()
        return found

    def last_begun(self) -> datetime | None:
        """When a series was last taken from its source."""
        row = self._database.execute("SELECT max(started_at) AS last FROM series").fetchone()
        return datetime.fromisoformat(row["last"]) if row["last"] else None

    def record(self, key: str, outcome: Outcome, moment: datetime) -> None:
        """What became of an attempt, which counts as one."""
        values = outcome._asdict()
        columns = ", ".join(f"{name} = :{name}" for name in values)
        self._database.execute(
            f"UPDATE series SET {columns}, attempts = attempts + 1, begun = 0, finished_at = :at "
            "WHERE key = :key",
            {**values, "key": key, "at": moment.isoformat()},
        )

    def retry_failed(self) -> None:
        """Let what failed wait again, as if it had never been tried."""
        change = "UPDATE series SET state = 'waiting', attempts = 0 WHERE state = 'failed'"
        self._database.execute(change)

    def counts(self) -> dict[str, int]:
        """Series in each state."""
        query = "SELECT state, count(*) AS count FROM series GROUP BY state"
        found = {row["state"]: int(row["count"]) for row in self._database.execute(query)}
        return {state: found.get(state, 0) for state in ("waiting", "done", "refused", "failed")}

    def rows(self, state: State) -> Iterator[sqlite3.Row]:
        """Every series in a state, by key."""
        query = "SELECT * FROM series WHERE state = ? ORDER BY key"
        yield from self._database.execute(query, (state,))

    def grown(self) -> int:
        """Series that are done and have another number of files now than then."""
        query = (
            "SELECT count(*) AS count FROM series WHERE state = 'done' AND study_uid = '' AND "
            "files != (SELECT total(count) FROM pieces WHERE pieces.key = series.key)"
        )
        return int(self._database.execute(query).fetchone()["count"])
