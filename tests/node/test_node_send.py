"""Sending: every destination ends with each object once, whatever fails on the way.

Above 300 lines: each failure on the way has a destination of its own.
"""

import gc
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import BaseServer

import pytest
from small_node import (
    ROOT,
    Archive,
    Clock,
    archive_at,
    ct,
    node_config,
    received,
    send,
    shifted,
    station_at,
    until,
)

from cddnet.errors import CddnetError
from cddnet.node.send.sender import Sender, Unreachable, carrier_of
from cddnet.node.send.web import outcome_of
from cddnet.node.service import Node
from cddnet.node.station import Surroundings
from cddnet.node.web.destinations import Change, Destinations
from cddnet.node.work.worker import Worker

# The library leaves sockets of connections that broke to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(BaseServer.serve_forever, "__defaults__", (0.02,))
    yield
    gc.collect()


def ready(folder, destinations, clock=None, slices=3):
    """A station that holds derived objects nobody has yet, and a sender per destination."""
    clock = clock or Clock()
    station = station_at(node_config(folder, destinations), clock)
    received(station, [ct(index) for index in range(slices)])
    clock.now += 100
    worker = Worker(station, shifted)
    while worker.step():
        pass
    senders = {name: Sender(station, name, carrier_of(station, name)) for name in destinations}
    return station, senders, clock


def table(station):
    (row,) = station.journal.queue()
    return row.state, dict(row.outputs[0].destinations)


def derived_uids(station):
    return {row[0] for row in station.journal.database.rows("SELECT sop_uid FROM objects")}


def test_each_destination_gets_each_object_once_and_none_waits_for_another(tmp_path):
    with Archive() as first, Archive() as second:
        second.entity.shutdown()
        station, senders, clock = ready(
            tmp_path, {"a": archive_at(first.port), "b": archive_at(second.port)}
        )
        senders["a"].step()
        assert senders["b"].step() > 0, "it waits before it tries again"
        assert table(station) == ("sending", {"a": (0, 3, 0), "b": (3, 0, 0)})
        with Archive(second.port) as back:
            for _ in range(3):
                clock.now += 10
                senders["b"].step()
            assert set(back.got) == set(first.got) == derived_uids(station)
            assert {*back.got.values(), *first.got.values()} == {1}
        assert table(station) == ("done", {"a": (0, 3, 0), "b": (0, 3, 0)})
        station.close()


def test_one_that_is_refused_does_not_hold_up_the_others(tmp_path):
    with Archive() as archive:
        station, senders, clock = ready(tmp_path, {"a": archive_at(archive.port)})
        bad = sorted(derived_uids(station))[0]
        archive.refuse[bad] = 2
        senders["a"].step()
        assert table(station) == ("sending", {"a": (1, 2, 0)})
        for _ in range(3):
            clock.now += 10
            senders["a"].step()
        assert table(station) == ("done", {"a": (0, 3, 0)})
        assert set(archive.got.values()) == {1}
        station.close()


def test_after_too_many_attempts_a_person_must_look(tmp_path):
    retries = {"first_s": 1, "longest_s": 1, "attempts": 2}
    with Archive() as archive:
        station, senders, clock = ready(
            tmp_path, {"a": archive_at(archive.port, retries=retries)}, slices=1
        )
        (uid,) = derived_uids(station)
        archive.refuse[uid] = 2
        for _ in range(5):
            clock.now += 10
            senders["a"].step()
        assert table(station) == ("failed", {"a": (0, 0, 1)})
        (row,) = station.journal.queue()
        assert station.journal.retry(row.key)
        senders["a"].step()
        assert table(station) == ("done", {"a": (0, 1, 0)})
        station.close()


def test_killed_after_sending_it_sends_the_same_object_again(tmp_path, monkeypatch):
    """The archive asserts that the second one has the bytes of the first."""
    with Archive() as archive:
        station, senders, clock = ready(tmp_path, {"a": archive_at(archive.port)})
        config = station.config
        before = station.deliveries.delivered

        def killed(*_, **__):
            raise KeyboardInterrupt

        monkeypatch.setattr(station.deliveries, "delivered", killed)
        with pytest.raises(KeyboardInterrupt):
            senders["a"].step()
        assert before
        station.close()
        again = station_at(config, clock)
        Sender(again, "a", carrier_of(again, "a")).step()
        assert set(archive.got.values()) == {2}
        assert len(archive.objects) == 3
        assert table(again) == ("done", {"a": (0, 3, 0)})
        again.close()


def test_what_is_not_committed_is_sent_again_until_it_is(tmp_path):
    with Archive() as archive:
        archive.uncommitted = 1
        station, senders, clock = ready(tmp_path, {"a": archive_at(archive.port, commitment=True)})
        senders["a"].step()
        assert table(station) == ("sending", {"a": (3, 0, 0)}), "stored is not yet safe"
        senders["a"].step()
        assert set(archive.got.values()) == {1}
        for _ in range(3):
            clock.now += 10
            senders["a"].step()
        assert set(archive.got.values()) == {2}, "all three were sent again"
        assert table(station) == ("done", {"a": (0, 3, 0)})
        assert archive.asked == 2
        assert '"event": "not_committed"' in station.told.getvalue()
        station.close()


def test_silence_is_asked_again_and_not_taken_for_yes(tmp_path):
    with Archive() as archive:
        archive.silent = True
        destination = archive_at(archive.port, commitment=True, timeout_s=0.5)
        station, senders, clock = ready(tmp_path, {"a": destination}, slices=1)
        senders["a"].step()
        senders["a"].step()
        assert archive.asked == 1
        senders["a"].step()
        assert archive.asked == 1, "an answer may take a while"
        assert table(station)[0] == "sending"
        clock.now += 10
        archive.silent = False
        senders["a"].step()
        assert archive.asked == 2
        assert table(station) == ("done", {"a": (0, 1, 0)})
        assert set(archive.got.values()) == {1}
        station.close()


class Stow(BaseHTTPRequestHandler):
    """STOW-RS that answers with what the test put in, and counts what it got."""

    answers, got = [], []

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        status = self.answers.pop(0) if self.answers else 200
        uids = [name for name in self.known if name.encode() in body]
        self.got.append((self.path, self.headers["Content-Type"], uids))
        items = [{"00081155": {"vr": "UI", "Value": [name]}} for name in uids]
        told = json.dumps({"00081199": {"vr": "SQ", "Value": items}}).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(told)))
        self.end_headers()
        self.wfile.write(told)

    def log_message(self, *_):
        return


def test_dicomweb_gets_the_same_objects(tmp_path):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Stow)
    threading.Thread(target=server.serve_forever).start()
    url = f"http://127.0.0.1:{server.server_port}/dicom-web"
    retries = {"first_s": 1, "longest_s": 1, "attempts": 9}
    station, senders, clock = ready(
        tmp_path, {"web": {"kind": "dicomweb", "url": url, "retries": retries}}
    )
    Stow.known, Stow.answers, Stow.got = sorted(derived_uids(station)), [503], []
    assert senders["web"].step() > 0
    assert table(station) == ("sending", {"web": (3, 0, 0)})
    for _ in range(2):
        clock.now += 10
        senders["web"].step()
    assert table(station) == ("done", {"web": (0, 3, 0)})
    path, kind, uids = Stow.got[-1]
    assert path == "/dicom-web/studies"
    assert kind.startswith('multipart/related; type="application/dicom"; boundary=')
    assert uids == Stow.known
    server.shutdown()
    server.server_close()
    station.close()


def test_a_name_that_does_not_resolve_backs_off_like_any_failure_and_says_so(tmp_path):
    """Also a name that is none; the others go their way, and once it resolves all arrives."""
    retries = {"first_s": 1, "longest_s": 4, "attempts": 50}
    with Archive() as archive:
        pair = {
            "unknown": archive_at(archive.port, host="no-such-host.invalid", retries=retries),
            "web": {
                "kind": "dicomweb",
                "url": "http://no-such-host.invalid/dicom-web",
                "retries": retries,
            },
            "overlong": archive_at(archive.port, host="a" * 70 + ".invalid", retries=retries),
            "there": archive_at(archive.port),
        }
        station, senders, clock = ready(tmp_path, pair, slices=2)
        for name in ("unknown", "web", "overlong"):
            waits = []
            for _ in range(4):
                waits.append(senders[name].step())
                clock.now += 10
            assert waits == [1, 2, 4, 4], name
            assert "host name" in station.troubles[name]
        senders["there"].step()
        assert "there" not in station.troubles
        states = table(station)[1]
        assert states["there"] == (0, 2, 0)
        assert states["unknown"] == states["web"] == states["overlong"] == (2, 0, 0)
        station.close()
        pair["unknown"]["host"] = "127.0.0.1"
        again = station_at(node_config(tmp_path, pair), clock)
        Sender(again, "unknown", carrier_of(again, "unknown")).step()
        assert table(again)[1]["unknown"] == (0, 2, 0)
        again.close()


def test_an_error_nobody_foresaw_neither_stops_a_queue_nor_comes_back_at_once(tmp_path):
    class Broken:
        def carry(self, parcels, stop):
            raise RecursionError("Zyxwvut")

    retries = {"first_s": 1, "longest_s": 4, "attempts": 3}
    with Archive() as archive:
        place = archive_at(archive.port, retries=retries)
        station, senders, clock = ready(tmp_path, {"a": place}, slices=2)
        broken = Sender(station, "a", Broken())
        waits = []
        for _ in range(3):
            waits.append(broken.step())
            clock.now += 10
        assert waits == [1, 2, 4]
        assert station.troubles["a"] == "it could not be sent (RecursionError)"
        assert "Zyxwvut" not in station.told.getvalue()
        for _ in range(3):
            clock.now += 10
            senders["a"].step()
        assert table(station)[1]["a"][1] >= 1
        assert station.troubles == {}
        station.close()


def test_a_damaged_object_ends_in_the_failed_box_and_the_others_arrive(tmp_path):
    retries = {"first_s": 1, "longest_s": 1, "attempts": 2}
    with Archive() as archive:
        place = archive_at(archive.port, retries=retries)
        station, senders, clock = ready(tmp_path, {"a": place})
        (file, *_) = sorted((station.config.folder / "outbox").rglob("*.dcm"))
        file.write_bytes(b"no DICOM")
        for _ in range(4):
            senders["a"].step()
            clock.now += 10
        assert table(station) == ("failed", {"a": (0, 2, 1)})
        station.close()


def test_objects_for_a_destination_that_is_gone_go_elsewhere_or_nowhere_as_a_person_says(tmp_path):
    with Archive() as archive:
        before = {"old": archive_at(4), "older": archive_at(4), "both": archive_at(archive.port)}
        station, _, clock = ready(tmp_path, before)
        station.close()
        after = {"both": archive_at(archive.port)}
        station = station_at(node_config(tmp_path, after), clock)
        done = []
        shown = Destinations(
            station.deliveries, ("both",), {}, lambda what, count: done.append((what, count))
        )
        named = {item.name: (item.configured, item.queued) for item in shown.view()}
        assert named == {"both": (True, 3), "old": (False, 3), "older": (False, 3)}
        assert station.journal.oldest_unfinished_at() is not None
        for wrong in ({"name": "both", "to": None}, {"name": "old", "to": "older"}):
            with pytest.raises(CddnetError):
                shown.change(Change(**wrong))
        with pytest.raises(KeyError):
            shown.change(Change(name="nobody", to=None))
        assert shown.change(Change(name="old", to="both")).objects == 3
        assert shown.change(Change(name="older", to=None)).objects == 3
        assert done == [("redirected", 3), ("dropped", 3)]
        assert [item.name for item in shown.view()] == ["both"]
        Sender(station, "both", carrier_of(station, "both")).step()
        assert set(archive.got.values()) == {1}, "one way each, also where it was on both"
        assert station.journal.queue()[0].state == "done"
        assert station.journal.oldest_unfinished_at() is None
        assert [uid for uid, _ in station.deliveries.disposable()] == [ct(0).SeriesInstanceUID]
        lines = {line["what"]: line for line in station.journal.audit()}
        assert (lines["redirected"]["destination"], lines["redirected"]["count"]) == ("old", 3)
        assert (lines["dropped"]["destination"], lines["dropped"]["count"]) == ("older", 3)
        # A late slice goes where the others went.
        received(station, [ct(3)])
        clock.now += 100
        worker = Worker(station, shifted)
        while worker.step():
            pass
        (row,) = station.journal.queue()
        assert row.outputs[0].destinations["both"] == (1, 3, 0)
        assert "old" not in row.outputs[0].destinations
        station.close()


class Silent(socket.socket):
    """A port that takes connections and says nothing."""

    def __init__(self):
        super().__init__()
        self.bind(("127.0.0.1", 0))
        self.listen(8)


LIFE = """
import sys
from pathlib import Path
from small_node import shifted
from cddnet.node import service
from cddnet.node.settings.config import NodeConfig
service.STOP_S = 2.0
config = NodeConfig.model_validate_json(Path(sys.argv[1]).read_text())
service.serve(service.Node(config, denoise=shifted))
"""


def test_an_archive_that_says_nothing_does_not_hold_up_the_stop(tmp_path):
    """It would be waited for ten minutes; the process ends in order, and the object waits."""
    with Silent() as silent:
        place = archive_at(silent.getsockname()[1], timeout_s=600)
        config = node_config(tmp_path / "node", {"a": place}, log_file=tmp_path / "log")
        (tmp_path / "config").write_text(config.model_dump_json())
        station = station_at(config)
        received(station, [ct(0)])
        station.close()
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, "-c", LIFE, str(tmp_path / "config")]
        process = subprocess.Popen(command, env=environment)
        try:
            silent.settimeout(120)
            connection, _ = silent.accept()
            connection.settimeout(60)
            assert connection.recv(1) == b"\x01", "it asks for an association"
            process.send_signal(signal.SIGTERM)
            assert process.wait(120) == 0
            connection.close()
        finally:
            process.kill()
            process.wait()
        station = station_at(config)
        assert table(station) == ("sending", {"a": (1, 0, 0)})
        assert station.journal.database.number("SELECT sum(deaths) FROM outputs") == 0
        station.close()


def _answer(stored=(), failed=()):
    def item(uid):
        return {"00081155": {"vr": "UI", "Value": [uid]}, "00081197": {"Value": [272]}}

    return json.dumps(
        {
            "00081199": {"Value": [item(uid) for uid in stored]},
            "00081198": {"Value": [item(uid) for uid in failed]},
        }
    ).encode()


def test_a_dicomweb_answer_counts_only_for_what_it_names():
    sent = ["1.1", "1.2"]
    assert outcome_of(200, _answer(sent), sent).stored == tuple(sent)
    assert outcome_of(200, b"", sent).stored == tuple(sent), "200 says that all were stored"
    some = outcome_of(202, _answer(["1.1"], ["1.2"]), sent)
    assert (some.stored, list(some.refused)) == (("1.1",), ["1.2"])
    assert "0110" in some.refused["1.2"]
    assert outcome_of(202, b"{}", sent).stored == ()
    assert outcome_of(200, _answer(["1.1"]), sent).stored == ("1.1",)
    assert outcome_of(409, _answer((), sent), sent).stored == ()
    for status, body in ((401, b""), (503, b""), (200, b"<html>"), (200, b'"x"'), (200, b"[1]")):
        with pytest.raises(Unreachable):
            outcome_of(status, body, sent)


def test_the_whole_node_from_the_scanner_to_the_archive(tmp_path):
    """Two series, a duplicate, a late slice, a restart; committed on associations of its own."""
    with Archive() as archive, ExitStack() as ending:
        config = node_config(tmp_path, {"pacs": archive_at(archive.port, commitment=True)})
        node = Node(config, denoise=shifted, surroundings=Surroundings(stream=_null()))
        # Also where the test fails: what it left running would disturb the next ones.
        ending.callback(node.stop)
        node.start()
        archive.node_port = node.dicom_port
        with pytest.raises(CddnetError, match="another node"):
            Node(config).start()
        both = [ct(index, series) for index in range(2) for series in (1, 2)]
        assert send(node.dicom_port, [*both, both[0]]) == [0] * 5
        until(lambda: node.station.journal.counts().get("done") == 2)
        assert node.stop(30)
        first = dict(archive.objects)
        assert len(first) == 4
        node.start()
        assert send(node.dicom_port, [ct(2), *both]) == [0] * 5
        until(lambda: len(archive.objects) == 5)
        until(lambda: node.station.journal.counts().get("done") == 2)
        audit, rows = node.station.journal.audit(), node.station.journal.queue()
        assert node.stop(30)
        assert set(archive.got.values()) == {1}
        assert {uid: archive.objects[uid] for uid in first} == first
        assert {line["caller"] for line in audit if line["what"] == "decided"} == {"SCANNER"}
        assert {line["weights"] for line in audit if line["what"] == "processed"} == {"ab" * 32}
        for what in ("sent", "committed"):
            lines = [line for line in audit if line["what"] == what]
            assert len({line["object"] for line in lines}) == len(lines) == 5
            assert {line["destination"] for line in lines} == {"pacs"}
            assert {line["weights"] for line in lines} == {"ab" * 32}
            assert {line["caller"] for line in lines} == {"SCANNER"}
            assert {line["series"] for line in lines} == {row.key for row in rows}
        assert ROOT not in str(audit)


def test_a_library_that_never_ends_an_association_holds_nothing_up(tmp_path, monkeypatch):
    from pynetdicom.association import Association

    with Archive() as archive:
        told = archive_at(archive.port, timeout_s=0.3, commitment=True)
        station, senders, clock = ready(tmp_path, {"a": told}, slices=1)
        forever = threading.Event()
        monkeypatch.setattr(Association, "release", lambda self: forever.wait(30))
        begun = time.monotonic()
        senders["a"].step()
        clock.now += 10
        senders["a"].step()
        assert time.monotonic() - begun < 10
        forever.set()
        monkeypatch.undo()
        assert table(station) == ("done", {"a": (0, 1, 0)})
        station.close()


def _null():
    import io

    return io.StringIO()
