"""New files and folders that appear under their name whole, or not at all."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from cddnet.errors import FormatError

FULL = (errno.ENOSPC, errno.EDQUOT)
# What disks answer that cannot flush a folder.
UNFLUSHABLE = (errno.EINVAL, errno.ENOTSUP, errno.EBADF)


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to: renamed to `path` at the end, removed on any failure.

    Raises FormatError where `path` exists, or for any OSError inside (disk full, no permission).
    """
    with new_files(path) as (temporary,):
        yield temporary


@contextmanager
def new_files(*paths: Path) -> Iterator[tuple[Path, ...]]:
    """Like `new_file` for files that belong together; the last one given appears last."""
    with _appearing(paths) as temporaries:
        yield temporaries


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Like `new_file` for a folder, which exists and is empty at the start.

    An empty folder of that name may be there already: it is filled, or stays empty on a failure.
    A writer of many files gives each to `flush` when it is whole, so that the disk works while the
    next ones are computed, and little is left for the end.
    """
    empty = _is_empty_folder(path)
    path = path.resolve() if empty else path
    with _appearing((path,), fills=empty) as (temporary,):
        temporary.mkdir()
        yield temporary
        if empty:
            shutil.copymode(path, temporary)


@contextmanager
def _appearing(paths: Sequence[Path], *, fills: bool = False) -> Iterator[tuple[Path, ...]]:
    """fills: the one path is an empty folder that is there already."""
    _refuse_existing(paths, fills)
    made_parents = [parent for parent in {path.parent for path in paths} if _make(parent)]
    token = secrets.token_hex(4)
    temporaries = tuple(path.with_name(f".{token}.part.{path.name}") for path in paths)
    renamed: list[Path] = []
    try:
        yield temporaries
        for temporary in temporaries:
            _flush_all(temporary)
        _refuse_existing(paths, fills)
        for temporary, path in zip(temporaries, paths, strict=True):
            if fills and os.name == "nt":
                path.rmdir()
            os.replace(temporary, path)
            renamed.append(path)
        for parent in {path.parent for path in paths} | {made.parent for made in made_parents}:
            _flush_folder(parent)
    except BaseException as error:
        left = [item for item in (*temporaries, *renamed) if not _removed(item)]
        if fills:
            paths[0].mkdir(exist_ok=True)
        for parent in made_parents:
            with suppress(OSError):
                parent.rmdir()
        if isinstance(error, OSError):
            raise _explained(paths[-1], error, left) from error
        raise


def _is_empty_folder(path: Path) -> bool:
    """Whether a folder can be put in the place of this one and nobody loses anything by it."""
    if not path.is_dir() or os.path.ismount(path) or path.samefile(Path.cwd()):
        return False
    return next(path.iterdir(), None) is None


def _refuse_existing(paths: Sequence[Path], fills: bool) -> None:
    for path in paths:
        if os.path.lexists(path) and not (fills and _is_empty_folder(path)):
            raise FormatError(
                f"{path}: exists already, and nothing is overwritten; choose another name."
            )


def _make(parent: Path) -> bool:
    """Make the last missing folder of a path, never a whole branch of them: that is a typo."""
    if parent.is_dir():
        return False
    if not parent.parent.is_dir():
        raise FormatError(f"{parent}: no such folder; check the name or make the folder first.")
    try:
        parent.mkdir(exist_ok=True)
    except OSError as error:
        raise _explained(parent, error, []) from error
    return True


def flush(file: Path) -> None:
    """Wait until a file's content is on the disk."""
    with file.open("rb+") as handle:
        os.fsync(handle.fileno())


def _flush_all(path: Path) -> None:
    """Onto the disk before the rename: a power cut must not leave an empty file under its name."""
    if not path.is_dir():
        flush(path)
        return
    for item in path.rglob("*"):
        if item.is_dir():
            _flush_folder(item)
        elif item.is_file():
            flush(item)
    _flush_folder(path)


def _flush_folder(folder: Path) -> None:
    """Names onto the disk; Windows, which cannot open a folder, sees to it itself."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in UNFLUSHABLE:
            raise
    finally:
        os.close(descriptor)


def _removed(path: Path) -> bool:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)
    return not os.path.lexists(path)


def _original(error: OSError) -> OSError:
    """The system's own error: pydicom raises it again with a traceback for a message."""
    cause = error.__cause__ or error.__context__
    return _original(cause) if error.errno is None and isinstance(cause, OSError) else error


def _explained(path: Path, wrapped: OSError, left: list[Path]) -> FormatError:
    error = _original(wrapped)
    remains = (
        "remove by hand what is left: " + ", ".join(map(str, left))
        if left
        else "what had been written was removed"
    )
    if error.errno in FULL:
        return FormatError(
            f"{path}: the disk is full; {remains}. Make room or choose another disk, and run again."
        )
    if isinstance(error, PermissionError):
        return FormatError(
            f"{path}: writing is not permitted ({error.strerror}); {remains}. "
            "Choose a folder of yours."
        )
    return FormatError(
        f"{path}: writing stopped ({error.strerror or error}); {remains}. Run again, or choose "
        "another disk."
    )
