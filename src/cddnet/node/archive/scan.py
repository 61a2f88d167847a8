"""Finding the DICOM series of folders, a folder at a time, so that any number fits in memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from cddnet.errors import CddnetError, DicomError
from cddnet.files import read_text, walk
from cddnet.formats import head_of
from cddnet.formats.dicom import list_series, recognises
from cddnet.node.archive.manifest import Manifest


def roots_of(source: Path) -> tuple[Path, ...]:
    """The folder itself, or those that a text file lists, one to a line, relative to the file.

    Empty lines and lines that start with # do not count. Raises CddnetError for a missing folder.
    """
    if source.is_dir():
        return (source.resolve(),)
    if not source.is_file():
        raise CddnetError(f"{source}: no such file or folder; check the name.")
    try:
        lines = read_text(source).splitlines()
    except UnicodeDecodeError:
        raise CddnetError(
            f"{source}: is no text in UTF-8 or UTF-16; give a folder, or a text file with a folder "
            "on each line, saved as UTF-8."
        ) from None
    roots: list[Path] = []
    for number, line in enumerate(lines, 1):
        name = line.strip()
        if not name or name.startswith("#"):
            continue
        root = (source.parent / name).resolve()
        if not root.is_dir():
            raise CddnetError(f"{source}, line {number}: there is no such folder; correct it.")
        roots.append(root)
    if not roots:
        raise CddnetError(f"{source}: lists no folder; write one to a line.")
    return tuple(roots)


def scan(
    root: Path, manifest: Manifest, *, leave_out: Path, told: Callable[[int], None]
) -> tuple[int, int]:
    """Enter the series of a tree; folders unchanged since they were last looked through are not
    read again.  leave_out: a folder in it to skip.  told: called with the folders seen so far.

    Returns: (folders, files that cannot be read).
    """
    folders = unreadable = 0
    for folder in walk(root, leave_out=(leave_out,)):
        folders += 1
        told(folders)
        # Of before its files are read: what is added meanwhile is found the next time.
        changed_ns = folder.changed_ns
        if manifest.scanned(folder.path) == changed_ns:
            continue
        groups: dict[str, list[str]] = {}
        for file in folder.files:
            try:
                series_uid = _series_uid(file)
            except (CddnetError, OSError):
                unreadable += 1
                # Looked at again the next time.
                changed_ns = 0
                continue
            if series_uid is not None:
                groups.setdefault(series_uid, []).append(file.name)
        manifest.add_folder(folder.path, changed_ns, groups.items())
    return folders, unreadable


def _series_uid(file: Path) -> str | None:
    head = head_of(file)
    if not recognises(head) or file.name.upper() == "DICOMDIR":
        return None
    try:
        return list_series(file)[0].uid
    except DicomError:
        if head[128:132] == b"DICM":
            raise
        return None
