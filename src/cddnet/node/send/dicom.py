"""Sending by C-STORE, and storage commitment as its user (PS3.4 annexes B and J)."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

from pydicom import Dataset, dcmread, uid
from pynetdicom import AE, build_role, evt
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StorageCommitmentPushModel,
    StorageCommitmentPushModelInstance,
)

from cddnet.node.receive.inflow import without_delay
from cddnet.node.send.sender import Outcome, Unreachable, unresolved
from cddnet.node.settings.config import DicomDestination
from cddnet.node.settings.tls import client_tls
from cddnet.node.station import Station
from cddnet.node.store.records import Parcel

# The library's own types are unions of all that may happen, and would need casts at each use.
Happening = Any
Association = Any
SUCCESS, PROCESSING_FAILURE = 0x0000, 0x0110
REQUEST_COMMITMENT = 1
# An archive may answer at once, on the association that asked.
ANSWER_AT_ONCE_S = 3.0
WARNING = range(0xB000, 0xC000)


class StoreCarrier:
    """Speaks to one archive, with one association per batch."""

    def __init__(self, destination: DicomDestination, station: Station) -> None:
        self._destination, self._station = destination, station
        self._reports = Reports(station)
        self._answering: list[threading.Thread] = []

    def carry(self, parcels: Sequence[Parcel], stop: threading.Event) -> Outcome:
        """Send until the end, `stop`, or a lost connection.  Raises Unreachable."""
        entity = self._entity()
        for kind in sorted({parcel.sop_class for parcel in parcels}):
            entity.add_requested_context(
                kind, [uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian]
            )
        association = self._associate(entity)
        stored: list[str] = []
        refused: dict[str, str] = {}
        try:
            for parcel in parcels:
                if stop.is_set() or not association.is_established:
                    break
                problem = self._store(association, parcel)
                if problem is None:
                    break
                if problem:
                    refused[parcel.sop_uid] = problem
                else:
                    stored.append(parcel.sop_uid)
        finally:
            self._end(association)
        if not stored and not refused and not stop.is_set():
            raise Unreachable("the connection was lost before the first image was stored")
        return Outcome(tuple(stored), refused)

    def ask(self, parcels: Sequence[Parcel], transaction: str) -> None:
        """Ask for storage commitment, and wait a moment for the answer.  Raises Unreachable."""
        entity = self._entity()
        entity.add_requested_context(StorageCommitmentPushModel)
        role = build_role(StorageCommitmentPushModel, scu_role=True, scp_role=False)
        association = self._associate(entity, ext_neg=[role])
        try:
            try:
                status, _ = association.send_n_action(
                    _question(parcels, transaction),
                    REQUEST_COMMITMENT,
                    StorageCommitmentPushModel,
                    StorageCommitmentPushModelInstance,
                )
            except (RuntimeError, ValueError):
                raise Unreachable("the archive offers no storage commitment") from None
            if "Status" not in status or status.Status != SUCCESS:
                told = f" (status {status.Status:04X})" if "Status" in status else ""
                raise Unreachable(f"the archive refused to be asked for storage commitment{told}")
            until = time.monotonic() + ANSWER_AT_ONCE_S
            while association.is_established and time.monotonic() < until:
                if not self._station.deliveries.asked_about(transaction):
                    break
                time.sleep(0.02)
        finally:
            # The library waits for ever where it is released before its thread is through.
            for thread in self._answering:
                thread.join(ANSWER_AT_ONCE_S)
            self._answering.clear()
            self._end(association)

    def _entity(self) -> AE:
        entity = AE(self._station.config.ae_title)
        seconds = self._destination.timeout_s
        entity.connection_timeout = entity.acse_timeout = seconds
        entity.dimse_timeout = entity.network_timeout = seconds
        entity.maximum_pdu_size = self._station.config.maximum_pdu
        return entity

    def _associate(self, entity: AE, **options: Any) -> Association:  # noqa: ANN401
        there = self._destination
        try:
            association = entity.associate(
                there.host,
                there.port,
                ae_title=there.ae_title,
                tls_args=None if there.tls is None else (client_tls(there.tls), there.host),
                evt_handlers=[
                    (evt.EVT_N_EVENT_REPORT, self._reported),
                    (evt.EVT_CONN_OPEN, lambda event: without_delay(event.assoc.dul.socket.socket)),
                ],
                **options,
            )
        except (OSError, UnicodeError) as error:
            raise Unreachable(unresolved(error) or "the archive did not answer") from error
        if not association.is_established:
            rejected = "refused the association" if association.is_rejected else "did not answer"
            raise Unreachable(f"the archive {rejected}")
        return association

    def _reported(self, event: Happening) -> tuple[int, None]:
        self._answering.append(threading.current_thread())
        return self._reports.handle(event)

    def _end(self, association: Association) -> None:
        if not association.is_established:
            return
        releasing = threading.Thread(target=association.release, daemon=True)
        releasing.start()
        releasing.join(2 * self._destination.timeout_s)
        if releasing.is_alive():
            # Also where the library hangs, the next objects must go their way.
            association.abort(block=False)

    def _store(self, association: Association, parcel: Parcel) -> str | None:
        """Why it was not stored: an empty text if it was, None if the connection was lost."""
        try:
            dataset = dcmread(self._station.images.path(parcel.file))
            status = association.send_c_store(dataset)
        except OSError:
            return "its file cannot be read"
        except RuntimeError:
            return None
        except ValueError:
            return "the archive accepts no such image, or it cannot be encoded"
        except Exception as error:
            return f"it cannot be sent ({type(error).__name__})"
        if "Status" not in status:
            return None
        if status.Status == SUCCESS or status.Status in WARNING:
            return ""
        return f"the archive refused it (status {status.Status:04X})"


class Reports:
    """Takes in what archives tell about storage commitment, on whichever association."""

    def __init__(self, station: Station) -> None:
        self._station = station

    def handle(self, event: Happening) -> tuple[int, None]:
        """Handle an N-EVENT-REPORT; returns (status, nothing)."""
        try:
            told = event.event_information
            transaction = str(told.get("TransactionUID", ""))
            kept = _uids(told, "ReferencedSOPSequence")
            lost = _uids(told, "FailedSOPSequence")
        except Exception as error:
            self._station.log.error("request_refused", error, reason="damaged")
            return PROCESSING_FAILURE, None
        deliveries, log = self._station.deliveries, self._station.log
        name = deliveries.destination_of(transaction)
        if not name or name not in self._station.config.destinations:
            return SUCCESS, None
        # An instance in both lists is not safe.
        count = deliveries.committed(transaction, [item for item in kept if item not in lost])
        open_still = deliveries.asked_about(transaction)
        again = [item for item in lost if item in open_still]
        retries = self._station.config.destinations[name].retries
        deliveries.failed(name, again, "the archive did not commit to it", retries)
        if count:
            log.event("committed", destination=name, count=count)
        if again:
            log.event("not_committed", destination=name, count=len(again))
        return SUCCESS, None


def _question(parcels: Sequence[Parcel], transaction: str) -> Dataset:
    question = Dataset()
    question.TransactionUID = transaction
    question.ReferencedSOPSequence = []
    for parcel in parcels:
        item = Dataset()
        item.ReferencedSOPClassUID = parcel.sop_class
        item.ReferencedSOPInstanceUID = parcel.sop_uid
        question.ReferencedSOPSequence.append(item)
    return question


def _uids(told: Dataset, keyword: str) -> frozenset[str]:
    items = told.get(keyword) or ()
    return frozenset(str(item.ReferencedSOPInstanceUID) for item in items)
