"""UIDs of derived objects: the same pixels are the same object, other pixels never are."""

import struct
from dataclasses import replace

import numpy as np
import pytest
from dicom_series import (
    STEP,
    ct_dataset,
    derive,
    enhanced_dataset,
    read,
    save,
    save_series,
    set_stored,
    stored_of,
    write,
    written,
)
from pydicom import dcmread, uid

from cddnet.formats import dicom
from cddnet.formats._parametric import PREDICTED_NOISE, write_parametric_map

SLICES = 4
KINDS = ["classic", "growing", "enhanced", "map"]


def slices():
    return [ct_dataset(index) for index in range(SLICES)]


def changed(dataset, row=5, column=7):
    """The same slice with one stored value that is larger by one."""
    stored = stored_of(dataset).copy()
    stored[row, column] += 1
    set_stored(dataset, stored)
    return dataset


def transcoded(datasets, syntax):
    for dataset in datasets:
        dataset.compress(syntax, generate_instance_uid=False)
    return datasets


def uids(folder, kind, datasets, name="out"):
    """(series UID, SOP instance UIDs) of what is derived."""
    volume = read(save_series(folder, datasets))
    target = folder.with_name(f"{folder.name}-{name}")
    if kind == "map":
        target = target.with_suffix(".dcm")
        write_parametric_map(derive(volume), target, PREDICTED_NOISE)
    else:
        write(derive(volume, step=replace(STEP, grows=kind == "growing")), target)
    results = written(target)
    for result in results:
        assert result.file_meta.MediaStorageSOPInstanceUID == result.SOPInstanceUID
        assert uid.UID(result.SOPInstanceUID).is_valid
        assert uid.UID(result.SeriesInstanceUID).is_valid
    (series,) = {result.SeriesInstanceUID for result in results}
    return series, [result.SOPInstanceUID for result in results]


def sources(kind):
    return [enhanced_dataset(SLICES)] if kind == "enhanced" else slices()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("syntax", [uid.JPEGLSLossless, uid.RLELossless])
def test_transcoded_it_is_the_same_object(tmp_path, kind, syntax):
    first = uids(tmp_path / "a", kind, sources(kind))
    assert uids(tmp_path / "b", kind, transcoded(sources(kind), syntax)) == first


@pytest.mark.parametrize("place", range(SLICES))
def test_one_pixel_makes_every_object_of_a_series_another(tmp_path, place):
    series, objects = uids(tmp_path / "a", "classic", slices())
    others = slices()
    changed(others[place])
    other_series, other_objects = uids(tmp_path / "b", "classic", others)
    assert other_series != series
    assert not set(objects) & set(other_objects)


def test_one_pixel_makes_one_object_of_a_growing_series_another(tmp_path):
    series, objects = uids(tmp_path / "a", "growing", slices())
    others = slices()
    changed(others[2])
    other_series, other_objects = uids(tmp_path / "b", "growing", others)
    assert other_series == series
    same = [one == two for one, two in zip(objects, other_objects, strict=True)]
    assert same == [True, True, False, True]


@pytest.mark.parametrize("frame", range(SLICES))
@pytest.mark.parametrize("grows", [True, False])
def test_one_pixel_of_any_frame_makes_an_enhanced_image_another(tmp_path, frame, grows):
    step = replace(STEP, grows=grows)
    found = []
    for name, change in (("a", 0), ("b", 1)):
        source = enhanced_dataset(SLICES)
        kind = np.dtype("<i2" if source.PixelRepresentation else "<u2")
        stored = np.frombuffer(source.PixelData, kind).reshape(SLICES, -1).copy()
        stored[frame, 11] += change
        source.PixelData = stored.tobytes()
        volume = read(save(source, tmp_path / f"{name}-source.dcm"))
        (result,) = written(write(derive(volume, step=step), tmp_path / f"{name}.dcm"))
        found.append(result)
    assert found[0].SOPInstanceUID != found[1].SOPInstanceUID
    assert (found[0].SeriesInstanceUID == found[1].SeriesInstanceUID) == grows


def test_one_pixel_makes_a_map_another(tmp_path):
    series, objects = uids(tmp_path / "a", "map", slices())
    others = slices()
    changed(others[3])
    other_series, other_objects = uids(tmp_path / "b", "map", others)
    assert other_series != series
    assert other_objects != objects


def test_the_order_of_the_slices_counts(tmp_path):
    """The same images, at each other's places."""
    first, second = slices(), slices()
    places = [dataset.ImagePositionPatient for dataset in second]
    second[0].ImagePositionPatient, second[1].ImagePositionPatient = places[1], places[0]
    series, objects = uids(tmp_path / "a", "classic", first)
    other_series, other_objects = uids(tmp_path / "b", "classic", second)
    assert other_series != series
    assert not set(objects) & set(other_objects)


def test_another_slope_is_another_object(tmp_path):
    """Equal stored values that stand for other HU."""
    _, objects = uids(tmp_path / "a", "growing", [ct_dataset(0)])
    _, others = uids(tmp_path / "b", "growing", [ct_dataset(0, intercept="-1000")])
    assert objects != others


def test_the_file_is_found_as_it_would_be_written_at_once(tmp_path):
    """The UIDs that are put in last fill their elements exactly."""
    write(derive(read(save_series(tmp_path / "ct", slices()))), tmp_path / "out")
    for file in (tmp_path / "out").iterdir():
        raw, header = file.read_bytes(), dcmread(file)
        for tag, value in (
            ((0x0008, 0x0018), header.SOPInstanceUID),
            ((0x0020, 0x000E), header.SeriesInstanceUID),
        ):
            assert struct.pack("<HH2sH", *tag, b"UI", 44) + value.encode() in raw


@pytest.mark.parametrize("kind", ["classic", "map"])
def test_the_writer_decodes_each_slice_once(tmp_path, kind, monkeypatch):
    folder, decoded = save_series(tmp_path / "ct", slices()), []
    own = dicom.DicomHeaders.read_stored

    def read_stored(self, index):
        decoded.append(index)
        return own(self, index)

    monkeypatch.setattr(dicom.DicomHeaders, "read_stored", read_stored)
    volume = read(folder)
    still = volume.derived(lambda index: np.zeros(volume.shape[1:], np.float32), STEP)
    if kind == "map":
        write_parametric_map(still, tmp_path / "map.dcm", PREDICTED_NOISE)
    else:
        write(still, tmp_path / "out")
    assert sorted(decoded) == list(range(SLICES))
