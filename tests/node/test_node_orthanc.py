"""End to end with real peers: storescu of dcmtk, the node, Orthanc, and dciodvfy."""

import json
import subprocess
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from pydicom import dcmread
from small_node import archive_at, free_port, node_config, quick_retries

from cddnet.node.service import Node
from peers import complaints, peer, require

DEMO = Path(__file__).parents[2] / "src" / "cddnet" / "data" / "demo" / "series"
PLUGINS = (Path("/usr/share/orthanc/plugins"), Path("/usr/lib/orthanc"))
pytestmark = [
    pytest.mark.net,
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def dicomweb_plugin():
    found = [path for folder in PLUGINS for path in folder.glob("libOrthancDicomWeb.so*")]
    return found[0] if found else None


class Orthanc:
    """A running one. node_port: where it tells what it committed to."""

    def __init__(self, folder, node_port):
        self.port, self.http = free_port(), free_port()
        plugin = dicomweb_plugin()
        self.config = {
            "StorageDirectory": str(folder / "orthanc"),
            "IndexDirectory": str(folder / "orthanc"),
            "DicomPort": self.port,
            "DicomAet": "ARCHIVE",
            "HttpPort": self.http,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False,
            "Plugins": [str(plugin)] if plugin else [],
            "DicomModalities": {
                "node": {
                    "AET": "CDDNET",
                    "Host": "127.0.0.1",
                    "Port": node_port,
                    "AllowStorageCommitment": True,
                }
            },
        }
        self.file = folder / "orthanc.json"

    def get(self, place):
        return httpx.get(f"http://127.0.0.1:{self.http}{place}", trust_env=False, timeout=20).json()

    @contextmanager
    def running(self):
        require("Orthanc")
        self.file.write_text(json.dumps(self.config))
        with self.file.with_suffix(".log").open("wb") as log:
            process = subprocess.Popen(["Orthanc", str(self.file)], stdout=log, stderr=log)
        try:
            until(lambda: self._answers(), process)
            yield self
        finally:
            process.terminate()
            process.wait(30)

    def _answers(self):
        try:
            return bool(self.get("/system"))
        except httpx.HTTPError:
            return False


def until(condition, process=None, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert process is None or process.poll() is None, "the peer ended"
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.1)


def scanner_sends(port, files):
    # -xt: the demonstration series is JPEG-LS, and goes over as it is.
    titles = ("-aet", "SCANNER", "-aec", "CDDNET")
    sent = peer("storescu", "-xt", *titles, "127.0.0.1", str(port), *files)
    assert sent.returncode == 0, sent.stderr


def delivered(node):
    return Counter(row.state for row in node.station.journal.queue()) == {"done": 1}


def examine(orthanc, files, folder):
    """The new series lies in the study of the first, slice by slice, and is valid."""
    first = dcmread(files[0])
    (study,) = orthanc.get("/studies")
    told = orthanc.get(f"/studies/{study}")
    assert told["MainDicomTags"]["StudyInstanceUID"] == first.StudyInstanceUID
    (series,) = told["Series"]
    series = orthanc.get(f"/series/{series}")
    assert series["MainDicomTags"]["SeriesInstanceUID"] != first.SeriesInstanceUID
    assert len(series["Instances"]) == len(files)
    sources = set()
    for number, instance in enumerate(series["Instances"]):
        address = f"http://127.0.0.1:{orthanc.http}/instances/{instance}/file"
        file = folder / f"{number}.dcm"
        file.write_bytes(httpx.get(address, trust_env=False, timeout=20).content)
        assert not complaints(file) - complaints(files[0])
        derived = dcmread(file)
        assert derived.PatientID == first.PatientID
        sources.add(derived.SourceImageSequence[0].ReferencedSOPInstanceUID)
    assert sources == {dcmread(file).SOPInstanceUID for file in files}


def test_from_storescu_through_the_node_to_orthanc_committed(tmp_path):
    files = [str(file) for file in sorted(DEMO.iterdir())]
    dicom_port = free_port()
    orthanc = Orthanc(tmp_path, dicom_port)
    pacs = archive_at(orthanc.port, commitment=True, timeout_s=20)
    config = node_config(tmp_path / "node", {"pacs": pacs}, dicom_port=dicom_port, quiet_s=1)
    node = Node(config)
    with orthanc.running():
        node.start()
        try:
            scanner_sends(dicom_port, files)
            until(lambda: delivered(node))
            scanner_sends(dicom_port, files[:2])
            states = node.station.journal.database.rows("SELECT state, count(*) FROM sends")
            assert [tuple(row) for row in states] == [("committed", len(files))]
            examine(orthanc, files, tmp_path)
        finally:
            assert node.stop()


@pytest.mark.skipif(dicomweb_plugin() is None, reason="Orthanc's DICOMweb plug-in is not installed")
def test_by_stow_rs_to_orthanc(tmp_path):
    files = [str(file) for file in sorted(DEMO.iterdir())]
    dicom_port = free_port()
    orthanc = Orthanc(tmp_path, dicom_port)
    web = {"kind": "dicomweb", "url": f"http://127.0.0.1:{orthanc.http}/dicom-web"}
    destinations = {"web": web | {"timeout_s": 20, "retries": quick_retries(100)}}
    config = node_config(tmp_path / "node", destinations, dicom_port=dicom_port, quiet_s=1)
    node = Node(config)
    with orthanc.running():
        node.start()
        try:
            scanner_sends(dicom_port, files)
            until(lambda: delivered(node))
            examine(orthanc, files, tmp_path)
        finally:
            assert node.stop()
