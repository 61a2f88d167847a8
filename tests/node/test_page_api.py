"""The page's interface: who gets in, what comes out, and what uploads may do.

Above 300 lines: one interface, and everything it refuses.
"""

import asyncio
import io
import re
import struct
import time
import tracemalloc
import zipfile

import httpx
import numpy as np
import pytest
from small_page import (
    DEMO,
    GONE,
    KEY,
    OUTPUT,
    TOKEN,
    VERSION,
    Taker,
    node_folder,
    node_sources,
    served,
    write_after,
)

from cddnet.errors import CddnetError, GeometryError
from cddnet.formats import read_volume
from cddnet.node.web.pairs import LocalPair, Pair
from cddnet.node.web.uploads import Limits, UploadRefused, save_body, take_upload
from cddnet.node.web.views import NodeSources
from cddnet.volume import CTVolume, Storage

TestClient = pytest.importorskip("fastapi.testclient").TestClient

from starlette.datastructures import Headers  # noqa: E402

from cddnet.node.web.access import COOKIE, MOST_SESSIONS, Access  # noqa: E402
from cddnet.node.web.http import Figures, app  # noqa: E402

HERE = "http://localhost:8080"
LIMITS = Limits(body_bytes=2**24, total_bytes=2**23, entries=40, smallest_free_bytes=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return node_folder(tmp_path_factory.mktemp("node"))


@pytest.fixture
def sources(folder):
    return node_sources(folder)


@pytest.fixture
def client(sources):
    return TestClient(app(sources, Access(), limits=LIMITS), base_url=HERE)


@pytest.fixture
def locked(sources):
    figures = Figures(lambda: "up 1\n", lambda: {"status": "ok", "set_aside": 2})
    return TestClient(app(sources, Access(token=TOKEN), figures=figures), base_url=HERE)


def archive(**files):
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as made:
        for name, content in files.items():
            made.writestr(name, content)
    return held.getvalue()


def dicom(number=1):
    return (DEMO / f"{number:04}.dcm").read_bytes()


def test_slices_are_those_of_the_files(client, folder):
    before, after = read_volume(DEMO), read_volume(folder / "outbox" / "a")
    manifest = client.get(f"/api/pairs/{OUTPUT}").json()
    assert (manifest["slices"], manifest["rows"], manifest["columns"]) == before.shape
    assert (manifest["row_mm"], manifest["column_mm"]) == before.spacing_mm[1:]
    assert np.allclose(manifest["positions_mm"], 5.0 * np.arange(12))
    for name, volume in (("before", before), ("after", after)):
        got = client.get(f"/api/pairs/{OUTPUT}/{name}/7").content
        stored = np.frombuffer(got, "<i2").reshape(volume.shape[1:])
        assert np.array_equal(stored, np.rint(volume.read_slice(7)))
    assert not np.array_equal(before.read_slice(7), after.read_slice(7))


def test_the_noise_map_is_the_predicted_noise():
    from cddnet.workflows.noise_map import noise_reader

    whole = read_volume(DEMO)
    middle = np.stack([whole.read_slice(index)[180:321, 180:321] for index in (2, 3)])
    before = whole.from_hu(middle, whole.spacing_mm)
    pair = Pair(before, before)
    expected_hu = noise_reader(before)(1)
    assert expected_hu.min() > 1
    unit = pair.manifest().layers[2].hu_per_unit
    got_hu = np.frombuffer(pair.slice_bytes("noise", 1), "<i2") * unit
    assert np.abs(got_hu - expected_hu.ravel()).max() <= unit / 2 + 1e-5


def test_a_part_of_the_slices_is_matched_by_position(tmp_path):
    write_after(tmp_path / "part", slice(3, 11, 2))
    before, part = read_volume(DEMO), read_volume(tmp_path / "part")
    pair = Pair(before, part)
    assert pair.manifest().slices == 4
    assert pair.manifest().positions_mm == [15.0, 25.0, 35.0, 45.0]
    assert pair.slice_bytes("before", 1) == np.rint(before.read_slice(5)).astype("<i2").tobytes()
    assert pair.slice_bytes("after", 1) == part.read_slice(1).astype("<i2").tobytes()


def test_values_beyond_16_bits_are_clipped():
    hu = np.full((1, 3, 5), 1e6, np.float32)
    volume = read_volume(DEMO).from_hu(hu, (1.0, 1.0, 1.0))
    assert set(np.frombuffer(Pair(volume, volume).slice_bytes("after", 0), "<i2")) == {32767}


@pytest.mark.parametrize("shape", [(2, 3, 5), (1, 5, 3)])
def test_series_that_do_not_belong_together_are_refused(shape):
    one, other = (
        CTVolume.from_hu(np.zeros(size, np.float32), (1.0, 1.0, 1.0), storage=Storage(placed=False))
        for size in ((1, 3, 5), shape)
    )
    with pytest.raises(GeometryError):
        Pair(one, other)


@pytest.mark.parametrize("key", ["nothing", KEY, "b" * 16 + "-0", f"{KEY}-1"])
def test_unknown_results_are_not_found(client, key):
    assert client.get(f"/api/pairs/{key}").status_code == 404
    assert client.get(f"/api/download/{key}.zip").status_code == 404


@pytest.mark.parametrize("place", ["before/12", "sideways/1", "after/99999"])
def test_unknown_slices_are_not_found(client, place):
    assert client.get(f"/api/pairs/{OUTPUT}/{place}").status_code == 404


@pytest.mark.parametrize("path", ["/", "/health", "/api/queue", "/page/style.css"])
@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8080", "localhost.evil.example", "a@localhost", "", "["]
)
def test_another_host_name_is_refused(client, path, host):
    assert client.get(path, headers={"Host": host}).status_code == 421


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:99", "[::1]:8080", "LOCALHOST:8080"])
def test_own_host_names_pass(client, host):
    assert client.get("/api/queue", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:8081"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_another_site_is_refused(client, sources, headers):
    retry = f"/api/series/{'b' * 16}/retry"
    assert client.post(retry, headers=headers).status_code == 403
    assert sources._journal.retried == []
    own = {"Origin": HERE, "Sec-Fetch-Site": "same-origin"}
    assert client.post(retry, headers=own).json() == {"retried": True}
    assert sources._journal.retried == ["b" * 16]


def test_without_the_token_nothing_is_told(locked):
    paths = [path for path in locked.app.openapi()["paths"] if path != "/health"]
    filled = [path.format(key=OUTPUT, layer="before", index=0) for path in paths]
    assert len(filled) >= 9
    for path in (*filled, "/api/openapi.json"):
        if path not in ("/api/login", "/api/session", "/api/logout"):
            assert {locked.request(m, path).status_code for m in ("GET", "POST")} == {401}, path
    assert locked.get("/health").json() == {"status": "ok", "set_aside": 2}
    assert locked.get("/api/session").json()["logged_in"] is False


@pytest.mark.parametrize(
    "value", ["Bearer nonsense", "Bearer", f"Basic {TOKEN}", f"Bearer {TOKEN}x"]
)
def test_a_wrong_token_is_refused(locked, value):
    assert locked.get("/api/queue", headers={"Authorization": value}).status_code == 401
    right = {"Authorization": f"Bearer {TOKEN}"}
    assert locked.get("/api/queue", headers=right).status_code == 200
    assert locked.get("/metrics", headers=right).text == "up 1\n"


def test_login_gives_a_cookie_that_scripts_cannot_read(locked, monkeypatch):
    monkeypatch.setattr("cddnet.node.web.http._WRONG_TOKEN_WAIT_S", 0)
    assert locked.post("/api/login", json={"token": "x" * 20}).status_code == 401
    assert locked.get("/api/queue").status_code == 401
    answer = locked.post("/api/login", json={"token": TOKEN})
    told = answer.headers["set-cookie"].lower()
    assert "httponly" in told
    assert "samesite=strict" in told
    assert TOKEN not in told
    assert locked.get("/api/queue").status_code == 200
    session = locked.cookies[COOKIE]
    locked.cookies.clear()
    for forged in (session[:-1], f"{session}x", "", "None"):
        assert locked.get("/api/queue", headers={"Cookie": f"{COOKIE}={forged}"}).status_code == 401
    cookie = {"Cookie": f"{COOKIE}={session}"}
    assert locked.get("/api/queue", headers=cookie).status_code == 200
    now = time.monotonic()
    monkeypatch.setattr("cddnet.node.web.access.time.monotonic", lambda: now + 13 * 3600)
    assert locked.get("/api/queue", headers=cookie).status_code == 401


def test_logout_ends_the_session_wherever_its_cookie_is(locked):
    cookies = []
    for _ in range(2):
        assert locked.post("/api/login", json={"token": TOKEN}).status_code == 204
        cookies.append({"Cookie": f"{COOKIE}={locked.cookies[COOKIE]}"})
        locked.cookies.clear()
    assert locked.post("/api/logout", headers=cookies[0]).status_code == 204
    answers = [locked.get("/api/queue", headers=cookie).status_code for cookie in cookies]
    assert answers == [401, 200]


def test_sessions_are_not_kept_without_end():
    access = Access(token=TOKEN)
    sessions = [access.session(TOKEN) for _ in range(MOST_SESSIONS + 2)]
    known = [access.known(Headers({"cookie": f"{COOKIE}={session}"})) for session in sessions]
    assert known == [False] * 2 + [True] * MOST_SESSIONS


@pytest.mark.parametrize(
    "body", [b"", b"{", b"token", b'{"token": "' + TOKEN.encode(), b"[" * 9000]
)
def test_a_login_that_is_no_json_is_a_bad_request(locked, body):
    answer = locked.post("/api/login", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == (422 if body == b"" else 400)
    assert TOKEN not in answer.text


def test_names_of_the_page_may_be_written_in_capitals(sources):
    client = TestClient(app(sources, Access(hosts=("CT.Hospital.Example",))), base_url=HERE)
    for host, status in (
        ("ct.hospital.example", 200),
        ("CT.HOSPITAL.EXAMPLE:80", 200),
        ("ct", 421),
    ):
        assert client.get("/api/queue", headers={"Host": host}).status_code == status


@pytest.mark.parametrize(
    ("proxies", "peer"),
    [((), "127.0.0.1"), (("10.0.0.0/8",), "127.0.0.1"), (("127.0.0.0/8",), "9.9.9.9")],
)
def test_only_configured_proxies_say_who_asks(sources, proxies, peer):
    peers = []
    page = app(sources, Access(token=TOKEN), told=lambda event, reason, peer: peers.append(peer))
    with served(page, proxies) as url:
        httpx.get(f"{url}/api/queue", headers={"X-Forwarded-For": "9.9.9.9"})
    assert peers == [peer]


def test_a_short_token_is_refused():
    with pytest.raises(CddnetError, match="at least 16"):
        Access(token="secret")


@pytest.mark.parametrize(
    "path",
    ["/", "/view", "/page/viewer.js", "/page/none", "/api/queue", f"/api/pairs/{OUTPUT}/before/1"],
)
@pytest.mark.parametrize("host", ["localhost", "evil.example"])
def test_every_answer_carries_the_headers(client, path, host):
    headers = client.get(path, headers={"Host": host}).headers
    assert headers["content-security-policy"].startswith("default-src 'self'")
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cache-control"] == ("no-cache" if path.startswith("/page/") else "no-store")


def test_the_page_needs_nothing_inline_and_nothing_from_elsewhere(client):
    names = ["index.html", "viewer.html", "style.css", "icon.svg"]
    names += [
        f"{name}.js" for name in ("app", "api", "viewer", "gestures", "colours", "region", "slices")
    ]
    for name in names:
        text = client.get(f"/page/{name}").text
        assert not re.search(r"(?:https?:)?//(?!www\.w3\.org/)[a-z]+\.[a-z]", text), name
        if name.endswith(".html"):
            assert not re.search(r"<script[^>]*>[^<]|\son[a-z]+=|\sstyle=|<style", text), name
    assert client.get("/").text == client.get("/page/index.html").text


@pytest.mark.parametrize(
    "path",
    [
        "/page/../http.py",
        "/page/%2e%2e%2fhttp.py",
        "/page/..%5chttp.py",
        "/page//etc/passwd",
        "/page/app.js%00",
    ],
)
def test_only_the_page_is_served(client, path):
    assert client.get(path).status_code == 404


def test_the_queue_shows_no_patient(client):
    text = client.get("/api/queue").text
    assert "JANE" not in text
    assert "1.2.840" not in text
    rows = client.get("/api/queue").json()
    assert [row["state"] for row in rows] == ["receiving", "failed", "done", "done"]
    assert rows[1]["outputs"][0]["error"] == "cannot read (file) of series (uid); export it again."
    shown = [output["versions"] for row in rows for output in row["outputs"]]
    assert shown == [[], [{"key": VERSION, "objects": 12}], []]
    assert [row["removed"] for row in rows] == [False, False, False, True]
    assert 95 < rows[2]["age_s"] < 200
    assert client.get(f"/api/series/{KEY}").json()["key"] == KEY
    assert client.get("/api/series/other").status_code == 404


def test_a_result_comes_back_as_it_lies(client, folder):
    with zipfile.ZipFile(io.BytesIO(client.get(f"/api/download/{OUTPUT}.zip").content)) as got:
        files = sorted((folder / "outbox" / "a").iterdir())
        assert got.namelist() == [f"{number:04}.dcm" for number in range(1, 13)]
        assert [got.read(name) for name in got.namelist()] == [file.read_bytes() for file in files]


def test_a_file_and_a_zip_are_taken(client, sources):
    assert client.post("/api/upload", content=dicom()).json()["taken"] == 1
    packed = archive(**{"a/1.dcm": dicom(1), "b/1.dcm": dicom(2), "readme.txt": b"hello"})
    told = client.post("/api/upload", content=packed).json()
    assert told == {
        "series": [KEY],
        "taken": 2,
        "refused": {"(file): not DICOM; send CT images.": 1},
    }
    assert [content for _, content in sources.take.taken] == [dicom(1), dicom(1), dicom(2)]


def test_names_in_a_zip_are_never_paths(client, sources, tmp_path):
    outside = tmp_path / "escaped.dcm"
    names = [
        "../../../escaped.dcm",
        str(outside),
        "..\\..\\escaped.dcm",
        "C:/x",
        "a\nb",
        "\u202ecd",
    ]
    told = client.post("/api/upload", content=archive(**dict.fromkeys(names, dicom()))).json()
    assert told["taken"] == len(names)
    home = sources.folder / "uploads"
    assert all(home in file.parents for file, _ in sources.take.taken)
    assert list(home.iterdir()) == []
    assert not list(sources.folder.rglob("*escaped*"))
    assert not outside.exists()


def test_a_link_in_a_zip_is_only_data(client):
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as made:
        link = zipfile.ZipInfo("link")
        link.external_attr = 0o120777 << 16
        made.writestr(link, "/etc/passwd")
    assert client.post("/api/upload", content=held.getvalue()).json()["taken"] == 0


def lying(packed):
    """Its directory says that the only entry holds 10 bytes."""
    at = packed.rfind(b"PK\x01\x02")
    return packed[: at + 24] + struct.pack("<L", 10) + packed[at + 28 :]


def with_flag(packed, bit):
    at = packed.rfind(b"PK\x01\x02")
    return packed[: at + 8] + struct.pack("<H", bit) + packed[at + 10 :]


BOMB = archive(a=bytes(2**25))
HOSTILE = {
    "ratio": (BOMB, 413),
    "total": (archive(**{f"{n}": bytes(2**20) for n in range(12)}), 413),
    "entries": (archive(**{f"{n}": b"" for n in range(41)}), 413),
    "lying size": (lying(BOMB), 400),
    "encrypted": (with_flag(BOMB, 1), 400),
    "truncated": (BOMB[: len(BOMB) // 2], 400),
    "zip64": (BOMB[:-22] + b"PK\x06\x07" + bytes(16) + BOMB[-22:], 400),
    "directory elsewhere": (BOMB[:-6] + b"\xff\xff\xff\x00\x00\x00", 400),
    "only an end": (b"PK\x05\x06", 400),
    "unknown method": (BOMB.replace(b"\x08\x00", b"\x63\x00"), 400),
    "empty": (b"", 400),
    "long": (bytes(LIMITS.body_bytes + 1), 413),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_uploads_are_refused_in_little_memory(client, sources, kind):
    content, status = HOSTILE[kind]
    tracemalloc.start()
    try:
        answer = client.post("/api/upload", content=content)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert answer.status_code == status, answer.text
    assert peak < 2**23 + 2 * len(content)
    assert list((sources.folder / "uploads").iterdir()) == []
    assert client.get("/health").status_code == 200


def test_a_damaged_zip_is_refused_or_read(tmp_path, rng):
    whole = np.frombuffer(archive(a=dicom()[:3000], b=b"text", c=bytes(5000)), np.uint8)
    file, ends = tmp_path / "body", set()
    for _ in range(300):
        damaged = whole.copy()
        # The directory and the ends are where most decisions are made.
        places = rng.integers(0, len(whole), 4)
        places[:3] = len(whole) - 1 - places[:3] % 220
        damaged[places] = rng.choice([0, 1, 255, rng.integers(256)], 4)
        file.write_bytes(damaged.tobytes())
        try:
            ends.add(take_upload(file, Taker(), LIMITS).taken)
        except UploadRefused as refusal:
            ends.add(str(refusal))
    assert len(ends) > 3


def test_a_body_without_a_length_is_bounded_while_it_comes(tmp_path):
    came = []

    async def endless():
        while True:
            came.append(1)
            yield bytes(2**20)

    with pytest.raises(UploadRefused) as refusal:
        asyncio.run(save_body(endless(), tmp_path / "body", LIMITS))
    assert refusal.value.status == 413
    assert len(came) == LIMITS.body_bytes // 2**20 + 1


def test_a_body_that_stands_still_is_given_up(tmp_path):
    async def silent():
        yield b"PK"
        await asyncio.sleep(60)

    limits = Limits(idle_s=0.05, smallest_free_bytes=0)
    with pytest.raises(UploadRefused) as refusal:
        asyncio.run(save_body(silent(), tmp_path / "body", limits))
    assert refusal.value.status == 408


def test_unpacking_is_bounded_by_what_comes_out(tmp_path):
    file = tmp_path / "body"
    file.write_bytes(archive(a=bytes(2**22)))
    limits = Limits(ratio=10, ratio_from=2**20, smallest_free_bytes=0)
    with pytest.raises(UploadRefused):
        take_upload(file, Taker(), limits)
    assert (tmp_path / "entry").stat().st_size <= 2**20
    slack = Limits(ratio=10_000, smallest_free_bytes=0)
    assert take_upload(file, Taker(), slack).refused


def test_a_full_disk_is_told(sources):
    full = Limits(smallest_free_bytes=2**62)
    client = TestClient(app(sources, Access(), limits=full), base_url=HERE)
    assert client.post("/api/upload", content=dicom()).status_code == 507


def test_only_uploads_may_be_long(client):
    body = {"token": "x" * 70_000}
    assert client.post("/api/login", json=body).status_code == 413
    assert client.post("/api/login", content=iter([b"{}"])).status_code == 411


def test_two_local_series_have_a_viewer_and_no_queue(folder):
    local = LocalPair(DEMO, folder / "outbox" / "a")
    client = TestClient(app(local, Access()), base_url=HERE)
    assert client.get("/").text == client.get("/page/viewer.html").text
    assert client.get("/api/session").json()["first"] == "pair"
    assert client.get("/api/pairs/pair").json()["slices"] == 12
    assert client.get("/api/pairs/other").status_code == 404
    assert client.get("/api/queue").status_code == 404
    assert client.post("/api/upload", content=b"x").status_code in (404, 405)


def test_an_open_pair_grows_with_late_slices(folder):
    sources = node_sources(folder)
    (every,) = sources._journal.versions(OUTPUT)
    part = every._replace(results=every.results[:5])
    sources._journal.versions = lambda key: [part]
    assert isinstance(sources, NodeSources)
    first = sources.open(OUTPUT)
    assert first.manifest().slices == 5
    assert sources.open(OUTPUT) is first
    assert sources.pair(OUTPUT) is first
    sources._journal.versions = lambda key: [every]
    assert sources.open(OUTPUT).manifest().slices == 12


def test_results_made_in_two_ways_are_told_apart_though_they_lie_in_one_folder(tmp_path):
    """After an update of the weights, a late slice has all slices made again beside the old."""
    sources = node_sources(node_folder(tmp_path))
    client = TestClient(app(sources, Access()), base_url=HERE)
    (old,) = sources._journal.versions(OUTPUT)
    write_after(tmp_path / "outbox" / "other", label="sharper", shift_hu=40)
    names = []
    for file in sorted((tmp_path / "outbox" / "other").iterdir()):
        names.append(f"outbox/a/new-{file.name}")
        file.rename(tmp_path / names[-1])
    new = old._replace(key=f"{OUTPUT}-11112222", results=tuple(names))
    sources._journal.versions = lambda key: [new, old]
    shown = {
        key: np.frombuffer(client.get(f"/api/pairs/{key}/after/3").content, "<i2")
        for key in (OUTPUT, new.key, old.key)
        if client.get(f"/api/pairs/{key}").json()["slices"] == 12
    }
    assert np.array_equal(shown[OUTPUT], shown[new.key]), "without a choice it is the newest"
    change = shown[new.key].astype(int) - shown[old.key]
    assert np.median(change) == 40
    for version in (new, old):
        with zipfile.ZipFile(
            io.BytesIO(client.get(f"/api/download/{version.key}.zip").content)
        ) as got:
            files = {(tmp_path / name).read_bytes() for name in version.results}
            assert {got.read(name) for name in got.namelist()} == files


def test_what_was_removed_after_its_time_is_said_to_be(client):
    for path in (f"/api/pairs/{GONE}-1", f"/api/download/{GONE}-1-0badcafe.zip"):
        answer = client.get(path)
        assert (answer.status_code, "removed after their time" in answer.text) == (410, True)
    assert client.get(f"/api/series/{GONE}").json()["removed"]


def test_without_its_originals_a_result_is_shown_alone_and_can_be_downloaded(tmp_path):
    sources = node_sources(node_folder(tmp_path))
    client = TestClient(app(sources, Access()), base_url=HERE)
    (every,) = sources._journal.versions(OUTPUT)
    (tmp_path / "inbox" / "a" / "0003.dcm").unlink()
    sources._journal.versions = lambda key: [every]
    told = client.get(f"/api/pairs/{OUTPUT}").json()
    assert (told["slices"], [layer["name"] for layer in told["layers"]]) == (12, ["after"])
    shown = np.frombuffer(client.get(f"/api/pairs/{OUTPUT}/after/3").content, "<i2")
    expected = read_volume(tmp_path / "outbox" / "a").hu[3]
    assert np.array_equal(shown, np.rint(expected).ravel())
    for layer in ("before", "noise"):
        assert client.get(f"/api/pairs/{OUTPUT}/{layer}/3").status_code == 404
    assert client.get(f"/api/download/{OUTPUT}.zip").status_code == 200


def test_one_local_series_is_shown_alone():
    client = TestClient(app(LocalPair(DEMO, None), Access()), base_url=HERE)
    told = client.get("/api/pairs/pair").json()
    assert [layer["label"] for layer in told["layers"]] == ["series"]
    shown = np.frombuffer(client.get("/api/pairs/pair/after/5").content, "<i2")
    assert np.array_equal(shown, np.rint(read_volume(DEMO).hu[5]).ravel())
