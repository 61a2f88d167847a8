"""Files uploaded to the page are kept as if they had been sent by DICOM."""

import httpx
import pytest
from pydicom import dcmread
from pydicom.uid import generate_uid
from pynetdicom.sop_class import MRImageStorage
from small_node import ct, free_port, node_config, station_at

from cddnet.errors import FormatError
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


def test_a_truncated_file_is_refused(tmp_path, station, receiver):
    path = saved(tmp_path)
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(FormatError, match="refused: damaged"):
        receiver.take_file(path)
    assert station.journal.queue() == []


def test_an_upload_that_would_fill_the_memory_is_refused(tmp_path):
    path = saved(tmp_path)
    size_mb = path.stat().st_size / 1e6
    for largest_mb, taken in ((1.9 * size_mb, False), (2.1 * size_mb, True)):
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
