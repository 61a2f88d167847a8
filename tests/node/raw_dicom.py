"""PDUs written byte by byte (PS3.8 section 9.3), so that they can be wrong in any way."""

import io
import socket
import struct
import time

from pydicom import Dataset, uid
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pynetdicom.sop_class import CTImageStorage, Verification

EXPLICIT = str(uid.ExplicitVRLittleEndian)
ACCEPTED, REJECTED, DATA, RELEASE, RELEASED, ABORT = 2, 3, 4, 5, 6, 7
# PS3.8 table 9-21: the caller may try again.
TRANSIENT = 2


def pdu(kind, body, length=None):
    return struct.pack(">BBI", kind, 0, len(body) if length is None else length) + body


def item(kind, body, length=None):
    return struct.pack(">BBH", kind, 0, (len(body) if length is None else length) & 0xFFFF) + body


def request(called=b"CDDNET", caller=b"SCANNER", contexts=((CTImageStorage, EXPLICIT),)):
    """A-ASSOCIATE-RQ; contexts get the odd numbers from 1 on."""
    offered = b"".join(
        item(
            0x20,
            bytes([(2 * number + 1) & 0xFF, 0, 0, 0])
            + item(0x30, abstract.encode())
            + item(0x40, syntax.encode()),
        )
        for number, (abstract, syntax) in enumerate(contexts)
    )
    user = item(0x51, struct.pack(">I", 1 << 16)) + item(0x52, b"1.2.826.0.1.3680043.10.999")
    body = struct.pack(">HH", 1, 0) + called.ljust(16)[:16] + caller.ljust(16)[:16] + bytes(32)
    body += item(0x10, b"1.2.840.10008.3.1.1.1") + offered + item(0x50, user)
    return pdu(1, body)


def pdata(content, flags, context=1, length=None):
    """P-DATA-TF of one fragment. flags: 1 command, 2 last."""
    size = len(content) + 2 if length is None else length
    return pdu(DATA, struct.pack(">IBB", size & 0xFFFFFFFF, context, flags) + content)


def command(sop_uid, sop_class=CTImageStorage):
    """The command of a C-STORE."""
    told = Dataset()
    told.CommandGroupLength = 0
    told.AffectedSOPClassUID = sop_class
    told.CommandField = 1
    told.MessageID = 1
    told.Priority = 0
    told.CommandDataSetType = 1
    told.AffectedSOPInstanceUID = sop_uid
    content = encoded(told, implicit=True)
    told.CommandGroupLength = len(content) - 12
    return encoded(told, implicit=True)


def encoded(dataset, *, implicit=False):
    stream = DicomBytesIO()
    stream.is_little_endian, stream.is_implicit_VR = True, implicit
    write_dataset(stream, dataset)
    return stream.getvalue()


class Caller:
    """A connection that says what it is told."""

    def __init__(self, port, seconds=10):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=seconds)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def say(self, content):
        """False where the node has hung up."""
        try:
            self.socket.sendall(content)
        except OSError:
            return False
        return True

    def hear(self):
        """(kind, body) of the next PDU, (0, b"") where the connection is over.

        Raises TimeoutError where nothing comes.
        """
        try:
            head = self._bytes(6)
            kind, _, length = struct.unpack(">BBI", head)
            return kind, self._bytes(length)
        except TimeoutError:
            raise
        except (OSError, struct.error):
            return 0, b""

    def _bytes(self, count):
        found = io.BytesIO()
        while found.tell() < count:
            data = self.socket.recv(count - found.tell())
            if not data:
                raise OSError("over")
            found.write(data)
        return found.getvalue()

    def store(self, content, sop_uid, sop_class=CTImageStorage):
        """Status of a C-STORE of encoded bytes, None where the node hung up."""
        chunks = [content[start : start + 60_000] for start in range(0, len(content), 60_000)]
        said = self.say(pdata(command(sop_uid, sop_class), 3))
        for number, chunk in enumerate(chunks or [b""], 1):
            said = said and self.say(pdata(chunk, 2 if number >= len(chunks) else 0))
        kind, body = self.hear()
        if kind != DATA:
            return None
        # The last element of a C-STORE response is its status; elements come in order of tags.
        place = body.index(struct.pack("<HHI", 0, 0x0900, 2))
        return struct.unpack_from("<H", body, place + 8)[0]


def accepted(port, **options):
    """A caller whose association was accepted, soon where the node is full of those just gone."""
    until = time.monotonic() + 10
    while True:
        caller = Caller(port)
        caller.say(request(**options))
        kind, body = caller.hear()
        if kind == ACCEPTED:
            return caller
        caller.__exit__()
        assert kind == REJECTED
        assert body[1] == TRANSIENT
        assert time.monotonic() < until, "the node stays full"
        time.sleep(0.1)


ECHO = (Verification, EXPLICIT)
