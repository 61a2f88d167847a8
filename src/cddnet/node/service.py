"""The node as one thing that starts and stops; to start is also to recover."""

from __future__ import annotations

import os
import queue
import signal
import sys
import threading
import time
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING

from cddnet import __version__
from cddnet.node.receive.receiver import Receiver
from cddnet.node.receive.unknown import enter_unknown
from cddnet.node.send.dicom import Reports
from cddnet.node.send.sender import Sender, carrier_of
from cddnet.node.settings.config import NodeConfig
from cddnet.node.settings.tls import client_tls
from cddnet.node.station import Station, Surroundings
from cddnet.node.work.worker import Denoise, Worker, denoise_output

if TYPE_CHECKING:
    from cddnet.node.web.site import Web

HOUR_S = 3600.0
# From the signal to the end, whatever hangs on.
STOP_S = 20.0
_PAGE_STOP_S = 5.0
CLEAN_EVERY_S = 60.0


class Node:
    """Receives, denoises and sends in threads of its own. One node per folder."""

    def __init__(
        self,
        config: NodeConfig,
        *,
        denoise: Denoise | None = None,
        surroundings: Surroundings | None = None,
    ) -> None:
        """denoise, surroundings: what tests replace."""
        self._config, self._surroundings = config, surroundings
        self._denoise = denoise or partial(denoise_output, device=config.device)
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._station: Station | None = None
        self._receiver: Receiver | None = None
        self.dicom_port = config.dicom_port

    @property
    def station(self) -> Station:
        """What the page and tests look at, while the node runs."""
        if self._station is None:
            raise RuntimeError("the node is not started")
        return self._station

    def start(self) -> None:
        """Take up what an earlier run left, and work.

        Raises CddnetError where another node has the folder or a certificate cannot be read,
        OSError where the port is taken.
        """
        self._run(Station(self._config, self._surroundings))

    def _run(self, station: Station) -> None:
        receiver = Receiver(station, Reports(station).handle)
        try:
            enter_unknown(station)
            for place in self._config.destinations.values():
                # Now, not at the first image: certificates that cannot be read.
                if place.tls is not None:
                    client_tls(place.tls)
            self.dicom_port = receiver.start()
        except BaseException:
            station.close()
            raise
        self._station, self._receiver = station, receiver
        self._stop.clear()
        worker = Worker(station, self._denoise)
        tasks = {"worker": worker.run, "cleaner": Cleaner(station).run}
        for name in self._config.destinations:
            tasks[f"sender {name}"] = Sender(station, name, carrier_of(station, name)).run
        self._threads = [
            threading.Thread(target=run, args=(self._stop,), name=name)
            for name, run in tasks.items()
        ]
        for thread in self._threads:
            thread.start()
        station.log.event("started", version=__version__, port=self.dicom_port)

    def _page(self) -> Web:
        """Its page; where that cannot start, nothing does.  Raises CddnetError."""
        from cddnet.node.web.site import Web

        assert self._receiver is not None
        try:
            return Web(self._config, self.station, self._receiver)
        except BaseException:
            self.stop()
            raise

    def stop(self, timeout_s: float = STOP_S) -> bool:
        """End in order: callers may end first, then the rest; False where something hung on.

        What is half done goes on at the next start.
        """
        if self._station is None or self._receiver is None:
            return True
        until = time.monotonic() + timeout_s
        self._station.log.event("stopping")
        self._stop.set()
        self._receiver.stop(timeout_s / 2)
        for thread in self._threads:
            thread.join(max(0.1, until - time.monotonic()))
        ended = not any(thread.is_alive() for thread in self._threads)
        self._station.log.event("stopped")
        if ended:
            self._station.close()
        else:
            # A thread that hangs on may still write: the journal is then left to the system.
            self._station.journal.pause_all()
        self._station, self._receiver, self._threads = None, None, []
        return ended

    def run_forever(self, *, page: bool = False) -> bool:
        """Start, with its page if asked, and stop on SIGTERM or SIGINT; for the main thread.

        SIGHUP has the log go on in a new file.  Returns False where something hangs on, such as a
        thread that waits for an archive; the process should end all the same.
        """
        signals: queue.SimpleQueue[int] = queue.SimpleQueue()
        numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

        def note(number: int, _frame: FrameType | None) -> None:
            signals.put(number)

        before = {number: signal.signal(number, note) for number in numbers}
        try:
            station = Station(self._config, self._surroundings)
            # Before anything listens: what a library logs of a caller may name a patient.
            with station.log.guarding():
                self._run(station)
                web = self._page() if page else None
                while signals.get() == signal.SIGHUP:
                    station.log.reopen()
                until = time.monotonic() + STOP_S
                self._stop.set()
                if web:
                    web.stop(_PAGE_STOP_S)
                ended = self.stop(until - time.monotonic())
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        return ended and not any(map(_hangs_on, threading.enumerate()))


def serve(node: Node, *, page: bool = False) -> None:
    """Run a node until a signal, and end the process then, whatever hangs on."""
    if not node.run_forever(page=page):
        # What was under way goes on at the next start, as after a power cut.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def _hangs_on(thread: threading.Thread) -> bool:
    """Whether the interpreter would wait for a thread at its end."""
    return thread is not threading.main_thread() and not thread.daemon


class Cleaner:
    """Deletes images that nobody waits for: after their time, or earlier where room is short."""

    def __init__(self, station: Station) -> None:
        self._station = station

    def run(self, stop: threading.Event) -> None:
        """Clean now and then until `stop` is set."""
        while not stop.is_set():
            try:
                self.step()
            except Exception as error:
                self._station.log.error("crashed", error)
            stop.wait(min(CLEAN_EVERY_S, max(1.0, self._station.config.quiet_s)))

    def step(self) -> int:
        """Delete what may go; returns how many files."""
        station = self._station
        removed = 0
        now = station.journal.clock()
        for series_uid, changed_at in station.deliveries.disposable():
            kept_s = station.config.keep_originals_h * HOUR_S
            if now - changed_at < kept_s and not station.images.crowded():
                # The oldest come first: what follows is younger.
                break
            count = station.deliveries.purge(series_uid, station.images.remove)
            if count:
                removed += count
                station.journal.note("cleaned", series_uid)
                station.log.event("cleaned", series=series_uid, count=count)
        return removed
