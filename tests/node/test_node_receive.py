"""Receiving: on the disk before it is confirmed, refused with the right status, bounded.

Above 300 lines: each refusal has a caller of its own.
"""

import gc
import os
import select
import shutil
import socket
import ssl
import struct
import subprocess
import threading
import time
from contextlib import ExitStack
from socketserver import BaseServer

import pytest
from pydicom import dcmread
from pynetdicom import AE
from pynetdicom.dsutils import encode
from pynetdicom.sop_class import (
    CTImageStorage,
    EnhancedCTImageStorage,
    MRImageStorage,
    PatientRootQueryRetrieveInformationModelFind,
    Verification,
)
from raw_dicom import ABORT, DATA, Caller, accepted, command, pdata, pdu, request
from small_node import FAMILY, archive_at, associate, ct, node_config, send, station_at

from cddnet.node.receive.inflow import Bounds, Budget, Inflow, TooSlowError
from cddnet.node.receive.receiver import Receiver
from cddnet.node.store import images

FULL, MISMATCH, DAMAGED, FORBIDDEN, FAILURE = 0xA700, 0xA900, 0xC000, 0x0124, 0x0110


# The library leaves sockets of connections that broke to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def _has_another_loopback():
    try:
        with socket.create_server(("127.0.0.2", 0)):
            return True
    except OSError:
        return False


other_loopback = pytest.mark.skipif(
    not _has_another_loopback(), reason="only Linux has more than one loopback address"
)


@pytest.fixture
def listening(tmp_path, monkeypatch):
    """A function that starts a receiver; all are stopped at the end."""
    monkeypatch.setattr(BaseServer.serve_forever, "__defaults__", (0.02,))
    started = []

    def start(free=lambda folder: 1e15, **changes):
        station = station_at(node_config(tmp_path / "node", **changes), free=free)
        receiver = Receiver(station, lambda event: (0, None))
        receiver.start()
        started.append((receiver, station))
        return station

    yield start
    for receiver, station in started:
        receiver.stop(1)
        station.close()
    gc.collect()


def kept(station):
    return sorted(path for path in (station.config.folder / "inbox").rglob("*.dcm"))


def port(station):
    return station.config.dicom_port


def test_what_is_confirmed_is_on_the_disk_and_in_the_journal(listening, monkeypatch):
    """At the moment of the answer: flushed file, flushed folder, journal row, in this order."""
    order = []
    flush, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (order.append("flush"), flush(handle)))
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append("named"), replace(a, b)))
    station = listening()
    accept = station.journal.accept
    monkeypatch.setattr(
        station.journal, "accept", lambda item: (order.append("journal"), accept(item))[1]
    )
    order.clear()
    source = ct(0)
    assert send(port(station), [source]) == [0]
    assert order == ["flush", "named", "flush", "flush", "journal"]
    (file,) = kept(station)
    copy = dcmread(file)
    assert copy == source
    assert copy.PixelData == source.PixelData
    assert station.journal.files() == [
        (str(file.relative_to(station.config.folder)), file.stat().st_size)
    ]


def test_only_the_owner_can_read_and_no_name_tells_a_uid(listening):
    station = listening()
    send(port(station), [ct(0)])
    for path in [station.config.folder, *station.config.folder.rglob("*")]:
        assert path.stat().st_mode & 0o077 == 0, path
        assert str(ct(0).SeriesInstanceUID) not in str(path)
    assert FAMILY not in station.told.getvalue()
    assert "received" in station.told.getvalue()
    assert str(ct(0).SOPInstanceUID) not in station.told.getvalue()


def test_a_duplicate_is_confirmed_and_changes_nothing(listening):
    station = listening()
    assert send(port(station), [ct(0), ct(1)]) == [0, 0]
    before = [path.read_bytes() for path in kept(station)]
    generation = station.journal.database.number("SELECT generation FROM series")
    other = ct(0, SliceThickness="9")
    assert send(port(station), [ct(0), other, ct(1)]) == [0, 0, 0]
    assert [path.read_bytes() for path in kept(station)] == before, "the first one stays"
    assert station.journal.database.number("SELECT generation FROM series") == generation
    assert "different_bytes" in station.told.getvalue()


@pytest.mark.parametrize("lost", [False, True])
def test_an_instance_of_two_series_is_one_file_and_leaves_no_orphan(listening, lost):
    """On the disk is what the journal knows, nothing else, and after a purge nothing at all."""
    station = listening()
    one, other = ct(0, series=1), ct(0, series=2)
    other.SOPInstanceUID = one.SOPInstanceUID
    assert send(port(station), [one]) == [0]
    if lost:
        kept(station)[0].unlink()
    assert send(port(station), [other, one, other]) == [0, 0, 0]

    def on_disk():
        return {str(path.relative_to(station.config.folder)) for path in kept(station)}

    (known,) = station.journal.files()
    assert on_disk() == {known[0]}
    assert dcmread(kept(station)[0]).SeriesInstanceUID == (other if lost else one).SeriesInstanceUID
    ends = station.journal.clock() + 100
    station.journal.clock = lambda: ends
    for due in station.journal.due(0.2):
        assert station.journal.decide(due, None, ())
    series = [uid for uid, _ in station.deliveries.disposable()]
    assert sum(station.deliveries.purge(uid, station.images.remove) for uid in series) == 1
    assert on_disk() == set()
    assert station.journal.files() == []


def test_a_lost_file_of_a_known_instance_is_taken_again(listening):
    station = listening()
    send(port(station), [ct(0)])
    kept(station)[0].unlink()
    assert send(port(station), [ct(0)]) == [0]
    assert dcmread(kept(station)[0]) == ct(0)


HOSTILE = [
    ({"SOPInstanceUID": "../../../../tmp/x"}, "bad_uid"),
    ({"SeriesInstanceUID": "1.2/../../3"}, "bad_uid"),
    ({"SeriesInstanceUID": "1.2\x00..\\3"}, "bad_uid"),
    ({"SeriesInstanceUID": ""}, "no_uid"),
    ({"StudyInstanceUID": "1." * 40 + "1"}, "bad_uid"),
    ({"Rows": 65535, "Columns": 65535}, "too_large"),
    ({"Rows": 129}, "damaged"),
    ({"Rows": 0}, "damaged"),
    ({"NumberOfFrames": "2000000"}, "too_large"),
    ({"NumberOfFrames": "3"}, "damaged"),
    ({"NumberOfFrames": "-1"}, "damaged"),
]


@pytest.mark.filterwarnings("ignore:Invalid value", "ignore:The value length")
def test_hostile_headers_are_refused_and_leave_nothing(listening, monkeypatch):
    station = listening()
    for changes, reason in HOSTILE:
        hostile = ct(0, **changes)
        assert _raw_store(monkeypatch, station, hostile) == DAMAGED, changes
        assert f'"reason": "{reason}"' in station.told.getvalue().splitlines()[-1], changes
    assert kept(station) == []
    assert station.journal.counts()["instances"] == 0
    assert send(port(station), [ct(1)]) == [0], "the node is still there"


def _raw_store(monkeypatch, station, hostile, cut=None):
    """Status of a C-STORE whose command announces ct(0), and whose data set is another one."""
    content = encode(hostile, False, True)[:cut]
    monkeypatch.setattr("pynetdicom.association.encode", lambda *_: content)
    (status,) = send(port(station), [ct(0)])
    monkeypatch.undo()
    return status


def test_a_command_must_announce_what_is_in_the_data_set(listening, monkeypatch):
    station = listening()
    assert _raw_store(monkeypatch, station, ct(1)) == MISMATCH
    for kind in (MRImageStorage, EnhancedCTImageStorage):
        assert _raw_store(monkeypatch, station, ct(0, SOPClassUID=kind)) == MISMATCH
    assert kept(station) == []


def test_a_data_set_cut_short_is_refused(listening, monkeypatch):
    station = listening()
    for cut in (1, 7, 100, 600, -1000):
        assert _raw_store(monkeypatch, station, ct(0), cut=cut) == DAMAGED, cut
    assert kept(station) == []


def test_who_may_call_and_whom(listening):
    station = listening(destinations={"pacs": archive_at(4)})
    assert associate(port(station), caller="STRANGER").is_rejected
    assert associate(port(station), called="ANOTHER").is_rejected
    archive = associate(port(station), caller="ARCHIVE")
    assert archive.is_established, "it may tell what it committed to"
    archive.release()
    assert send(port(station), [ct(0)], caller="ARCHIVE") == [FORBIDDEN]
    assert kept(station) == []
    told = station.told.getvalue()
    assert '"reason": "caller"' in told
    assert '"reason": "called_ae"' in told
    assert send(port(station), [ct(0)]) == [0]


def test_any_caller_only_where_it_is_said_so(listening):
    station = listening(allowed_callers="any")
    assert send(port(station), [ct(0)], caller="STRANGER") == [0]


def test_what_is_offered_is_ct_in_what_formats_decode(listening):
    station = listening()
    entity = AE("SCANNER")
    kinds = (CTImageStorage, EnhancedCTImageStorage, MRImageStorage)
    for kind in (*kinds, PatientRootQueryRetrieveInformationModelFind):
        entity.add_requested_context(kind)
    association = entity.associate("127.0.0.1", port(station), ae_title="CDDNET")
    accepted = {context.abstract_syntax for context in association.accepted_contexts}
    association.release()
    assert accepted == set(kinds[:2])
    echo = associate(port(station))
    assert echo.send_c_echo().Status == 0
    echo.release()


def test_a_full_disk_is_told_and_recovers_by_itself(listening):
    room = [0.0]
    station = listening(free=lambda folder: room[0], smallest_free_gb=1)
    assert send(port(station), [ct(0), ct(1)]) == [FULL, FULL]
    assert kept(station) == []
    room[0] = 2e9
    assert send(port(station), [ct(0), ct(1)]) == [0, 0]
    told = station.told.getvalue()
    assert told.count('"event": "full"') == 1, "it is told once, not per slice"
    assert told.count('"event": "space_again"') == 1


def test_over_the_quota_is_full_too(listening):
    large = {"Rows": 512, "Columns": 512, "PixelData": bytes(2 * 512 * 512)}
    slices = [ct(index, **large) for index in range(3)]
    # What the journal takes for two images is far less than half an image.
    station = listening(quota_gb=2.5 * len(slices[0].PixelData) / 1e9)
    assert send(port(station), slices) == [0, 0, FULL]
    assert send(port(station), slices[:1]) == [0], "a duplicate needs no room"


def test_the_journal_and_what_is_set_aside_count_towards_the_quota(listening):
    station = listening(quota_gb=1e-3)
    (station.config.folder / "inbox" / "x").write_bytes(bytes(400_000))
    before = station.images.used_bytes()
    assert before >= (station.config.folder / "journal.sqlite").stat().st_size > 0
    station.images.set_aside("inbox/x")
    assert station.images.used_bytes() >= before + 400_000
    assert f"used_bytes {station.images.used_bytes():.1f}" in station.metrics.text().decode()
    with (station.config.folder / "journal.sqlite").open("ab") as journal:
        journal.truncate(600_000)
    assert send(port(station), [ct(0)]) == [FULL]


def test_a_disk_that_fails_in_the_middle_leaves_no_half_file(listening, monkeypatch):
    station = listening()
    write = os.write

    def full(handle, data):
        if len(data) > 10_000:
            raise OSError(28, "No space left on device")
        return write(handle, data)

    monkeypatch.setattr(images.os, "write", full)
    assert send(port(station), [ct(0)]) == [FULL]
    monkeypatch.undo()
    assert [path for path in (station.config.folder / "inbox").rglob("*") if path.is_file()] == []
    assert send(port(station), [ct(0)]) == [0]


def test_a_journal_that_fails_means_no_success(listening, monkeypatch):
    import sqlite3

    station = listening()

    def full(instance):
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(station.journal, "accept", full)
    assert send(port(station), [ct(0)]) == [FULL]
    monkeypatch.undo()
    assert kept(station) == []
    assert send(port(station), [ct(0)]) == [0]


def test_an_error_that_nothing_names_has_a_status_too_and_leaves_nothing(listening, monkeypatch):
    station = listening()

    def broken(instance):
        raise OverflowError("too large to convert")

    monkeypatch.setattr(station.journal, "accept", broken)
    assert send(port(station), [ct(0)]) == [FAILURE]
    monkeypatch.undo()
    assert kept(station) == []
    assert send(port(station), [ct(0)]) == [0]


def test_a_count_of_slices_beyond_reason_is_taken_as_none(listening):
    station = listening()
    counts = ["999999999999", "-5", "3"]
    slices = [ct(0, n, NumberOfSeriesRelatedInstances=text) for n, text in enumerate(counts, 1)]
    assert send(port(station), slices) == [0, 0, 0]
    rows = station.journal.database.rows("SELECT expected FROM series ORDER BY series_uid")
    assert [row["expected"] for row in rows] == [0, 0, 3]


def test_two_senders_of_the_same_slices_at_once(listening):
    station = listening()
    slices = [ct(index) for index in range(6)]
    statuses = []
    threads = [
        threading.Thread(target=lambda: statuses.extend(send(port(station), slices)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [0] * 24
    assert len(kept(station)) == 6
    assert station.journal.counts()["instances"] == 6
    assert {dcmread(path).SOPInstanceUID for path in kept(station)} == {
        item.SOPInstanceUID for item in slices
    }


def test_an_aborted_association_keeps_what_was_confirmed(listening):
    station = listening()
    association = associate(port(station))
    assert association.send_c_store(ct(0)).Status == 0
    association.abort()
    assert len(kept(station)) == 1
    assert send(port(station), [ct(1)]) == [0]


def test_an_image_that_was_cut_off_leaves_nothing_and_comes_again_whole(listening):
    """The connection ends, or is aborted, within the image after one that was confirmed."""
    station = listening()
    content, name = encode(ct(1), False, True), str(ct(1).SOPInstanceUID)
    for how in (b"", pdu(ABORT, bytes(4))):
        with accepted(port(station)) as caller:
            assert caller.store(encode(ct(0), False, True), str(ct(0).SOPInstanceUID)) == 0
            caller.say(pdata(command(name), 3) + pdata(content[:-1000], 0) + how)
        associate(port(station)).release()
    files = [path for path in (station.config.folder / "inbox").rglob("*") if path.is_file()]
    assert files == kept(station)
    assert len(files) == station.journal.counts()["instances"] == 1
    assert send(port(station), [ct(1)]) == [0]
    assert {dcmread(path).SOPInstanceUID for path in kept(station)} == {
        ct(index).SOPInstanceUID for index in range(2)
    }


def test_a_pdu_without_end_costs_no_memory_and_no_place(listening):
    """It announces 4 GB: the connection is closed at once, not after 4 GB."""
    station = listening()
    with socket.create_connection(("127.0.0.1", port(station)), timeout=5) as stranger:
        stranger.sendall(struct.pack(">BBI", 1, 0, 2**32 - 1))
        assert _ended(stranger)
    for garbage in (b"GET / HTTP/1.1\r\n\r\n", b"\x01\x00\x00\x00\x00\x04abcd", b"\xff" * 100):
        with socket.create_connection(("127.0.0.1", port(station)), timeout=5) as stranger:
            stranger.sendall(garbage)
            assert _ended(stranger)
    assert send(port(station), [ct(0)]) == [0]


def _ended(connection):
    """Closed, or told to go by an A-ABORT."""
    try:
        return connection.recv(4096)[:1] in (b"", b"\x07")
    except ConnectionError:
        return True


def test_an_instance_beyond_the_bound_ends_its_association(listening):
    station = listening(largest_in_memory_mb=0.03)
    assert send(port(station), [ct(0)]) == [None]
    assert kept(station) == []
    echo = associate(port(station))
    assert echo.send_c_echo().Status == 0, "what was reserved is given back"
    echo.release()


def test_too_many_callers_are_refused_and_the_others_served(listening):
    station = listening(maximum_associations=2)
    first, second = associate(port(station)), associate(port(station))
    third = associate(port(station))
    assert third.is_rejected
    first.release()
    second.release()
    until = time.monotonic() + 5
    while time.monotonic() < until:
        again = associate(port(station))
        if again.is_established:
            again.release()
            return
        time.sleep(0.05)
    pytest.fail("places are not given back")


def from_there(station):
    """An association from another address of this machine."""
    entity = AE("SCANNER")
    entity.add_requested_context(CTImageStorage)
    entity.add_requested_context(Verification)
    there = ("127.0.0.1", port(station))
    return entity.associate(*there, ae_title="CDDNET", bind_address=("127.0.0.2", 0))


@other_loopback
def test_one_address_leaves_places_for_others(listening):
    station = listening(maximum_associations=6, associations_per_address=2)
    first, second = associate(port(station)), associate(port(station))
    assert associate(port(station)).is_rejected
    other = from_there(station)
    assert other.send_c_store(ct(0)).Status == 0
    other.release()
    until = time.monotonic() + 5
    while '"reason": "too_many"' not in station.told.getvalue():
        assert time.monotonic() < until, station.told.getvalue()
        time.sleep(0.02)
    first.release()
    accepted(port(station)).__exit__()
    second.release()


@other_loopback
@pytest.mark.parametrize(
    ("limits", "kept_open"),
    [({}, 14), ({"maximum_associations": 6, "associations_per_address": 2}, 4)],
    ids=["by default", "few"],
)
def test_callers_who_ask_for_nothing_leave_places_for_others(listening, limits, kept_open):
    station = listening(timeout_s=60, **limits)
    with ExitStack() as stack:
        silent = [stack.enter_context(Caller(port(station))).socket for _ in range(20)]
        until = time.monotonic() + 20
        # They can be read once they are at their end; the node opens them in any order.
        while len(select.select(silent, [], [], 0.1)[0]) < 20 - kept_open:
            assert time.monotonic() < until
        assert len(select.select(silent, [], [], 0.5)[0]) == 20 - kept_open
        other = from_there(station)
        assert other.send_c_echo().Status == 0
        other.release()


@pytest.mark.parametrize(
    ("bounds", "bytes_at_once"),
    [({"longest_pdu_s": 0.5}, 1), ({"longest_message_s": 0.5}, len(pdata(b"\0" * 500, 0)))],
    ids=["one byte at a time", "one PDU at a time"],
)
def test_a_caller_who_trickles_is_cut_off_and_holds_up_nobody(listening, bounds, bytes_at_once):
    station = listening(timeout_s=60, **bounds)
    with accepted(port(station)) as caller:
        assert caller.say(pdata(command(str(ct(0).SOPInstanceUID)), 3))
        until = time.monotonic() + 20
        rest = pdata(b"\0" * 500, 0) * 2000
        while caller.say(rest[:bytes_at_once]):
            assert time.monotonic() < until, "it may go on for ever"
            rest = rest[bytes_at_once:]
            time.sleep(0.02)
    assert 'refused_total{reason="slow"} 1.0' in station.metrics.text().decode()
    assert send(port(station), [ct(0)]) == [0]


def test_a_slow_image_within_its_time_is_kept(listening):
    station = listening(timeout_s=60, longest_pdu_s=20, longest_message_s=60)
    with accepted(port(station)) as caller:
        content, name = encode(ct(0), False, True), str(ct(0).SOPInstanceUID)
        sent = pdata(command(name), 3) + pdata(content, 2)
        for start in range(0, len(sent), 4096):
            caller.say(sent[start : start + 4096])
            time.sleep(0.02)
        assert caller.hear()[0] == DATA
    assert len(kept(station)) == 1


def test_no_caller_holds_the_memory_of_all():
    budget = Budget(1000)
    assert not budget.take(751, "a")
    assert budget.take(750, "a")
    assert not budget.take(1, "a")
    assert budget.take(250, "b")
    assert not budget.take(1, "b")
    budget.give(750, "a")
    assert budget.take(500, "b")
    budget.give(750, "b")
    assert budget.held() == 0


def test_every_end_of_a_connection_gives_its_memory_back():
    budget = Budget(10_000)
    bounds = Bounds(longest_pdu=5000, silent_s=5, pdu_s=0.2, message_s=5)
    with socket.create_server(("127.0.0.1", 0)) as server:
        far = socket.create_connection(server.getsockname())
        near, _ = server.accept()
    with far:
        inflow = Inflow(near, bounds, budget, "far")
        far.sendall(b"\0" * 3000)
        inflow.receive(3000)
        inflow.message_ended(kept=True)
        far.sendall(b"\0" * 10)
        with pytest.raises(TooSlowError):
            inflow.receive(1000)
        assert budget.held() == 4000
        inflow.handled()
        assert budget.held() == 1000
        inflow.close()
        assert budget.held() == 0


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A certificate for this machine and its key."""
    folder = tmp_path_factory.mktemp("tls")
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1"]
    made += ["-keyout", str(key), "-out", str(certificate), "-subj", "/CN=localhost"]
    subprocess.run(
        [*made, "-addext", "subjectAltName=IP:127.0.0.1"], check=True, capture_output=True
    )
    return {"certificate": certificate, "key": key}


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")
def test_a_failed_handshake_is_told_and_a_good_one_works(listening, certificate):
    station = listening(tls=certificate)
    assert not associate(port(station)).is_established
    until = time.monotonic() + 5
    while '"reason": "tls"' not in station.told.getvalue():
        assert time.monotonic() < until, station.told.getvalue()
        time.sleep(0.02)
    assert 'refused_total{reason="tls"} 1.0' in station.metrics.text().decode()
    entity = AE("SCANNER")
    entity.add_requested_context(CTImageStorage)
    trusting = ssl.create_default_context(cafile=certificate["certificate"])
    there = ("127.0.0.1", port(station))
    association = entity.associate(*there, ae_title="CDDNET", tls_args=(trusting, there[0]))
    assert association.send_c_store(ct(0)).Status == 0
    association.release()


def test_a_request_that_the_library_fails_on_is_let_go(listening):
    station = listening(timeout_s=30)
    with Caller(port(station), seconds=5) as caller:
        caller.say(request(contexts=[(CTImageStorage, "")]))
        assert caller.hear()[0] in (0, ABORT)
    until = time.monotonic() + 5
    while '"request_refused"' not in station.told.getvalue():
        assert time.monotonic() < until, station.told.getvalue()
        time.sleep(0.02)
