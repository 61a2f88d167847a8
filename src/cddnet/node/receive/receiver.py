"""The DICOM port: C-ECHO, C-STORE of CT, and answers about storage commitment.

An instance is on the disk and in the journal before its sender is told so.
"""

from __future__ import annotations

import errno
import socket
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from pydicom import uid
from pynetdicom import AE, evt
from pynetdicom.dimse_messages import C_STORE_RQ
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StorageCommitmentPushModel,
    Verification,
)

from cddnet.node.receive.arriving import (
    KINDS,
    NOT_AUTHORISED,
    OUT_OF_RESOURCES,
    PROCESSING_FAILURE,
    SYNTAXES,
    Refused,
)
from cddnet.node.receive.inflow import Bounds, Budget, Inflow, guard
from cddnet.node.receive.intake import Intake, Sent
from cddnet.node.settings.config import ANY_CALLER
from cddnet.node.settings.parts import DicomDestination
from cddnet.node.settings.tls import server_tls
from cddnet.node.station import Station
from cddnet.node.store.images import NodeFull

# The library's own type is a union of all that may happen, and would need a cast at each use.
Happening = Any
SUCCESS = 0x0000
# Result, source and reason of an A-ASSOCIATE-RJ (PS3.8 table 9-21).
LOCAL_LIMIT_EXCEEDED = (2, 3, 2)
MB = 10**6
FULL = (errno.ENOSPC, errno.EDQUOT)


class Receiver:
    """The listening side of the node. on_report: answers what a peer tells about commitment."""

    def __init__(self, station: Station, on_report: Callable[[Happening], object]) -> None:
        self._station, self._on_report = station, on_report
        self._budget = Budget(int(station.config.largest_in_memory_mb * MB))
        self._intake = Intake(station, self._budget)
        self.take_file = self._intake.take_file
        self._full = False
        self._server: Any = None
        self._entity = AE(station.config.ae_title)
        self._lock, self._connected = threading.Lock(), list[Happening]()

    def start(self) -> int:
        """Listen in threads of its own; returns the port.  Raises OSError where it is taken."""
        config, entity = self._station.config, self._entity
        entity.require_called_aet = True
        if config.allowed_callers != (ANY_CALLER,):
            # An archive may call to tell what it committed to, and to store only if it is listed.
            archives = config.destinations.values()
            titles = {item.ae_title for item in archives if isinstance(item, DicomDestination)}
            entity.require_calling_aet = sorted({*config.allowed_callers, *titles})
        entity.maximum_associations = config.maximum_associations
        entity.maximum_pdu_size = config.maximum_pdu
        entity.network_timeout = entity.acse_timeout = entity.dimse_timeout = config.timeout_s
        entity.add_supported_context(Verification)
        for kind in KINDS:
            entity.add_supported_context(kind, list(SYNTAXES))
        entity.add_supported_context(StorageCommitmentPushModel, scu_role=True, scp_role=True)
        self._server = entity.start_server(
            (config.host, config.dicom_port),
            block=False,
            ssl_context=None if config.tls is None else server_tls(config.tls),
            evt_handlers=[
                (evt.EVT_CONN_OPEN, self._opened),
                (evt.EVT_CONN_CLOSE, self._closed),
                (evt.EVT_REJECTED, self._rejected),
                (evt.EVT_ABORTED, self._aborted),
                (evt.EVT_ACCEPTED, self._accepted),
                (evt.EVT_DIMSE_RECV, self._message),
                (evt.EVT_C_STORE, self._store),
                (evt.EVT_N_EVENT_REPORT, self._on_report),
            ],
        )
        return int(self._server.server_address[1])

    def stop(self, timeout_s: float) -> None:
        """Take no new caller, let those who are there end, and after the timeout end them."""
        if self._server is None:
            return
        self._server.shutdown()
        until = time.monotonic() + timeout_s
        while self._entity.active_associations and time.monotonic() < until:
            time.sleep(0.05)
        self._entity.shutdown()
        self._server = None

    def _opened(self, event: Happening) -> None:
        station, association = self._station, event.assoc
        config, peer = station.config, association.requestor.address
        bounds = Bounds(
            longest_pdu=max(config.maximum_pdu, 1 << 20) + 1024,
            silent_s=config.timeout_s,
            pdu_s=config.longest_pdu_s,
            message_s=config.longest_message_s,
        )

        def refused(reason: str, error: Exception) -> None:
            station.metrics.refused(reason)
            station.log.error("request_refused", error, reason=reason, peer=peer)

        connection = association.dul.socket.socket
        guard(association, Inflow(connection, bounds, self._budget, peer), refused)
        others = self._others(association)
        most = config.associations_per_address
        if others >= most:
            _reject_busy(association)
        # Those that never ask for an association cannot be refused one, and hold a place too.
        if others >= max(most, (most + config.maximum_associations) // 2):
            station.metrics.refused("too_many")
            station.log.event("request_refused", reason="too_many", peer=peer)
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _others(self, association: Happening) -> int:
        """Connections that the caller of a new one has besides."""
        address = association.requestor.address
        with self._lock:
            # Also those whose end the library told nobody.
            self._connected = [
                one for one in self._connected if one.ident is None or one.is_alive()
            ]
            others = [one for one in self._connected if one.requestor.address == address]
            self._connected.append(association)
        return len(others)

    def _closed(self, event: Happening) -> None:
        with self._lock, suppress(ValueError):
            self._connected.remove(event.assoc)
        event.assoc.inflow.close()
        if not event.assoc.requestor.primitive:
            # It never asked for an association: without this it would hold a place until the
            # timeout, and a few port scans would keep everybody out.
            event.assoc.dul.to_user_queue.put(None)

    def _message(self, event: Happening) -> None:
        event.assoc.inflow.message_ended(kept=isinstance(event.message, C_STORE_RQ))

    def _accepted(self, event: Happening) -> None:
        self._station.log.event("association_accepted", **_peer(event))

    def _rejected(self, event: Happening) -> None:
        reason = "caller"
        if event.assoc.requestor.primitive.called_ae_title != self._entity.ae_title:
            reason = "called_ae"
        elif self._station.config.permits(event.assoc.requestor.ae_title):
            reason = "too_many"
        self._station.metrics.refused(reason)
        self._station.log.event("association_refused", reason=reason, **_peer(event))

    def _aborted(self, event: Happening) -> None:
        self._station.log.event("association_aborted", **_peer(event))

    def _store(self, event: Happening) -> int:
        """Handle one C-STORE; returns its status."""
        station = self._station
        try:
            self._take(event)
        except Refused as error:
            status, reason = error.status, error.reason
        except NodeFull as error:
            status, reason = OUT_OF_RESOURCES, error.reason
        except (OSError, sqlite3.Error) as error:
            full = isinstance(error, sqlite3.Error) or error.errno in FULL
            status, reason = OUT_OF_RESOURCES, "full" if full else "other"
            station.log.error("refused", error, reason=reason, status=status)
        except Exception as error:
            # Without this the library would answer with a status of its own.
            status, reason = PROCESSING_FAILURE, "other"
            station.log.error("refused", error, reason=reason, status=status)
        else:
            if self._full:
                self._full = False
                station.log.event("space_again")
            return SUCCESS
        finally:
            event.assoc.inflow.handled()
        station.metrics.refused(reason)
        if reason not in ("full", "quota"):
            station.log.event("refused", reason=reason, status=status, **_peer(event))
        elif not self._full:
            self._full = True
            station.log.event("full", reason=reason, status=status)
        return status

    def _take(self, event: Happening) -> None:
        """Put an instance on the disk and into the journal, unless it is there."""
        caller = event.assoc.requestor.ae_title.strip()
        if not self._station.config.permits(caller):
            raise Refused(NOT_AUTHORISED, "caller", "this caller may not store.")
        request = event.request
        announced = (str(request.AffectedSOPClassUID), str(request.AffectedSOPInstanceUID))
        syntax = uid.UID(event.context.transfer_syntax)
        peer = event.assoc.requestor.address
        self._intake.accept(Sent(caller, peer, announced, syntax, request.DataSet))


def _reject_busy(association: Any) -> None:  # noqa: ANN401
    """Let an association be rejected when it is asked for, as one too many.

    The library counts the associations of all addresses together.
    """

    def reject() -> None:
        association.requestor.ae_title = association.requestor.primitive.calling_ae_title
        association.acse.send_reject(*LOCAL_LIMIT_EXCEEDED)
        evt.trigger(association, evt.EVT_REJECTED, {})
        association.kill()

    association.acse._negotiate_as_acceptor = reject


def _peer(event: Happening) -> dict[str, object]:
    requestor = event.assoc.requestor
    return {"caller": requestor.ae_title.strip(), "peer": requestor.address}
