"""The journal as people see it: series, their outputs, and how much each destination has."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Iterable, Mapping

from cddnet.node.database import Database
from cddnet.node.records import OutputRow, SeriesRow

# The first that holds of any output is the state of the series.
ORDER = ("failed", "processing", "waiting", "sending", "refused", "done")
SENT = ("sent", "committed")


def series_rows(database: Database) -> list[SeriesRow]:
    """Every series, the newest first."""
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
    outputs: dict[str, list[sqlite3.Row]] = {}
    for row in database.rows("SELECT * FROM outputs ORDER BY series_uid, place"):
        outputs.setdefault(row["series_uid"], []).append(row)
    return [
        _series(row, outputs.get(row["series_uid"], []), sends, received.get(row["series_uid"], 0))
        for row in database.rows("SELECT * FROM series ORDER BY first_at DESC, key")
    ]


def counts(database: Database) -> dict[str, int]:
    """Series by state, and `instances` and `objects` in all."""
    found = Counter(row.state for row in series_rows(database))
    return {
        **found,
        "instances": database.number("SELECT count(*) FROM instances"),
        "objects": database.number("SELECT count(*) FROM objects"),
    }


def slices(database: Database, key: str) -> list[tuple[str, dict[str, str]]]:
    """(file of the original, output key -> file of the result) of the instances of a series.

    A result that was made again in another way is told as it was made last.
    """
    found = database.rows(
        "SELECT i.sop_uid, i.file AS original, o.output_key, o.file AS result "
        "FROM series AS s JOIN instances AS i USING (series_uid) "
        "LEFT JOIN objects AS o ON o.source_uid=i.sop_uid "
        "WHERE s.key=? AND i.purged_at IS NULL ORDER BY i.sop_uid, o.made_at",
        (key,),
    )
    files: dict[str, tuple[str, dict[str, str]]] = {}
    for row in found:
        _, results = files.setdefault(row["sop_uid"], (row["original"], {}))
        if row["output_key"] is not None:
            results[row["output_key"]] = row["result"]
    return list(files.values())


def _column(state: str) -> str:
    if state in SENT:
        return "sent"
    return "failed" if state == "failed" else "queued"


def _series(
    row: sqlite3.Row,
    outputs: Iterable[sqlite3.Row],
    sends: Mapping[str, Mapping[str, Counter[str]]],
    received: int,
) -> SeriesRow:
    frozen = json.loads(row["frozen"]) if row["frozen"] else {}
    told = tuple(_output(item, sends.get(item["output_key"], {})) for item in outputs)
    errors = [row["reason"], *(output.error for output in told)]
    return SeriesRow(
        key=row["key"],
        state=_state(row["state"], told),
        rule=frozen.get("rule") or "",
        received=received,
        expected=row["expected"],
        done=sum(item["done"] for item in outputs),
        total=sum(item["total"] for item in outputs),
        outputs=told,
        first_at=row["first_at"],
        last_at=row["last_at"],
        error=next((error for error in errors if error), ""),
    )


def _state(kept: str, outputs: tuple[OutputRow, ...]) -> str:
    if kept == "purged":
        return "done" if outputs else "ignored"
    if kept != "complete":
        return kept
    found = {output.state for output in outputs}
    state = next(name for name in ORDER if name in found)
    return "complete" if state == "waiting" else state


def _output(row: sqlite3.Row, sends: Mapping[str, Counter[str]]) -> OutputRow:
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
        attempts=row["attempts"],
        destinations=destinations,
    )
