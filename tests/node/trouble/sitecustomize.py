"""Trouble for the process that has this folder on its path: a clock that is off, a full disk.

Python imports a module of this name by itself. The harness of the torture writes two files into the
folder that TROUBLE names: `clock`, seconds by which the clock is put back, and `full`, which fills
the disk of the folder that NODE names while it is there.
"""

import errno
import os
import sqlite3
import time

FOLDER = os.environ.get("TROUBLE")
NODE = os.environ.get("NODE", "")
LOOK_EVERY_S = 0.1
WRITES = ("BEGIN", "INSERT", "UPDATE", "DELETE", "COMMIT", "CREATE", "ALTER")


class _Clock:
    """The system's clock, put back."""

    def __init__(self, wall):
        self._wall, self._looked_at, self._back_s = wall, -1.0, 0.0

    def __call__(self):
        now = time.monotonic()
        if now - self._looked_at > LOOK_EVERY_S:
            self._looked_at = now
            try:
                with open(f"{FOLDER}/clock") as file:
                    self._back_s = float(file.read() or 0)
            except OSError:
                self._back_s = 0.0
        return self._wall() - self._back_s


def _full():
    return os.path.exists(f"{FOLDER}/full")


def _refuse():
    if _full():
        raise OSError(errno.ENOSPC, "No space left on device")


def _on_the_disk(function, *, handles):
    """The function, failing on a full disk: for files of the node, by handle or by name."""

    def guarded(target, *rest, **options):
        place = os.readlink(f"/proc/self/fd/{target}") if handles else os.fspath(target)
        made = handles or (rest and rest[0] & os.O_CREAT and not os.path.exists(place))
        if made and str(place).startswith(NODE):
            _refuse()
        return function(target, *rest, **options)

    return guarded


class _Connection(sqlite3.Connection):
    """A database that cannot be written to while the disk is full."""

    def execute(self, sql, *rest):
        self._require_room(sql)
        return super().execute(sql, *rest)

    def executemany(self, sql, *rest):
        self._require_room(sql)
        return super().executemany(sql, *rest)

    def _require_room(self, sql):
        if sql.lstrip().startswith(WRITES) and _full():
            raise sqlite3.OperationalError("database or disk is full")


if FOLDER:
    time.time = _Clock(time.time)
    os.write = _on_the_disk(os.write, handles=True)
    os.fsync = _on_the_disk(os.fsync, handles=True)
    os.open = _on_the_disk(os.open, handles=False)
    _connect = sqlite3.connect
    sqlite3.connect = lambda path, **options: _connect(path, **{"factory": _Connection} | options)
