"""Odd DICOM series in the commands: each works on what is right, and says what it left out."""

import csv

from pydicom import Dataset, uid
from pydicom.dataset import FileMetaDataset

from cddnet.workflows.prepare import PrepareOptions, prepare
from ct_tree import uid_of, write_series


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
