"""Whose a folder is: a marker file says that it is a node's; of any other nothing is touched."""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cddnet.errors import CddnetError
from cddnet.node.store.images import ASIDE, INBOX, OUTBOX, flush_folder
from cddnet.node.store.secret import FILE as SECRET

MARKER = "cddnet-node.txt"
JOURNAL = "journal.sqlite"
WAL = f"{JOURNAL}-wal"
JOURNAL_FILES = (JOURNAL, WAL, f"{JOURNAL}-shm")
LOCK = "lock"
UPLOADS = "uploads"
OWN = frozenset({MARKER, LOCK, SECRET, INBOX, OUTBOX, ASIDE, UPLOADS, *JOURNAL_FILES})
# What file systems put at the root of a disk.
_OF_THE_DISK = "lost+found"
_A_TABLE, _TABLES_WITHIN_BYTES = b"CREATE TABLE instances", 1 << 20
_OPEN = b"open"
_TEXT = """\
This folder belongs to a cddnet node. It holds images of patients, and the journal of what becomes
of them. Put nothing into it and take nothing out of it.
"""


def require_own(folder: Path, named: Iterable[Path]) -> None:
    """Refuse a folder that is neither a node's nor new.

    named: files of the configuration, which may lie in it too.  Raises: CddnetError.
    """
    if not os.path.lexists(folder) or (folder / MARKER).is_file() or _is_journal(folder / JOURNAL):
        return
    if not folder.is_dir():
        raise CddnetError(f"{folder}: is no folder; choose another for `folder`.")
    there = set(os.listdir(folder))
    known = {path.relative_to(folder).parts[0] for path in named if folder in path.parents}
    others = {name for name in there - OWN - known if name[0] != "." and name != _OF_THE_DISK}
    # Without its key, what is called inbox may be anybody's.
    if others or (there & {INBOX, OUTBOX} and SECRET not in there):
        raise CddnetError(
            f"{folder}: holds other things and is not the folder of a node; choose a new or empty "
            "one for `folder`."
        )


@contextmanager
def taking_up(folder: Path) -> Iterator[None]:
    """What a full disk or missing rights raise while a folder is opened, as words for people."""
    try:
        yield
    except (OSError, sqlite3.OperationalError) as error:
        raise CddnetError(
            f"{folder}: cannot be taken up ({error}); make room on the disk, or see that this user "
            "may write there, and start again."
        ) from error


def mark(folder: Path) -> None:
    """Say in the folder that it is a node's."""
    if (folder / MARKER).is_file():
        return
    draft = folder / f".{MARKER}"
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "w", encoding="ascii") as stream:
        stream.write(_TEXT)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(draft, folder / MARKER)
    flush_folder(folder)


def _is_journal(file: Path) -> bool:
    """Whether it, or the write-ahead log beside it, begins as journals do."""
    for part in (file, file.with_name(WAL)):
        try:
            with part.open("rb") as stream:
                if _A_TABLE in stream.read(_TABLES_WITHIN_BYTES):
                    return True
        except OSError:
            continue
    return False


class Lock:
    """Keeps other nodes out of a folder, until the process ends in whatever way.

    Its file also says whether the journal was open, so that the next start knows of a run that did
    not end in order.
    """

    def __init__(self, folder: Path) -> None:
        """Raises: CddnetError where another node has it."""
        self._handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._handle)
            raise CddnetError(
                f"{folder}: another node works with this folder; stop it, or choose another folder."
            ) from None
        self.was_open = os.pread(self._handle, len(_OPEN), 0) == _OPEN

    def journal_opened(self) -> None:
        """Note that the journal is open, and has its write-ahead log."""
        os.pwrite(self._handle, _OPEN, 0)
        os.fsync(self._handle)

    def journal_closes(self) -> None:
        """Note that the journal is closed in order."""
        os.ftruncate(self._handle, 0)

    def drop(self) -> None:
        """Let another node have the folder."""
        os.close(self._handle)
