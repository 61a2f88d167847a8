"""Series of another archive: found by C-FIND or QIDO, fetched by C-GET or WADO, denoised."""

import json
import threading
from contextlib import contextmanager
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from orthanc_peer import Orthanc
from pydicom import Dataset
from pynetdicom import AE, evt
from pynetdicom.sop_class import (
    CTImageStorage,
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
)
from quick_denoiser import quick_archive
from small_node import FAMILY, ROOT, ct, free_port, send

from cddnet.formats.dicom import read_files
from cddnet.node.archive.query import QueryError, fetch, find, parse_query
from cddnet.node.archive.run import ArchiveOptions, archive
from cddnet.node.store.images import hidden

CREATED = datetime(2026, 2, 3, 12, 5, 6, tzinfo=timezone.utc)


def images():
    """Two studies: one of two CT series and another thing, one of a year before."""
    found = [ct(index, series) for series in (1, 2, 3, 4) for index in range(3)]
    for image in found:
        series = int(str(image.SeriesInstanceUID).rsplit(".", 1)[1])
        image.StudyInstanceUID = f"{ROOT}.2.{1 if series < 4 else 2}"
        image.StudyDate = "20240102" if series < 4 else "20230102"
        image.Modality = "PT" if series == 3 else "CT"
        image.PatientID = f"{FAMILY}{image.StudyDate}"
        image.SeriesDescription = "Lung" if series == 1 else "Soft"
    return found


def matches(image, asked):
    for element in asked:
        wanted, there = str(element.value or ""), str(image.get(element.keyword, ""))
        if element.keyword == "StudyDate" and "-" in wanted:
            low, high = wanted.split("-")
            if not low <= there <= (high or "9"):
                return False
        elif element.keyword != "QueryRetrieveLevel" and wanted and wanted != there:
            return False
    return True


def answers(asked, uid):
    """One answer for each value of a UID among the images that match."""
    every = {str(image[uid].value): image for image in images() if matches(image, asked)}
    for image in every.values():
        answer = Dataset()
        for keyword in (uid, "StudyInstanceUID", "PatientID"):
            setattr(answer, keyword, image[keyword].value)
        yield answer


@contextmanager
def dicom_archive(broken=False, tls=None):
    """A query/retrieve SCP; `broken`: every third image of a C-GET cannot be sent."""

    def on_find(event):
        asked = event.identifier
        uid = f"{asked.QueryRetrieveLevel.title()}InstanceUID"
        for answer in answers(asked, uid):
            answer.QueryRetrieveLevel = asked.QueryRetrieveLevel
            yield 0xFF00, answer

    def on_get(event):
        found = [image for image in images() if matches(image, event.identifier)]
        yield len(found)
        for number, image in enumerate(found):
            if broken and number % 3 == 2:
                image.SOPClassUID = "1.2.840.10008.5.1.4.1.1.4"
            yield 0xFF00, image

    port = free_port()
    entity = AE("PACS")
    entity.require_called_aet = True
    entity.add_supported_context(StudyRootQueryRetrieveInformationModelFind)
    entity.add_supported_context(StudyRootQueryRetrieveInformationModelGet)
    entity.add_supported_context(CTImageStorage, scu_role=True, scp_role=True)
    handlers = [(evt.EVT_C_FIND, on_find), (evt.EVT_C_GET, on_get)]
    there = ("127.0.0.1", port)
    entity.start_server(there, block=False, evt_handlers=handlers, ssl_context=tls)
    try:
        yield f"dicom://PACS@127.0.0.1:{port}"
    finally:
        entity.shutdown()


class Web(BaseHTTPRequestHandler):
    """QIDO-RS and WADO-RS of the images, a token being needed."""

    def do_GET(self):
        if self.headers["Authorization"] != f"Bearer {'t' * 40}":
            self.send_error(401)
            return
        parts = urlsplit(self.path)
        path = parts.path.strip("/").split("/")[1:]
        asked = Dataset()
        for key, values in parse_qs(parts.query).items():
            if key not in ("limit", "offset"):
                setattr(asked, key, values[0])
        if len(path) > 1:
            asked.StudyInstanceUID = path[1]
        if path[0] == "broken":
            self.reply("application/dicom+json", f'[{{"{FAMILY}"'.encode())
            return
        if len(path) == 4:
            asked.SeriesInstanceUID = path[3]
            found = [image for image in images() if matches(image, asked)]
            if found:
                self.reply_with_images(found)
            else:
                self.send_error(404)
            return
        uid = "StudyInstanceUID" if len(path) == 1 else "SeriesInstanceUID"
        found = [answer.to_json_dict() for answer in answers(asked, uid)]
        self.reply("application/dicom+json", json.dumps(found).encode())

    def reply_with_images(self, found):
        body = b""
        for image in found:
            stream = BytesIO()
            image.save_as(stream, enforce_file_format=True)
            body += b"--b\r\nContent-Type: application/dicom\r\n\r\n" + stream.getvalue() + b"\r\n"
        self.reply('multipart/related; type="application/dicom"; boundary=b', body + b"--b--\r\n")

    def reply(self, kind, body):
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        """Nothing."""


@contextmanager
def web_archive():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Web)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/dicom-web"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def token(tmp_path):
    path = tmp_path / "token"
    path.write_text("t" * 40)
    return path


@pytest.mark.parametrize("kind", [dicom_archive, web_archive])
def test_what_is_asked_for_is_found_and_fetched_as_it_was(kind, token, tmp_path):
    with kind() as address:

        def asked(text=""):
            return sorted(find(parse_query(address + text, token_file=token)))

        first, older = (f"{ROOT}.2.1", f"{ROOT}.2.2")
        every = [(first, f"{ROOT}.3.1"), (first, f"{ROOT}.3.2"), (older, f"{ROOT}.3.4")]
        assert asked() == every
        assert asked("?StudyDate=20240101-") == every[:2]
        assert asked("?StudyDate=20240101-&SeriesDescription=Lung") == every[:1]
        assert asked("?StudyDate=19990101") == []
        remote = parse_query(address, token_file=token).remote
        files = fetch(remote, *every[1], tmp_path)
        assert [file.name for file in files] == ["00001.dcm", "00002.dcm", "00003.dcm"]
        volume = read_files(files)
        assert (volume.series_uid, volume.shape) == (f"{ROOT}.3.2", (3, 128, 128))
        with pytest.raises(QueryError, match=r"no image|404"):
            fetch(remote, first, f"{ROOT}.3.77", tmp_path)


@pytest.mark.parametrize("kind", [dicom_archive, web_archive])
def test_an_archive_is_denoised_and_the_originals_do_not_stay(kind, token, tmp_path, monkeypatch):
    quick_archive(monkeypatch)
    out = tmp_path / "out"
    with kind() as address:
        options = ArchiveOptions(
            source=f"{address}?StudyDate=20240101-",
            out=out,
            workers=0,
            created=CREATED,
            token_file=token,
        )
        report = archive(options, lambda _: None)
        assert (report.done, report.slices) == (2, 6)
        assert archive(options, lambda _: None).done == 2
    made = {folder.name for folder in (out / "series").iterdir()}
    assert made == {hidden(f"{ROOT}.3.{series}") for series in (1, 2)}
    assert not (out / "spool").exists()
    assert FAMILY.encode() not in b"".join(f.read_bytes() for f in out.iterdir() if f.is_file())


@pytest.mark.parametrize("kind", [dicom_archive, web_archive])
@pytest.mark.parametrize("keyword", ["PatientID", "StudyInstanceUID", "SeriesInstanceUID"])
@pytest.mark.parametrize("some", [True, False])
def test_what_was_not_asked_for_is_refused_and_counted(
    kind, keyword, some, token, tmp_path, monkeypatch
):
    """A patient, study or series that a query names, and images that are of another."""
    asked, sent = f"{ROOT}.3.1", f"{ROOT}.99"
    right = matches

    def matched(image, identifier):
        found = right(image, identifier)
        named = found and identifier.get("SeriesInstanceUID") == asked
        if named and (not some or int(image.InstanceNumber) == 2):
            setattr(image, keyword, sent)
        return found

    monkeypatch.setitem(globals(), "matches", matched)
    with kind() as address:
        remote = parse_query(address, token_file=token).remote
        with pytest.raises(QueryError, match=f"sent {1 if some else 3} images") as caught:
            fetch(remote, f"{ROOT}.2.1", asked, tmp_path)
    assert FAMILY not in str(caught.value)
    assert ROOT not in str(caught.value)
    left = [read_files([file]).series_uid for file in tmp_path.glob("*.dcm")]
    assert left == ([asked] * 2 if some else [])


def test_an_archive_that_fails_says_so_without_its_words(token, tmp_path):
    nowhere = f"dicom://PACS@127.0.0.1:{free_port()}"
    with pytest.raises(QueryError, match="did not answer"):
        list(find(parse_query(nowhere)))
    with pytest.raises(QueryError, match="did not answer"):
        list(find(parse_query(f"http://127.0.0.1:{free_port()}/x")))
    with dicom_archive() as address, pytest.raises(QueryError, match="refused this caller"):
        list(find(parse_query(address.replace("PACS", "OTHER"))))
    with web_archive() as address, pytest.raises(QueryError, match="401"):
        list(find(parse_query(address)))
    with web_archive() as address:
        broken = parse_query(address.replace("dicom-web", "x/broken"), token_file=token)
        with pytest.raises(QueryError, match="no DICOM") as caught:
            list(find(broken))
    assert FAMILY not in str(caught.value)
    with dicom_archive(broken=True) as address, pytest.raises(QueryError, match="1 failed"):
        fetch(parse_query(address).remote, f"{ROOT}.2.1", f"{ROOT}.3.1", tmp_path)


@pytest.fixture
def orthanc(tmp_path):
    """The DICOM port of an Orthanc that holds the images."""
    allowed = {"DicomAlwaysAllowFind": True, "DicomAlwaysAllowGet": True}
    with Orthanc(tmp_path, **allowed).running() as found:
        assert set(send(found.port, images(), called="ARCHIVE")) == {0}
        yield found.port


@pytest.mark.net
def test_series_come_out_of_orthanc_by_c_get(orthanc, tmp_path):
    query = parse_query(f"dicom://ARCHIVE@127.0.0.1:{orthanc}?StudyDate=20240101-20241231")
    found = sorted(find(query))
    assert found == [(f"{ROOT}.2.1", f"{ROOT}.3.1"), (f"{ROOT}.2.1", f"{ROOT}.3.2")]
    folder = tmp_path / "got"
    folder.mkdir()
    files = fetch(query.remote, *found[0], folder)
    volume = read_files(files)
    originals = [image for image in images() if image.SeriesInstanceUID == found[0][1]]
    for index, image in enumerate(originals):
        stored = volume.headers.read_stored(index)
        assert np.array_equal(stored.squeeze(), image.pixel_array)
