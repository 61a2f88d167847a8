"""Looking through folders, and reading text that people saved: one way for every command."""

from __future__ import annotations

import codecs
import os
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from cddnet.errors import FormatError

Identity = tuple[int, int] | str

# The longer marks first: that of UTF-16 begins that of UTF-32.
MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
    (codecs.BOM_UTF8, "utf-8-sig"),
)


class Folder(NamedTuple):
    """A folder of a tree."""

    path: Path
    files: tuple[Path, ...]  # by name
    changed_ns: int  # time of its last change, as it was before its files were listed


def walk(
    root: Path, *, skip_hidden: bool = False, leave_out: Iterable[Path] = ()
) -> Iterator[Folder]:
    """Each folder of a tree, in the order of their names.

    Links to folders are followed, after the folders that lie in the tree themselves. Each folder
    comes once, so a circle of links ends. Pipes and devices are left aside. A link that leads
    nowhere counts as a file, so that whoever opens it learns what is missing.

    skip_hidden: leave aside names that start with a dot.  leave_out: folders not to enter.
    Raises: FormatError for a folder that cannot be listed, and names it.
    """
    entered = {_identity_of(folder) for folder in leave_out}
    own, links = [root], deque[Path]()
    while own or links:
        folder = own.pop() if own else links.popleft()
        try:
            status = folder.stat()
        except OSError as error:
            raise _unreadable(folder, error) from error
        identity = _identity(folder, status)
        if identity in entered:
            continue
        entered.add(identity)
        files: list[Path] = []
        below: list[Path] = []
        for entry in _entries(folder):
            path = folder / entry.name
            if skip_hidden and entry.name.startswith("."):
                continue
            if _is_folder(entry):
                (links if entry.is_symlink() else below).append(path)
            elif _is_file(entry):
                files.append(path)
        yield Folder(folder, tuple(files), status.st_mtime_ns)
        own.extend(reversed(below))


def walk_files(root: Path) -> Iterator[Path]:
    """Each file of a tree once, however many links lead to it.  Raises as `walk`."""
    return distinct(file for folder in walk(root) for file in folder.files)


def distinct(files: Iterable[Path]) -> Iterator[Path]:
    """The files without those that are another of them under a second name."""
    seen: set[Identity] = set()
    for file in files:
        identity = _identity_of(file)
        if identity not in seen:
            seen.add(identity)
            yield file


def _identity_of(path: Path) -> Identity:
    """What all names of one file or folder have in common."""
    try:
        return _identity(path, path.stat())
    except OSError:
        return str(path)


def list_folder(folder: Path) -> list[Path]:
    """What lies in a folder itself, by name.  Raises: FormatError where it cannot be listed."""
    return [folder / entry.name for entry in _entries(folder)]


def read_text(path: Path) -> str:
    """Text that a person saved: UTF-8, or what its byte order mark says.

    Windows writes the mark, and UTF-16 where a command's output goes to a file.
    Raises: UnicodeDecodeError for anything else, OSError.
    """
    content = path.read_bytes()
    coding = next((name for mark, name in MARKS if content.startswith(mark)), "utf-8")
    if content[:2].count(0) == 1:
        coding = "utf-16-be" if content[0] == 0 else "utf-16-le"
    # A converter turns a mark that it does not know into another one.
    return content.decode(coding).removeprefix("\ufeff")


def lost_link(path: Path) -> FormatError:
    """The error for a link that leads nowhere."""
    return FormatError(
        f"{path}: is a link to a file that is not there; bring that file back, or take the link "
        "out."
    )


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise _unreadable(folder, error) from error


def _unreadable(folder: Path, error: OSError) -> FormatError:
    return FormatError(
        f"{folder}: the folder cannot be read ({error.strerror}), and what lies in it would be "
        "missing; change its permissions, or take it out."
    )


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        if entry.is_file():
            return True
        lost = not os.path.exists(entry)
    except OSError:
        lost = True
    # Editors lock a file by a hidden link that leads nowhere.
    return lost and not entry.name.startswith(".")


def _identity(path: Path, status: os.stat_result) -> Identity:
    # Some drives number nothing.
    return (status.st_dev, status.st_ino) if status.st_ino else os.path.realpath(path)
