"""What names a patient is in the images alone: not in log, journal, audit, metrics or addresses."""

import io
import json
import re
import struct
import time
import zipfile
from collections import Counter

import httpx
import pytest
from node_process import running_node
from pydicom import Dataset, uid
from pynetdicom.sop_class import CTImageStorage
from raw_dicom import Caller, accepted, encoded, request
from small_node import ROOT, Archive, archive_at, ct, free_port, node_config, quick_retries, send

from cddnet.node.store.journal import Journal
from cddnet.node.watch.metrics import NodeMetrics

MARK = "zqxmark"
DAY = "19310307"
CLOCK = "173659.424242"
KEPT = {
    # What decides whether it is a CT at all, and how its pixels are read.
    *("SpecificCharacterSet", "SOPClassUID", "Modality", "ImageType", "PatientPosition"),
    *("PhotometricInterpretation", "RescaleType", "PatientSex", "PatientAge", "RotationDirection"),
}
ADDED = {
    **dict.fromkeys(("PatientID", "OtherPatientIDs", "IssuerOfPatientID", "MilitaryRank"), "LO"),
    **dict.fromkeys(("PatientName", "ReferringPhysicianName", "OperatorsName"), "PN"),
    **dict.fromkeys(("PatientBirthDate", "StudyDate", "SeriesDate", "ContentDate"), "DA"),
    **dict.fromkeys(("StudyTime", "SeriesTime", "ContentTime", "AcquisitionTime"), "TM"),
    **dict.fromkeys(("AccessionNumber", "StudyID", "StationName"), "SH"),
    **dict.fromkeys(("StudyDescription", "SeriesDescription", "ProtocolName"), "LO"),
    **dict.fromkeys(("InstitutionName", "InstitutionalDepartmentName", "DeviceSerialNumber"), "LO"),
    **dict.fromkeys(("ImageComments", "PatientComments", "AdditionalPatientHistory"), "LT"),
    **dict.fromkeys(("InstitutionAddress", "DerivationDescription"), "ST"),
    **dict.fromkeys(("BodyPartExamined",), "CS"),
}
VALUES = {"DA": DAY, "TM": CLOCK, "DT": DAY + CLOCK}
TEXTS = {"LO", "SH", "PN", "LT", "ST", "UT", "UC", "CS", "AE", "DA", "TM", "DT"}
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:Invalid value", "ignore:The value length"),
]


def marked(index, series, **changes):
    """A slice with a marker in every textual header, at any depth and in private ones."""
    image = ct(index, series)
    for keyword, vr in ADDED.items():
        setattr(image, keyword, value(vr, keyword))
    request_of = Dataset()
    request_of.RequestedProcedureDescription = value("LO", "request")
    request_of.RequestingPhysician = value("PN", "asking")
    image.RequestAttributesSequence = [request_of]
    block = image.private_block(0x0099, f"{MARK.upper()} 1.0", create=True)
    block.add_new(0x01, "LO", value("LO", "private"))
    block.add_new(0x02, "UN", value("LO", "unknown").encode())
    for element in image:
        if element.VR in TEXTS and element.keyword not in KEPT and not element.tag.is_private:
            element.value = value(element.VR, element.keyword or "other")
    for keyword, given in changes.items():
        setattr(image, keyword, given)
    return image


def value(vr, keyword):
    if vr in VALUES:
        return VALUES[vr]
    text = f"{MARK}{keyword[:8]}"
    return text.upper() if vr == "CS" else f"{text}^Anna" if vr == "PN" else text


def traces(content, *, uids):
    """What of the headers is in some bytes, whatever the case, the way dates are written."""
    year, month, day = DAY[:4], DAY[4:6], DAY[6:]
    dates = rf"{DAY}|{year}-{month}-{day}|{day}\.{month}\.{year}|{month}/{day}/{year}"
    dates += r"|173659\.4|17:36:59\.4"
    own = f"|{re.escape(ROOT)}" if uids else ""
    pattern = rf"({MARK}|{dates}{own}).{{0,40}}"
    wide = content.replace(b"\0", b"").decode("latin-1")
    return re.findall(pattern, wide, re.IGNORECASE)


def test_nothing_of_a_header_is_outside_the_image_store(tmp_path):
    with Archive() as archive:
        destinations = {
            "pacs": archive_at(archive.port),
            "gone": archive_at(free_port(), retries=quick_retries(2)),
        }
        only = {"series_description": f"^{MARK}", "manufacturer": MARK}
        output = {"strength": 1, "destinations": list(destinations)}
        rules = [
            {"name": "second", "when": only | {"body_part": "NOTHING"}, "do": "ignore"},
            {"name": "all", "when": only, "do": [output]},
        ]
        log = tmp_path / "log"
        config = node_config(
            tmp_path / "node",
            destinations,
            rules=rules,
            log_file=log,
            timeout_s=3,
            http={"port": free_port()},
        )
        with running_node(config, tmp_path, page=True) as node:
            whole_run(node.port)
            answers = [*uploads(config.http.port)]
            until = time.monotonic() + 60
            while states(config) != {"failed": 1, "ignored": 1, "refused": 2}:
                assert time.monotonic() < until, states(config)
                time.sleep(0.2)
            answers += asked(f"http://127.0.0.1:{config.http.port}", config)
        seen = b"".join(archive.objects.values())
    inside = b"".join(path.read_bytes() for path in (tmp_path / "node").rglob("*.dcm"))
    assert traces(inside, uids=True), "the markers are in the images"
    assert traces(seen, uids=False), "and arrive with the results"
    events = Counter(json.loads(line)["event"] for line in log.read_text().splitlines())
    assert {"received", "refused", "series_refused", "series_ignored", "send_failed", "sent"} <= {
        *events
    }
    store = (tmp_path / "node" / "inbox", tmp_path / "node" / "outbox")
    written = [path for path in tmp_path.rglob("*") if not set(store) & {path, *path.parents}]
    for path in (path for path in written if path.is_file() and path.name != "config.pickle"):
        journal = path.name.startswith("journal.")
        assert not traces(path.read_bytes(), uids=not journal), path.name
        assert not traces(str(path.relative_to(tmp_path)).encode(), uids=True)
    for path in (path for box in store for path in box.rglob("*")):
        assert not traces(str(path.relative_to(tmp_path)).encode(), uids=True)
    assert not traces("\n".join(answers).encode(), uids=True)
    assert not traces(told(config).encode(), uids=True)


def whole_run(port):
    """What is right, and every way to be refused that a test can reach."""
    assert send(port, [marked(index, 1) for index in range(3)]) == [0, 0, 0]
    assert send(port, [marked(0, 2, SeriesDescription="other")]) == [0]
    assert send(port, [marked(0, 3, RescaleType="OD")]) == [0]
    assert send(port, [marked(0, 1), marked(0, 1, PatientName=f"{MARK}^other")]) == [0, 0]
    content, name = encoded(marked(0, 4)), ct(0, 4).SOPInstanceUID
    for hostile in (
        content[:700],
        content[: len(content) // 2],
        encoded(marked(0, 4, SeriesInstanceUID=f"../{MARK}/{ROOT}")),
        encoded(marked(0, 4, Rows=4096, Columns=60000)),
        content.replace(b"PN", b"\xff\xff"),
        content.replace(b"DA", b"SQ"),
    ):
        with accepted(port) as caller:
            assert caller.store(hostile, name) != 0
    # Its image data are none: this is found only when it is denoised.
    for syntax in (uid.JPEGLSLossless, uid.JPEG2000Lossless):
        image = marked(0, 5, SOPInstanceUID=f"{ROOT}.5.{syntax[-2:]}")
        del image.PixelData
        garbage = f"{MARK}pixels".encode() * 10
        pixels = struct.pack("<HH2sHI", 0x7FE0, 0x0010, b"OB", 0, 0xFFFFFFFF)
        pixels += struct.pack("<HHIHHI", 0xFFFE, 0xE000, 0, 0xFFFE, 0xE000, len(garbage)) + garbage
        pixels += struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
        with accepted(port, contexts=[(CTImageStorage, syntax)]) as caller:
            assert caller.store(encoded(image) + pixels, image.SOPInstanceUID) == 0
    with Caller(port) as stranger:
        stranger.say(request(caller=b"STRANGER", called=MARK.encode()))
        stranger.hear()
    with accepted(port) as caller:
        caller.say(content[:2000])


def uploads(port):
    """What the page says to files that are taken, and refused, under names that tell much."""
    images = {"taken": marked(0, 1), "refused": marked(0, 6, Rows=60000, Columns=60000)}
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as made:
        for name, image in images.items():
            content = io.BytesIO()
            image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID
            image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
            image.save_as(content, enforce_file_format=True)
            made.writestr(f"{MARK}/{name}_{DAY}.dcm", content.getvalue())
        made.writestr(f"{MARK}.txt", MARK)
    for body, taken in ((held.getvalue(), 1), (f"{MARK} {DAY}".encode(), 0), (b"PK\x03\x04", None)):
        address = f"http://127.0.0.1:{port}/api/upload"
        answer = httpx.post(address, content=body, trust_env=False, timeout=20)
        assert answer.json().get("taken") == taken, answer.text
        yield f"{answer.headers} {answer.text}"


def states(config):
    journal = Journal(config.folder / "journal.sqlite")
    try:
        return Counter(row.state for row in journal.queue())
    finally:
        journal.close()


def asked(address, config):
    """Answers of the page to all that may be asked of it, images aside."""
    journal = Journal(config.folder / "journal.sqlite")
    try:
        rows = journal.queue()
    finally:
        journal.close()
    keys = [key for row in rows for output in row.outputs for key in output.versions]
    assert keys
    places = [f"/api/series/{row.key}" for row in rows] + [f"/api/pairs/{key}" for key in keys]
    for place in (*places, "/health", "/metrics", "/api/queue", "/api/session"):
        answer = httpx.get(address + place, trust_env=False, timeout=20)
        assert answer.status_code == 200, answer.text
        yield f"{answer.url} {answer.headers} {answer.text}"
    for key in keys:
        name = httpx.get(f"{address}/api/download/{key}.zip", trust_env=False, timeout=20)
        with zipfile.ZipFile(io.BytesIO(name.content)) as got:
            yield f"{name.headers} {got.namelist()} {[item.date_time for item in got.infolist()]}"


def told(config):
    """All that a program may ask the journal, and its figures."""
    journal = Journal(config.folder / "journal.sqlite")
    try:
        metrics = NodeMetrics(journal, config).text().decode()
        return "\n".join([metrics, json.dumps(journal.audit(1000)), repr(journal.queue())])
    finally:
        journal.close()
