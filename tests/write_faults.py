"""A disk on which the k-th write, and every one after it, fails."""

import builtins
import errno
import hashlib
import io
import os
from contextlib import contextmanager
from pathlib import Path

NEVER = 10**9
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Disk:
    """Counts what writes below `folder`, and fails from call `first_fault` on.

    code: of the fault, such as ENOSPC.  Removing goes on working, as on a full disk.
    """

    def __init__(self, folder, monkeypatch, *, code=errno.ENOSPC):
        self.folder, self.code = Path(folder), code
        self.calls, self.first_fault = [], NEVER
        self._watched = False
        self._replace(monkeypatch)

    @contextmanager
    def faulty_from(self, call):
        """Faults from this call on (1 is the first), inside the block."""
        self.calls, self.first_fault, self._watched = [], call, True
        try:
            yield self
        finally:
            self._watched = False

    def count(self, what, path=None):
        """A call that writes; raises where it is to fail."""
        if not self._watched or not self._is_below(path):
            return
        self.calls.append(what)
        if len(self.calls) >= self.first_fault:
            raise OSError(self.code, os.strerror(self.code), None if path is None else str(path))

    def _is_below(self, path):
        # What has no name, a handle, was opened here or is counted all the same.
        return not isinstance(path, str | os.PathLike) or self.folder in Path(path).parents

    def _replace(self, monkeypatch):
        opened, handle = io.open, os.open

        def faulty_open(file, mode="r", *others, **more):
            is_ours = self._watched and set(mode) & set("wax+") and self._is_below(file)
            # A nameless file has an opener of its own, and is gone when it is closed.
            if not is_ours or isinstance(file, int) or more.get("opener"):
                return opened(file, mode, *others, **more)
            self.count("open", file)
            text = "b" not in mode
            raw = _Raw(self, file, mode.replace("b", "").replace("t", ""))
            buffer = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
            settings = {key: more[key] for key in ("encoding", "errors", "newline") if key in more}
            return io.TextIOWrapper(buffer, **settings) if text else buffer

        def faulty_handle(path, flags, *others, **more):
            if flags & WRITING:
                self.count("open", path)
            return handle(path, flags, *others, **more)

        monkeypatch.setattr(io, "open", faulty_open)
        monkeypatch.setattr(builtins, "open", faulty_open)
        monkeypatch.setattr(os, "open", faulty_handle)
        for name in ("fsync", "replace", "rename", "mkdir", "write"):
            self._count_calls(monkeypatch, name, 1 if name in ("replace", "rename") else 0)

    def _count_calls(self, monkeypatch, name, place):
        original = getattr(os, name)

        def counted(*given, **more):
            self.count(name, given[place])
            return original(*given, **more)

        monkeypatch.setattr(os, name, counted)


class _Raw(io.FileIO):
    """A file whose every write counts, however a library came to it."""

    def __init__(self, disk, file, mode):
        super().__init__(file, mode)
        self._disk = disk

    def write(self, data):
        self._disk.count("write", self.name)
        return super().write(data)


def contents(folder):
    """Every file and folder below, with the hash of what it holds."""
    return {
        str(item.relative_to(folder)): (
            hashlib.sha256(item.read_bytes()).hexdigest() if item.is_file() else "folder"
        )
        for item in sorted(Path(folder).rglob("*"))
    }
