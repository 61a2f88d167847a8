"""What each destination has been sent, and what may be deleted since all of them have it.

States of an object at a destination: queued -> sent, or, where storage commitment is asked for,
queued -> stored -> committed; failed once a person must look. A refused commitment queues it again.
dropped: a person decided that the destination need not have it.
"""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Callable, Iterable, Sequence

from cddnet.node.settings.parts import Retries
from cddnet.node.store.database import Database
from cddnet.node.store.images import decision_file
from cddnet.node.store.records import Parcel, Waiting

FINAL = "('sent', 'committed', 'dropped')"
# One of its outputs is not made, or one of its objects not where it shall be.
OPEN = (
    "EXISTS (SELECT 1 FROM outputs AS o WHERE o.series_uid=s.series_uid "
    "AND o.state NOT IN ('ready', 'refused')) OR EXISTS (SELECT 1 FROM outputs AS o "
    "JOIN objects USING (output_key) JOIN sends USING (sop_uid) "
    f"WHERE o.series_uid=s.series_uid AND sends.state NOT IN {FINAL})"
)
# Nobody waits for it any more.
OVER = f"s.state IN ('ignored', 'refused') OR (s.state='complete' AND NOT ({OPEN}))"


def backoff_s(retries: Retries, failures: int) -> float:
    """Seconds to wait after so many failures in a row."""
    return min(retries.longest_s, retries.first_s * 2.0 ** min(60, max(0, failures - 1)))


class Deliveries:
    """The sending side of the journal; any thread may use it."""

    def __init__(
        self,
        database: Database,
        name: Callable[[str], str],
        wall: Callable[[], float] | None = None,
    ) -> None:
        """name: UID -> what an object is called in the audit.  wall: for its dates."""
        self._database, self._clock, self._name = database, database.clock, name
        self._wall = wall or database.clock

    def due(self, destination: str, limit: int, longest_s: float = math.inf) -> list[Parcel]:
        """Objects to send now, the oldest first.

        longest_s: the longest wait there is; what waits longer does so by a clock that was wrong.
        """
        return self._parcels("queued", destination, limit, longest_s)

    def _parcels(self, state: str, destination: str, limit: int, longest_s: float) -> list[Parcel]:
        now = self._clock()
        rows = self._database.rows(
            "SELECT sop_uid, sop_class, file, attempts FROM sends JOIN objects USING (sop_uid) "
            "WHERE destination=? AND state=? AND (next_at<=? OR next_at>?) "
            "ORDER BY next_at, number LIMIT ?",
            (destination, state, now, now + longest_s, limit),
        )
        return [Parcel(*row) for row in rows]

    def delivered(self, destination: str, uids: Iterable[str], *, commitment: bool) -> None:
        """The destination stored these. commitment: it has still to be asked for it."""
        now, state = self._clock(), "stored" if commitment else "sent"
        with self._database.transaction() as connection:
            for uid in uids:
                changed = connection.execute(
                    "UPDATE sends SET state=?, error='', next_at=0, transaction_uid=NULL, "
                    "changed_at=? WHERE sop_uid=? AND destination=? AND state='queued'",
                    (state, now, uid, destination),
                )
                if changed.rowcount:
                    self._note(connection, "sent", uid, destination)

    def failed(self, destination: str, uids: Iterable[str], error: str, retries: Retries) -> None:
        """These did not arrive; they wait, or go into the failed box after too many attempts."""
        with self._database.transaction() as connection:
            for uid in uids:
                (row,) = connection.execute(
                    "SELECT attempts FROM sends WHERE sop_uid=? AND destination=?",
                    (uid, destination),
                ).fetchall()
                attempts = row["attempts"] + 1
                connection.execute(
                    "UPDATE sends SET state=?, attempts=?, next_at=?, error=?, "
                    "transaction_uid=NULL, changed_at=? WHERE sop_uid=? AND destination=?",
                    (
                        "failed" if attempts >= retries.attempts else "queued",
                        attempts,
                        self._clock() + backoff_s(retries, attempts),
                        error,
                        self._clock(),
                        uid,
                        destination,
                    ),
                )

    def to_commit(self, destination: str, limit: int, longest_s: float = math.inf) -> list[Parcel]:
        """Objects to ask commitment for: never asked, or not answered for too long.

        longest_s: as for `due`.
        """
        return self._parcels("stored", destination, limit, longest_s)

    def asked(
        self, destination: str, parcels: Sequence[Parcel], transaction: str, wait_s: float
    ) -> None:
        """Note, before it is asked, which question is about these; an answer may take `wait_s`."""
        with self._database.transaction() as connection:
            connection.executemany(
                "UPDATE sends SET attempts=attempts+(transaction_uid IS NOT NULL), "
                "transaction_uid=?, next_at=? "
                "WHERE sop_uid=? AND destination=? AND state='stored'",
                [
                    (transaction, self._clock() + wait_s, item.sop_uid, destination)
                    for item in parcels
                ],
            )

    def give_up(self, destination: str, retries: Retries) -> None:
        """Put what was asked about too often without an answer into the failed box."""
        with self._database.transaction() as connection:
            connection.execute(
                "UPDATE sends SET state='failed', error='no storage commitment came', "
                "changed_at=? WHERE destination=? AND state='stored' AND next_at<=? "
                "AND attempts>=?",
                (self._clock(), destination, self._clock(), retries.attempts),
            )

    def destination_of(self, transaction: str) -> str:
        """Who was asked in a transaction, "" for one that is unknown or over."""
        found = self._database.rows(
            "SELECT destination FROM sends WHERE transaction_uid=? LIMIT 1", (transaction,)
        )
        return str(found[0]["destination"]) if found else ""

    def committed(self, transaction: str, uids: Iterable[str]) -> int:
        """The destination keeps these for good; returns how many it had been asked about."""
        destination, count = self.destination_of(transaction), 0
        with self._database.transaction() as connection:
            for uid in uids:
                changed = connection.execute(
                    "UPDATE sends SET state='committed', error='', changed_at=? "
                    "WHERE transaction_uid=? AND sop_uid=? AND state='stored'",
                    (self._clock(), transaction, uid),
                )
                if changed.rowcount:
                    self._note(connection, "committed", uid, destination)
                    count += 1
        return count

    def _note(self, connection: sqlite3.Connection, what: str, uid: str, destination: str) -> None:
        """A line of the audit: who sent the original of an object, and which weights made it."""
        connection.execute(
            "INSERT INTO audit (at, what, series, caller, weights, count, object, destination) "
            "SELECT ?, ?, s.key, coalesce(i.caller, ''), o.weights, 1, ?, ? FROM objects AS o "
            "JOIN outputs USING (output_key) JOIN series AS s USING (series_uid) "
            "LEFT JOIN instances AS i ON i.sop_uid=o.source_uid WHERE o.sop_uid=?",
            (self._wall(), what, self._name(uid), destination, uid),
        )

    def asked_about(self, transaction: str) -> frozenset[str]:
        """Objects whose commitment in a transaction is still open."""
        found = self._database.rows(
            "SELECT sop_uid FROM sends WHERE transaction_uid=? AND state='stored'", (transaction,)
        )
        return frozenset(row["sop_uid"] for row in found)

    def waiting(self) -> list[Waiting]:
        """What each destination still waits for, those that are not configured any more too."""
        rows = self._database.rows(
            "SELECT destination, sum(state<>'failed'), sum(state='failed') FROM sends "
            f"WHERE state NOT IN {FINAL} GROUP BY destination ORDER BY destination"
        )
        return [Waiting(*row) for row in rows]

    def redirect(self, destination: str, to: str) -> int:
        """Send what a destination has not got to another one; late slices follow.

        Returns how many objects are on another way now.
        """
        open_there = f"destination=? AND state NOT IN {FINAL}"
        with self._database.transaction() as connection:
            self._note_all(connection, "redirected", destination)
            count = connection.execute(
                f"SELECT count(*) FROM sends WHERE {open_there}", (destination,)
            ).fetchone()[0]
            connection.execute(
                "UPDATE OR IGNORE sends SET destination=?, state='queued', attempts=0, next_at=0, "
                f"error='', transaction_uid=NULL, changed_at=? WHERE {open_there}",
                (to, self._clock(), destination),
            )
            # Objects that were on their way to both.
            connection.execute(f"DELETE FROM sends WHERE {open_there}", (destination,))
            for key, spec in connection.execute("SELECT output_key, spec FROM outputs").fetchall():
                order = json.loads(spec)
                if destination in order["destinations"]:
                    names = (to if name == destination else name for name in order["destinations"])
                    order["destinations"] = list(dict.fromkeys(names))
                    connection.execute(
                        "UPDATE outputs SET spec=? WHERE output_key=?", (json.dumps(order), key)
                    )
        return int(count)

    def drop(self, destination: str) -> int:
        """A destination need not have what it has not got; returns how many objects that are."""
        with self._database.transaction() as connection:
            self._note_all(connection, "dropped", destination)
            return connection.execute(
                "UPDATE sends SET state='dropped', error='', transaction_uid=NULL, changed_at=? "
                f"WHERE destination=? AND state NOT IN {FINAL}",
                (self._clock(), destination),
            ).rowcount

    def _note_all(self, connection: sqlite3.Connection, what: str, destination: str) -> None:
        """A line of the audit for each series with objects that a destination has not got."""
        connection.execute(
            "INSERT INTO audit (at, what, series, caller, weights, count, destination) "
            "SELECT ?, ?, s.key, '', '', count(*), ? FROM sends JOIN objects USING (sop_uid) "
            "JOIN outputs USING (output_key) JOIN series AS s USING (series_uid) "
            f"WHERE sends.destination=? AND sends.state NOT IN {FINAL} GROUP BY s.key",
            (self._wall(), what, destination, destination),
        )

    def disposable(self) -> list[tuple[str, float]]:
        """(series UID, last change) of the series that nobody waits for, the oldest first."""
        found = self._database.rows(
            "SELECT s.series_uid, max(s.last_at, coalesce((SELECT max(changed_at) FROM sends "
            "JOIN objects USING (sop_uid) JOIN outputs AS o USING (output_key) "
            "WHERE o.series_uid=s.series_uid), 0)) AS changed_at FROM series AS s "
            f"WHERE {OVER} "
            "ORDER BY changed_at",
        )
        return [(row["series_uid"], row["changed_at"]) for row in found]

    def purge(self, series_uid: str, remove: Callable[[str, int], None]) -> int:
        """Delete the images of a series that nobody waits for, by remove(file, bytes).

        The series and the names of its instances stay known, so that what comes again later is
        made into the same objects. Returns how many files went, 0 where somebody waits after all.
        """
        own = "(SELECT output_key FROM outputs WHERE series_uid=?)"
        with self._database.transaction() as connection:
            changed = connection.execute(
                f"UPDATE series AS s SET state='purged' WHERE series_uid=? AND ({OVER})",
                (series_uid,),
            )
            if not changed.rowcount:
                return 0
            found = connection.execute(
                "SELECT file, size FROM instances WHERE series_uid=? AND purged_at IS NULL "
                f"UNION ALL SELECT file, size FROM objects WHERE output_key IN {own}",
                (series_uid, series_uid),
            ).fetchall()
            connection.execute(
                "UPDATE instances SET purged_at=? WHERE series_uid=? AND purged_at IS NULL",
                (self._clock(), series_uid),
            )
            connection.execute(
                "DELETE FROM sends WHERE sop_uid IN "
                f"(SELECT sop_uid FROM objects WHERE output_key IN {own})",
                (series_uid,),
            )
            connection.execute(f"DELETE FROM objects WHERE output_key IN {own}", (series_uid,))
            remove(decision_file(series_uid), 0)
            # Before the end: an instance that comes again must not be written until they are gone.
            for row in found:
                remove(row["file"], row["size"])
        return len(found)
