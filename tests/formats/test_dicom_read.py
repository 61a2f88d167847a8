"""Reading DICOM: HU, order, geometry, padding and the choice of a series.

Above 300 lines: one reader, each property with a series of its own.
"""

from pathlib import Path

import numpy as np
import pytest
from dicom_series import SERIES, ct_dataset, read, save, save_series, set_stored, stored_of
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import dcmread, dcmwrite, uid
from pydicom.data import get_testdata_file

from cddnet.errors import GeometryError, SeriesChoiceError
from cddnet.formats import dicom, read_volume
from cddnet.formats._dicom_geometry import stack

AXIAL = ["1", "0", "0", "0", "1", "0"]


@pytest.fixture
def series(tmp_path):
    return save_series(tmp_path / "ct", [ct_dataset(index) for index in range(5)])


def expected_hu(dataset):
    return stored_of(dataset).astype(np.float64) * float(dataset.RescaleSlope) + float(
        dataset.RescaleIntercept
    )


def test_hu_order_and_geometry_come_from_the_headers(series):
    volume = read(series)
    assert volume.shape == (5, 31, 45)
    assert volume.spacing_mm == (5.0, 0.7, 0.8)
    assert volume.origin_mm == (-20.0, -30.0, 0.0)
    assert volume.direction == ((0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0))
    assert volume.series_uid == SERIES
    assert volume.thickness_mm == 5.0
    assert volume.positions_mm == ()
    assert volume.notes == volume.volume_problems == ()
    for index in range(5):
        assert not volume.padding(index).any()
        np.testing.assert_array_equal(volume.read_slice(index), expected_hu(ct_dataset(index)))
        assert volume.read_slice(index).dtype == np.float32


def test_order_follows_the_normal_not_the_instance_number(tmp_path):
    datasets = [ct_dataset(index) for index in range(4)]
    for index, dataset in enumerate(datasets):
        dataset.InstanceNumber = str(40 - index)
    volume = read(save_series(tmp_path / "a", datasets))
    np.testing.assert_array_equal(volume.read_slice(3), expected_hu(datasets[3]))
    for dataset in datasets:
        dataset.ImageOrientationPatient = ["1", "0", "0", "0", "-1", "0"]
    flipped = read(save_series(tmp_path / "b", datasets))
    np.testing.assert_array_equal(flipped.read_slice(0), expected_hu(datasets[3]))
    assert flipped.direction[0] == (0.0, 0.0, -1.0)
    assert flipped.origin_mm == (-20.0, -30.0, 15.0)


@given(
    degrees=st.tuples(*[st.floats(-80, 80)] * 3),
    step_mm=st.floats(0.3, 10),
    order=st.permutations(range(6)),
)
@settings(max_examples=40, deadline=None)
def test_any_orientation_gives_back_the_stack(degrees, step_mm, order):
    about = np.radians(degrees)
    turn = np.eye(3)
    for axis, angle in enumerate(about):
        step = np.eye(3)
        i, j = [k for k in range(3) if k != axis]
        step[i, i] = step[j, j] = np.cos(angle)
        step[i, j], step[j, i] = -np.sin(angle), np.sin(angle)
        turn = turn @ step
    row, column, normal = turn.T
    frames = []
    for place in order:
        position = np.array([3.0, -4.0, 5.0]) + place * step_mm * normal
        frames.append(_frame(place, position, row, column))
    result = stack(frames, SERIES)
    assert [frame.index for frame in result.frames] == list(range(6))
    assert result.spacing_mm[0] == pytest.approx(step_mm, rel=1e-9)
    np.testing.assert_allclose(result.direction, (normal, column, row), atol=1e-9)
    assert result.notes == ()


def _frame(index, position, row, column):

    from cddnet.formats._dicom_frames import Frame

    return Frame(
        path=Path("a"),
        index=index,
        kept=ct_dataset(index),
        sop_uid=f"1.{index + 1}",
        instance_number="",
        size=(31, 45),
        spacing_mm=(0.7, 0.8),
        thickness_mm=1.0,
        position_mm=tuple(position),
        row_direction=tuple(row),
        column_direction=tuple(column),
        slope=1.0,
        intercept=0.0,
        gantry_tilt_degrees=0.0,
        acquisition="1",
        legal=(0, 1),
        padding=None,
    )


def test_slope_and_intercept_are_those_of_each_slice(tmp_path):
    datasets = [
        ct_dataset(0, slope="0.5", intercept="-1000"),
        ct_dataset(1, slope="2.0002442", intercept="12.5"),
    ]
    volume = read(save_series(tmp_path / "ct", datasets))
    for index, dataset in enumerate(datasets):
        np.testing.assert_array_equal(
            volume.read_slice(index), expected_hu(dataset).astype(np.float32)
        )


def test_bits_above_those_stored_are_no_part_of_the_value(tmp_path):
    for signed in (True, False):
        dataset = ct_dataset(bits=12, signed=signed)
        stored = stored_of(dataset)
        dirty = (stored.view(np.uint16) & 0x0FFF) | 0xA000
        set_stored(dataset, dirty.view(np.int16))
        folder = save_series(tmp_path / str(signed), [dataset])
        np.testing.assert_array_equal(read(folder).read_slice(0), stored - 1024.0)


@pytest.mark.parametrize(
    ("signed", "vr", "value", "limit", "low", "high"),
    [
        (True, "SS", -2000, None, -2000, -2000),
        (True, "US", 63536, None, -2000, -2000),
        (True, "SS", -2000, -1990, -2000, -1990),
        (False, "US", 10, 0, 0, 10),
    ],
)
def test_padding_is_found_in_stored_values(tmp_path, signed, vr, value, limit, low, high):
    dataset = ct_dataset(signed=signed)
    stored = stored_of(dataset).copy()
    stored[:3] = low
    stored[3] = high
    stored[4] = high + 1
    set_stored(dataset, stored)
    dataset.add_new("PixelPaddingValue", vr, value)
    if limit is not None:
        dataset.add_new("PixelPaddingRangeLimit", vr, limit)
    volume = read(save_series(tmp_path / "ct", [dataset]))
    np.testing.assert_array_equal(volume.padding(0), (stored >= low) & (stored <= high))
    assert volume.padding(0)[:4].all()
    assert not volume.padding(0)[4].any()


def test_a_lone_file_is_read_without_its_siblings(series):
    file = sorted(series.iterdir())[0]
    volume = read(file)
    assert volume.shape == (1, 31, 45)
    assert volume.spacing_mm == (5.0, 0.7, 0.8)
    assert volume.notes == ()


def test_a_lone_slice_without_place_is_read_with_a_note(tmp_path):
    dataset = ct_dataset()
    del dataset.ImagePositionPatient
    del dataset.ImageOrientationPatient
    volume = read(save(dataset, tmp_path / "a.dcm"))
    assert "where it lies" in volume.notes[0]
    with pytest.raises(GeometryError):
        volume.require_whole()


def test_differing_thickness_is_noted_and_not_made_up(tmp_path):
    datasets = [ct_dataset(index) for index in range(3)]
    datasets[1].SliceThickness = "2"
    volume = read(save_series(tmp_path / "ct", datasets))
    assert volume.thickness_mm is None
    assert volume.notes == ("slice thickness differs within the series",)


def test_a_gap_is_noted_and_forbids_only_volume_work(tmp_path):
    folder = save_series(tmp_path / "ct", [ct_dataset(index) for index in (0, 1, 2, 4, 5)])
    volume = read(folder)
    assert volume.spacing_mm[0] == 5.0
    assert volume.slice_positions_mm() == (0.0, 5.0, 10.0, 20.0, 25.0)
    assert volume.notes == volume.volume_problems
    assert "missing at 1 place, the first 10.00 mm" in volume.notes[0]
    assert volume.hu.shape == (5, 31, 45)
    with pytest.raises(GeometryError, match="missing"):
        volume.require_whole()


def test_rounded_positions_are_not_uneven(tmp_path):
    datasets = [ct_dataset(index) for index in range(20)]
    for index, dataset in enumerate(datasets):
        dataset.ImagePositionPatient = ["0", "0", f"{0.625 * index:.2f}"]
    assert read(save_series(tmp_path / "ct", datasets)).notes == ()


def test_uneven_spacing_is_noted(tmp_path):
    datasets = [ct_dataset(index) for index in range(4)]
    datasets[2].ImagePositionPatient = ["-20", "-30", "10.4"]
    assert "varies from 4.60 to 5.40 mm" in read(save_series(tmp_path / "ct", datasets)).notes[0]


def test_gantry_tilt_is_harmless_for_slices_only(tmp_path):
    datasets = [ct_dataset(index) for index in range(4)]
    angle = np.radians(-14)
    for dataset in datasets:
        dataset.ImageOrientationPatient = [
            1,
            0,
            0,
            0,
            round(np.cos(angle), 9),
            round(np.sin(angle), 9),
        ]
    volume = read(save_series(tmp_path / "ct", datasets))
    assert volume.volume_problems == ()
    assert "leans by 14.0 degrees" in volume.skew[0]
    assert volume.skew[0] in volume.notes
    assert volume.spacing_mm[0] == pytest.approx(5.0)
    np.testing.assert_allclose(volume.direction[0], (0, 0, 1), atol=1e-6)
    straight = [ct_dataset(index) for index in range(4)]
    for dataset in straight:
        dataset.GantryDetectorTilt = "-14"
    assert "-14 degrees" in read(save_series(tmp_path / "b", straight)).skew[0]


def test_differing_frames_of_reference_are_noted(tmp_path):
    datasets = [ct_dataset(index) for index in range(3)]
    datasets[1].FrameOfReferenceUID = "1.2.3"
    assert "2 frames of reference" in read(save_series(tmp_path / "ct", datasets)).notes[0]


def test_one_slice_in_two_files_is_read_once(series):
    first = sorted(series.iterdir())[0]
    (series / "copy").write_bytes(first.read_bytes())
    volume = read(series)
    assert volume.shape[0] == 5
    assert volume.notes == ("copies of 1 slices were found and left out",)


def test_localizers_of_a_series_are_left_out(series):
    scout = ct_dataset(9)
    scout.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    scout.ImageOrientationPatient = ["0", "1", "0", "0", "0", "-1"]
    save(scout, series / "scout")
    volume = read(series)
    assert volume.shape[0] == 5
    assert volume.notes == ("1 localizer images of the series were left out",)


def test_the_series_is_chosen_by_uid_or_its_ending(series, tmp_path):
    other = [ct_dataset(index) for index in range(2)]
    for dataset in other:
        dataset.SeriesInstanceUID = SERIES + ".77"
        dataset.SOPInstanceUID += ".77"
        dataset.ConvolutionKernel = "B70f"
    save_series(series / "deeper", other)
    with pytest.raises(SeriesChoiceError, match="--series") as refusal:
        read(series)
    assert [uid for uid, _ in refusal.value.choices] == [SERIES, SERIES + ".77"]
    assert "5 slices, 31 x 45, 5 mm, kernel B30f, ORIGINAL\\PRIMARY\\AXIAL" in str(refusal.value)
    assert read(series, "77").shape[0] == 2
    assert read(series, SERIES).shape[0] == 5
    assert read(series, SERIES).notes == ("other series there were left out: 1 CT",)
    assert read_volume(series, series="77").shape[0] == 2
    with pytest.raises(SeriesChoiceError, match="no series ends with 5"):
        read(series, "5")
    with pytest.raises(SeriesChoiceError, match=r"no series ends with 10\.999"):
        read(series, "10.999")
    third = ct_dataset()
    third.SeriesInstanceUID, third.SOPInstanceUID = SERIES + ".277", SERIES + ".1.277"
    save(third, series / "third")
    with pytest.raises(SeriesChoiceError, match="2 series end with"):
        read(series, "77")


def test_what_is_no_ct_is_left_out_of_a_tree(series):
    for number, name in enumerate(("MR_small.dcm", "test-SR.dcm", "rtplan.dcm")):
        source = get_testdata_file(name, download=False)
        (series / f"other{number}").write_bytes(Path(source).read_bytes())
    (series / "notes.txt").write_text("hello")
    (series / "empty").write_bytes(b"")
    volume = read(series)
    assert volume.shape[0] == 5
    assert volume.notes == ("other series there were left out: 1 MR, 1 RTPLAN, 1 SR",)
    listed = {summary.modality: summary for summary in dicom.list_series(series)}
    assert listed["CT"].unfit == ""
    assert listed["CT"].slices == 5
    assert "MR Image" in listed["MR"].unfit


def test_files_are_found_by_content_not_by_name(tmp_path):
    dataset = ct_dataset()
    folder = tmp_path / "ct"
    folder.mkdir()
    save(dataset, folder / "photo.jpg")
    second = ct_dataset(1)
    del second.file_meta
    dcmwrite(folder / "raw", second, implicit_vr=True, little_endian=True)
    assert (folder / "raw").read_bytes()[128:132] != b"DICM"
    third = ct_dataset(2)
    del third.file_meta
    dcmwrite(folder / "explicit", third, implicit_vr=False, little_endian=True)
    volume = read(folder)
    assert volume.shape[0] == 3
    for index in range(3):
        np.testing.assert_array_equal(volume.read_slice(index), expected_hu(ct_dataset(index)))


def test_a_dicomdir_is_no_image(series):
    directory = get_testdata_file("dicomdirtests/DICOMDIR", download=False)
    (series / "DICOMDIR").write_bytes(Path(directory).read_bytes())
    assert read(series).notes == ()


def test_headers_hold_no_pixels(series):
    volume = read(series)
    assert all("PixelData" not in frame.header for frame in volume.headers.frames)


def test_a_derived_or_lossy_source_is_noted(tmp_path):
    dataset = ct_dataset()
    dataset.ImageType = ["DERIVED ", "SECONDARY", "PROCESSED"]
    dataset.LossyImageCompression = "01"
    dataset.RescaleSlope = "32.1"
    dataset.BurnedInAnnotation = "YES"
    notes = read(save(dataset, tmp_path / "a.dcm")).notes
    assert [next(iter(note.split())) for note in notes] == ["the", "image", "the", "values", "text"]


@pytest.mark.parametrize("name", ["CT_small.dcm", "693_J2KI.dcm", "J2K_pixelrep_mismatch.dcm"])
def test_published_ct_files_are_read(name):
    path = get_testdata_file(name, download=False)
    header = dcmread(path, stop_before_pixels=True)
    hu = read(path).read_slice(0)
    assert hu.shape == (header.Rows, header.Columns)
    assert -4000 < hu.min() < 0 < hu.max() < 5000


def test_transfer_syntax_missing_in_the_meta_header(tmp_path):
    dataset = ct_dataset()
    path = save(dataset, tmp_path / "a.dcm")
    changed = dcmread(path)
    changed.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    del changed.file_meta.TransferSyntaxUID
    changed.save_as(tmp_path / "b.dcm", implicit_vr=False, little_endian=True)
    np.testing.assert_array_equal(read(tmp_path / "b.dcm").read_slice(0), expected_hu(dataset))
