"""Odd series in the node and in an archive run: read as the command line reads them."""

import io

import numpy as np
import pytest
from pydicom import Dataset, dcmread, uid
from pynetdicom.dsutils import encode
from quick_denoiser import quick_archive
from small_node import Clock, archive_at, ct, node_config, received, shifted, station_at

from cddnet.node.archive.run import ArchiveOptions, archive
from cddnet.node.receive.inflow import Budget
from cddnet.node.receive.intake import Intake, Sent
from cddnet.node.work.worker import Worker


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr("os.fsync", lambda handle: None)


@pytest.fixture
def clock():
    return Clock()


def worked(folder, clock, datasets, receive=received):
    """The queue's row and the derived headers of a node that got these images."""
    outputs = [{"strength": 0, "force": True, "destinations": ["pacs"]}]
    rules = [{"name": "axial", "when": {"thickness_mm": [1, 9]}, "do": outputs}]
    station = station_at(node_config(folder, {"pacs": archive_at(4)}, rules=rules), clock)
    receive(station, datasets)
    clock.now += 100
    worker = Worker(station, shifted)
    while worker.step():
        pass
    (row,) = station.journal.queue()
    headers = [dcmread(file) for file in sorted((folder / "outbox").rglob("*.dcm"))]
    return row, headers


def archived(folder, monkeypatch, datasets):
    """The report on one series, whose files are named in the order of the data sets."""
    quick_archive(monkeypatch)
    (folder / "source").mkdir(parents=True)
    for number, dataset in enumerate(datasets):
        dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        dataset.save_as(folder / "source" / f"{number}.dcm", enforce_file_format=True)
    options = ArchiveOptions(source=str(folder / "source"), out=folder / "out", workers=0)
    return archive(options, lambda _: None)


def page():
    """A page of text stored as CT, with another thickness than the slices."""
    dataset = ct(50, ImageType=["DERIVED", "SECONDARY", "SCREEN SAVE"], SliceThickness="0")
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient"):
        del dataset[keyword]
    return dataset


def plan():
    dataset, slice_ = Dataset(), ct(51)
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "PatientName"):
        dataset[keyword] = slice_[keyword]
    dataset.SOPClassUID, dataset.Modality = uid.RTStructureSetStorage, "RTSTRUCT"
    dataset.file_meta = slice_.file_meta
    return dataset


def test_a_page_that_came_first_neither_decides_nor_is_denoised(tmp_path, clock):
    row, headers = worked(tmp_path / "node", clock, [page(), *map(ct, range(3))])
    assert row.rule == "axial"
    (output,) = row.outputs
    assert output.state == "sending"
    assert "1 object of the series that is no slice (page of text) was left out" in output.notes
    places = {float(header.ImagePositionPatient[2]) for header in headers}
    assert places == {0.0, 1.0, 2.0}


def test_an_archive_leaves_out_plans_and_pages(tmp_path, monkeypatch):
    report = archived(tmp_path, monkeypatch, [plan(), page(), *map(ct, range(3))])
    assert (report.done, report.slices, report.refused, report.failed) == (1, 3, (), ())
    (scanner,) = report.scanners
    assert scanner.model == ct().ManufacturerModelName


def test_a_page_that_cannot_be_told_is_refused_in_a_sentence(tmp_path, clock, monkeypatch):
    odd = ct(50)
    del odd.ImagePositionPatient
    row, headers = worked(tmp_path / "node", clock, [*map(ct, range(3)), odd])
    (output,) = row.outputs
    assert (output.state, headers) == ("refused", [])
    assert "take it out" in output.error
    report = archived(tmp_path / "archive", monkeypatch, [*map(ct, range(3)), odd])
    (left,) = report.refused
    assert "take it out" in left.reason


def phases():
    """Two phases of three slices at the same places."""
    datasets = [ct(index) for index in range(6)]
    for index, dataset in enumerate(datasets):
        dataset.AcquisitionNumber = str(1 + index // 3)
        dataset.ImagePositionPatient = ["-20", "-30", f"{index % 3}"]
        dataset.PixelData = (np.roll(dataset.pixel_array, index, axis=0)).tobytes()
    return datasets


def test_every_phase_is_denoised_and_nobody_is_asked(tmp_path, clock, monkeypatch):
    row, headers = worked(tmp_path / "node", clock, phases())
    (output,) = row.outputs
    assert output.state == "sending"
    (note,) = [note for note in output.notes if "6 images lie at only 3 positions" in note]
    assert "--" not in note
    assert sorted(int(header.AcquisitionNumber) for header in headers) == [1, 1, 1, 2, 2, 2]
    report = archived(tmp_path / "archive", monkeypatch, phases())
    assert (report.done, report.slices, report.refused) == (1, 6, ())


@pytest.mark.parametrize("kind", ["lost positions", "copies", "two units"])
def test_what_cannot_be_chosen_here_is_not_asked_for(tmp_path, clock, kind):
    datasets = [ct(index) for index in range(3)]
    if kind == "lost positions":
        for dataset in phases()[:3]:
            datasets[int(dataset.InstanceNumber) - 1] = dataset
            dataset.ImagePositionPatient = ["0", "0", "0"]
    elif kind == "copies":
        datasets.append(ct(0, SOPInstanceUID=f"{datasets[0].SOPInstanceUID}.9"))
    else:
        for dataset in datasets:
            dataset.RescaleType = "US"
    row, headers = worked(tmp_path / "node", clock, datasets)
    (output,) = row.outputs
    assert (output.state, len(headers)) == ("sending", 3)
    assert "alone" not in " ".join((*output.notes, output.error))


def sent_as(change):
    """A receiver of odd bytes, or of a transfer syntax that is not that of the bytes."""

    def receive(station, datasets):
        intake = Intake(station, Budget(1 << 30))
        for dataset in datasets:
            announced = (str(dataset.SOPClassUID), str(dataset.SOPInstanceUID))
            syntax, data = change(dataset)
            intake.accept(Sent("SCANNER", "127.0.0.1", announced, syntax, io.BytesIO(data)))

    return receive


def implicit_as_explicit(dataset):
    return uid.ExplicitVRLittleEndian, encode(dataset, True, True)


def explicit_as_implicit(dataset):
    return uid.ImplicitVRLittleEndian, encode(dataset, False, True)


def closed_by_zeros(dataset):
    packed = Dataset()
    packed.update(dataset)
    packed.file_meta = dataset.file_meta
    packed.compress(uid.JPEGLSLossless, generate_instance_uid=False)
    data = encode(packed, False, True)
    # Behind the pixels of this image stands an element of padding.
    end = b"\xfe\xff\xdd\xe0" + bytes(4) + b"\xfc\xff\xfc\xff"
    assert data.count(end) == 1
    return uid.JPEGLSLossless, data.replace(end, bytes(8) + end[8:])


def decimal_commas(dataset):
    data = encode(dataset, False, True)
    spacing = "\\".join(map(str, dataset.PixelSpacing)).encode()
    assert data.count(spacing) == 1
    return uid.ExplicitVRLittleEndian, data.replace(spacing, spacing.replace(b".", b","))


@pytest.mark.parametrize(
    ("change", "note"),
    [
        (implicit_as_explicit, ""),
        (explicit_as_implicit, ""),
        (closed_by_zeros, "the compressed pixel data of 3 files lacks its closing delimiter"),
        (decimal_commas, "decimal commas were read as points in PixelSpacing"),
    ],
)
def test_odd_bytes_are_denoised_as_right_ones_are(tmp_path, clock, change, note):
    _, expected = worked(tmp_path / "right", clock, list(map(ct, range(3))))
    row, headers = worked(tmp_path / "odd", clock, list(map(ct, range(3))), sent_as(change))
    (output,) = row.outputs
    assert output.state == "sending"
    assert note == "" or note in output.notes
    for made, right in zip(headers, expected, strict=True):
        assert made.SOPInstanceUID == right.SOPInstanceUID
        np.testing.assert_array_equal(made.pixel_array, right.pixel_array)
        assert made.PixelSpacing == right.PixelSpacing
