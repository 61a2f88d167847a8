"""Uploads for people without a PACS: a DICOM file or a zip of them in, a zip of the result out.

No name out of an archive is ever used: entries are numbered, unpacked one at a time into a folder
of their own, handed to the node as if they had been sent, and removed.
"""

from __future__ import annotations

import asyncio
import errno
import lzma
import shutil
import struct
import tempfile
import zipfile
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from pydantic import BaseModel

from cddnet.errors import CddnetError
from cddnet.node.web.pairs import plain

_CHUNK_BYTES = 1 << 20
_ZIP = b"PK\x03\x04"
_END = struct.Struct("<4s4H2LH")
_END_MARK, _ZIP64_MARK, _LOCATOR_BYTES = b"PK\x05\x06", b"PK\x06\x07", 20
_LONGEST_COMMENT = 0xFFFF
_ENCRYPTED = 1
_DAMAGE = "the zip is damaged or of an unknown kind; pack it again."
_DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    NotImplementedError,
    OverflowError,
    ValueError,
)
_MOST_REASONS = 8
_REASONS = {408: "no_answer", 413: "too_large", 503: "busy", 507: "full"}
_REASON_LETTERS = 300
# Earliest date that the zip format knows; the real one would say when a patient was examined.
_NO_DATE = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds of an upload. ratio: unpacked bytes per packed byte of an entry above `ratio_from`.

    idle_s: longest wait for the next piece of a body.  at_once: uploads at the same time.
    """

    body_bytes: int = 4 * 2**30
    entry_bytes: int = 2**30
    total_bytes: int = 16 * 2**30
    smallest_free_bytes: int = 2 * 10**9
    entries: int = 20_000
    directory_bytes: int = 16 * 2**20
    ratio: int = 200
    ratio_from: int = 4 * 2**20
    idle_s: float = 60.0
    at_once: int = 4


class UploadRefused(CddnetError):
    """An upload that is not taken. status: of HTTP, that says so; reason: for log and count."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status
        self.reason = _REASONS.get(status, "zip")


class UploadResult(BaseModel):
    """series: keys of the series that the files belong to.  refused: reason -> files."""

    series: list[str]
    taken: int
    refused: dict[str, int]


@contextmanager
def upload_folder(node_folder: Path) -> Iterator[Path]:
    """A folder for one upload, readable by the node's user alone, removed at the end."""
    home = node_folder / "uploads"
    home.mkdir(mode=0o700, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home, ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def clear_uploads(node_folder: Path) -> None:
    """Remove what a crash left."""
    shutil.rmtree(node_folder / "uploads", ignore_errors=True)


async def save_body(body: AsyncIterator[bytes], target: Path, limits: Limits) -> None:
    """Write a request's body to a file, piece by piece.  Raises: UploadRefused."""
    size = 0
    with target.open("xb") as file:
        while True:
            try:
                piece = await asyncio.wait_for(anext(body), limits.idle_s)
            except StopAsyncIteration:
                break
            except asyncio.TimeoutError as error:
                raise UploadRefused("the upload stood still; send it again.", 408) from error
            size += len(piece)
            if size > limits.body_bytes:
                raise UploadRefused(_too_large(limits.body_bytes), 413)
            _require_room(target, limits)
            await asyncio.to_thread(file.write, piece)
    if size == 0:
        raise UploadRefused("the upload is empty; choose a DICOM file or a zip of them.")


def _too_large(most_bytes: int) -> str:
    return f"an upload may have {most_bytes / 2**20:.0f} MiB; send it in parts."


def _require_room(near: Path, limits: Limits) -> None:
    if shutil.disk_usage(near.parent).free < limits.smallest_free_bytes:
        raise UploadRefused("the node's disk is full; nothing was lost, try again later.", 507)


def take_upload(file: Path, take: Callable[[Path], str], limits: Limits) -> UploadResult:
    """Hand a file, or each entry of a zip, to the node.  Raises: UploadRefused."""
    with file.open("rb") as head:
        is_zip = head.read(4) in (_ZIP, _END_MARK)
    series: dict[str, None] = {}
    refused: Counter[str] = Counter()
    taken = 0
    for item in _unpacked(file, limits) if is_zip else (file,):
        try:
            series[take(item)] = None
            taken += 1
        except CddnetError as error:
            reason = plain(str(error))[:_REASON_LETTERS]
            refused[reason if len(refused) < _MOST_REASONS else "other reasons"] += 1
    return UploadResult(series=list(series), taken=taken, refused=dict(refused))


def _unpacked(file: Path, limits: Limits) -> Iterator[Path]:
    """Each entry as a file that is there until the next one."""
    _check_directory(file, limits)
    try:
        with zipfile.ZipFile(file) as archive:
            entries = [e for e in archive.infolist() if not e.filename.endswith("/")]
            if len(entries) > limits.entries:
                raise UploadRefused(f"a zip may hold {limits.entries} files; send it in parts.")
            left = limits.total_bytes
            for entry in entries:
                target = file.with_name("entry")
                left -= _unpack(archive, entry, target, limits)
                if left < 0:
                    raise UploadRefused(_bomb(limits.total_bytes), 413)
                yield target
                target.unlink()
    except _DAMAGED as error:
        raise UploadRefused(_DAMAGE) from error
    except OSError as error:
        # Places before the start of the file; a full disk is another matter.
        if error.errno != errno.EINVAL:
            raise
        raise UploadRefused(_DAMAGE) from error


def _check_directory(file: Path, limits: Limits) -> None:
    """Refuse an archive whose directory alone would fill the memory, before it is read."""
    size = file.stat().st_size
    longest = _END.size + _LONGEST_COMMENT + _LOCATOR_BYTES
    with file.open("rb") as stream:
        stream.seek(max(0, size - longest))
        tail = stream.read()
    if _ZIP64_MARK in tail:
        raise UploadRefused("the zip is of the kind zip64; send it in smaller parts.")
    at = tail.rfind(_END_MARK)
    if at < 0 or len(tail) - at < _END.size:
        raise UploadRefused("the zip has no end; it is incomplete, send it again.")
    _, _, _, _, entries, directory_bytes, _, _ = _END.unpack_from(tail, at)
    if entries > limits.entries or directory_bytes > limits.directory_bytes:
        raise UploadRefused(f"a zip may hold {limits.entries} files; send it in parts.", 413)


def _unpack(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, target: Path, limits: Limits) -> int:
    """Unpack an entry; what counts is what comes out, not what its header says."""
    if entry.flag_bits & _ENCRYPTED:
        raise UploadRefused("the zip is encrypted; send it without a password.")
    most = limits.entry_bytes
    if entry.compress_size * limits.ratio < most:
        most = max(limits.ratio_from, entry.compress_size * limits.ratio)
    size = 0
    _require_room(target, limits)
    with archive.open(entry) as source, target.open("wb") as out:
        while piece := source.read(_CHUNK_BYTES):
            size += len(piece)
            if size > most:
                raise UploadRefused(_bomb(most), 413)
            out.write(piece)
    return size


def _bomb(most_bytes: int) -> str:
    return (
        f"the zip unpacks to more than {most_bytes / 2**20:.0f} MiB, more than CT images would; "
        "send the DICOM files."
    )


class _Pieces:
    """A file that cannot seek and only remembers what was written since it was asked."""

    def __init__(self) -> None:
        self._held = bytearray()

    def write(self, data: bytes) -> int:
        self._held += data
        return len(data)

    def flush(self) -> None:
        """Nothing waits."""

    def take(self) -> bytes:
        taken = bytes(self._held)
        self._held.clear()
        return taken


def zipped(files: list[Path]) -> Iterator[bytes]:
    """A zip of files as 0001.dcm, 0002.dcm, ..., piece by piece; one is in memory at a time."""
    sink = _Pieces()
    with zipfile.ZipFile(cast(IO[bytes], sink), "w") as archive:
        for number, file in enumerate(files, 1):
            entry = zipfile.ZipInfo(f"{number:04}.dcm", _NO_DATE)
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, file.read_bytes(), compresslevel=1)
            yield sink.take()
    yield sink.take()
