"""What the node knows: instances, series and their outputs, each change whole and on the disk.

States of a series: receiving -> complete | ignored | refused | failed, and purged once its images
went. States of an output: waiting -> processing -> ready | refused | failed. What failed waits for
a person. What destinations have is in `deliveries`. Every step is one transaction, so that a crash
lies before or after it.

Work on a series or an output is noted before it begins. Where the node ends without noting the end
of the work, the next start counts a death; after `MOST_DEATHS` without progress it is set aside.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from cddnet.node.store import overview
from cddnet.node.store.database import Database, Earlier, JournalDamaged
from cddnet.node.store.deliveries import OVER
from cddnet.node.store.records import (
    Arrival,
    Due,
    End,
    Instance,
    Job,
    Made,
    Recovered,
    SeriesRow,
    Version,
)
from cddnet.node.store.retry import retry
from cddnet.node.store.secret import Pseudonyms

MOST_DEATHS = 3
FIRST_WAIT_S, LONGEST_WAIT_S = 5.0, 320.0
DIED = (
    f"the node ended {MOST_DEATHS} times while it worked on this series, and leaves it alone now; "
    "look at the log and at the memory of the machine, then retry."
)
# A series or output that waits for a person, whatever slices come.
SET_ASIDE = f"state='failed' AND deaths >= {MOST_DEATHS}"
# Of a series whose deciding came to an end.
SETTLED = "deciding=0, deaths=0, attempts=0, next_at=0"
# A sender that is known takes the place of one that is not.
SENDER = (
    "caller=CASE WHEN sender='known' THEN caller ELSE excluded.caller END, "
    "sender=CASE WHEN sender='known' THEN sender ELSE excluded.sender END"
)
_KEEP = "INSERT OR REPLACE INTO instances VALUES (?,?,?,?,?,?,?,?,NULL)"
UNFINISHED = "the work on it ended and could not be noted; it is tried again. Look at the log."


class Journal:
    """The node's memory; any thread may use it."""

    def __init__(
        self,
        path: Path,
        *,
        name: Callable[[str], str] | None = None,
        clock: Callable[[], float] = time.time,
        wall: Callable[[], float] | None = None,
        earlier: Earlier = Earlier(),
    ) -> None:
        """Open or make a journal.  Raises as `Database`.

        name: UID -> what a series is called outside; by the key in the journal's folder.  clock:
        for waits and ages.  wall: for dates that people read; default: `clock`.
        """
        self.name = name or Pseudonyms(path.parent).of
        self.database, self.clock = Database(path, clock, earlier), clock
        self.wall = wall or clock
        self.close = self.database.close
        try:
            self._require_readable()
        except BaseException:
            self.close()
            raise

    def _require_readable(self) -> None:
        """Decisions are text to the database: one that is damaged passes its checks."""
        rows = self.database.rows(
            "SELECT frozen AS text FROM series WHERE frozen IS NOT NULL "
            "UNION ALL SELECT spec FROM outputs"
        )
        try:
            for row in rows:
                json.loads(row["text"])
        except ValueError:
            raise JournalDamaged(self.database.path, "a decision cannot be read") from None

    def recover(self) -> Recovered:
        """Take up what a crash interrupted; set aside what was under way at too many of them."""
        died, last = {"most": MOST_DEATHS, "reason": DIED}, "deaths + 1 >= :most"
        with self.database.transaction() as connection:
            # Times to come are those of a clock that has been put back since.
            for table, time_of in (("series", "last_at"), ("sends", "changed_at")):
                connection.execute(
                    f"UPDATE {table} SET {time_of}=? WHERE {time_of}>?", (self.clock(),) * 2
                )
            given_up = connection.execute(
                f"SELECT series_uid FROM outputs WHERE state='processing' AND {last} "
                f"UNION SELECT series_uid FROM series WHERE deciding AND {last}",
                died,
            ).fetchall()
            again = connection.execute(
                f"UPDATE outputs SET state=CASE WHEN {last} THEN 'failed' ELSE 'waiting' END, "
                f"error=CASE WHEN {last} THEN :reason ELSE error END, deaths=deaths+1 "
                "WHERE state='processing'",
                died,
            ).rowcount
            connection.execute(
                "UPDATE series SET "
                f"state=CASE WHEN {last} AND state='receiving' THEN 'failed' ELSE state END, "
                f"reason=CASE WHEN {last} AND state='receiving' THEN :reason ELSE reason END, "
                "deciding=0, deaths=deaths+1 WHERE deciding",
                died,
            )
        return Recovered(again, tuple(row["series_uid"] for row in given_up))

    def release(self) -> None:
        """Let wait what is still noted as being worked on although nobody works on it.

        For the one who works, before anything new is begun: the end of the work before may not
        have been noted, such as on a full disk.
        """
        if not self.database.number("SELECT count(*) FROM outputs WHERE state='processing'"):
            return
        with self.database.transaction() as connection:
            connection.execute(
                "UPDATE outputs SET state='waiting', error=?, attempts=attempts+1, "
                "next_at=? + min(?, ? * (1 << min(attempts, 30))) WHERE state='processing'",
                (UNFINISHED, self.clock(), LONGEST_WAIT_S, FIRST_WAIT_S),
            )

    def files(self) -> list[tuple[str, int]]:
        """(file, bytes) of every image that must be there."""
        found = self.database.rows(
            "SELECT file, size FROM instances WHERE purged_at IS NULL "
            "UNION ALL SELECT file, size FROM objects"
        )
        return [(row["file"], row["size"]) for row in found]

    def arrival(self, sop_uid: str, sha256: str) -> Arrival:
        """Whether an instance is new, there with the same bytes, or there with different ones."""
        found = self.database.rows(
            "SELECT sha256, purged_at FROM instances WHERE sop_uid=?", (sop_uid,)
        )
        if not found or found[0]["purged_at"] is not None:
            return "new"
        return "again" if found[0]["sha256"] == sha256 else "different"

    def file_of(self, sop_uid: str) -> str | None:
        """Where the image of an instance is; None where none came, or it was purged."""
        found = self.database.rows(
            "SELECT file FROM instances WHERE sop_uid=? AND purged_at IS NULL", (sop_uid,)
        )
        return str(found[0]["file"]) if found else None

    def accept(self, instance: Instance) -> bool:
        """Note an instance whose file is on the disk; its series is open again.

        Returns whether the series had been closed before. On the disk when this returns.
        """
        now, reopened = self.clock(), False
        key = self.name(instance.series_uid)

        def write(connection: sqlite3.Connection) -> None:
            nonlocal reopened
            connection.execute(_KEEP, (*instance[:7], now))
            found = connection.execute(
                f"SELECT state FROM series WHERE series_uid=? AND NOT ({SET_ASIDE})",
                (instance.series_uid,),
            ).fetchone()
            reopened = found is not None and found["state"] != "receiving"
            connection.execute(
                "INSERT INTO series (series_uid, key, state, generation, expected, caller, "
                "first_at, last_at) VALUES (?,?,'receiving',1,?,?,?,?) "
                "ON CONFLICT (series_uid) DO UPDATE SET "
                f"state=CASE WHEN {SET_ASIDE} THEN state ELSE 'receiving' END, "
                f"reason=CASE WHEN {SET_ASIDE} THEN reason ELSE '' END, "
                "generation=generation+1, last_at=excluded.last_at, attempts=0, next_at=0, "
                f"{SENDER}, expected=max(expected, excluded.expected)",
                (instance.series_uid, key, instance.expected, instance.caller, now, now),
            )

        self.database.together(write)
        return reopened

    def enter(self, instances: Sequence[tuple[Instance, float]]) -> None:
        """Note images that are on the disk and that no journal knows: (image, when it came).

        Their series are open again. A caller "" is one that is not known any more.
        """
        with self.database.transaction() as connection:
            for instance, received_at in instances:
                sender = "known" if instance.caller else "unknown"
                connection.execute(_KEEP, (*instance[:7], received_at))
                connection.execute(
                    "INSERT INTO series (series_uid, key, state, generation, expected, caller, "
                    "first_at, last_at, sender) VALUES (?,?,'receiving',1,?,?,?,?,?) "
                    "ON CONFLICT (series_uid) DO UPDATE SET "
                    f"state=CASE WHEN {SET_ASIDE} THEN state ELSE 'receiving' END, "
                    f"generation=generation+1, {SENDER}, "
                    "first_at=min(first_at, excluded.first_at), "
                    "last_at=max(last_at, excluded.last_at), "
                    "expected=max(expected, excluded.expected)",
                    (
                        instance.series_uid,
                        self.name(instance.series_uid),
                        instance.expected,
                        instance.caller,
                        received_at,
                        min(received_at, self.clock()),
                        sender,
                    ),
                )

    def decision(
        self, series_uid: str
    ) -> tuple[Mapping[str, object], tuple[Mapping[str, object], ...]]:
        """What was decided on a series, and its outputs: output_key, place and spec, as kept."""
        frozen = self.database.rows("SELECT frozen FROM series WHERE series_uid=?", (series_uid,))
        outputs = self.database.rows(
            "SELECT output_key, place, spec FROM outputs WHERE series_uid=? ORDER BY place",
            (series_uid,),
        )
        return json.loads(frozen[0]["frozen"]), tuple(dict(row) for row in outputs)

    def restore(
        self,
        series_uid: str,
        frozen: Mapping[str, object],
        outputs: Sequence[Mapping[str, object]],
    ) -> bool:
        """Take back a decision that the journal has lost; False where it knows one."""
        with self.database.transaction() as connection:
            changed = connection.execute(
                "UPDATE series SET frozen=?, "
                # It was refused, and decided on later: what came of that is not to be deleted.
                "state=CASE state WHEN 'refused' THEN 'receiving' ELSE state END "
                "WHERE series_uid=? AND frozen IS NULL",
                (json.dumps(frozen), series_uid),
            )
            if not changed.rowcount:
                return False
            connection.executemany(
                "INSERT OR IGNORE INTO outputs (output_key, series_uid, place, spec, generation, "
                "state) VALUES (?,?,?,?,0,'waiting')",
                [(item["output_key"], series_uid, item["place"], item["spec"]) for item in outputs],
            )
        return True

    def outputs(self) -> dict[str, tuple[str, Sequence[str]]]:
        """Every output: its key -> (UID of its series, names of its destinations)."""
        rows = self.database.rows("SELECT output_key, series_uid, spec FROM outputs")
        return {
            row["output_key"]: (row["series_uid"], json.loads(row["spec"])["destinations"])
            for row in rows
        }

    def due(self, quiet_s: float) -> list[Due]:
        """Series that are complete: quiet for long enough, or with all the slices they expect."""
        now = self.clock()
        found = self.database.rows(
            "SELECT * FROM series WHERE state='receiving' AND (next_at<=? OR next_at>?) AND "
            "(last_at<=? OR last_at>? OR (expected>0 AND expected<=(SELECT count(*) FROM "
            "instances AS i WHERE i.series_uid=series.series_uid))) ORDER BY first_at",
            # A clock that was put back must not hold a series for ever.
            (now, now + LONGEST_WAIT_S, now - quiet_s, now + quiet_s),
        )
        return [
            Due(
                series_uid=row["series_uid"],
                generation=row["generation"],
                caller=row["caller"],
                sources=self._sources(row["series_uid"]),
                frozen=row["frozen"] is not None,
                attempts=row["attempts"],
                sender_known=row["sender"] != "unknown",
            )
            for row in found
        ]

    def begin(self, due: Due) -> bool:
        """Note that a series is about to be decided on; False where a slice came since."""
        with self.database.transaction() as connection:
            if _open_series(connection, due) is None:
                return False
            connection.execute("UPDATE series SET deciding=1 WHERE series_uid=?", (due.series_uid,))
        return True

    def ask(self, due: Due, reason: str) -> None:
        """Leave a series, whose sender is not known, to a person."""
        with self.database.transaction() as connection:
            if _open_series(connection, due) is not None:
                connection.execute(
                    f"UPDATE series SET {SETTLED}, state='failed', sender='asked', reason=? "
                    "WHERE series_uid=?",
                    (reason, due.series_uid),
                )

    def postpone(self, due: Due, error: str, wait_s: float | None) -> None:
        """Nothing could be decided: try again after `wait_s`, None: not before a person says so."""
        next_at = 0.0 if wait_s is None else self.clock() + wait_s
        with self.database.transaction() as connection:
            connection.execute(
                "UPDATE series SET deciding=0, deaths=0 WHERE series_uid=?", (due.series_uid,)
            )
            if _open_series(connection, due) is not None:
                connection.execute(
                    "UPDATE series SET state=?, reason=?, attempts=attempts+1, next_at=? "
                    "WHERE series_uid=?",
                    (
                        "failed" if wait_s is None else "receiving",
                        storable(error),
                        next_at,
                        due.series_uid,
                    ),
                )

    def decide(
        self, due: Due, rule: str | None, specs: Sequence[Mapping[str, object]], *, reason: str = ""
    ) -> bool:
        """Close a series with one output per spec, or none: it is ignored, for a reason.

        What was decided first stays. False where a slice came in between: nothing is changed.
        """
        now = self.wall()
        with self.database.transaction() as connection:
            row = _open_series(connection, due)
            if row is None:
                return False
            frozen = json.loads(row["frozen"]) if row["frozen"] else None
            if frozen is None:
                frozen = {"rule": rule, "created": now, "outputs": len(specs), "reason": reason}
                connection.executemany(
                    "INSERT INTO outputs (output_key, series_uid, place, spec, generation, state) "
                    "VALUES (?,?,?,?,?,'waiting')",
                    [
                        (f"{row['key']}-{place}", due.series_uid, place, json.dumps(spec), 0)
                        for place, spec in enumerate(specs, 1)
                    ],
                )
            connection.execute(
                "UPDATE outputs SET generation=?, attempts=0, next_at=0, error='', "
                "state=CASE state WHEN 'processing' THEN state ELSE 'waiting' END "
                f"WHERE series_uid=? AND NOT ({SET_ASIDE})",
                (due.generation, due.series_uid),
            )
            connection.execute(
                f"UPDATE series SET {SETTLED}, state=?, frozen=?, reason=? WHERE series_uid=?",
                (
                    "complete" if frozen["outputs"] else "ignored",
                    json.dumps(frozen),
                    "" if frozen["outputs"] else frozen["reason"],
                    due.series_uid,
                ),
            )
        return True

    def refuse(self, due: Due, reason: str) -> bool:
        """Close a series that nothing could be decided on; a late slice lets it try again."""
        with self.database.transaction() as connection:
            if _open_series(connection, due) is None:
                return False
            connection.execute(
                f"UPDATE series SET {SETTLED}, state='refused', reason=? WHERE series_uid=?",
                (storable(reason), due.series_uid),
            )
        return True

    def take(self) -> Job | None:
        """The next output to make, now `processing`; None where there is none."""
        now = self.clock()
        with self.database.transaction() as connection:
            row = connection.execute(
                "SELECT o.*, s.frozen FROM outputs AS o JOIN series AS s USING (series_uid) "
                "WHERE o.state='waiting' AND (o.next_at<=? OR o.next_at>?) AND s.state='complete' "
                "ORDER BY s.first_at, o.place LIMIT 1",
                (now, now + LONGEST_WAIT_S),
            ).fetchone()
            if row is None:
                return None
            connection.execute(
                "UPDATE outputs SET state='processing', done=0, total=0 WHERE output_key=?",
                (row["output_key"],),
            )
        return Job(
            output_key=row["output_key"],
            series_uid=row["series_uid"],
            generation=row["generation"],
            spec=json.loads(row["spec"]),
            created=float(json.loads(row["frozen"])["created"]),
            attempts=row["attempts"],
            sources=self._sources(row["series_uid"]),
        )

    def specify(self, job: Job, spec: Mapping[str, object]) -> None:
        """Note what was found out about an output before any of it was made."""
        told = json.dumps(spec), job.output_key
        with self.database.transaction() as connection:
            connection.execute("UPDATE outputs SET spec=? WHERE output_key=?", told)

    def made(self, output_key: str, recipe: str) -> frozenset[str]:
        """Originals that an output already has an object of, made in this way."""
        found = self.database.rows(
            "SELECT source_uid FROM objects WHERE output_key=? AND recipe=?", (output_key, recipe)
        )
        return frozenset(row["source_uid"] for row in found)

    def add(self, job: Job, objects: Sequence[Made], *, done: int, total: int) -> None:
        """Note derived objects whose files are on the disk, and queue them for their destinations.

        done, total: how far the output is.
        """
        destinations = job.spec["destinations"]
        names = destinations if isinstance(destinations, list | tuple) else ()
        with self.database.transaction() as connection:
            self._add(connection, job.output_key, objects, names)
            # Progress: an output that comes further each time is not what ends the node.
            connection.execute(
                "UPDATE outputs SET done=?, total=?, deaths=deaths*? WHERE output_key=?",
                (done, total, int(not objects), job.output_key),
            )

    def enter_objects(
        self, output_key: str, objects: Sequence[Made], destinations: Sequence[str]
    ) -> None:
        """Note derived objects that are on the disk and that no journal knows, to be sent."""
        with self.database.transaction() as connection:
            self._add(connection, output_key, objects, destinations)

    def _add(
        self,
        connection: sqlite3.Connection,
        output_key: str,
        objects: Sequence[Made],
        destinations: Sequence[str],
    ) -> None:
        now = self.clock()
        connection.executemany(
            "INSERT INTO objects VALUES (?,?,?,?,?,?,?,?,?,?) ON CONFLICT (sop_uid) DO UPDATE "
            # It is the same object; how it was made may have been lost.
            "SET recipe=excluded.recipe, weights=excluded.weights",
            [(item.sop_uid, output_key, *item[1:], now) for item in objects],
        )
        connection.executemany(
            "INSERT OR IGNORE INTO sends (sop_uid, destination, state, changed_at) "
            "VALUES (?,?,'queued',?)",
            [(item.sop_uid, name, now) for item in objects for name in destinations],
        )

    def object_file(self, sop_uid: str) -> str | None:
        """Where a derived object is; None where there is none."""
        rows = self.database.rows("SELECT file FROM objects WHERE sop_uid=?", (sop_uid,))
        return str(rows[0]["file"]) if rows else None

    def finish(self, job: Job, state: End, error: str = "", *, wait_s: float = 0.0) -> None:
        """End the making of an output; where late slices came meanwhile it waits to go on.

        waiting: it is tried again after `wait_s`.
        """
        with self.database.transaction() as connection:
            connection.execute(
                "UPDATE outputs SET error=?, next_at=?, attempts=attempts+?, deaths=0, "
                "state=CASE WHEN generation=? THEN ? ELSE 'waiting' END WHERE output_key=?",
                (
                    storable(error),
                    self.clock() + wait_s if state == "waiting" else 0.0,
                    int(state != "ready"),
                    job.generation,
                    state,
                    job.output_key,
                ),
            )

    def pause(self, job: Job) -> None:
        """Let an output wait for the next start: the node stops in order."""
        with self.database.transaction() as connection:
            connection.execute(
                "UPDATE outputs SET state='waiting', deaths=0 "
                "WHERE output_key=? AND state='processing'",
                (job.output_key,),
            )

    def pause_all(self) -> None:
        """Count no death for what is under way: the node stops in order, and leaves it hanging."""
        with self.database.transaction() as connection:
            connection.execute("UPDATE outputs SET state='waiting' WHERE state='processing'")
            connection.execute("UPDATE series SET deciding=0 WHERE deciding")

    def retry(self, key: str) -> bool:
        """Let what failed or was refused of a series try again at once; False where nothing did."""
        with self.database.transaction() as connection:
            return retry(connection, key)

    def note(self, what: str, series_uid: str, *, caller: str = "", weights: str = "") -> None:
        """A line of the audit; those of single objects are written as they are delivered."""
        key = self.name(series_uid)
        count = self.database.number(
            "SELECT count(*) FROM instances WHERE series_uid=?", (series_uid,)
        )
        with self.database.transaction() as connection:
            connection.execute(
                "INSERT INTO audit (at, what, series, caller, weights, count) VALUES (?,?,?,?,?,?)",
                (self.wall(), what, key, caller, weights, count),
            )

    def audit(self, limit: int = 100) -> list[dict[str, object]]:
        """The last lines of the audit, the newest first; series under their outside names."""
        newest = "SELECT * FROM audit ORDER BY number DESC LIMIT ?"
        return [dict(row) for row in self.database.rows(newest, (limit,))]

    def oldest_unfinished_at(self, patience_s: float = -1) -> float | None:
        """When the last slice came of the series that waits longest for anybody; None without one.

        patience_s: for the journal, while others write; -1: without end.  Raises TimeoutError.
        """
        rows = self.database.rows(
            f"SELECT min(last_at) AS at FROM series AS s WHERE s.state<>'purged' AND NOT ({OVER})",
            patience_s=patience_s,
        )
        return None if rows[0]["at"] is None else float(rows[0]["at"])

    def queue(self) -> list[SeriesRow]:
        """Every series, the newest first."""
        return overview.series_rows(self.database)

    def counts(self) -> dict[str, int]:
        """Series by state, and all `instances` and `objects`."""
        return overview.counts(self.database)

    def versions(self, output_key: str) -> list[Version]:
        """Every way in which an output was made, the newest first."""
        return overview.versions(self.database, output_key)

    def _sources(self, series_uid: str) -> tuple[tuple[str, str], ...]:
        found = self.database.rows(
            "SELECT sop_class, file FROM instances WHERE series_uid=? AND purged_at IS NULL "
            "ORDER BY received_at, sop_uid",
            (series_uid,),
        )
        return tuple((row["sop_class"], row["file"]) for row in found)


def wait_s(failures: int) -> float:
    """Seconds until the work on something that failed so often is tried again."""
    return float(min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0 ** min(max(0, failures - 1), 30)))


def storable(text: str) -> str:
    """A text that can be stored as UTF-8, whatever half characters it holds."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _open_series(connection: sqlite3.Connection, due: Due) -> sqlite3.Row | None:
    """The series as it was looked at; None where a slice came since."""
    row: sqlite3.Row | None = connection.execute(
        "SELECT * FROM series WHERE series_uid=? AND state='receiving' AND generation=?",
        (due.series_uid, due.generation),
    ).fetchone()
    return row
