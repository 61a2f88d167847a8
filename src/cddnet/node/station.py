"""What every part of the node shares: configuration, journal, images, log and figures."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import NamedTuple, TextIO

from pydantic import BaseModel

from cddnet.node.settings.config import NodeConfig
from cddnet.node.store.clock import SteadyClock
from cddnet.node.store.database import Earlier, JournalDamaged
from cddnet.node.store.decisions import Decisions
from cddnet.node.store.deliveries import Deliveries
from cddnet.node.store.folder import (
    JOURNAL,
    JOURNAL_FILES,
    WAL,
    Lock,
    mark,
    require_own,
    taking_up,
)
from cddnet.node.store.images import (
    ASIDE,
    GB,
    INBOX,
    OUTBOX,
    Images,
    Room,
    flush_folder,
    free_bytes,
)
from cddnet.node.store.journal import MOST_DEATHS, Journal
from cddnet.node.store.secret import Pseudonyms
from cddnet.node.watch.health import Health
from cddnet.node.watch.log import NodeLog
from cddnet.node.watch.metrics import NodeMetrics


class Surroundings(NamedTuple):
    """What a test replaces."""

    # Seconds since 1970; default: the system's, which waits do not follow where it is changed.
    clock: Callable[[], float] | None = None
    # Folder -> bytes free on its disk.
    free: Callable[[Path], float] = free_bytes
    # For the log, in place of the configured one.
    stream: TextIO | None = None


class Station:
    """An opened node folder, as a crash or an orderly stop left it, taken up again."""

    def __init__(
        self,
        config: NodeConfig,
        surroundings: Surroundings | None = None,
        *,
        new_journal: bool = False,
    ) -> None:
        """Open the folder of a configuration, or make it.

        new_journal: set the journal aside and begin another one.  Raises JournalDamaged where the
        journal is lost or damaged, CddnetError where the folder is not a node's, or another node
        uses it.
        """
        around = surroundings or Surroundings()
        folder = config.folder
        require_own(folder, _files_of(config))
        with taking_up(folder):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = Lock(folder)
            try:
                self._open(config, around, new_journal)
            except JournalDamaged:
                # The lock goes on saying that the last run did not end in order: check all again.
                self._lock.drop()
                raise
            except BaseException:
                self._abandon()
                raise

    def _abandon(self) -> None:
        """Let go of a folder that could not be opened, though its journal could or may be whole."""
        if hasattr(self, "journal"):
            self.journal.close()
        if not (self.config.folder / WAL).is_file():
            # Closing it took the write-ahead log in, which is then not missing at the next start.
            self._lock.journal_closes()
        self._lock.drop()

    def _open(self, config: NodeConfig, around: Surroundings, new_journal: bool) -> None:
        self.config, folder = config, config.folder
        if new_journal:
            _set_journal_aside(folder)
        earlier = Earlier() if new_journal else Earlier(any(_images(folder)), self._lock.was_open)
        if earlier.images and not (folder / JOURNAL).is_file():
            raise JournalDamaged(folder / JOURNAL, "it is not there, although there are images")
        if earlier.crashed and not (folder / WAL).is_file():
            raise JournalDamaged(folder / JOURNAL, "its write-ahead log is not there")
        names = Pseudonyms(folder)
        self.journal = Journal(
            folder / JOURNAL,
            name=names.of,
            clock=around.clock or SteadyClock(),
            wall=around.clock or time.time,
            earlier=earlier,
        )
        mark(folder)
        self.log = NodeLog(names, config, around.stream)
        self.deliveries = Deliveries(self.journal.database, names.of, self.journal.wall)
        # Why a destination could not be spoken to, since it last was: name -> words for people.
        self.troubles: dict[str, str] = {}
        room = Room(config.quota_gb * GB, config.smallest_free_gb * GB)
        self.images = Images(folder, room, around.free)
        self.decisions = Decisions(self.images, self.journal)
        self.metrics = NodeMetrics(self.journal, config, self.images, self.journal.clock)
        self.health = Health(self.journal, self.images.aside, self.journal.clock)
        recovered = self.journal.recover()
        if (folder / WAL).is_file():
            self._lock.journal_opened()
        files = [folder / name for name in JOURNAL_FILES]
        contents = self.images.prepare(self.journal.files(), files)
        # Until they are entered or set aside (`receive.unknown`) they stay where they are.
        self.unknown = contents.unknown
        if recovered.again or contents.unfinished:
            self.log.event("recovered", count=recovered.again, left=contents.unfinished)
        if contents.missing:
            self.log.event("missing", count=contents.missing)
        if folder.stat().st_mode & 0o077:
            self.log.event("open_folder")
        for series_uid in recovered.given_up:
            self.log.event("failed", series=series_uid, reason="died", attempts=MOST_DEATHS)

    def close(self) -> None:
        """Close the journal and let another node have the folder."""
        self._lock.journal_closes()
        self.journal.close()
        self.log.close()
        self._lock.drop()


def _files_of(part: BaseModel) -> Iterator[Path]:
    """Files that a configuration names."""
    for name in type(part).model_fields:
        value = getattr(part, name)
        if isinstance(value, Path) and name != "folder":
            yield value
        for item in (value, *(value.values() if isinstance(value, dict) else ())):
            if isinstance(item, BaseModel):
                yield from _files_of(item)


def _images(folder: Path) -> Iterator[str]:
    """Names of files in the boxes of a node's folder."""
    for box in (INBOX, OUTBOX):
        for _, _, names in os.walk(folder / box):
            yield from names


def _set_journal_aside(folder: Path) -> None:
    """Keep a journal that is not used any more; it may help whoever looks for the cause."""
    there = [folder / name for name in JOURNAL_FILES if (folder / name).is_file()]
    if not there:
        return
    moment = datetime.now(timezone.utc).strftime("%Y%m%d-%H%M%S-%f")
    target = folder / ASIDE / f"journal-{moment}"
    target.mkdir(mode=0o700, parents=True)
    for file in there:
        os.replace(file, target / file.name)
    flush_folder(target)
    flush_folder(folder)
