"""Files that appear under their name whole, in a folder that is built up over several runs."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cddnet.errors import FormatError

_PART = ".part."


@contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """A hidden name to write to, renamed to `path` once its content is on the disk."""
    part = path.with_name(_PART + path.name)
    try:
        yield part
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise


def write_whole(path: Path, content: bytes) -> None:
    """A file with this content, in place of what was there."""
    with appearing(path) as part:
        part.write_bytes(content)


@contextmanager
def resumable(folder: Path) -> Iterator[None]:
    """Work in a folder that the same command takes up again.  Raises: FormatError for OSError."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            problem = f"{folder}: the disk is full; make room"
        else:
            problem = f"{error.filename or folder}: {error.strerror or error}; mend that"
        raise FormatError(
            f"{problem} and run the same command again. What was finished is kept."
        ) from error


def remove_partial(folder: Path) -> None:
    """Remove what a killed run left under hidden names."""
    for stale in folder.glob(f"{_PART}*"):
        stale.unlink()
