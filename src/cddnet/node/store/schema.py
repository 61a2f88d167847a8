"""The tables of the journal: what its first version had, and what each later one added.

A new journal goes through the same steps as an old one that is brought up to date.
"""

from __future__ import annotations

_FIRST = (
    """
    CREATE TABLE instances (
      sop_uid TEXT PRIMARY KEY, series_uid TEXT NOT NULL, sop_class TEXT NOT NULL,
      file TEXT NOT NULL, size INTEGER NOT NULL, sha256 TEXT NOT NULL,
      caller TEXT NOT NULL, received_at REAL NOT NULL, purged_at REAL) WITHOUT ROWID
    """,
    "CREATE INDEX instances_series ON instances (series_uid)",
    """
    CREATE TABLE series (
      series_uid TEXT PRIMARY KEY, key TEXT NOT NULL UNIQUE, state TEXT NOT NULL,
      generation INTEGER NOT NULL, expected INTEGER NOT NULL, caller TEXT NOT NULL,
      first_at REAL NOT NULL, last_at REAL NOT NULL, frozen TEXT, reason TEXT NOT NULL DEFAULT '')
      WITHOUT ROWID
    """,
    "CREATE INDEX series_state ON series (state)",
    """
    CREATE TABLE outputs (
      output_key TEXT PRIMARY KEY, series_uid TEXT NOT NULL, place INTEGER NOT NULL,
      spec TEXT NOT NULL, generation INTEGER NOT NULL, state TEXT NOT NULL,
      attempts INTEGER NOT NULL DEFAULT 0, next_at REAL NOT NULL DEFAULT 0,
      error TEXT NOT NULL DEFAULT '', done INTEGER NOT NULL DEFAULT 0,
      total INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID
    """,
    "CREATE INDEX outputs_series ON outputs (series_uid)",
    "CREATE INDEX outputs_state ON outputs (state, next_at)",
    """
    CREATE TABLE objects (
      sop_uid TEXT PRIMARY KEY, output_key TEXT NOT NULL, source_uid TEXT NOT NULL,
      recipe TEXT NOT NULL, sop_class TEXT NOT NULL, file TEXT NOT NULL, size INTEGER NOT NULL,
      sha256 TEXT NOT NULL, weights TEXT NOT NULL, made_at REAL NOT NULL) WITHOUT ROWID
    """,
    "CREATE INDEX objects_output ON objects (output_key, recipe)",
    """
    CREATE TABLE sends (
      number INTEGER PRIMARY KEY, sop_uid TEXT NOT NULL, destination TEXT NOT NULL,
      state TEXT NOT NULL, attempts INTEGER NOT NULL DEFAULT 0, next_at REAL NOT NULL DEFAULT 0,
      error TEXT NOT NULL DEFAULT '', transaction_uid TEXT, changed_at REAL NOT NULL,
      UNIQUE (sop_uid, destination))
    """,
    "CREATE INDEX sends_due ON sends (destination, state, next_at)",
    "CREATE INDEX sends_transaction ON sends (transaction_uid)",
    """
    CREATE TABLE audit (
      number INTEGER PRIMARY KEY, at REAL NOT NULL, what TEXT NOT NULL, series TEXT NOT NULL,
      caller TEXT NOT NULL, weights TEXT NOT NULL, count INTEGER NOT NULL,
      object TEXT NOT NULL DEFAULT '', destination TEXT NOT NULL DEFAULT '')
    """,
)
# deaths: how often the node ended, not in order, while it worked on this, without any progress.
# deciding: 1 while it is decided on.
# sender: known, unknown, or asked, where a person is to decide without it.
_SECOND = (
    "ALTER TABLE series ADD COLUMN deaths INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE series ADD COLUMN deciding INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE series ADD COLUMN attempts INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE series ADD COLUMN next_at REAL NOT NULL DEFAULT 0",
    "ALTER TABLE series ADD COLUMN sender TEXT NOT NULL DEFAULT 'known'",
    "ALTER TABLE outputs ADD COLUMN deaths INTEGER NOT NULL DEFAULT 0",
)
# STEPS[n] makes version n + 1 of version n.
STEPS: tuple[tuple[str, ...], ...] = (_FIRST, _SECOND)
VERSION = len(STEPS)
