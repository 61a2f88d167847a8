"""What every part of the node shares: configuration, journal, images, log and figures."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TextIO

from cddnet.errors import CddnetError
from cddnet.node.settings.config import NodeConfig
from cddnet.node.store.deliveries import Deliveries
from cddnet.node.store.images import GB, Images, Room, free_bytes
from cddnet.node.store.journal import MOST_DEATHS, Journal
from cddnet.node.store.secret import Pseudonyms
from cddnet.node.watch.log import NodeLog
from cddnet.node.watch.metrics import NodeMetrics

JOURNAL = "journal.sqlite"
LOCK = "lock"


class Surroundings(NamedTuple):
    """What a test replaces. clock: seconds since 1970; free: folder -> bytes free on its disk;
    stream: for the log in place of the configured one.
    """

    clock: Callable[[], float] = time.time
    free: Callable[[Path], float] = free_bytes
    stream: TextIO | None = None


class Station:
    """An opened node folder, as a crash or an orderly stop left it, taken up again."""

    def __init__(self, config: NodeConfig, surroundings: Surroundings | None = None) -> None:
        """Raises CddnetError where another node uses the folder, or its journal is damaged."""
        around = surroundings or Surroundings()
        folder = config.folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
        self._lock = _alone(folder)
        self.config = config
        names = Pseudonyms(folder)
        self.log = NodeLog(names, config, around.stream)
        self.journal = Journal(folder / JOURNAL, name=names.of, clock=around.clock)
        self.deliveries = Deliveries(self.journal.database, names.of)
        room = Room(config.quota_gb * GB, config.smallest_free_gb * GB)
        self.images = Images(folder, room, around.free)
        self.metrics = NodeMetrics(self.journal, config, self.images.used_bytes)
        recovered = self.journal.recover()
        left = self.images.prepare(self.journal.files())
        if recovered.again or left:
            self.log.event("recovered", count=recovered.again, left=left)
        for series_uid in recovered.given_up:
            self.log.event("failed", series=series_uid, reason="died", attempts=MOST_DEATHS)

    def close(self) -> None:
        """Close the journal and let another node have the folder."""
        self.journal.close()
        self.log.close()
        os.close(self._lock)


def _alone(folder: Path) -> int:
    """A lock that the system drops when the process ends, however it does."""
    handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise CddnetError(
            f"{folder}: another node works with this folder; stop it, or choose another folder."
        ) from None
    return handle
