"""Where image files lie in the node's folder, and whether there is room for more."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import NamedTuple

from cddnet.errors import CddnetError

GB = 10**9
PART = ".part-"
NAME_DIGITS = 32
INBOX, OUTBOX, ASIDE = "inbox", "outbox", "aside"
# Beside the originals of a series: what was decided on it.
DECISION = "decision.json"


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


class Contents(NamedTuple):
    """What lies in the folder of a node, beside what its journal knows."""

    unfinished: int  # files that a crash left half written; they are removed
    missing: int  # files of the journal that are not there
    unknown: tuple[str, ...]  # files that the journal does not know


def decision_file(series_uid: str) -> str:
    """Name of the file that says what was decided on a series."""
    return f"{INBOX}/{hidden(series_uid)}/{DECISION}"


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
        self._aside = self._aside_bytes = 0
        self._journal: tuple[Path, ...] = ()
        # One folder for all that one run sets aside, and no other run's.
        self._moment = datetime.now(timezone.utc).strftime("%Y%m%d-%H%M%S-%f")

    def prepare(self, known: Iterable[tuple[str, int]], journal: Iterable[Path] = ()) -> Contents:
        """Make the folders and look through them; nothing goes but what a crash left half written.

        known: (file, bytes) of the journal.  journal: its own files, which count as used.
        """
        sizes = dict(known)
        self._journal = tuple(journal)
        unfinished, unknown, there = 0, [], 0
        for box in (INBOX, OUTBOX):
            self._make(self.folder / box)
            for path in _files(self.folder / box):
                file = str(path.relative_to(self.folder))
                if file in sizes:
                    there += 1
                elif _is_unfinished(path.name):
                    path.unlink()
                    unfinished += 1
                elif path.name != DECISION:
                    unknown.append(file)
        aside = list(_files(self.folder / ASIDE))
        with self._lock:
            self._used = sum(sizes.values())
            self._aside = len(aside)
            self._aside_bytes = sum(path.lstat().st_size for path in aside)
        return Contents(unfinished, len(sizes) - there, tuple(sorted(unknown)))

    def set_aside(self, file: str) -> None:
        """Move a file of the folder to where the node leaves it alone."""
        source = self.path(file)
        size = source.lstat().st_size
        target = self.folder / ASIDE / self._moment / file
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.replace(source, target)
        flush_folder(target.parent)
        with self._names, suppress(OSError):
            source.parent.rmdir()
        with self._lock:
            self._aside += 1
            self._aside_bytes += size

    def aside(self) -> int:
        """How many files are set aside."""
        with self._lock:
            return self._aside

    def note(self, file: str, content: bytes) -> None:
        """Write a small file beside the images, whole or not at all, in place of an earlier one."""
        target = self.path(file)
        part = target.with_name(f"{PART}{secrets.token_hex(8)}")
        with self._names:
            self._make(target.parent)
            handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(handle, "wb", buffering=0) as stream:
                _write(stream.fileno(), content)
                os.fsync(stream.fileno())
            os.replace(part, target)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        flush_folder(target.parent)

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
        free, used = self._free(self.folder), self.used_bytes()
        with self._lock:
            promised = self._promised
        if free - promised - size < self._room.smallest_free_bytes:
            raise NodeFull(
                f"{free / GB:.1f} GB are free on the disk, "
                f"{self._room.smallest_free_bytes / GB:g} GB must stay free; make room.",
                "full",
            )
        if used + promised + size > self._room.quota_bytes:
            raise NodeFull(
                f"{used / GB:.1f} GB of images and journal fill the quota of "
                f"{self._room.quota_bytes / GB:g} GB; raise it, or wait until results are sent.",
                "quota",
            )

    def crowded(self) -> bool:
        """Whether less than a tenth of the quota, or hardly any disk, is left."""
        full = self.used_bytes() > 0.9 * self._room.quota_bytes
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
        """Of all that counts towards the quota: images, what is set aside, and the journal."""
        journal = sum(_size(file) for file in self._journal)
        with self._lock:
            return self._used + self._aside_bytes + journal

    def image_bytes(self) -> int:
        """Of the images alone."""
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


def _is_unfinished(name: str) -> bool:
    """Whether a name is one that only files have while the node writes them."""
    return name.startswith(".") and ".part" in name


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0


def _files(folder: Path) -> Iterator[Path]:
    for parent, _, names in os.walk(folder, topdown=False):
        yield from (Path(parent, name) for name in names)
