"""Enhanced CT: many slices in one file, read as slices and written as one Enhanced file."""

import os
from cProfile import Profile
from dataclasses import replace
from itertools import accumulate

import numpy as np
import pytest
from dicom_series import (
    SIZE,
    STEP,
    ct_dataset,
    derive,
    enhanced_dataset,
    fingerprint,
    read,
    save,
    set_stored,
    stored_of,
    write,
    written,
)
from pydicom import uid
from pydicom.encaps import encapsulate, generate_frames

from cddnet.errors import DicomError, FormatError
from cddnet.formats import _dicom_frames
from cddnet.formats._dicom_frames import MOST_FRAMES
from peers import complaints

FRAMES = 4


@pytest.fixture
def source(tmp_path):
    return save(enhanced_dataset(FRAMES), tmp_path / "in.dcm")


def frame_stored(frame):
    return stored_of(ct_dataset(frame))


def frame_hu(frame):
    return (frame_stored(frame) * (1 + frame / 4) - 1024).astype(np.float32)


def stored_frames(dataset):
    return np.frombuffer(dataset.PixelData, "<i2").reshape(-1, *SIZE)


def test_frames_are_slices_in_order_of_position(source):
    volume = read(source)
    assert volume.shape == (FRAMES, *SIZE)
    assert volume.spacing_mm == (5.0, 0.7, 0.8)
    assert volume.notes == ()
    assert volume.headers.enhanced
    assert [frame.index for frame in volume.headers.frames] == [3, 2, 1, 0]
    for index in range(FRAMES):
        np.testing.assert_array_equal(volume.read_slice(index), frame_hu(FRAMES - 1 - index))


@pytest.mark.parametrize(
    "syntax", [uid.JPEGLSLossless, uid.RLELossless, uid.DeflatedExplicitVRLittleEndian]
)
def test_compressed_frames_are_read_one_by_one(tmp_path, syntax):
    dataset = enhanced_dataset(FRAMES)
    if syntax.is_encapsulated:
        dataset.compress(syntax)
    else:
        dataset.file_meta.TransferSyntaxUID = syntax
    volume = read(save(dataset, tmp_path / "a.dcm"))
    for index in range(FRAMES):
        np.testing.assert_array_equal(volume.read_slice(index), frame_hu(FRAMES - 1 - index))


def test_reading_a_frame_does_not_read_the_others(source, monkeypatch):
    volume = read(source)
    size = source.stat().st_size
    with source.open("rb+") as file:
        file.seek(size - 2 * SIZE[0] * SIZE[1])
        file.truncate()
    np.testing.assert_array_equal(volume.read_slice(3), frame_hu(0))
    with pytest.raises(DicomError, match="pixel data"):
        volume.read_slice(0)


def of_undefined_length(dataset):
    """As many systems write the groups, and as pydicom cannot leave them unread."""
    dataset["PerFrameFunctionalGroupsSequence"].is_undefined_length = True
    for group in dataset.PerFrameFunctionalGroupsSequence:
        group.is_undefined_length_sequence_item = True
    return dataset


def fragmented(dataset, table):
    """Compressed frames, each but the first in two fragments, with a table of their places or not.

    JPEG-LS, because without a table the end of a frame is known by its marker.
    """
    dataset.compress(uid.JPEGLSLossless)
    frames = list(generate_frames(dataset.PixelData, number_of_frames=dataset.NumberOfFrames))
    parts = [[frames[0]], *([frame[:6], frame[6:]] for frame in frames[1:])]
    starts = list(accumulate((sum(8 + len(x) for x in part) for part in parts), initial=0))[:-1]
    offsets = b"".join(start.to_bytes(4, "little") for start in starts) if table else b""
    items = [offsets, *(piece for part in parts for piece in part)]
    dataset.PixelData = b"".join(
        b"\xfe\xff\x00\xe0" + len(item).to_bytes(4, "little") + item for item in items
    )
    dataset["PixelData"].is_undefined_length = True
    return dataset


@pytest.mark.parametrize("table", [True, False])
def test_frames_in_several_fragments(tmp_path, table):
    dataset = fragmented(enhanced_dataset(FRAMES), table)
    volume = read(save(dataset, tmp_path / "a.dcm"))
    for index in reversed(range(FRAMES)):
        np.testing.assert_array_equal(volume.read_slice(index), frame_hu(FRAMES - 1 - index))


@pytest.mark.parametrize(
    ("number", "place"), [(1, b"\x10\x00\x00\x00"), (0, b"\xff\xff\xff\x7f"), (3, b"\x00" * 4)]
)
def test_a_table_that_does_not_fit_is_refused(tmp_path, number, place):
    dataset = fragmented(enhanced_dataset(FRAMES), table=True)
    start = 8 + 4 * number
    dataset.PixelData = dataset.PixelData[:start] + place + dataset.PixelData[start + 4 :]
    dataset["PixelData"].is_undefined_length = True
    volume = read(save(dataset, tmp_path / "a.dcm"))
    with pytest.raises(DicomError, match=r"a\.dcm: its compressed pixel data"):
        list(volume.slices())


def test_fewer_fragments_than_frames_are_refused(tmp_path):
    dataset = enhanced_dataset(FRAMES)
    dataset.compress(uid.RLELossless)
    frames = list(generate_frames(dataset.PixelData, number_of_frames=FRAMES))
    dataset.PixelData = encapsulate(frames[:-1], has_bot=False)
    volume = read(save(dataset, tmp_path / "a.dcm"))
    with pytest.raises(DicomError, match="does not hold the 4 frames"):
        volume.read_slice(0)


def calls(path):
    """How many functions are called to read a file and all of its frames."""
    with Profile() as profile:
        volume = read(path)
        for index in range(volume.shape[0]):
            volume.read_slice(index)
    return sum(entry.callcount for entry in profile.getstats())


@pytest.mark.parametrize("kind", ["native", "fragments", "deflated"])
def test_the_work_grows_with_the_frames_and_not_with_their_square(tmp_path, kind):
    counts = []
    for frames in (50, 200):
        dataset = of_undefined_length(enhanced_dataset(frames, size=(16, 16)))
        if kind == "fragments":
            fragmented(dataset, table=False)
        elif kind == "deflated":
            dataset.file_meta.TransferSyntaxUID = uid.DeflatedExplicitVRLittleEndian
        counts.append(calls(save(dataset, tmp_path / f"{frames}.dcm")))
    assert 3 < counts[1] / counts[0] < 4.5


def test_more_frames_than_any_scan_has_are_refused(tmp_path, monkeypatch):
    path = save(enhanced_dataset(FRAMES), tmp_path / "a.dcm")
    assert MOST_FRAMES == 20_000
    monkeypatch.setattr(_dicom_frames, "MOST_FRAMES", FRAMES)
    assert read(path).shape[0] == FRAMES
    monkeypatch.setattr(_dicom_frames, "MOST_FRAMES", FRAMES - 1)
    with pytest.raises(DicomError, match="holds 4 frames, at most 3 are read; export it as"):
        read(path)


def test_a_file_that_is_written_anew_is_read_anew(tmp_path):
    path = tmp_path / "a.dcm"
    for signed in (True, False):
        dataset = enhanced_dataset(2)
        dataset.PixelRepresentation = int(signed)
        dataset.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
        set_stored(dataset, np.full((2, 3, 3), -2, np.int16))
        path.unlink(missing_ok=True)
        stored = read(save(dataset, path)).headers.read_stored(0)
        assert stored.flat[0] == (-2 if signed else 65534)


def per_frame(dataset, index, sequence, keyword, value):
    group = dataset.PerFrameFunctionalGroupsSequence[index]
    setattr(group[sequence].value[0], keyword, value)


@pytest.mark.parametrize(
    ("sequence", "keyword", "value", "found"),
    [
        ("FrameContentSequence", "StackID", "2", "2 stacks"),
        ("PixelValueTransformationSequence", "RescaleType", "ED", "frame 2: its values are in ED"),
        ("PixelValueTransformationSequence", "RescaleSlope", "0", "frame 2: RescaleSlope is 0"),
    ],
)
def test_frames_that_are_no_single_stack_of_hu(tmp_path, sequence, keyword, value, found):
    dataset = enhanced_dataset(FRAMES)
    per_frame(dataset, 1, sequence, keyword, value)
    with pytest.raises(DicomError, match=found):
        read(save(dataset, tmp_path / "a.dcm"))


def test_a_perfusion_map_and_missing_groups_are_refused(tmp_path):
    dataset = enhanced_dataset(FRAMES)
    dataset.ImageType = ["DERIVED", "PRIMARY", "PERFUSION", "RCBF"]
    with pytest.raises(DicomError, match="perfusion"):
        read(save(dataset, tmp_path / "a.dcm"))
    dataset = enhanced_dataset(FRAMES)
    del dataset.PerFrameFunctionalGroupsSequence
    with pytest.raises(DicomError, match="describes 0 of its 4 frames"):
        read(save(dataset, tmp_path / "b.dcm"))


def test_a_lone_frame_keeps_every_stored_bit(tmp_path):
    volume = read(save(enhanced_dataset(1), tmp_path / "a.dcm"))
    (result,) = written(write(derive(volume), tmp_path / "out.dcm"))
    np.testing.assert_array_equal(stored_frames(result)[0], frame_stored(0))


@pytest.mark.parametrize("target", ["out.dcm", "out"])
def test_enhanced_comes_out_as_one_enhanced_file(source, tmp_path, target):
    before = fingerprint(tmp_path)
    volume = read(source)
    (result,) = written(write(derive(volume), tmp_path / target))
    expected = [frame_stored(frame) for frame in (3, 2, 1, 0)]
    np.testing.assert_array_equal(stored_frames(result), expected)
    assert result.SOPClassUID == uid.EnhancedCTImageStorage
    assert result.NumberOfFrames == FRAMES
    assert list(result.ImageType) == ["DERIVED", "PRIMARY", "VOLUME", "NONE"]
    assert result.SourceImageEvidenceSequence[0].StudyInstanceUID == result.StudyInstanceUID
    original = enhanced_dataset(FRAMES).SOPInstanceUID
    (series,) = result.ReferencedSeriesSequence
    (instance,) = series.ReferencedInstanceSequence
    assert instance.ReferencedSOPInstanceUID == original != result.SOPInstanceUID
    shared = result.SharedFunctionalGroupsSequence[0]
    assert list(shared.CTImageFrameTypeSequence[0].FrameType) == list(result.ImageType)
    for index, group in enumerate(result.PerFrameFunctionalGroupsSequence):
        frame = FRAMES - 1 - index
        (derivation,) = group.DerivationImageSequence
        assert derivation.DerivationCodeSequence[0].CodeValue == "113087"
        (reference,) = derivation.SourceImageSequence
        assert reference.ReferencedFrameNumber == frame + 1
        (scale,) = group.PixelValueTransformationSequence
        assert scale.RescaleSlope == 1 + frame / 4
        assert group.PlanePositionSequence[0].ImagePositionPatient[2] == 5 * index
    again = read(tmp_path / target)
    np.testing.assert_array_equal(again.hu, volume.hu)
    (tmp_path / target / "0001.dcm" if target == "out" else tmp_path / target).unlink()
    if target == "out":
        (tmp_path / target).rmdir()
    assert fingerprint(tmp_path) == before


def test_neighbours_are_neighbours_in_space(source, tmp_path):
    step = replace(STEP, neighbours=1)
    (result,) = written(write(derive(read(source), step=step), tmp_path / "out.dcm"))
    used = [
        [
            item.ReferencedFrameNumber
            for item in group.DerivationImageSequence[0].SourceImageSequence
        ]
        for group in result.PerFrameFunctionalGroupsSequence
    ]
    assert used == [[4, 3], [3, 4, 2], [2, 3, 1], [1, 2]]


def test_an_interrupted_enhanced_write_leaves_nothing(source, tmp_path):
    def fail(hu):
        if np.array_equal(hu, frame_hu(1)):
            raise FormatError("stop")
        return hu

    with pytest.raises(FormatError, match="stop"):
        write(derive(read(source), fail), tmp_path / "out.dcm")
    assert os.listdir(tmp_path) == ["in.dcm"]


@pytest.mark.net
@pytest.mark.parametrize("weights", ["ab" * 32, ""])
def test_dciodvfy_finds_nothing_new(source, tmp_path, weights):
    step = replace(STEP, neighbours=1, weights_sha256=weights)
    result = write(derive(read(source), lambda hu: hu + 20, step), tmp_path / "out.dcm")
    assert not complaints(source)
    assert not complaints(result)
