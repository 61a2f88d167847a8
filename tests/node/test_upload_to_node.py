"""Files uploaded to the page are kept as if they had been sent by DICOM."""

import re
import zlib

import httpx
import numpy as np
import pytest
from pydicom import dcmread, uid
from pydicom.dataset import FileMetaDataset
from pydicom.uid import generate_uid
from pynetdicom.sop_class import MRImageStorage
from small_node import FAMILY, ROOT, coded, ct, free_port, node_config, station_at

from cddnet.errors import FormatError
from cddnet.formats import read_volume
from cddnet.node.receive.receiver import Receiver
from cddnet.node.web.site import Web


@pytest.fixture
def station(tmp_path):
    found = station_at(node_config(tmp_path / "node", http={"port": free_port()}))
    yield found
    found.close()


@pytest.fixture
def receiver(station):
    return Receiver(station, lambda event: (0, None))


def saved(folder, **changes):
    path = folder / "slice.dcm"
    dataset = ct(**changes)
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.save_as(path, enforce_file_format=True)
    return path


def test_an_uploaded_slice_is_in_the_queue_with_the_same_pixels(tmp_path, station, receiver):
    path = saved(tmp_path)
    key = receiver.take_file(path)
    (row,) = station.journal.queue()
    assert (row.key, row.received) == (key, 1)
    (kept,) = (tmp_path / "node").rglob("*.dcm")
    assert dcmread(kept).PixelData == dcmread(path).PixelData
    assert dcmread(kept) == dcmread(path)
    assert receiver.take_file(path) == key
    assert station.journal.queue()[0].received == 1


@pytest.mark.parametrize(
    ("content", "said"), [(b"", "no DICOM"), (b"x" * 999, "no DICOM"), (None, "no CT image")]
)
def test_what_is_no_ct_image_is_refused_and_nothing_is_kept(
    content, said, tmp_path, station, receiver
):
    path = saved(tmp_path, SOPClassUID=MRImageStorage, SOPInstanceUID=generate_uid())
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(FormatError, match=said):
        receiver.take_file(path)
    assert station.journal.queue() == []
    assert not list((tmp_path / "node").rglob("*.dcm"))


REFUSED = {
    "cut": (lambda data: data[:-500], r"is cut short, about \d+ of \d+ bytes are there; send"),
    "no digits": (
        {"SeriesInstanceUID": "Zyxwvut"},
        "the SeriesInstanceUID of this image is no UID",
    ),
    "no UID": ({"StudyInstanceUID": ""}, "this image has no StudyInstanceUID; send or export"),
    "no class": ({"SOPClassUID": ""}, "this image has no SOPClassUID"),
    "large": ({"Rows": 65535, "Columns": 65535}, "65535 x 65535 pixels; the node takes"),
    "no rows": ({"Rows": 0}, "1 frames of 0 x"),
    "MR": ({"SOPClassUID": MRImageStorage}, "is of the kind MR Image and no CT image; send CT"),
    "private": ({"SOPClassUID": "1.2.3.4.5"}, "is of a kind that is not known and no CT image"),
    "deflated": (
        lambda _: deflated(ct()),
        "does not read images coded as Deflated Explicit VR Little Endian; send this one uncomp",
    ),
    "unknown syntax": (
        {"TransferSyntaxUID": "1.2.840.10008.1.2.4.999"},
        "does not read images coded as something that is not known; send this one uncompressed",
    ),
    "text": (lambda data: b"Dear doctor, " * 99, "this is no DICOM image; send CT images"),
}


@pytest.mark.filterwarnings("ignore:Invalid value")
@pytest.mark.parametrize("kind", REFUSED)
def test_a_refusal_is_a_sentence_that_names_nobody(tmp_path, station, receiver, kind):
    change, said = REFUSED[kind]
    path = tmp_path / "odd.dcm"
    if callable(change):
        path.write_bytes(change(coded(ct())))
    else:
        dataset = ct()
        for keyword, value in change.items():
            setattr(dataset.file_meta if keyword in dataset.file_meta else dataset, keyword, value)
        path.write_bytes(coded(dataset))
    with pytest.raises(FormatError, match=said) as refused:
        receiver.take_file(path)
    message = str(refused.value)
    assert message.endswith(".")
    assert re.search(r"; send|\. Send", message), "a remedy"
    assert not re.search(r"[a-z]_[a-z]", message), "a word of the log"
    assert not [name for name in (FAMILY, "Zyxwvut", ROOT) if name in message]
    assert station.journal.queue() == []


def deflated(dataset):
    whole = coded(dataset, says=uid.DeflatedExplicitVRLittleEndian)
    begin = len(whole) - len(coded(dataset, **BARE))
    return whole[:begin] + zlib.compress(whole[begin:], wbits=-zlib.MAX_WBITS)


BARE = {"preamble": False, "meta": False}
# What a file lacks or says wrongly: in its meta header, and else.
ODD = {
    "whole": ({}, {}),
    "no group length": ({}, {"length": None}),
    "a wrong group length": ({}, {"length": -7}),
    "a group length beyond the file": ({}, {"length": 10**9}),
    "no preamble": ({}, {"preamble": False}),
    "no meta header": ({}, {"meta": False}),
    "nothing before": ({}, BARE),
    "nothing before, implicit": ({}, {"implicit": True, **BARE}),
    "nothing before, big endian": ({}, {"little": False, **BARE}),
    "another UID, after anonymising": ({"MediaStorageSOPInstanceUID": "1.2.3"}, {}),
    "no UID": ({"MediaStorageSOPInstanceUID": None}, {}),
    "another class": ({"MediaStorageSOPClassUID": MRImageStorage}, {}),
    "no class": ({"MediaStorageSOPClassUID": None}, {}),
    "no transfer syntax": ({"TransferSyntaxUID": None}, {}),
    "says explicit": ({}, {"implicit": True, "says": uid.ExplicitVRLittleEndian}),
    "says implicit": ({}, {"says": uid.ImplicitVRLittleEndian}),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", ODD)
def test_what_the_command_line_reads_is_taken_and_read_the_same(tmp_path, station, receiver, kind):
    meta, options = ODD[kind]
    dataset = ct()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    for keyword, value in meta.items():
        setattr(dataset.file_meta, keyword, value)
    if not options.get("little", True):
        dataset.PixelData = np.frombuffer(dataset.PixelData, "<u2").astype(">u2").tobytes()
    path = tmp_path / "odd.dcm"
    path.write_bytes(coded(dataset, **options))
    expected = read_volume(path)
    key = receiver.take_file(path)
    (file,) = (tmp_path / "node").rglob("*.dcm")
    found = read_volume(file)
    np.testing.assert_array_equal(found.hu, expected.hu)
    assert found.series_uid == expected.series_uid == dataset.SeriesInstanceUID
    told = dcmread(file).file_meta
    assert told.MediaStorageSOPInstanceUID == dataset.SOPInstanceUID
    assert told.MediaStorageSOPClassUID == dataset.SOPClassUID
    assert told.TransferSyntaxUID.is_implicit_VR == options.get("implicit", False)
    assert told.TransferSyntaxUID.is_little_endian == options.get("little", True)
    assert receiver.take_file(path) == key
    assert station.journal.queue()[0].received == 1


def test_an_upload_that_would_fill_the_memory_is_refused(tmp_path):
    path = saved(tmp_path)
    size_mb = path.stat().st_size / 1e6
    # It is held twice, and uploads may hold three quarters.
    for largest_mb, taken in ((2.6 * size_mb, False), (2.7 * size_mb, True)):
        told = {"largest_in_memory_mb": largest_mb}
        station = station_at(node_config(tmp_path / f"{taken}", **told))
        receiver = Receiver(station, lambda event: (0, None))
        # Again: what was reserved is given back.
        for _ in range(3):
            if taken:
                receiver.take_file(path)
            else:
                with pytest.raises(FormatError, match="memory"):
                    receiver.take_file(path)
        assert len(station.journal.queue()) == taken
        station.close()


def test_the_page_of_a_node_answers_and_takes_uploads(tmp_path, station, receiver):
    web = Web(station.config, station, receiver)
    try:
        address = f"http://127.0.0.1:{web.port}"
        assert httpx.get(f"{address}/health").status_code == 200
        assert b"cddnet" in httpx.get(f"{address}/metrics").content
        body = saved(tmp_path).read_bytes()
        told = httpx.post(
            f"{address}/api/upload", content=body, headers={"Content-Type": "application/dicom"}
        )
        assert told.json()["taken"] == 1
        (row,) = httpx.get(f"{address}/api/queue").json()
        assert row["key"] == told.json()["series"][0]
    finally:
        web.stop(10)
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{address}/health")
