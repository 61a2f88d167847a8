"""Sending: one thread and one queue per destination, until each of them has every object.

What was sent twice after a crash is the same object, so that an archive keeps one.
"""

from __future__ import annotations

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
                self._station.log.error("crashed", error, destination=self._name)
                wait_s = self._destination.retries.first_s
            if wait_s:
                stop.wait(wait_s)

    def step(self, stop: threading.Event | None = None) -> float:
        """Send what is due, and ask for commitment; returns seconds to wait."""
        stop = stop or threading.Event()
        deliveries = self._station.deliveries
        parcels = deliveries.due(self._name, AT_ONCE)
        if parcels:
            return self._send(parcels, stop)
        if isinstance(self._destination, DicomDestination) and self._destination.commitment:
            deliveries.give_up(self._name, self._destination.retries)
            stored = deliveries.to_commit(self._name, ASKED_AT_ONCE)
            if stored:
                return self._ask(stored)
        return IDLE_S

    def _send(self, parcels: Sequence[Parcel], stop: threading.Event) -> float:
        deliveries, destination = self._station.deliveries, self._destination
        try:
            outcome = self._carrier.carry(parcels, stop)
        except Unreachable as error:
            return self._unreachable(error, [parcels[0].sop_uid])
        self._in_a_row = 0
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

    def _unreachable(self, error: Unreachable, uids: Sequence[str]) -> float:
        """Only the first object counts an attempt: of a night without the archive, few are many."""
        retries = self._destination.retries
        self._in_a_row += 1
        wait_s = backoff_s(retries, self._in_a_row)
        self._station.deliveries.failed(self._name, uids, str(error), retries)
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
        except Unreachable as error:
            self._in_a_row += 1
            wait_s = backoff_s(destination.retries, self._in_a_row)
            log.error("not_committed", error, destination=self._name, reason="no_answer")
            return wait_s
        self._in_a_row = 0
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
