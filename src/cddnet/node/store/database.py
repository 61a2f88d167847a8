"""The SQLite file under the journal: tables, transactions that survive a power cut, one lock."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple

from cddnet.errors import CddnetError
from cddnet.node.store.schema import STEPS, VERSION

Write = Callable[[sqlite3.Connection], None]


class JournalDamaged(CddnetError):
    """A journal that is lost or damaged, beside images that are there."""

    def __init__(self, path: Path, detail: str) -> None:
        super().__init__(
            f"{path}: the journal cannot be used ({detail}). No image was touched. Run `cddnet "
            "node rebuild --config FILE`: it makes a new journal of the images, and keeps the old."
        )


class Earlier(NamedTuple):
    """What is known of earlier runs before the file is opened."""

    images: bool = False  # there are some, so that an empty file is a loss
    crashed: bool = False  # the last run did not end in order, so that all is checked


class _Waiting:
    """A write that waits for the next common transaction."""

    def __init__(self, write: Write) -> None:
        self.write, self.done = write, False
        self.error: BaseException | None = None


class Database:
    """One connection behind a lock. What a finished transaction wrote survives kill and power cut.

    clock: seconds since 1970.
    """

    def __init__(
        self,
        path: Path,
        clock: Callable[[], float] = time.time,
        earlier: Earlier = Earlier(),
    ) -> None:
        """Open or make the file, and bring one of an earlier version up to date.

        Raises JournalDamaged, CddnetError for one of a newer version.
        """
        self.path, self.clock = path, clock
        self._lock = threading.RLock()
        self._line = threading.Lock()
        self._waiting: list[_Waiting] = []
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._connection.row_factory = sqlite3.Row
        try:
            self._prepare(earlier)
        except sqlite3.OperationalError as error:
            # Not its content but its surroundings: a full disk, missing rights.
            self._connection.close()
            raise CddnetError(
                f"{path}: the journal cannot be opened ({error}); make room on the disk, or see "
                "that this user may write there, and start again."
            ) from error
        except (sqlite3.DatabaseError, UnicodeError) as error:
            self._connection.close()
            raise JournalDamaged(path, str(error)) from error
        except BaseException:
            self._connection.close()
            raise

    def _prepare(self, earlier: Earlier) -> None:
        check = "integrity_check" if earlier.crashed else "quick_check"
        problem = str(self._connection.execute(f"PRAGMA {check}(1)").fetchone()[0])
        if problem != "ok":
            raise JournalDamaged(self.path, problem.splitlines()[0])
        # FULL: a commit is on the disk before it returns, also in write-ahead mode.
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "temp_store=MEMORY"):
            self._connection.execute(f"PRAGMA {pragma}")
        (version,) = self._connection.execute("PRAGMA user_version").fetchone()
        tables = _schema(self._connection)
        if version > VERSION:
            raise CddnetError(
                f"{self.path}: is a journal of version {version}, this node writes {VERSION}; "
                "use the version of cddnet that made it."
            )
        if tables != _expected(version):
            raise JournalDamaged(self.path, "its tables are not those of a journal")
        if version == 0 and earlier.images:
            raise JournalDamaged(self.path, "it is empty, although there are images")
        if version < VERSION:
            with self.transaction() as connection:
                _bring_up(connection, version, VERSION)
                connection.execute(f"PRAGMA user_version={VERSION}")
            # Not in the write-ahead log alone: without that it would be an empty journal.
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def rows(
        self, sql: str, values: Sequence[object] = (), *, patience_s: float = -1
    ) -> list[sqlite3.Row]:
        """What a query finds.

        patience_s: while others write; -1: without end.  Raises TimeoutError where it ends.
        """
        if not self._lock.acquire(timeout=patience_s):
            raise TimeoutError("the journal is busy")
        try:
            return self._connection.execute(sql, values).fetchall()
        finally:
            self._lock.release()

    def number(self, sql: str, values: Sequence[object] = ()) -> int:
        """The one whole number that a query finds; 0 for none."""
        found = self.rows(sql, values)
        return int(found[0][0] or 0) if found else 0

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """Several queries that see one state: other threads write behind it."""
        with self._lock:
            yield

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All or nothing; on the disk when it ends."""
        with self._lock:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                # A full disk may have ended it already; one left open would block all that follow.
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def together(self, write: Write) -> None:
        """Run a write in a transaction that it may share with those of other threads.

        On the disk when this returns; many callers then wait for one flush instead of one each.
        """
        own = _Waiting(write)
        with self._line:
            self._waiting.append(own)
        with self._lock:
            if not own.done:
                with self._line:
                    taken, self._waiting = self._waiting, []
                self._commit(taken)
        if own.error is not None:
            raise own.error

    def _commit(self, taken: list[_Waiting]) -> None:
        try:
            if len(taken) == 1 or not self._written(taken):
                # One by one: a write that cannot be made fails alone.
                for item in taken:
                    self._written([item])
        except BaseException as error:
            for item in taken:
                item.error = error
            raise
        finally:
            for item in taken:
                item.done = True

    def _written(self, items: Sequence[_Waiting]) -> bool:
        """Make some writes in one transaction; where that fails, all of them keep the error."""
        error: Exception | None = None
        try:
            with self.transaction() as connection:
                for item in items:
                    item.write(connection)
        except Exception as failure:
            error = failure
        for item in items:
            item.error = error
        return error is None

    def close(self) -> None:
        """Close the file; a later use fails."""
        with self._lock:
            self._connection.close()


def _bring_up(connection: sqlite3.Connection, version: int, to: int) -> None:
    for step in STEPS[version:to]:
        for statement in step:
            connection.execute(statement)


def _schema(connection: sqlite3.Connection) -> dict[str, str]:
    """Every table and index: its name -> what it was made by, whatever its layout."""
    rows = connection.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL")
    return {name: " ".join(sql.split()) for name, sql in rows}


def _expected(version: int) -> dict[str, str]:
    """The schema of a version."""
    with closing(sqlite3.connect(":memory:")) as empty:
        _bring_up(empty, 0, version)
        return _schema(empty)
