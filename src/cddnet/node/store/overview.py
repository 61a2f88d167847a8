"""The journal as people see it: series, their outputs, and how much each destination has."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Mapping

from cddnet.node.store.database import Database
from cddnet.node.store.records import ENHANCED_CT, OutputRow, SeriesRow, Version

# The first that holds of any output is the state of the series.
ORDER = ("failed", "processing", "waiting", "sending", "refused", "done")
SENT = ("sent", "committed")
RECIPE_DIGITS = 8


def series_rows(database: Database) -> list[SeriesRow]:
    """Every series, the newest first, as of one moment."""
    with database.unchanged():
        return _series_rows(database)


def _series_rows(database: Database) -> list[SeriesRow]:
    received = {
        row["series_uid"]: row["n"]
        for row in database.rows("SELECT series_uid, count(*) AS n FROM instances GROUP BY 1")
    }
    sends: dict[str, dict[str, Counter[str]]] = {}
    for row in database.rows(
        "SELECT output_key, destination, sends.state, count(*) AS n FROM sends "
        "JOIN objects USING (sop_uid) GROUP BY 1, 2, 3"
    ):
        to = sends.setdefault(row["output_key"], {}).setdefault(row["destination"], Counter())
        to[_column(row["state"])] += row["n"]
    versions: dict[str, dict[str, int]] = {}
    for row in database.rows(
        "SELECT output_key, recipe, count(*) AS n FROM objects GROUP BY 1, 2 "
        "ORDER BY max(made_at) DESC, recipe"
    ):
        versions.setdefault(row["output_key"], {})[_version_key(row)] = row["n"]
    outputs: dict[str, list[OutputRow]] = {}
    progress: dict[str, Counter[str]] = {}
    for row in database.rows("SELECT * FROM outputs ORDER BY series_uid, place"):
        key, series_uid = row["output_key"], row["series_uid"]
        told = _output(row, sends.get(key, {}), versions.get(key, {}))
        outputs.setdefault(series_uid, []).append(told)
        counted = progress.setdefault(series_uid, Counter())
        counted.update(done=row["done"], total=row["total"])
    return [
        _series(
            row,
            tuple(outputs.get(row["series_uid"], ())),
            progress.get(row["series_uid"], Counter()),
            received.get(row["series_uid"], 0),
        )
        for row in database.rows("SELECT * FROM series ORDER BY first_at DESC, key")
    ]


def counts(database: Database) -> dict[str, int]:
    """Series by state, and `instances` and `objects` in all."""
    with database.unchanged():
        return {
            **Counter(row.state for row in series_rows(database)),
            "instances": database.number("SELECT count(*) FROM instances"),
            "objects": database.number("SELECT count(*) FROM objects"),
        }


def versions(database: Database, output_key: str) -> list[Version]:
    """Every way in which an output was made, the newest first, with the files that are there."""
    with database.unchanged():
        found = database.rows(
            "SELECT o.output_key, o.recipe, o.sop_class, o.file AS result, i.file AS original "
            "FROM objects AS o LEFT JOIN instances AS i "
            "ON i.sop_uid=o.source_uid AND i.purged_at IS NULL WHERE o.output_key=? "
            "ORDER BY max(o.made_at) OVER (PARTITION BY o.recipe) DESC, o.recipe, o.source_uid",
            (output_key,),
        )
        classic = database.rows(
            "SELECT file FROM instances JOIN outputs USING (series_uid) "
            "WHERE output_key=? AND purged_at IS NULL AND sop_class<>? ORDER BY sop_uid",
            (output_key, ENHANCED_CT),
        )
    made: dict[str, list[sqlite3.Row]] = {}
    for row in found:
        made.setdefault(_version_key(row), []).append(row)
    return [
        Version(
            key,
            # Of classic slices the whole series: a gap in what is made is none in what came.
            tuple(row["original"] for row in rows if row["original"])
            if rows[0]["sop_class"] == ENHANCED_CT
            else tuple(row["file"] for row in classic),
            tuple(row["result"] for row in rows),
        )
        for key, rows in made.items()
    ]


def _version_key(row: sqlite3.Row) -> str:
    return f"{row['output_key']}-{row['recipe'][:RECIPE_DIGITS]}"


def _column(state: str) -> str:
    if state in SENT:
        return "sent"
    return state if state in ("failed", "dropped") else "queued"


def _series(
    row: sqlite3.Row, outputs: tuple[OutputRow, ...], progress: Counter[str], received: int
) -> SeriesRow:
    frozen = json.loads(row["frozen"]) if row["frozen"] else {}
    errors = [row["reason"], *(output.error for output in outputs)]
    return SeriesRow(
        key=row["key"],
        state=_state(row["state"], outputs),
        rule=frozen.get("rule") or "",
        received=received,
        expected=row["expected"],
        done=progress["done"],
        total=progress["total"],
        outputs=outputs,
        first_at=row["first_at"],
        last_at=row["last_at"],
        error=next((error for error in errors if error), ""),
        removed=row["state"] == "purged",
    )


def _state(kept: str, outputs: tuple[OutputRow, ...]) -> str:
    if kept == "purged":
        return "done" if outputs else "ignored"
    if kept != "complete":
        return kept
    found = {output.state for output in outputs}
    state = next(name for name in ORDER if name in found)
    return "complete" if state == "waiting" else state


def _output(
    row: sqlite3.Row, sends: Mapping[str, Counter[str]], made: Mapping[str, int]
) -> OutputRow:
    spec = json.loads(row["spec"])
    destinations = {
        name: (found["queued"], found["sent"], found["failed"])
        for name in spec["destinations"]
        for found in (sends.get(name, Counter()),)
    }
    state = row["state"]
    if state == "ready":
        queued, failed = (sum(found[place] for found in destinations.values()) for place in (0, 2))
        state = "failed" if failed else "sending" if queued else "done"
    strength = spec.get("strength")
    return OutputRow(
        key=row["output_key"],
        label=spec["model"] if strength is None else f"{spec['model']} {strength:.0%}",
        state=state,
        error=row["error"],
        notes=tuple(spec.get("notes", ())),
        attempts=row["attempts"],
        destinations=destinations,
        versions=made,
    )
