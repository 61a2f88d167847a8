"""A page to test: the demo series before and after in a node's folder, and a journal in memory."""

import shutil
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

import cddnet
from cddnet.errors import DicomError
from cddnet.formats import read_volume, write_volume
from cddnet.node.store.records import OutputRow, SeriesRow, Version
from cddnet.node.web.views import NodeSources
from cddnet.volume import Derivation

DEMO = Path(cddnet.__file__).parent / "data" / "demo" / "series"
KEY = "a1b2c3d4e5f60718"
OUTPUT = f"{KEY}-0"
VERSION = f"{OUTPUT}-0badcafe"
GONE = "d" * 16
TOKEN = "a-token-of-enough-letters"
UID_ERROR = "cannot read /srv/node/JANE^DOE/1.dcm of series 1.2.840.113619.2.55; export it again."


def smoothed(hu):
    """Whole HU, and another mean and SD than the source."""
    return np.rint((hu + np.roll(hu, 1, axis=0)) / 2 + 3).astype(np.float32)


def write_after(folder, keep=slice(None), label="smooth", shift_hu=0):
    """A derived series of the demo's; `keep` leaves files out."""
    volume = read_volume(DEMO)
    step = Derivation(label=label, description="smoothed", parameters=(), version="0")
    after = volume.derived(lambda index: smoothed(volume.read_slice(index)) + shift_hu, step)
    write_volume(after, folder)
    kept = set(sorted(folder.iterdir())[keep])
    for file in folder.iterdir():
        if file not in kept:
            file.unlink()


def node_folder(folder):
    """Originals in inbox/a, results in outbox/a, in the same order."""
    shutil.copytree(DEMO, folder / "inbox" / "a")
    (folder / "outbox").mkdir()
    write_after(folder / "outbox" / "a")
    return folder


class MemoryJournal:
    def __init__(self, folder):
        self.folder = folder
        self.retried = []
        now = time.time()
        made = OutputRow(
            key=OUTPUT, label="smooth 50%", state="done", error="", attempts=1,
            destinations={"archive": (0, 12, 0)}, versions={VERSION: 12},
        )  # fmt: skip
        failed = OutputRow(
            key="b" * 16 + "-0", label="smooth 50%", state="failed", error=UID_ERROR, attempts=7,
            destinations={},
        )  # fmt: skip
        sent = OutputRow(
            key=f"{GONE}-1", label="smooth 50%", state="done", error="", attempts=1,
            destinations={"archive": (0, 0, 0)},
        )  # fmt: skip
        self.rows = [
            _row(KEY, "done", (made,), last_at=now - 100),
            _row("b" * 16, "failed", (failed,), last_at=now - 50),
            _row("c" * 16, "receiving", (), last_at=now),
            replace(_row(GONE, "done", (sent,), last_at=now - 9e5), removed=True),
        ]

    def queue(self):
        return self.rows

    def retry(self, key):
        self.retried.append(key)
        return key == "b" * 16

    def versions(self, output_key):
        if output_key != OUTPUT:
            return []
        return [Version(VERSION, *(tuple(self._names(box)) for box in ("inbox", "outbox")))]

    def _names(self, box):
        return [f"{box}/a/{file.name}" for file in sorted((self.folder / box / "a").iterdir())]


def _row(key, state, outputs, last_at):
    return SeriesRow(
        key=key, state=state, rule="abdomen", received=12, expected=12, done=6, total=12,
        outputs=outputs, first_at=last_at - 10, last_at=last_at, error="",
    )  # fmt: skip


class Taker:
    """Takes what begins as DICOM files do, and remembers its bytes and name."""

    def __init__(self):
        self.taken = []

    def __call__(self, file):
        content = file.read_bytes()
        if content[128:132] != b"DICM":
            raise DicomError(f"{file}: not DICOM; send CT images.")
        self.taken.append((file, content))
        return KEY


def node_sources(folder, take=None):
    return NodeSources(MemoryJournal(folder), folder, take or Taker())


@contextmanager
def served(page, proxies=()):
    """The address of a page that is really listening."""
    from cddnet.node.web.serving import listen, server

    sock = listen("127.0.0.1", 0)
    running = server(page, proxies)
    thread = threading.Thread(target=running.run, kwargs={"sockets": [sock]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{sock.getsockname()[1]}"
    finally:
        running.should_exit = True
        thread.join(20)
        sock.close()
