"""Enhanced CT, many slices in one object, through the node: received, denoised, sent, shown."""

import gc
import io

import numpy as np
import pytest
from pydicom import dcmread, uid
from small_node import SHIFT_HU, Archive, archive_at, ct, node_config, send, shifted, until

from cddnet.formats.dicom import read_files
from cddnet.node.service import Node
from cddnet.node.station import Surroundings
from cddnet.node.web.views import NodeSources
from formats.dicom_series import ROOT, SIZE, enhanced_dataset, save

FRAMES = 4
KINDS = (uid.EnhancedCTImageStorage, uid.CTImageStorage)
# The library leaves sockets of connections that broke to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def enhanced(number=1):
    """Objects of one series; each lies elsewhere."""
    image = enhanced_dataset(FRAMES)
    image.SOPInstanceUID = f"{ROOT}.77.{number}"
    image.InstanceNumber = str(number)
    return image


@pytest.fixture
def running(tmp_path):
    """A function that starts a node with an archive; both are stopped at the end."""
    with Archive() as archive:
        config = node_config(tmp_path / "node", {"pacs": archive_at(archive.port)}, device="cpu")
        nodes = []

        def start(denoise=None):
            around = Surroundings(stream=io.StringIO())
            node = Node(config, denoise=denoise, surroundings=around)
            node.start()
            nodes.append(node)
            return node, archive

        yield start
        for node in nodes:
            assert node.stop(20)
    gc.collect()


def delivered(node, instances):
    counts = node.station.journal.counts()
    return counts["instances"] == instances and set(counts) == {"done", "instances", "objects"}


def hu_of(path):
    """(D, H, W) in order of position."""
    volume = read_files([path])
    return np.stack([volume.read_slice(index) for index in range(volume.shape[0])])


def test_each_object_becomes_one_object_with_every_frame_denoised(running, tmp_path):
    """Beside a classic series, doubled, and with an object that comes late."""
    node, archive = running(shifted)
    classic = [ct(index) for index in range(2)]
    sent = [enhanced(), *classic, enhanced()]
    assert send(node.dicom_port, sent, kinds=KINDS) == [0] * 4
    until(lambda: delivered(node, 3))
    first = dict(archive.objects)
    assert len(first) == 3
    assert send(node.dicom_port, [enhanced(2)], kinds=KINDS) == [0]
    until(lambda: delivered(node, 4) and len(archive.objects) == 4)
    assert {name: archive.objects[name] for name in first} == first, "what was there stays"
    assert set(archive.got.values()) == {1}
    made = {
        item.ReferencedSeriesSequence[0]
        .ReferencedInstanceSequence[0]
        .ReferencedSOPInstanceUID: item
        for item in (dcmread(path) for path in outbox(node))
        if item.SOPClassUID == uid.EnhancedCTImageStorage
    }
    assert set(made) == {enhanced(1).SOPInstanceUID, enhanced(2).SOPInstanceUID}
    assert len({item.SeriesInstanceUID for item in made.values()}) == 1
    before_hu = hu_of(save(enhanced(), tmp_path / "source.dcm"))
    assert before_hu.shape == (FRAMES, *SIZE)
    for number in (1, 2):
        result = made[enhanced(number).SOPInstanceUID]
        assert result.NumberOfFrames == FRAMES
        assert result.StudyInstanceUID == enhanced().StudyInstanceUID
        assert result.SeriesInstanceUID != enhanced().SeriesInstanceUID
        after_hu = hu_of(save(result, tmp_path / f"{number}.dcm"))
        # The frames' slopes are 1 to 1.75 HU: a stored value is half of that off at most.
        assert np.abs(after_hu - before_hu - SHIFT_HU).max() <= 1.75 / 2


def outbox(node):
    return sorted((node.station.config.folder / "outbox").rglob("*.dcm"))


def test_the_network_sees_the_frames_and_the_viewer_shows_them(running, tmp_path):
    from cddnet.workflows.denoise import DenoiseOptions, denoise_file

    node, archive = running()
    assert send(node.dicom_port, [enhanced()], kinds=KINDS) == [0]
    until(lambda: delivered(node, 1))
    (result,) = outbox(node)
    assert dcmread(result).SOPInstanceUID in archive.objects
    source = save(enhanced(), tmp_path / "source.dcm")
    options = DenoiseOptions(model="default", strength=1.0, device="cpu")
    denoise_file(source, tmp_path / "out.dcm", options, lambda done, total: None)
    by_command = dcmread(tmp_path / "out.dcm").PixelData
    assert dcmread(result).PixelData == by_command
    assert by_command != enhanced().PixelData
    (row,) = node.station.journal.queue()
    folder = node.station.config.folder
    pair = NodeSources(node.station.journal, folder, None).open(row.outputs[0].key)
    assert pair.manifest().slices == FRAMES
    shown = np.frombuffer(pair.slice_bytes("before", 1), "<i2").reshape(SIZE)
    assert np.array_equal(shown, np.rint(hu_of(source)[1]))
