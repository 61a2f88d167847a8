"""Sending: one thread and one queue per destination, until each of them has every object.

What was sent twice after a crash is the same object, so that an archive keeps one.
"""

from __future__ import annotations

import socket
import threading
import uuid
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from cddnet.node.settings.config import DicomDestination, DicomwebDestination
from cddnet.node.station import Station
from cddnet.node.store.deliveries import backoff_s
from cddnet.node.store.records import Parcel

AT_ONCE = 32
ASKED_AT_ONCE = 500
IDLE_S = 0.25


class Unreachable(Exception):
    """A destination that cannot be spoken to; what was not sent yet is not to blame."""


def unresolved(error: BaseException) -> str:
    """What people read where a host name leads nowhere; "" for any other error."""
    chain: BaseException | None = error
    while chain is not None:
        if isinstance(chain, socket.gaierror | UnicodeError):
            return "the host name of the archive is not known here; check it, or the name server"
        chain = chain.__cause__ or chain.__context__
    return ""


class Outcome(NamedTuple):
    """stored: UIDs the destination has; refused: UID -> why not, in words that name no patient."""

    stored: tuple[str, ...]
    refused: Mapping[str, str]


class Carrier(Protocol):
    """How a kind of destination is spoken to."""

    def carry(self, parcels: Sequence[Parcel], stop: threading.Event) -> Outcome:
        """Send what can be sent; what is in neither list was not tried.  Raises Unreachable."""
        ...

    def ask(self, parcels: Sequence[Parcel], transaction: str) -> None:
        """Ask for storage commitment.  Raises Unreachable."""
        ...


class Sender:
    """Brings objects to one destination."""

    def __init__(self, station: Station, name: str, carrier: Carrier) -> None:
        self._station, self._name, self._carrier = station, name, carrier
        self._destination = station.config.destinations[name]
        self._in_a_row = 0

    def run(self, stop: threading.Event) -> None:
        """Send until `stop` is set."""
        while not stop.is_set():
            try:
                wait_s = self.step(stop)
            except Exception as error:
                # A full disk under the journal, for one: what was sent is sent again.
                self._station.log.error("crashed", error, destination=self._name)
                wait_s = self._backoff()
            if wait_s:
                stop.wait(wait_s)

    def step(self, stop: threading.Event | None = None) -> float:
        """Send what is due, and ask for commitment; returns seconds to wait."""
        stop = stop or threading.Event()
        deliveries = self._station.deliveries
        longest_s = self._destination.retries.longest_s
        parcels = deliveries.due(self._name, AT_ONCE, longest_s)
        if parcels:
            return self._send(parcels, stop)
        if isinstance(self._destination, DicomDestination) and self._destination.commitment:
            deliveries.give_up(self._name, self._destination.retries)
            longest_s = max(longest_s, self._destination.timeout_s)
            stored = deliveries.to_commit(self._name, ASKED_AT_ONCE, longest_s)
            if stored:
                return self._ask(stored)
        return IDLE_S

    def _send(self, parcels: Sequence[Parcel], stop: threading.Event) -> float:
        deliveries, destination = self._station.deliveries, self._destination
        try:
            outcome = self._carrier.carry(parcels, stop)
        except Unreachable as error:
            return self._unreachable(error, str(error), [parcels[0].sop_uid])
        except Exception as error:
            # Whatever it is, it must neither stop the queue nor come back without a pause.
            words = f"it could not be sent ({type(error).__name__})"
            return self._unreachable(error, words, [parcels[0].sop_uid])
        self._reached()
        commitment = isinstance(destination, DicomDestination) and destination.commitment
        deliveries.delivered(self._name, outcome.stored, commitment=commitment)
        for uid, reason in outcome.refused.items():
            deliveries.failed(self._name, [uid], reason, destination.retries)
        log = self._station.log
        if outcome.stored:
            log.event("sent", destination=self._name, count=len(outcome.stored))
        if outcome.refused:
            log.event(
                "send_failed", destination=self._name, count=len(outcome.refused), reason="rejected"
            )
        return 0.0

    def _reached(self) -> None:
        self._in_a_row = 0
        self._station.troubles.pop(self._name, None)

    def _backoff(self) -> float:
        self._in_a_row += 1
        return backoff_s(self._destination.retries, self._in_a_row)

    def _unreachable(self, error: Exception, words: str, uids: Sequence[str]) -> float:
        """Only the first object counts an attempt: of a night without the archive, few are many."""
        self._station.troubles[self._name] = words
        wait_s = self._backoff()
        self._station.deliveries.failed(self._name, uids, words, self._destination.retries)
        self._station.log.error(
            "send_failed", error, destination=self._name, reason="no_answer", wait_s=wait_s
        )
        return wait_s

    def _ask(self, parcels: Sequence[Parcel]) -> float:
        deliveries, destination = self._station.deliveries, self._destination
        attempts = max(parcel.attempts for parcel in parcels)
        wait_s = max(destination.timeout_s, backoff_s(destination.retries, attempts))
        transaction = f"2.25.{uuid.uuid4().int}"
        # Noted first: the answer may come before the question has returned.
        deliveries.asked(self._name, parcels, transaction, wait_s)
        log = self._station.log
        try:
            self._carrier.ask(parcels, transaction)
        except Exception as error:
            known = isinstance(error, Unreachable)
            words = str(error) if known else f"it could not be asked ({type(error).__name__})"
            self._station.troubles[self._name] = words
            log.error("not_committed", error, destination=self._name, reason="no_answer")
            return self._backoff()
        self._reached()
        log.event("commitment_asked", destination=self._name, count=len(parcels))
        return 0.0


def carrier_of(station: Station, name: str) -> Carrier:
    """How a destination of the configuration is spoken to."""
    destination = station.config.destinations[name]
    if isinstance(destination, DicomwebDestination):
        from cddnet.node.send.web import StowCarrier

        return StowCarrier(destination, station.images)
    from cddnet.node.send.dicom import StoreCarrier

    return StoreCarrier(destination, station)
