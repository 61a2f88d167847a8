"""Images on their way in, sent or uploaded: checked, on the disk, in the journal."""

from __future__ import annotations

import hashlib
import threading
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

from pydicom.uid import UID

from cddnet.errors import CddnetError, FormatError
from cddnet.formats.dicom import data_set_of
from cddnet.node.receive.arriving import CANNOT_UNDERSTAND, Refused, arriving
from cddnet.node.receive.inflow import Budget
from cddnet.node.station import Station
from cddnet.node.store.images import NodeFull
from cddnet.node.store.origin import Origin, file_head
from cddnet.node.store.records import Instance

# As their audit calls those who use the page.
UPLOADED = "UPLOAD"
LOCKS = 256


class Sent(NamedTuple):
    """An instance as it came."""

    caller: str  # AE title of the sender
    peer: str  # its address
    announced: tuple[str, str] | None  # SOP class and instance of its command; None for an upload
    syntax: UID
    data: BytesIO  # the data set, encoded


def _read_upload(file: Path) -> Sent:
    """An uploaded file, read as the command line reads one.  Raises Refused."""
    try:
        coded = data_set_of(file)
    except CddnetError as error:
        raise Refused(
            CANNOT_UNDERSTAND, "damaged", "this is no DICOM image; send CT images."
        ) from error
    return Sent(UPLOADED, "", None, coded.syntax, BytesIO(file.read_bytes()[coded.offset :]))


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
        if not self._budget.take(size, UPLOADED):
            raise self._refused(
                "busy",
                "the node has no memory left for this image; try again later, or raise "
                "largest_in_memory_mb.",
            )
        try:
            return self._take_file(file)
        finally:
            self._budget.give(size, UPLOADED)

    def _refused(self, reason: str, message: str) -> FormatError:
        self._station.metrics.refused(reason)
        self._station.log.event("refused", reason=reason, caller=UPLOADED)
        return FormatError(message)

    def _take_file(self, file: Path) -> str:
        try:
            return self._station.journal.name(self.accept(_read_upload(file)))
        except Refused as error:
            raise self._refused(error.reason, str(error)) from None
        except NodeFull as error:
            message = "the node is full; make room, or try again later."
            raise self._refused(error.reason, message) from error

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
