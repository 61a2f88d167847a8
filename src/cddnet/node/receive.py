"""The DICOM port: C-ECHO, C-STORE of CT, and answers about storage commitment.

An instance is on the disk and in the journal before its sender is told so.
"""

from __future__ import annotations

import errno
import hashlib
import sqlite3
import threading
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

from pydicom import dcmread, uid
from pynetdicom import AE, evt
from pynetdicom.dimse_messages import C_STORE_RQ
from pynetdicom.dsutils import encode_file_meta
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    CTImageStorage,
    EnhancedCTImageStorage,
    StorageCommitmentPushModel,
    Verification,
)

from cddnet.errors import FormatError
from cddnet.node.arriving import NOT_AUTHORISED, OUT_OF_RESOURCES, Refused, arriving
from cddnet.node.config import ANY_CALLER
from cddnet.node.images import NodeFull
from cddnet.node.inflow import Budget, Inflow, guard
from cddnet.node.parts import DicomDestination
from cddnet.node.records import Instance
from cddnet.node.station import Station
from cddnet.node.tls import server_tls

# The library's own type is a union of all that may happen, and would need a cast at each use.
Happening = Any
SUCCESS = 0x0000
PREAMBLE = b"\x00" * 128 + b"DICM"
# All that formats/ decodes; deflated data sets are left out, for they may unpack to any size.
SYNTAXES = (
    uid.ExplicitVRLittleEndian,
    uid.ImplicitVRLittleEndian,
    uid.JPEGLSLossless,
    uid.JPEG2000Lossless,
    uid.JPEGLosslessSV1,
    uid.JPEGLossless,
    uid.RLELossless,
    uid.HTJ2KLossless,
    uid.HTJ2KLosslessRPCL,
    uid.ExplicitVRBigEndian,
    uid.JPEGLSNearLossless,
    uid.JPEG2000,
    uid.HTJ2K,
    uid.JPEGBaseline8Bit,
    uid.JPEGExtended12Bit,
    uid.UID("1.2.840.10008.1.2.4.53"),
    uid.UID("1.2.840.10008.1.2.4.55"),
)
MOST_IN_MEMORY_BYTES = 1 << 30
LOCKS = 256
FULL = (errno.ENOSPC, errno.EDQUOT)


# As their audit calls those who use the page.
UPLOADED = "UPLOAD"
KINDS = (CTImageStorage, EnhancedCTImageStorage)
_GROUP_LENGTH_BYTES = 12


class _Sent(NamedTuple):
    """An instance as it came. announced: its SOP class and UID. head: what its file begins with."""

    caller: str
    announced: tuple[str, str]
    syntax: uid.UID
    head: bytes
    data: BytesIO


class Receiver:
    """The listening side of the node. on_report: answers what a peer tells about commitment."""

    def __init__(self, station: Station, on_report: Callable[[Happening], object]) -> None:
        self._station, self._on_report = station, on_report
        self._budget = Budget(MOST_IN_MEMORY_BYTES)
        self._locks = tuple(threading.Lock() for _ in range(LOCKS))
        self._full = False
        self._server: Any = None
        self._entity = AE(station.config.ae_title)

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
        connection = association.dul.socket.socket
        connection.settimeout(station.config.timeout_s)
        longest = max(station.config.maximum_pdu, 1 << 20) + 1024
        peer = association.requestor.address

        def refused(reason: str, error: Exception) -> None:
            station.metrics.refused(reason)
            station.log.error("request_refused", error, reason=reason, peer=peer)

        guard(association, Inflow(connection, longest, self._budget), refused)

    def _closed(self, event: Happening) -> None:
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
            raise Refused(NOT_AUTHORISED, "caller")
        request = event.request
        announced = (str(request.AffectedSOPClassUID), str(request.AffectedSOPInstanceUID))
        syntax = uid.UID(event.context.transfer_syntax)
        head = PREAMBLE + encode_file_meta(event.file_meta)
        self._accept(_Sent(caller, announced, syntax, head, request.DataSet))

    def take_file(self, file: Path) -> str:
        """Keep an uploaded DICOM file as if it had been sent; the key of its series.

        Raises: FormatError where it is refused.
        """
        try:
            meta = dcmread(file, stop_before_pixels=True, specific_tags=[]).file_meta
            announced = (str(meta.MediaStorageSOPClassUID), str(meta.MediaStorageSOPInstanceUID))
            syntax = uid.UID(meta.TransferSyntaxUID)
            whole = file.read_bytes()
            begins = len(PREAMBLE) + _GROUP_LENGTH_BYTES + int(meta.FileMetaInformationGroupLength)
        except Exception:
            # Not chained: the library's message may name the patient.
            raise FormatError("this is no DICOM image; send CT images.") from None
        if announced[0] not in KINDS or syntax not in SYNTAXES:
            raise FormatError("this is no CT image in a form that the node reads.")
        head = PREAMBLE + whole[len(PREAMBLE) : begins]
        try:
            uploaded = _Sent(UPLOADED, announced, syntax, head, BytesIO(whole[begins:]))
            return self._station.journal.name(self._accept(uploaded))
        except Refused as error:
            self._station.metrics.refused(error.reason)
            raise FormatError(f"this image is refused: {error.reason}.") from None
        except NodeFull as error:
            raise FormatError("the node is full; make room, or try again later.") from error

    def _accept(self, sent: _Sent) -> str:
        """Check and keep an instance; the UID of its series.  Raises Refused, NodeFull."""
        told = arriving(sent.data, sent.syntax, sent.announced)
        syntax, head = sent.syntax, sent.head
        with sent.data.getbuffer() as body:
            digest = hashlib.sha256(syntax.encode())
            digest.update(body)
            instance = Instance(
                sop_uid=told.sop_uid,
                series_uid=told.series_uid,
                sop_class=told.sop_class,
                file=self._station.images.inbox(told.series_uid, told.sop_uid),
                size=len(head) + len(body),
                sha256=digest.hexdigest(),
                caller=sent.caller,
                expected=told.expected,
            )
            # One at a time per instance: two senders of the same must not write the same file.
            with self._locks[hash(told.sop_uid) % LOCKS]:
                self._keep(instance, (head, body))
        return told.series_uid

    def _keep(self, instance: Instance, parts: tuple[bytes, memoryview]) -> None:
        station = self._station
        seen = {"instance": instance.sop_uid, "series": instance.series_uid}
        arrival = station.journal.arrival(instance.sop_uid, instance.sha256)
        if arrival != "new" and station.images.path(instance.file).is_file():
            station.metrics.received_again()
            different = "different_bytes" if arrival == "different" else None
            station.log.event("received_again", reason=different, **seen)
            return
        station.images.store(instance.file, parts, instance.size)
        try:
            reopened = station.journal.accept(instance)
        except BaseException:
            station.images.remove(instance.file, instance.size)
            raise
        station.metrics.received(instance.size)
        station.log.event("received", caller=instance.caller, bytes=instance.size, **seen)
        if reopened:
            station.log.event("series_reopened", series=instance.series_uid)


def _peer(event: Happening) -> dict[str, object]:
    requestor = event.assoc.requestor
    return {"caller": requestor.ae_title.strip(), "peer": requestor.address}
