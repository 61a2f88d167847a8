"""Images on their way in, sent or uploaded: checked, on the disk, in the journal."""

from __future__ import annotations

import hashlib
import threading
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

from pydicom import uid
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    CTImageStorage,
    EnhancedCTImageStorage,
)

from cddnet.errors import FormatError
from cddnet.node.receive.arriving import Refused, arriving
from cddnet.node.receive.inflow import Budget
from cddnet.node.station import Station
from cddnet.node.store.images import NodeFull
from cddnet.node.store.origin import Origin, file_head, read_head
from cddnet.node.store.records import Instance

KINDS = (CTImageStorage, EnhancedCTImageStorage)
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
# As their audit calls those who use the page.
UPLOADED = "UPLOAD"
LOCKS = 256


class Sent(NamedTuple):
    """An instance as it came."""

    caller: str  # AE title of the sender
    peer: str  # its address
    announced: tuple[str, str]  # SOP class and instance UID, as the sender says
    syntax: uid.UID
    data: BytesIO  # the data set, encoded


class Intake:
    """Keeps instances; any thread may use it."""

    def __init__(self, station: Station, budget: Budget) -> None:
        self._station, self._budget = station, budget
        self._locks = tuple(threading.Lock() for _ in range(LOCKS))

    def take_file(self, file: Path) -> str:
        """Keep an uploaded DICOM file as if it had been sent; the key of its series.

        Raises: FormatError where it is refused.
        """
        # It is held twice: as read, and as what is written.
        size = 2 * file.stat().st_size
        if not self._budget.take(size):
            raise self._refused(
                "busy",
                "the node has no memory left for this image; try again later, or raise "
                "largest_in_memory_mb.",
            )
        try:
            return self._take_file(file)
        finally:
            self._budget.give(size)

    def _refused(self, reason: str, told: str) -> FormatError:
        self._station.metrics.refused(reason)
        self._station.log.event("refused", reason=reason, caller=UPLOADED)
        return FormatError(told)

    def _take_file(self, file: Path) -> str:
        try:
            head = read_head(file)
            data = BytesIO(file.read_bytes()[head.length :])
        except Exception:
            # Not chained: the library's message may name the patient.
            raise self._refused("damaged", "this is no DICOM image; send CT images.") from None
        if head.sop_class not in KINDS or head.syntax not in SYNTAXES:
            reason = "wrong_syntax" if head.sop_class in KINDS else "wrong_class"
            raise self._refused(reason, "this is no CT image in a form that the node reads.")
        try:
            announced = (head.sop_class, head.sop_uid)
            uploaded = Sent(UPLOADED, "", announced, head.syntax, data)
            return self._station.journal.name(self.accept(uploaded))
        except Refused as error:
            told = f"this image is refused: {error.reason}."
            raise self._refused(error.reason, told) from None
        except NodeFull as error:
            told = "the node is full; make room, or try again later."
            raise self._refused(error.reason, told) from error

    def accept(self, sent: Sent) -> str:
        """Check and keep an instance; the UID of its series.  Raises Refused, NodeFull."""
        identity = arriving(sent.data, sent.syntax, sent.announced)
        station = self._station
        origin = Origin(sent.caller, station.config.ae_title, sent.peer, station.journal.wall())
        # Never what an uploaded file says of itself there.
        head = file_head(identity.sop_class, identity.sop_uid, sent.syntax, origin)
        with sent.data.getbuffer() as body:
            digest = hashlib.sha256(sent.syntax.encode())
            digest.update(body)
            instance = Instance(
                sop_uid=identity.sop_uid,
                series_uid=identity.series_uid,
                sop_class=identity.sop_class,
                file=station.images.inbox(identity.series_uid, identity.sop_uid),
                size=len(head) + len(body),
                sha256=digest.hexdigest(),
                caller=sent.caller,
                expected=identity.expected,
            )
            # One at a time per instance: two senders of the same must not write the same file.
            with self._locks[hash(identity.sop_uid) % LOCKS]:
                self._keep(instance, (head, body))
        return identity.series_uid

    def _keep(self, instance: Instance, parts: tuple[bytes, memoryview]) -> None:
        station = self._station
        seen = {"instance": instance.sop_uid, "series": instance.series_uid}
        arrival = station.journal.arrival(instance.sop_uid, instance.sha256)
        # Where it was put then: a sender may repeat a UID in another series.
        held = station.journal.file_of(instance.sop_uid)
        if arrival != "new" and held is not None and station.images.path(held).is_file():
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
