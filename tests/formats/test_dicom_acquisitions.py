"""Several images at one place: all are read slice by slice, and one acquisition can be chosen."""

import numpy as np
import pytest
from dicom_series import (
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

from cddnet.errors import FormatError, GeometryError
from cddnet.formats import ReadOptions, dicom, read_volume, write_volume
from cddnet.formats._parametric import RADIOLOGICAL_DEPTH, write_parametric_map
from cddnet.formats._parametric_read import read_parametric_map

TOLD = {
    # What tells the phases apart -> (values of the two, their labels).
    "AcquisitionNumber": (["2", "10"], ["2", "10"]),
    "TemporalPositionIdentifier": (["1", "2"], ["t1", "t2"]),
    "AcquisitionTime": (["101112.5", "101140"], ["t1", "t2"]),
    "AcquisitionDateTime": (["20240102101112", "20240102101140"], ["t1", "t2"]),
    "TriggerTime": (["40", "330"], ["t1", "t2"]),
    "NominalPercentageOfCardiacPhase": ([40.0, 75.0], ["t1", "t2"]),
    "InstanceNumber": (None, ["n1", "n2"]),
}


def phases(keyword, values, slices=3):
    """Two phases at the same places with other pixels; other elements tell nothing."""
    datasets = []
    for phase in range(2):
        for index in range(slices):
            dataset = ct_dataset(index + phase * slices)
            dataset.ImagePositionPatient = ["-20", "-30", f"{5 * index}"]
            if values is not None:
                setattr(dataset, keyword, values[phase])
            datasets.append(dataset)
    return datasets


def hu_of(*numbers):
    """HU of the data sets with these numbers, as one stack."""
    return np.stack([stored_of(ct_dataset(number)) - 1024.0 for number in numbers])


def chosen(path, label):
    return dicom.read(path, ReadOptions(acquisition=label))


@pytest.mark.parametrize("keyword", TOLD)
def test_phases_are_read_together_or_one_is_chosen(tmp_path, keyword):
    values, labels = TOLD[keyword]
    folder = save_series(tmp_path / "ct", phases(keyword, values))
    volume = read(folder)
    assert volume.spacing_mm == (5.0, 0.7, 0.8)
    assert volume.positions_mm == (0.0, 0.0, 5.0, 5.0, 10.0, 10.0)
    assert volume.acquisition_labels == tuple(labels * 3)
    np.testing.assert_array_equal(volume.hu, hu_of(0, 3, 1, 4, 2, 5))
    (note,) = volume.notes
    listed = ", ".join(f"{label} (3 slices)" for label in labels)
    assert note.startswith("6 images lie at only 3 positions, told apart by ")
    assert note.endswith(f": {listed}; --acquisition takes one of these")
    assert volume.volume_problems == (note,)
    with pytest.raises(GeometryError, match="--acquisition takes one"):
        volume.require_whole()
    for label, numbers in zip(labels, [(0, 1, 2), (3, 4, 5)], strict=True):
        phase = chosen(folder, label)
        np.testing.assert_array_equal(phase.hu, hu_of(*numbers))
        assert phase.notes == ("3 slices of other acquisitions were left out",)
        assert phase.acquisition_labels == phase.volume_problems == phase.positions_mm == ()
    with pytest.raises(GeometryError) as caught:
        chosen(folder, "7")
    assert "there is no acquisition 7 in it" in str(caught.value)
    assert labels[1] in str(caught.value)


def test_files_from_a_node_have_no_option(tmp_path):
    folder = save_series(tmp_path / "ct", phases("AcquisitionNumber", ["1", "2"]))
    volume = dicom.read_files(sorted(folder.iterdir()))
    assert volume.shape[0] == 6
    assert "--acquisition" not in volume.notes[0]


def test_every_image_of_every_phase_is_written_with_its_number(tmp_path):
    folder = save_series(tmp_path / "ct", phases("AcquisitionNumber", ["1", "2"]))
    volume = read(folder)
    results = written(write(derive(volume, lambda hu: hu + 2), tmp_path / "out"))
    assert [int(result.AcquisitionNumber) for result in results] == [1, 2, 1, 2, 1, 2]
    assert len({result.SOPInstanceUID for result in results}) == 6
    again = read(tmp_path / "out")
    np.testing.assert_array_equal(again.hu, volume.hu + 2)
    assert again.acquisition_labels == volume.acquisition_labels
    one = derive(chosen(folder, "2"))
    assert len(written(write(one, tmp_path / "one"))) == 3
    write_volume(one, tmp_path / "one.nii.gz")
    with pytest.raises(GeometryError, match=r"told apart by acquisition number: 1 \(3 "):
        write_volume(volume, tmp_path / "both.nii.gz")


def test_an_acquisition_may_lie_elsewhere_or_have_another_size(tmp_path):
    """A number chooses also where slices do not share places, or would not fit together."""
    datasets = [ct_dataset(index) for index in range(5)]
    for dataset in datasets[3:]:
        dataset.AcquisitionNumber = "2"
        set_stored(dataset, np.zeros((20, 20), np.int16))
    folder = save_series(tmp_path / "ct", datasets)
    with pytest.raises(GeometryError, match="matrix size differs"):
        read(folder)
    assert chosen(folder, "1").shape == (3, 31, 45)
    assert chosen(folder, "2").shape == (2, 20, 20)


def test_a_label_is_asked_of_dicom_alone(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((3, 8, 8), np.float32))
    with pytest.raises(FormatError, match="leave out --acquisition"):
        read_volume(tmp_path / "a.npy", acquisition="1")
    path = save(ct_dataset(), tmp_path / "a.dcm")
    assert read_volume(path, acquisition="1").shape[0] == 1
    for label in ("2", "t1", "n1"):
        with pytest.raises(GeometryError, match=r"but: 1 \(1 slice\)"):
            read_volume(path, acquisition=label)


def test_numbers_of_every_slice_tell_no_acquisitions(tmp_path):
    """Step and shoot counts every rotation; the time then tells the phases apart."""
    datasets = phases("TemporalPositionIdentifier", ["1", "2"])
    for number, dataset in enumerate(datasets):
        dataset.AcquisitionNumber = str(number + 1)
    volume = read(save_series(tmp_path / "ct", datasets))
    assert volume.acquisition_labels == ("t1", "t2") * 3


def test_phases_of_different_length(tmp_path):
    datasets = phases("AcquisitionNumber", ["1", "2"])
    extra = ct_dataset(7)
    extra.AcquisitionNumber, extra.ImagePositionPatient = "2", ["-20", "-30", "15"]
    volume = read(save_series(tmp_path / "ct", [*datasets[:2], *datasets[3:], extra]))
    assert volume.acquisition_labels == ("1", "2", "1", "2", "2", "2")
    assert volume.positions_mm == (0.0, 0.0, 5.0, 5.0, 10.0, 15.0)
    assert len(volume.notes) == 1


@pytest.mark.parametrize("changes", [{}, {"AcquisitionNumber": "2"}, {"InstanceNumber": "9"}])
def test_copies_under_other_uids_are_left_out(tmp_path, changes):
    datasets = [ct_dataset(index) for index in range(3)]
    for index in range(2):
        copy = ct_dataset(index)
        copy.SOPInstanceUID += ".7"
        for keyword, value in changes.items():
            setattr(copy, keyword, value)
        datasets.append(copy)
    volume = read(save_series(tmp_path / "ct", datasets))
    np.testing.assert_array_equal(volume.hu, hu_of(0, 1, 2))
    assert volume.notes == ("copies of 2 slices under other UIDs were found and left out",)
    assert volume.volume_problems == ()


def test_what_differs_in_one_pixel_or_in_scale_is_no_copy(tmp_path):
    for number, change in enumerate(("pixel", "slope")):
        other = ct_dataset(1)
        other.SOPInstanceUID += ".7"
        if change == "slope":
            other.RescaleSlope = "1.001"
        else:
            stored = stored_of(other).copy()
            stored[3, 4] += 1
            set_stored(other, stored)
        datasets = [*(ct_dataset(index) for index in range(3)), other]
        volume = read(save_series(tmp_path / str(number), datasets))
        assert volume.shape[0] == 4
        assert volume.acquisition_labels == ("n1", "n1", "n2", "n1")


def test_equal_blank_slices_of_two_phases_are_no_copies(tmp_path):
    datasets = phases("AcquisitionNumber", ["1", "2"])
    for dataset in (datasets[0], datasets[3]):
        set_stored(dataset, np.zeros((31, 45), np.int16))
    assert read(save_series(tmp_path / "ct", datasets)).shape[0] == 6


@pytest.mark.parametrize("position", [["0", "0", "0"], ["-20", "-30", "5"]])
def test_images_at_one_position_keep_their_own_order(tmp_path, position):
    """As where positions were lost, and in bolus tracking."""
    datasets = [ct_dataset(index) for index in range(4)]
    for number, dataset in enumerate(datasets):
        dataset.ImagePositionPatient = position
        dataset.InstanceNumber = str(12 - number)
    volume = read(save_series(tmp_path / "ct", datasets))
    np.testing.assert_array_equal(volume.hu, hu_of(3, 2, 1, 0))
    note = "all 4 images state one position, so their order and distance are unknown"
    assert volume.notes == volume.volume_problems == (note,)
    assert volume.spacing_mm == (5.0, 0.7, 0.8)
    assert volume.positions_mm == (0.0,) * 4
    assert len(written(write(derive(volume), tmp_path / "out"))) == 4


def per_frame(dataset, index, sequence, keyword, value):
    setattr(dataset.PerFrameFunctionalGroupsSequence[index][sequence].value[0], keyword, value)


def two_phases_of_frames(keyword, values):
    """Frames 0 and 1 at one place, 2 and 3 at another."""
    dataset = enhanced_dataset(4)
    for index in range(4):
        place = ["-20", "-30", str(5 * (index // 2))]
        per_frame(dataset, index, "PlanePositionSequence", "ImagePositionPatient", place)
        scale = "PixelValueTransformationSequence"
        per_frame(dataset, index, scale, "RescaleSlope", "1")
        if keyword:
            per_frame(dataset, index, "FrameContentSequence", keyword, values[index % 2])
    return dataset


@pytest.mark.parametrize(
    ("keyword", "values", "labels"),
    [
        ("TemporalPositionIndex", [2, 1], ("t2", "t1")),
        ("FrameAcquisitionNumber", [4, 3], ("4", "3")),
        ("FrameAcquisitionDateTime", ["20240102101112", "20240102101120"], ("t1", "t2")),
        (None, None, ("n1", "n2")),
    ],
)
def test_frames_at_one_place(tmp_path, keyword, values, labels):
    dataset = two_phases_of_frames(keyword, values)
    if keyword == "FrameAcquisitionNumber":
        del dataset.AcquisitionNumber
    path = save(dataset, tmp_path / "a.dcm")
    volume = read(path)
    assert sorted(volume.acquisition_labels[:2]) == sorted(labels)
    assert "2 positions" in volume.notes[0]
    for index, label in enumerate(labels):
        phase = chosen(path, label)
        np.testing.assert_array_equal(phase.hu, hu_of(index, index + 2))
        write(derive(phase), tmp_path / f"{label}.dcm")
        again = read(tmp_path / f"{label}.dcm")
        np.testing.assert_array_equal(again.hu, phase.hu)
    write(derive(volume), tmp_path / "both.dcm")
    again = read(tmp_path / "both.dcm")
    np.testing.assert_array_equal(again.hu, volume.hu)
    assert again.acquisition_labels == volume.acquisition_labels


def test_no_refusal_of_one_file_asks_for_one_file_alone(tmp_path):
    for number, (sequence, keyword) in enumerate(
        [
            ("PlanePositionSequence", "ImagePositionPatient"),
            ("FrameContentSequence", "StackID"),
        ]
    ):
        dataset = enhanced_dataset(3)
        per_frame(dataset, 1, sequence, keyword, "7" if keyword == "StackID" else None)
        with pytest.raises(Exception, match=r"a\d\.dcm") as caught:
            read(save(dataset, tmp_path / f"a{number}.dcm"))
        assert "alone" not in str(caught.value)
        assert "export" in str(caught.value)


def test_maps_of_phases_come_back_in_the_order_of_their_series(tmp_path):
    datasets = phases("AcquisitionNumber", ["1", "2"])
    folder = save_series(tmp_path / "ct", [*datasets[:2], *datasets[3:]])
    volume = read(folder)
    write_parametric_map(derive(volume), tmp_path / "map.dcm", RADIOLOGICAL_DEPTH)
    maps = read_parametric_map(tmp_path / "map.dcm")
    np.testing.assert_array_equal(maps.hu, volume.hu)
    assert maps.positions_mm == volume.positions_mm


@pytest.mark.parametrize(
    ("keyword", "values"),
    [("AcquisitionNumber", ["1", "2"]), ("AcquisitionTime", ["101112.5", "101140"])],
)
def test_phases_that_lie_a_little_apart(tmp_path, keyword, values):
    """A table does not come back to the tenth of a millimetre: no slices are missing for that."""
    datasets = phases(keyword, values, slices=4)
    for dataset in datasets[4:]:
        place = float(dataset.ImagePositionPatient[2])
        dataset.ImagePositionPatient = ["-20", "-30", f"{place + 0.3:.1f}"]
    folder = save_series(tmp_path / "ct", datasets)
    volume = read(folder)
    labels = TOLD[keyword][1] if keyword != "AcquisitionNumber" else ["1", "2"]
    assert volume.acquisition_labels == tuple(labels * 4)
    (note,) = volume.notes
    assert note.startswith("slices of several acquisitions lie between each other")
    assert note.endswith("(4 slices); --acquisition takes one of these")
    assert volume.spacing_mm[0] == pytest.approx(5.0)
    phase = chosen(folder, labels[1])
    np.testing.assert_array_equal(phase.hu, hu_of(4, 5, 6, 7))
    assert phase.spacing_mm[0] == pytest.approx(5.0)
    assert phase.volume_problems == ()


def test_acquisitions_one_behind_the_other_are_one_stack(tmp_path):
    """As of two table positions: nothing is to be chosen, and the number may still be."""
    datasets = [ct_dataset(index) for index in range(6)]
    for dataset in datasets[3:]:
        dataset.AcquisitionNumber = "2"
    folder = save_series(tmp_path / "ct", datasets)
    assert read(folder).notes == ()
    assert chosen(folder, "2").shape[0] == 3
    for index, dataset in enumerate(datasets[3:]):
        dataset.ImagePositionPatient = ["-20", "-30", f"{15 + 7 * index}"]
    volume = read(save_series(tmp_path / "steps", datasets))
    assert volume.notes == ("the step between slices changes along the stack: 5, 7 mm",)
    assert volume.acquisition_labels == ()
