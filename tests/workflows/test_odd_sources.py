"""Odd DICOM series in the commands: each works on what is right, and says what it left out."""

import csv

import numpy as np
import pytest
from pydicom import Dataset, dcmread, uid
from pydicom.dataset import FileMetaDataset

from cddnet.cli import main
from cddnet.errors import FormatError, GeometryError
from cddnet.formats import ReadOptions, read_volume, write_volume
from cddnet.formats._parametric import PREDICTED_ERROR, write_parametric_map
from cddnet.node.web.pairs import LocalPair, Pair
from cddnet.training.slices import stored_slices
from cddnet.volume import Derivation
from cddnet.workflows._cases import find_cases
from cddnet.workflows.evaluate import EvaluateOptions, evaluate
from cddnet.workflows.info import describe
from cddnet.workflows.prepare import PrepareOptions, prepare
from ct_tree import tissue, uid_of, write_series, write_slice

STEP = Derivation(label="test", description="A test", parameters=(), version="0")


def left_out(out):
    with (out / "left_out.csv").open(encoding="utf-8", newline="") as file:
        return [tuple(row.values()) for row in csv.DictReader(file)]


def write_plan(path, patient, name="full"):
    """A structure set with the UID of a series."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.Modality = uid.RTStructureSetStorage, "RTSTRUCT"
    dataset.SOPInstanceUID = uid_of(patient, "plan")
    dataset.StudyInstanceUID = uid_of(patient, "study")
    dataset.SeriesInstanceUID = uid_of(patient, name)
    dataset.PatientID = patient
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.save_as(path, enforce_file_format=True)


def test_a_training_set_counts_the_plans_that_it_leaves_out(tmp_path):
    for patient in "abc":
        write_series(tmp_path / "source" / patient, patient)
    write_plan(tmp_path / "source" / "b" / "0.dcm", "b")
    options = PrepareOptions(split=(0.4, 0.3, 0.3))
    result = prepare(tmp_path / "source", tmp_path / "out", options, lambda *_: None)
    assert len(result.manifest.series) == 3
    note = "1 object of the series that is no slice (RT Structure Set) was left out"
    assert left_out(tmp_path / "out") == [("unfit", "b", "1", "", note)]


def write_phases(folder, *, shift=0, slices=3, numbers=(1, 2), patient="p"):
    """Two phases of a patient at the same places, under names in the order of their images."""
    for phase, number in enumerate(numbers):
        for place in range(slices):
            write_slice(
                folder / f"{phase}{place}.dcm",
                tissue(patient, phase, place) + np.int16(shift),
                PatientID=patient,
                StudyInstanceUID=uid_of(patient, "study"),
                FrameOfReferenceUID=uid_of(patient, "frame"),
                SeriesInstanceUID=uid_of(patient, "series", shift),
                SOPInstanceUID=uid_of(patient, "image", shift, phase, place),
                ImagePositionPatient=[-10, -10, -50 + 3 * place],
                InstanceNumber=10 * phase + place,
                AcquisitionNumber=number,
            )
    return folder


def shifted(volume, hu):
    return volume.derived(lambda index: volume.read_slice(index) + hu, STEP)


def test_phases_are_compared_phase_by_phase(tmp_path):
    full, low = write_phases(tmp_path / "full"), write_phases(tmp_path / "low", shift=7)
    (case,) = find_cases(full, {"low": low})
    np.testing.assert_array_equal(case.aligned("low").hu, case.reference.hu + 7)
    options = EvaluateOptions(with_physics=False)
    (row,) = evaluate(full, {"low": low}, protocol="full", options=options).rows
    assert len(row.images) == 6
    (row,) = evaluate(
        full, {"low": low}, protocol="full", options=options._replace(acquisition="2")
    ).rows
    assert len(row.images) == 3
    (case,) = find_cases(full, {"low": low}, ReadOptions(acquisition="2"))
    assert case.reference.shape[0] == 3
    np.testing.assert_array_equal(case.aligned("low").hu, case.reference.hu + 7)
    # Derived series say of each image what their source said.
    write_volume(shifted(read_volume(full), 9), tmp_path / "derived")
    (case,) = find_cases(full, {"derived": tmp_path / "derived"})
    np.testing.assert_array_equal(case.aligned("derived").hu, case.reference.hu + 9)


def test_a_phase_is_not_taken_for_another(tmp_path):
    """One phase alone, under a number that the other series does not know."""
    full = write_phases(tmp_path / "full")
    unknown = write_phases(tmp_path / "low", shift=7, numbers=(3, 4))
    write_volume(shifted(read_volume(full, acquisition="2"), 5), tmp_path / "second")
    with pytest.raises(GeometryError, match=r"low: (several|6 slices)"):
        find_cases(full, {"low": unknown})
    with pytest.raises(GeometryError, match="second: 3 slices but 6 in the reference"):
        find_cases(full, {"second": tmp_path / "second"})
    (case,) = find_cases(full, {"second": tmp_path / "second"}, ReadOptions(acquisition="2"))
    np.testing.assert_array_equal(case.aligned("second").hu, case.reference.hu + 5)
    write_volume(read_volume(full, acquisition="2"), tmp_path / "second.nii.gz")
    with pytest.raises(GeometryError, match=r"several acquisitions \(1, 2\).*--acquisition"):
        find_cases(full, {"second": tmp_path / "second.nii.gz"})
    assert find_cases(full, {"second": tmp_path / "second.nii.gz"}, ReadOptions(acquisition="2"))


def test_a_viewer_shows_each_phase_beside_itself(tmp_path):
    before = read_volume(write_phases(tmp_path / "full"))
    write_volume(shifted(before, 9), tmp_path / "both")
    write_volume(shifted(read_volume(tmp_path / "full", acquisition="2"), 9), tmp_path / "second")
    for after, rows in ((tmp_path / "both", range(6)), (tmp_path / "second", (1, 3, 5))):
        pair = Pair(before, read_volume(after))
        assert pair.manifest().slices == len(rows)
        for index, row in enumerate(rows):
            shown = np.frombuffer(pair.slice_bytes("after", index), "<i2")
            np.testing.assert_array_equal(shown, before.read_slice(row).ravel() + 9)
            shown = np.frombuffer(pair.slice_bytes("before", index), "<i2")
            np.testing.assert_array_equal(shown, before.read_slice(row).ravel())


def test_no_target_is_a_mean_of_two_phases(tmp_path):
    folder = write_phases(tmp_path / "full")
    for file in folder.iterdir():
        header = dcmread(file)
        header.SliceThickness = "1"
        place = header.ImagePositionPatient[2]
        header.ImagePositionPatient = [-10, -10, (place + 50) / 3 - 50]
        header.save_as(file)
    volume = read_volume(folder)
    assert [len(pair) for pair in [list(stored_slices(volume))]] == [6]
    alone = read_volume(folder, acquisition="1")
    assert len(list(stored_slices(alone))) == 1


def test_a_training_set_takes_every_phase(tmp_path):
    write_phases(tmp_path / "source" / "p")
    for patient in "ab":
        write_series(tmp_path / "source" / patient, patient)
    options = PrepareOptions(split=(0.4, 0.3, 0.3))
    result = prepare(tmp_path / "source", tmp_path / "out", options, lambda *_: None)
    assert sorted(series.shape[0] for series in result.manifest.series) == [4, 4, 6]


def test_what_is_said_of_phases_and_of_lost_positions(tmp_path):
    (told,) = describe(write_phases(tmp_path / "full"))
    assert told.description.startswith("6 slices at 3 places, 3.00 mm apart, of 33 x 27")
    assert told.notes[0].endswith("--acquisition takes one of these")
    (told,) = describe(tmp_path / "full", "2")
    assert told.description.startswith("3 slices, 3.00 mm apart, of")
    lost = write_series(tmp_path / "lost", "p", ImagePositionPatient=[0, 0, 0])
    (told,) = describe(lost)
    assert told.description.startswith("4 slices of 33 x 27 pixels")
    assert told.notes[0].startswith("all 4 images state one position")
    (told,) = describe(tmp_path / "full", "7")
    assert told.refusal.endswith("give one of these, or leave out --acquisition.")


@pytest.mark.parametrize(
    "command",
    [
        ["export", "--window", "-160", "240"],
        ["denoise", "--strength", "0", "--force"],
        ["denoise", "--strength", "0", "--force", "--uncertainty", "error.dcm"],
    ],
)
def test_a_command_takes_all_phases_or_the_one_that_is_named(
    tmp_path, monkeypatch, capsys, command
):
    monkeypatch.chdir(tmp_path)
    write_phases(tmp_path / "full")
    for arguments, count in (([], 6), (["--acquisition", "2"], 3)):
        name, *options = command
        options = [option.replace("error", f"error{count}") for option in options]
        given = ["cddnet", name, "full", f"out{count}", *options, *arguments]
        monkeypatch.setattr("sys.argv", given)
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code
        told = capsys.readouterr().out
        assert ("note: 6 images lie at only 3 positions" in told) == (count == 6)
        made = {file.stem for file in (tmp_path / f"out{count}").iterdir()}
        assert {f"{number:04}" for number in range(1, count + 1)} <= made
        assert f"{count + 1:04}" not in made


@pytest.mark.parametrize("label", ["1", "2", "7"])
def test_an_acquisition_that_no_series_has_is_refused_as_in_other_commands(tmp_path, label):
    """Of series of one acquisition it is taken where it is theirs, as denoising takes it."""
    full = write_series(tmp_path / "full", "p", AcquisitionNumber=2)
    low = write_series(tmp_path / "low", "p", name="low", AcquisitionNumber=2)
    reading = ReadOptions(acquisition=label)
    asked = (
        lambda: find_cases(full, {"low": low}, reading)[0].reference,
        lambda: LocalPair(full, low, reading).pair("pair").manifest(),
    )
    if label == "2":
        assert asked[0]().shape[0] == asked[1]().slices == 4
        return
    with pytest.raises(GeometryError, match="there is no acquisition") as said:
        read_volume(full, acquisition=label)
    for ask in asked:
        with pytest.raises(GeometryError) as caught:
            ask()
        assert str(caught.value) == str(said.value)


def test_files_that_are_no_dicom_have_no_acquisitions(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((3, 40, 50), np.float32))
    reading, path = ReadOptions(acquisition="1"), tmp_path / "a.npy"
    for ask in (
        lambda: find_cases(path, {"same": path}, reading),
        lambda: LocalPair(path, None, reading),
        lambda: read_volume(path, acquisition="1"),
    ):
        with pytest.raises(FormatError, match=r"a\.npy: only DICOM series hold.*leave out --acq"):
            ask()


def test_a_viewer_shows_the_acquisition_that_is_named(tmp_path):
    before = read_volume(write_phases(tmp_path / "full"))
    write_volume(shifted(read_volume(tmp_path / "full", acquisition="2"), 9), tmp_path / "a.nii")
    reading = ReadOptions(acquisition="2")
    for after in (tmp_path / "a.nii", tmp_path / "full", None):
        pair = LocalPair(tmp_path / "full", after, reading).pair("pair")
        assert pair.manifest().slices == 3
        shift = 9 if after == tmp_path / "a.nii" else 0
        for index, row in enumerate((1, 3, 5)):
            shown = np.frombuffer(pair.slice_bytes("after", index), "<i2")
            np.testing.assert_array_equal(shown, before.read_slice(row).ravel() + shift)


def test_the_expected_error_of_two_phases_is_not_shown_with_one(tmp_path):
    folder = write_phases(tmp_path / "full")
    write_parametric_map(
        shifted(read_volume(folder), 2000), tmp_path / "error.dcm", PREDICTED_ERROR
    )
    assert (
        LocalPair(folder, folder, error=tmp_path / "error.dcm").pair("pair").manifest().slices == 6
    )
    with pytest.raises(FormatError, match="of several acquisitions; write it with the same --acq"):
        LocalPair(folder, folder, ReadOptions(acquisition="2"), tmp_path / "error.dcm")
