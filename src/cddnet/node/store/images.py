"""Where image files lie in the node's folder, and whether there is room for more."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from cddnet.errors import CddnetError

GB = 10**9
PART = ".part-"
NAME_DIGITS = 32
INBOX, OUTBOX = "inbox", "outbox"


class NodeFull(CddnetError):
    """No room for more images. reason: full (the disk) or quota."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class Room(NamedTuple):
    """How much may be stored. quota_bytes: of all images; smallest_free_bytes: left on the disk."""

    quota_bytes: float
    smallest_free_bytes: float


def free_bytes(folder: Path) -> int:
    """Free on the disk of a folder."""
    return shutil.disk_usage(folder).free


def hidden(uid: str) -> str:
    """A file name for a UID: whatever the UID holds, only hexadecimal digits."""
    return hashlib.sha256(uid.encode()).hexdigest()[:NAME_DIGITS]


class Images:
    """Files of originals and results; readable by the node's user alone.

    Paths given and returned are relative to the folder, so that it may be moved.
    """

    def __init__(
        self, folder: Path, room: Room, free: Callable[[Path], float] = free_bytes
    ) -> None:
        self.folder, self._room, self._free = folder, room, free
        self._lock, self._names = threading.Lock(), threading.Lock()
        self._used = 0
        self._promised = 0

    def prepare(self, known: Iterable[tuple[str, int]]) -> int:
        """Make the folders, and remove what a crash left; `known`: (file, bytes) of the journal.

        Returns how many files were removed.
        """
        sizes = dict(known)
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.folder.chmod(0o700)
        removed = 0
        for box in (INBOX, OUTBOX):
            self._make(self.folder / box)
            for file in _files(self.folder / box):
                if str(file.relative_to(self.folder)) not in sizes:
                    file.unlink()
                    removed += 1
        with self._lock:
            self._used = sum(sizes.values())
        return removed

    def path(self, file: str) -> Path:
        """Where a file of the journal lies."""
        return self.folder / file

    def inbox(self, series_uid: str, sop_uid: str) -> str:
        """Name of an original."""
        return f"{INBOX}/{hidden(series_uid)}/{hidden(sop_uid)}.dcm"

    def outbox(self, output_key: str, derived_uid: str) -> str:
        """Name of a result."""
        return f"{OUTBOX}/{hidden(output_key)}/{hidden(derived_uid)}.dcm"

    def require_room(self, size: int = 0) -> None:
        """Raises NodeFull where `size` more bytes would not fit."""
        free = self._free(self.folder)
        with self._lock:
            used, promised = self._used, self._promised
        if free - promised - size < self._room.smallest_free_bytes:
            raise NodeFull(
                f"{free / GB:.1f} GB are free on the disk, "
                f"{self._room.smallest_free_bytes / GB:g} GB must stay free; make room.",
                "full",
            )
        if used + promised + size > self._room.quota_bytes:
            raise NodeFull(
                f"{used / GB:.1f} GB of images fill the quota of "
                f"{self._room.quota_bytes / GB:g} GB; raise it, or wait until results are sent.",
                "quota",
            )

    def crowded(self) -> bool:
        """Whether less than a tenth of the quota, or hardly any disk, is left."""
        with self._lock:
            full = self._used > 0.9 * self._room.quota_bytes
        return full or self._free(self.folder) < 1.1 * self._room.smallest_free_bytes

    def store(self, file: str, parts: Iterable[bytes | memoryview], size: int) -> None:
        """Write a file so that it is on the disk, name and content, when this returns.

        Raises NodeFull where it does not fit, OSError where writing fails; then nothing is left.
        """
        self.require_room(size)
        with self._lock:
            self._promised += size
        target = self.path(file)
        part = target.with_name(f"{PART}{secrets.token_hex(8)}.dcm")
        try:
            with self._names:
                self._make(target.parent)
                handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "wb", buffering=0) as stream:
                for data in parts:
                    _write(stream.fileno(), data)
                # Renamed first: one flush then covers the content and, on most disks, the name.
                os.replace(part, target)
                os.fsync(stream.fileno())
            flush_folder(target.parent)
        except BaseException:
            part.unlink(missing_ok=True)
            target.unlink(missing_ok=True)
            raise
        finally:
            with self._lock:
                self._promised -= size
        self.counted(size)

    def draft(self, file: str) -> Path:
        """A name beside a file, on the same disk, to write it to before it is adopted."""
        target = self.path(file)
        self._make(target.parent)
        return target.with_name(f"{PART}{secrets.token_hex(8)}.dcm")

    def counted(self, size: int) -> None:
        """Count bytes that were added, or (negative) removed."""
        with self._lock:
            self._used += size

    def used_bytes(self) -> int:
        """Of all images."""
        with self._lock:
            return self._used

    def remove(self, file: str, size: int) -> None:
        """Delete a file, and its folder once it is empty."""
        path = self.path(file)
        path.unlink(missing_ok=True)
        self.counted(-size)
        # Not between the making of a folder and of the first file in it.
        with self._names, suppress(OSError):
            path.parent.rmdir()

    def _make(self, folder: Path) -> None:
        if not folder.is_dir():
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            flush_folder(folder.parent)


def flush_folder(folder: Path) -> None:
    """Names in a folder onto the disk."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as stream:
        digest = hashlib.sha256()
        while data := stream.read(1 << 20):
            digest.update(data)
    return digest.hexdigest()


def _write(handle: int, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(handle, view) :]


def _files(folder: Path) -> Iterator[Path]:
    for parent, _, names in os.walk(folder, topdown=False):
        yield from (Path(parent, name) for name in names)
