"""Facts of a header: each from where its kind of file keeps it, and our own results known again."""

import numpy as np
import pytest
from dicom_series import FAMILY_NAME, STEP, ct_dataset, derive, enhanced_dataset, read, save, write
from pydicom import dcmread

from cddnet.errors import DicomError
from cddnet.formats import _facts
from cddnet.formats._dicom_pixels import quiet
from cddnet.formats._facts import HeaderFacts, read_facts

TOLD = {
    "SeriesDescription": "  Thorax nativ 1.0  ",
    "ProtocolName": "LungLowDose",
    "ConvolutionKernel": ["Br40d", "3"],
    "BodyPartExamined": "CHEST",
    "Manufacturer": "SIEMENS",
    "ManufacturerModelName": "Force",
    "StationName": "CT7",
    "SliceThickness": "0.60",
    "ImageType": ["original", "PRIMARY ", "AXIAL"],
}
FACTS = HeaderFacts(
    modality="CT",
    series_description="Thorax nativ 1.0",
    protocol="LungLowDose",
    kernel="Br40d\\3",
    body_part="CHEST",
    manufacturer="SIEMENS",
    scanner="Force",
    station="CT7",
    thickness_mm=0.6,
    image_type=("ORIGINAL", "PRIMARY", "AXIAL"),
    ours=False,
)


def facts_of(dataset, folder):
    path = folder / "one.dcm"
    with quiet():
        save(dataset, path)
    return read_facts(path)


def with_values(values):
    dataset = ct_dataset()
    with quiet():
        for keyword, value in values.items():
            setattr(dataset, keyword, value)
    return dataset


def test_a_classic_image_says_all_of_them(tmp_path):
    assert facts_of(with_values(TOLD), tmp_path) == FACTS


@pytest.mark.parametrize("keyword", [key for key in TOLD if key != "ImageType"])
def test_what_is_missing_is_empty_and_the_rest_stays(tmp_path, keyword):
    dataset = with_values(TOLD)
    del dataset[keyword]
    found = facts_of(dataset, tmp_path)
    differing = [name for name in FACTS.__slots__ if getattr(found, name) != getattr(FACTS, name)]
    assert len(differing) == 1
    assert getattr(found, differing[0]) in ("", None)


def test_an_enhanced_image_keeps_them_in_its_groups(tmp_path):
    dataset = enhanced_dataset()
    assert "ConvolutionKernel" not in dataset
    found = facts_of(dataset, tmp_path)
    assert found.kernel == "B30f"
    shared = dataset.SharedFunctionalGroupsSequence[0]
    assert found.thickness_mm == float(shared.PixelMeasuresSequence[0].SliceThickness)
    assert found.image_type[0] == "ORIGINAL"


def test_our_result_is_known_by_either_mark_and_its_source_is_not(tmp_path):
    assert not facts_of(with_values(TOLD), tmp_path).ours
    write(derive(read(tmp_path / "one.dcm"), lambda hu: hu + np.float32(1)), tmp_path / "out")
    (result,) = (tmp_path / "out").iterdir()
    assert read_facts(result).ours
    both = dcmread(result)
    assert STEP.description in both.DerivationDescription
    for mark in ("ContributingEquipmentSequence", "DerivationDescription"):
        less = dcmread(result)
        del less[mark]
        assert facts_of(less, tmp_path).ours
    del both.ContributingEquipmentSequence, both.DerivationDescription
    assert not facts_of(both, tmp_path).ours


def test_equipment_of_others_is_not_ours(tmp_path):
    facts_of(with_values(TOLD), tmp_path)
    write(derive(read(tmp_path / "one.dcm")), tmp_path / "out")
    dataset = dcmread(next((tmp_path / "out").iterdir()))
    dataset.ContributingEquipmentSequence[0].Manufacturer = "cddnetwork"
    dataset.DerivationDescription = "window changed"
    assert not facts_of(dataset, tmp_path).ours


@pytest.mark.parametrize("value", ["abc", "nan", "-1", "inf"])
def test_a_thickness_that_is_no_length_is_none(tmp_path, value):
    dataset = ct_dataset()
    dataset.add_new("SliceThickness", "LO", value)
    assert facts_of(dataset, tmp_path).thickness_mm is None


def test_a_text_is_never_long(tmp_path):
    dataset = with_values({"SeriesDescription": "x" * 5000})
    assert len(facts_of(dataset, tmp_path).series_description) == _facts.LONGEST_TEXT


def test_what_is_no_dicom_is_refused_without_its_content(tmp_path):
    (tmp_path / "a.txt").write_text(f"{FAMILY_NAME} " * 99, encoding="utf-8")
    with pytest.raises(DicomError, match=r"a\.txt: is no DICOM image") as caught:
        read_facts(tmp_path / "a.txt")
    assert FAMILY_NAME not in str(caught.value)
    with pytest.raises(OSError, match="none"):
        read_facts(tmp_path / "none.dcm")
