"""Two hundred hostile callers and data sets: refused, logged, and the node goes on.

Above 300 lines: the callers share one running node.
"""

import json
import random
import re
import socket
import struct
import time
from collections import Counter

import pytest
from node_process import running_node
from pydicom import dcmread, uid
from pydicom.data import get_testdata_file
from pynetdicom.sop_class import CTImageStorage, EnhancedCTImageStorage, MRImageStorage
from raw_dicom import (
    ABORT,
    ACCEPTED,
    DATA,
    EXPLICIT,
    REJECTED,
    RELEASE,
    RELEASED,
    Caller,
    accepted,
    command,
    encoded,
    item,
    pdata,
    pdu,
    request,
)
from small_node import ROOT, Archive, archive_at, ct, node_config, quick_retries, send

from cddnet.node.store.folder import MARKER

SEED = 7
SILENT_S = 3.0
# At the peak, beyond what the node needs for itself: 128 MiB images that are decoded.
MOST_GROWTH_MB = 400
# What cannot be encoded again soon ends in the failed box.
FEW = quick_retries(5)
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:Invalid value", "ignore:The value length"),
]


def spoiled(rng, content, count):
    """Bytes with `count` random bits turned."""
    data = bytearray(content)
    for _ in range(count):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def titles(rng):
    """Callers and called titles that are not configured."""
    yield from (
        {"called": b"ANOTHER"},
        {"called": b""},
        {"called": b"cddnet"},
        {"called": b"CDDNET\x00X"},
        {"called": b"\xff" * 16},
        {"caller": b"STRANGER"},
        {"caller": b""},
        {"caller": b"SCANNER2"},
        {"caller": b"../../etc"},
        {"caller": b"%s%s%n\r\n"},
    )
    for _ in range(10):
        yield {"caller": rng.randbytes(16)}


def classes(rng):
    """Presentation contexts that no CT comes in."""
    for abstract in (
        MRImageStorage,
        "",
        "1.2",
        "x" * 200,
        "../..",
        "1." * 600,
        "1.2.840.10008.5.1",
    ):
        yield [(abstract, EXPLICIT)]
    yield [(CTImageStorage, "1.2.840.10008.1.2.1.99")]
    yield [(CTImageStorage, "")]
    yield [(CTImageStorage, "1.2.3.4")]
    yield [(MRImageStorage, EXPLICIT)] * 128
    yield []


def openings(rng):
    """What is no association request."""
    whole = request()
    for length in (1, 5, 6, 7, 40, 4096, 70_000):
        yield rng.randbytes(length)
    yield b"GET / HTTP/1.1\r\nHost: node\r\n\r\n"
    yield b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + rng.randbytes(200)
    for _ in range(12):
        yield whole[: rng.randrange(1, len(whole))]
    for _ in range(15):
        yield spoiled(rng, whole, rng.choice((1, 3, 30)))
    for kind in (0, 2, 3, 5, 6, 8, 0x41, 0xFF):
        yield pdu(kind, whole[6:])
    for length in (0, 1, len(whole), 2**20, 2**31, 2**32 - 1):
        yield pdu(1, whole[6:], length)
    yield pdata(b"", 3)
    yield pdu(1, struct.pack(">HH", 1, 0) + b"CDDNET".ljust(16) + b"SCANNER".ljust(16))
    yield pdu(1, whole[6:80] + item(0x10, b"", 0xFFFF))
    yield pdu(1, whole[6:] + item(0x50, b"\x51\x00\xff\xff"))


def messages(rng):
    """What comes after an accepted request and is no message."""
    store = command(f"{ROOT}.66.1")
    yield pdata(store, 3, context=3)
    yield pdata(store, 3, context=0)
    for length in (0, 1, 2, 2**16, 2**31, 2**32 - 1):
        yield pdata(store, 3, length=length)
    yield pdata(b"", 3)
    yield pdata(b"", 2) + pdata(b"", 0)
    yield pdu(DATA, b"")
    yield pdu(DATA, b"\x00\x00\x00")
    yield pdu(DATA, rng.randbytes(500))
    yield pdu(RELEASE, b"")
    yield pdu(ABORT, b"\x00" * 3)
    yield request()
    yield pdu(DATA, b"", 2**32 - 1)
    for _ in range(12):
        yield pdata(spoiled(rng, store, 3), 3)
    for _ in range(6):
        yield pdata(rng.randbytes(rng.randrange(1, 300)), 3)
    yield pdata(store, 3) + rng.randbytes(400)
    yield pdata(store, 3) + pdata(store, 3)


def datasets(rng):
    """(encoded data set, announced instance, class, syntax) of what is no CT image."""
    good = encoded(ct(0, 60))
    name = str(ct(0, 60).SOPInstanceUID)
    for _ in range(20):
        yield good[: rng.randrange(len(good) - 2)], name
    for _ in range(10):
        yield rng.randbytes(rng.randrange(2000)), name
    for keyword in ("SOPInstanceUID", "SOPClassUID", "SeriesInstanceUID", "StudyInstanceUID"):
        image = ct(0, 61)
        delattr(image, keyword)
        yield encoded(image), str(ct(0, 61).SOPInstanceUID)
    for bad in BAD_UIDS:
        yield encoded(ct(0, 62, SeriesInstanceUID=bad)), str(ct(0, 62).SOPInstanceUID)
        yield encoded(ct(0, 62, SOPInstanceUID=bad)), bad
    for changes in (
        {"Rows": 65535, "Columns": 65535},
        {"Rows": 0},
        {"Columns": 0},
        {"SamplesPerPixel": 65535},
        {"BitsAllocated": 65528},
        {"NumberOfFrames": "99999999999"},
        {"NumberOfFrames": "-3"},
        {"PixelData": b""},
    ):
        yield encoded(ct(0, 63, **changes)), str(ct(0, 63).SOPInstanceUID)
    # Sequences in sequences, without an end.
    deep = struct.pack("<HH2sHI", 0x0008, 0x1140, b"SQ", 0, 0xFFFFFFFF)
    deep += struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
    yield deep * 5000, name


BAD_UIDS = (
    # From the folder of a series up to that of the test, and beyond.
    *("../" * levels + "escaped" for levels in range(1, 6)),
    "../../../../tmp/x",
    "..\\..\\x",
    "/etc/passwd",
    "1.2/3",
    "1.2\x003",
    "1..2",
    ".",
    "1.2.",
    "1." * 33,
    "'; DROP TABLE series; --",
    "%2e%2e%2f",
)


def quarantined(rng):
    """Data sets that are taken, because only decoding shows what is wrong with them, or nothing."""
    real = dcmread(get_testdata_file("CT_small.dcm"))
    for number in range(40):
        real.SOPInstanceUID = f"{ROOT}.70.{number}"
        real.SeriesInstanceUID = f"{ROOT}.71.{number}"
        yield spoiled(rng, encoded(real), 1 + number // 2), str(real.SOPInstanceUID), EXPLICIT
    for place in range(0, 600, 30):
        image = ct(place, 73, SeriesInstanceUID=f"{ROOT}.73.{place}")
        content = encoded(image)
        content = content[:place] + b"\xff\xff\xff\xff" + content[place + 4 :]
        yield content, image.SOPInstanceUID, EXPLICIT
    for number, syntax in enumerate(COMPRESSED):
        for side, frames in ((128, "1"), (8192, "1"), (1024, "60000")):
            place = f"{number}{side}"
            image = ct(0, 72, Rows=side, Columns=side, NumberOfFrames=frames)
            image.SeriesInstanceUID, image.SOPInstanceUID = f"{ROOT}.8.{place}", f"{ROOT}.9.{place}"
            del image.PixelData
            yield encoded(image) + encapsulated(rng.randbytes(3000)), image.SOPInstanceUID, syntax


COMPRESSED = [
    str(syntax)
    for syntax in (uid.JPEGLSLossless, uid.JPEG2000Lossless, uid.JPEGLosslessSV1, uid.RLELossless)
]


def encapsulated(content):
    """PixelData of one fragment, garbage instead of a code stream."""
    head = struct.pack("<HH2sHI", 0x7FE0, 0x0010, b"OB", 0, 0xFFFFFFFF)
    table = struct.pack("<HHI", 0xFFFE, 0xE000, 0)
    fragment = struct.pack("<HHI", 0xFFFE, 0xE000, len(content)) + content
    return head + table + fragment + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)


@pytest.fixture
def hostile(tmp_path):
    """A node of its own process with a short patience, and an archive."""
    with Archive() as archive:
        config = node_config(
            tmp_path / "node",
            {"pacs": archive_at(archive.port, retries=FEW)},
            timeout_s=SILENT_S,
            log_file=tmp_path / "log",
            maximum_associations=8,
        )
        with running_node(config, tmp_path) as node:
            node.config, node.archive, node.counts = config, archive, Counter()
            yield node


def said(caller):
    """What the node says to the end of the connection: it must not keep it for long."""
    kinds = []
    until = time.monotonic() + 3 * SILENT_S + 5
    while True:
        assert time.monotonic() < until, "the connection is held open"
        try:
            kind, _ = caller.hear()
        except TimeoutError:
            pytest.fail("the connection is held open")
        if kind == 0:
            return kinds
        kinds.append(kind)


def log_of(folder):
    return [json.loads(line) for line in (folder / "log").read_text().splitlines()]


@pytest.mark.slow
def test_hostile_callers_and_data_sets_are_refused_and_the_node_goes_on(
    hostile, tmp_path, record_property
):
    rng = random.Random(SEED)
    port, counts = hostile.port, hostile.counts
    before = hostile.megabytes()

    for changes in titles(rng):
        with Caller(port) as caller:
            caller.say(request(**changes))
            assert caller.hear()[0] in (0, REJECTED, ABORT), changes
        counts["title"] += 1
    assert hostile.answers("SCANNER")

    for contexts in classes(rng):
        with Caller(port) as caller:
            caller.say(request(contexts=contexts))
            kind, body = caller.hear()
            if kind == ACCEPTED:
                assert 0 not in results(body)
                caller.say(pdata(command(f"{ROOT}.65.1"), 3) + pdata(encoded(ct(0, 65)), 2))
                assert DATA not in said(caller)
        counts["class"] += 1
    assert hostile.answers("SCANNER")

    # Slow callers first: that they are held out must not depend on who else is there.
    slow = [Caller(port) for _ in range(6)]
    for caller in slow:
        caller.say(request()[:3])
    counts["slow"] += len(slow)
    begun = time.monotonic()
    for opening in openings(rng):
        with Caller(port) as caller:
            caller.say(opening)
            caller.socket.shutdown(socket.SHUT_WR)
            assert DATA not in said(caller)
        counts["opening"] += 1
    for caller in slow:
        assert said(caller) in ([], [ABORT])
        caller.__exit__()
    assert time.monotonic() - begun < 120
    assert hostile.answers("SCANNER")

    for message in messages(rng):
        with accepted(port) as caller:
            caller.say(message)
            caller.socket.shutdown(socket.SHUT_WR)
            assert set(said(caller)) <= {ABORT, RELEASED, DATA}
        counts["message"] += 1
    assert hostile.answers("SCANNER")
    assert not kept(tmp_path)

    for content, name in datasets(rng):
        with accepted(port) as caller:
            status = caller.store(content, name)
            assert status != 0, (content[:200], name)
            counts["data set"] += 1
            counts["status"] += status is not None
    assert not kept(tmp_path)
    for sop_class in (MRImageStorage, EnhancedCTImageStorage, "1.2.3"):
        with accepted(port) as caller:
            image = ct(0, 64)
            assert caller.store(encoded(image), image.SOPInstanceUID, sop_class) != 0
        counts["data set"] += 1
    assert hostile.answers("SCANNER")
    assert not kept(tmp_path)

    for content, name, syntax in quarantined(rng):
        with accepted(port, contexts=[(CTImageStorage, syntax)]) as caller:
            caller.store(content, name)
        counts["quarantine"] += 1
    assert hostile.answers("SCANNER")

    good = [ct(index, 90) for index in range(3)]
    assert send(port, good) == [0, 0, 0]
    until = time.monotonic() + 60
    while {item.SOPInstanceUID for item in good} - arrived(hostile.archive):
        assert time.monotonic() < until, "a good series does not come through"
        time.sleep(0.1)
    states = settled(tmp_path)
    growth = hostile.megabytes() - before
    told = log_of(tmp_path)
    events = Counter(line["event"] for line in told)
    figures = [dict(counts), states, dict(events), f"{growth:.0f} MB more at most"]
    record_property("figures", str(figures))
    assert sum(counts.values()) - counts["status"] >= 200
    assert growth < MOST_GROWTH_MB
    assert not events["crashed"]
    assert events["refused"] >= counts["status"]
    assert events["association_refused"] + events["request_refused"] >= counts["title"]
    assert not set(states) - {"done", "refused", "ignored", "failed"}
    assert_nothing_outside(tmp_path)


def results(body):
    """Result of every presentation context of an A-ASSOCIATE-AC, 0 for accepted."""
    found, place = [], 68
    while place + 4 <= len(body):
        kind, length = body[place], struct.unpack_from(">H", body, place + 2)[0]
        if kind == 0x21:
            found.append(body[place + 6])
        place += 4 + length
    return found


def arrived(archive):
    """Originals of the objects that an archive has."""
    import io

    found = set()
    for content in list(archive.objects.values()):
        data = dcmread(io.BytesIO(content), force=True)
        found.add(data.SourceImageSequence[0].ReferencedSOPInstanceUID)
    return found


def kept(folder):
    return [path for path in (folder / "node" / "inbox").rglob("*") if path.is_file()]


def settled(folder):
    """States of all series once none of them changes any more."""
    from cddnet.node.store.journal import Journal

    journal = Journal(folder / "node" / "journal.sqlite")
    until = time.monotonic() + 90
    try:
        while True:
            states = Counter(row.state for row in journal.queue())
            if not set(states) & {"receiving", "complete", "processing", "sending"}:
                return dict(states)
            assert time.monotonic() < until, states
            time.sleep(0.3)
    finally:
        journal.close()


def assert_nothing_outside(folder):
    """Only files that the node is configured to write, under names that are hashes."""
    assert not list((folder / "work").rglob("*"))
    assert not list((folder / "temporary").rglob("*"))
    assert not list(folder.rglob("*escaped*"))
    assert not list(folder.parent.glob("*escaped*"))
    known = {"node", "work", "temporary", "config.pickle", "output", "log"}
    assert {path.name for path in folder.iterdir()} == known
    own = re.compile(
        r"(in|out)box(/[0-9a-f]{32}(/([0-9a-f]{32}\.dcm|decision\.json))?)?"
        r"|journal\.sqlite(-wal|-shm)?"
    )
    for path in (folder / "node").rglob("*"):
        name = str(path.relative_to(folder / "node"))
        assert own.fullmatch(name) or name in ("secret", "lock", "uploads", MARKER), name
