"""What failed gets another chance: in one place for series, outputs and deliveries."""

from __future__ import annotations

import sqlite3


def retry(connection: sqlite3.Connection, key: str) -> bool:
    """Let all of a series that failed or was refused try again; False where nothing did.

    key: what the series is called outside.
    """
    chosen = "(SELECT series_uid FROM series WHERE key=:key)"
    steps = (
        "UPDATE series SET state='receiving', deaths=0, attempts=0, next_at=0, "
        "sender=CASE sender WHEN 'asked' THEN 'known' ELSE sender END "
        f"WHERE state IN ('failed', 'refused') AND series_uid={chosen}",
        "UPDATE outputs SET state='waiting', deaths=0, attempts=0, next_at=0, error='' "
        f"WHERE state IN ('failed', 'refused') AND series_uid={chosen}",
        "UPDATE sends SET state='queued', attempts=0, next_at=0, error='', transaction_uid=NULL "
        "WHERE state='failed' AND sop_uid IN (SELECT sop_uid FROM objects JOIN outputs "
        f"USING (output_key) WHERE series_uid={chosen})",
    )
    return sum(connection.execute(step, {"key": key}).rowcount for step in steps) > 0
