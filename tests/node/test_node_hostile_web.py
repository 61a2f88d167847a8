"""Hostile visitors of the page of a running node: refused, logged, and the node goes on."""

import io
import json
import random
import struct
import zipfile
from collections import Counter

import httpx
import pytest
from node_process import running_node
from pynetdicom.sop_class import MRImageStorage
from small_node import ct, free_port, node_config, until
from test_node_hostile import assert_nothing_outside, kept, log_of, spoiled

TOKEN = "0123456789abcdefghij"
OWN = {"Authorization": f"Bearer {TOKEN}"}
MOST_GROWTH_MB = 150
PATHS = ("../../../escaped.dcm", "/tmp/escaped.dcm", "..\\..\\escaped.dcm", "a/../../escaped.dcm")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def file_of(image):
    held = io.BytesIO()
    image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID
    image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
    image.save_as(held, enforce_file_format=True)
    return held.getvalue()


def packed(**files):
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as made:
        for name, content in files.items():
            made.writestr(name, content)
    return held.getvalue()


def strangers():
    """(headers, method, path, status) of visitors who may not come in."""
    for value in (
        "",
        "Bearer",
        "Bearer x",
        f"Basic {TOKEN}",
        f"Bearer {TOKEN}x",
        f"Bearer {TOKEN * 200}",
    ):
        for path in ("/api/queue", "/metrics"):
            yield {"Authorization": value}, "GET", path, 401
    yield {}, "POST", "/api/upload", 401
    yield {"Cookie": "cddnet_session=99999999999.00"}, "GET", "/api/queue", 401
    for host in ("evil.example", "evil.example:8080", "a@127.0.0.1", "127.0.0.1.evil.example"):
        yield OWN | {"Host": host}, "GET", "/api/queue", 421
    for origin in ("http://evil.example", "null", "http://127.0.0.1:1"):
        yield OWN | {"Origin": origin}, "POST", "/api/upload", 403


def archives(rng):
    """Bodies that are refused as a whole."""
    good = packed(a=file_of(ct(0)), b=b"text")
    yield b""
    yield packed(bomb=bytes(64 * 2**20))
    yield packed(**{f"{number}": bytes(5 * 2**20) for number in range(20)})
    for _ in range(10):
        yield good[: rng.randrange(30, len(good) - 30)]
    end = good.rindex(b"PK\x05\x06")
    for place, count in ((10, 65535), (12, 2**31)):
        head = bytearray(good)
        struct.pack_into("<H" if place < 12 else "<I", head, end + place, count)
        yield bytes(head)
    locked = bytearray(good)
    locked[good.index(b"PK\x01\x02") + 8] |= 1
    yield bytes(locked)


def images(rng):
    """Bodies in which no image is taken: each is one file."""
    whole = file_of(ct(0))
    for length in (1, 131, 132, 200, len(whole) // 2, len(whole) - 1000):
        yield whole[:length]
    for _ in range(6):
        yield rng.randbytes(rng.randrange(1, 3000))
    yield spoiled(rng, whole[:132], 30) + whole[132:300]
    yield file_of(ct(0, SOPClassUID=MRImageStorage))
    yield file_of(ct(0, Rows=65535, Columns=65535))
    yield file_of(ct(0, NumberOfFrames="60000"))
    for path in PATHS:
        yield packed(**{path: rng.randbytes(300)})
        yield packed(a=file_of(ct(0, SeriesInstanceUID=path)))


def _answers(client):
    try:
        return client.get("/health").status_code == 200
    except httpx.ConnectError:
        return False


@pytest.mark.filterwarnings("ignore:Invalid value", "ignore:The value length")
def test_hostile_visitors_are_refused_and_logged_and_the_node_goes_on(tmp_path, record_property):
    rng = random.Random(11)
    http = {"port": free_port(), "token": TOKEN}
    config = node_config(tmp_path / "node", http=http, log_file=tmp_path / "log", timeout_s=3)
    address = f"http://127.0.0.1:{http['port']}"
    counts = Counter()
    with (
        running_node(config, tmp_path, page=True) as node,
        httpx.Client(base_url=address, trust_env=False, timeout=30) as client,
    ):
        until(lambda: _answers(client))
        assert client.get("/api/queue", headers=OWN).json() == []
        before = node.megabytes()
        for headers, method, path, status in strangers():
            assert client.request(method, path, headers=headers).status_code == status, headers
            counts["stranger"] += 1
        assert client.post("/api/login", content=bytes(70_000)).status_code == 413
        counts["stranger"] += 1
        for _ in range(2):
            told = client.post("/api/login", json={"token": "x" * 20})
            assert told.status_code == 401
            counts["login"] += 1
        for body in archives(rng):
            told = client.post("/api/upload", content=body, headers=OWN)
            assert told.status_code in (400, 413), (told.text, body[:40])
            counts["archive"] += 1
        for body in images(rng):
            told = client.post("/api/upload", content=body, headers=OWN)
            assert told.status_code == 200, told.text
            assert told.json()["taken"] == 0, (told.text, body[:200])
            counts["image"] += 1
        for path in ("/page/..%2f..%2fsecret", "/api/pairs/..%2f..%2fsecret", "/%2e%2e/secret"):
            assert client.get(path, headers=OWN).status_code in (404, 422)
            counts["path"] += 1
        assert not kept(tmp_path)
        names = {f"{number}{path}": file_of(ct(number)) for number, path in enumerate(PATHS)}
        names |= {path: file_of(ct(9)) for path in PATHS}
        told = client.post("/api/upload", content=packed(**names), headers=OWN).json()
        assert (told["taken"], told["refused"]) == (len(names), {}), "a name is no reason"
        assert len(kept(tmp_path)) == len(PATHS) + 1
        health = client.get("/health").json()
        assert (health["status"], health["set_aside"]) == ("ok", 0)
        assert node.answers("SCANNER")
        growth = node.megabytes() - before
    lines = log_of(tmp_path)
    record_property("figures", f"{dict(counts)}, {growth:.0f} MB more at most")
    refused = Counter((line["event"], line.get("reason")) for line in lines)
    assert refused["login_refused", "token"] == counts["login"]
    visitors = sum(n for (event, _), n in refused.items() if event == "request_refused")
    assert visitors == counts["stranger"] + counts["archive"]
    assert {line["peer"] for line in lines if line["event"] == "request_refused"} == {"127.0.0.1"}
    files = [line for line in lines if line["event"] == "refused"]
    assert {line["caller"] for line in files} == {"UPLOAD"}
    assert len(files) >= counts["image"]
    assert not [line for line in lines if line["event"] == "crashed"]
    assert TOKEN not in json.dumps(lines)
    assert growth < MOST_GROWTH_MB
    assert_nothing_outside(tmp_path)
