"""End to end with real peers: storescu of dcmtk, the node, Orthanc, and dciodvfy."""

from collections import Counter
from pathlib import Path

import httpx
import pytest
from orthanc_peer import Orthanc, dicomweb_plugin
from pydicom import dcmread, uid
from pynetdicom import AE
from pynetdicom.sop_class import CTImageStorage
from small_node import archive_at, free_port, node_config, quick_retries, shifted, until

from cddnet.node.service import Node
from peers import complaints, peer

DEMO = Path(__file__).parents[2] / "src" / "cddnet" / "data" / "demo" / "series"
pytestmark = [
    pytest.mark.net,
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def scanner_sends(port, files, called="CDDNET"):
    # -xt: the demonstration series is JPEG-LS, and goes over as it is.
    titles = ("-aet", "SCANNER", "-aec", called)
    sent = peer("storescu", "-xt", *titles, "127.0.0.1", str(port), *files)
    assert sent.returncode == 0, sent.stderr


def states(node):
    return Counter(row.state for row in node.station.journal.queue())


def examine(orthanc, files, folder):
    """The new series lies in the study of the first, slice by slice, and is valid."""
    first = dcmread(files[0])
    (study,) = orthanc.get("/studies")
    told = orthanc.get(f"/studies/{study}")
    assert told["MainDicomTags"]["StudyInstanceUID"] == first.StudyInstanceUID
    every = [orthanc.get(f"/series/{name}") for name in told["Series"]]
    uids = {item["MainDicomTags"]["SeriesInstanceUID"]: item for item in every}
    assert len(uids[first.SeriesInstanceUID]["Instances"]) == len(files), "the originals stay"
    (series,) = (item for name, item in uids.items() if name != first.SeriesInstanceUID)
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
        scanner_sends(orthanc.port, files, "ARCHIVE")
        node.start()
        try:
            scanner_sends(dicom_port, files)
            until(lambda: states(node) == {"done": 1}, 120)
            scanner_sends(dicom_port, files[:2])
            rows = node.station.journal.database.rows("SELECT state, count(*) FROM sends")
            assert [tuple(row) for row in rows] == [("committed", len(files))]
            examine(orthanc, files, tmp_path)
        finally:
            assert node.stop()


def test_by_stow_rs_to_orthanc(tmp_path):
    files = [str(file) for file in sorted(DEMO.iterdir())]
    dicom_port = free_port()
    orthanc = Orthanc(tmp_path, dicom_port, [dicomweb_plugin()])
    web = {"kind": "dicomweb", "url": f"http://127.0.0.1:{orthanc.http}/dicom-web"}
    destinations = {"web": web | {"timeout_s": 20, "retries": quick_retries(100)}}
    config = node_config(tmp_path / "node", destinations, dicom_port=dicom_port, quiet_s=1)
    node = Node(config)
    with orthanc.running():
        scanner_sends(orthanc.port, files, "ARCHIVE")
        node.start()
        try:
            scanner_sends(dicom_port, files)
            until(lambda: states(node) == {"done": 1}, 120)
            examine(orthanc, files, tmp_path)
        finally:
            assert node.stop()


def copies(folder, series, count=4):
    """Slices of the demonstration series under UIDs of another series and study."""
    folder.mkdir()
    found = []
    for number, file in enumerate(sorted(DEMO.iterdir())[:count], 1):
        image = dcmread(file)
        image.StudyInstanceUID = f"2.25.99.{series}"
        image.SeriesInstanceUID = f"2.25.99.{series}.1"
        image.SOPInstanceUID = f"2.25.99.{series}.1.{number}"
        image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
        image.save_as(folder / f"{number}.dcm")
        found.append(str(folder / f"{number}.dcm"))
    return found


def aborted_after(port, file):
    """A caller that stores an image and then hangs up without a word."""
    entity = AE("SCANNER")
    entity.add_requested_context(CTImageStorage, [uid.JPEGLSLossless])
    link = entity.associate("127.0.0.1", port, ae_title="CDDNET")
    assert link.send_c_store(file).Status == 0
    link.abort()


@pytest.mark.parametrize("way", ["dicom", "dicomweb"])
def test_interleaved_aborted_doubled_and_late_slices_end_right_in_orthanc(tmp_path, way):
    dicom_port = free_port()
    orthanc = Orthanc(tmp_path, dicom_port, [dicomweb_plugin()] if way == "dicomweb" else [])
    web = {"kind": "dicomweb", "url": f"http://127.0.0.1:{orthanc.http}/dicom-web"}
    there = {
        "dicom": archive_at(orthanc.port, timeout_s=20),
        "dicomweb": web | {"timeout_s": 20, "retries": quick_retries(100)},
    }[way]
    config = node_config(tmp_path / "node", {"pacs": there}, dicom_port=dicom_port, quiet_s=1)
    node = Node(config, denoise=shifted)
    one, two = copies(tmp_path / "one", 1), copies(tmp_path / "two", 2)
    mixed = [file for pair in zip(one, two, strict=True) for file in pair]
    with orthanc.running():
        node.start()
        try:
            aborted_after(dicom_port, one[0])
            scanner_sends(dicom_port, mixed[:6])
            until(lambda: states(node) == {"done": 2}, 120)
            assert orthanc.get("/statistics")["CountInstances"] == 6
            early = tags(orthanc)
            scanner_sends(dicom_port, mixed)
            until(lambda: orthanc.get("/statistics")["CountInstances"] == 8, 120)
            until(lambda: states(node) == {"done": 2}, 120)
        finally:
            assert node.stop()
        late = tags(orthanc)
    assert orthanc_totals(late) == {"2.25.99.1": 4, "2.25.99.2": 4}
    assert len({series for _, series, _ in late.values()}) == 2
    assert early.items() <= late.items(), "what was there stays as it is"
    sources = {source for _, _, source in late.values()}
    assert sources == {dcmread(file).SOPInstanceUID for file in mixed}


def tags(orthanc):
    """Derived SOP instance UID -> study, series and source of every instance."""
    found = {}
    for instance in orthanc.get("/instances"):
        told = orthanc.get(f"/instances/{instance}/tags?simplify")
        source = told["SourceImageSequence"][0]["ReferencedSOPInstanceUID"]
        found[told["SOPInstanceUID"]] = told["StudyInstanceUID"], told["SeriesInstanceUID"], source
    return found


def orthanc_totals(found):
    return Counter(study for study, _, _ in found.values())
