"""Parametric maps: the numbers bit for bit, at the places of their sources, as a legal object.

Above 300 lines: writing is tested by reading, so they stand together.
"""

import shutil
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from dicom_series import (
    FAMILY_NAME,
    ROOT,
    SERIES,
    SIZE,
    ct_dataset,
    derive,
    enhanced_dataset,
    read,
    save,
    save_series,
)
from pydicom import dcmread, uid

import cddnet
from cddnet.errors import CddnetError, DicomError, FormatError, GeometryError
from cddnet.formats import write_volume
from cddnet.formats._parametric import (
    PREDICTED_ERROR,
    PREDICTED_NOISE,
    RADIOLOGICAL_DEPTH,
    write_parametric_map,
)
from cddnet.formats._parametric_read import read_parametric_map
from cddnet.volume import CTVolume, Derivation
from peers import complaints

DEMO = Path(cddnet.__file__).parent / "data" / "demo" / "series"
STEP = Derivation(
    label="predicted noise",
    description="A map of a test",
    parameters=(("dose_fraction", "1.0"),),
    version="0.1.0",
)
# Newer than this edition of the validator, or ours.
KNOWN_WARNINGS = ("term = <QUANTITY>", "term = <99CDDNET>")
KEPT = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID", "StudyID"),
    *("StudyDate", "AccessionNumber", "FrameOfReferenceUID", "Modality", "BodyPartExamined"),
)
GONE = (
    *("RescaleSlope", "WindowCenter", "SmallestImagePixelValue", "KVP", "ConvolutionKernel"),
    *("ImagePositionPatient", "PixelSpacing", "PixelData", "DerivationDescription"),
)
# They are placed out of order, unevenly and along a tilted gantry.
POSITIONS = (["-20", "-30", "0.0"], ["-20", "-29.5", "9.0"], ["-20", "-29.75", "4.5"])


@pytest.fixture
def source(tmp_path):
    datasets = [ct_dataset(index) for index in range(3)]
    for dataset, position in zip(datasets, POSITIONS, strict=True):
        dataset.ImagePositionPatient = position
    return save_series(tmp_path / "ct", datasets)


@pytest.fixture
def enhanced(tmp_path):
    return save(enhanced_dataset(4), tmp_path / "enhanced.dcm")


def map_of(index):
    """A map that no integer holds."""
    return np.random.default_rng(index).uniform(-3, 40, SIZE).astype(np.float32)


def maps(volume, step=STEP):
    return volume.derived(map_of, step)


def written(source, path, quantity=PREDICTED_NOISE, step=STEP):
    write_parametric_map(maps(read(source), step), path, quantity)
    return dcmread(path)


def group(dataset, index, sequence):
    """A functional group of a frame, its own or the shared one."""
    own = dataset.PerFrameFunctionalGroupsSequence[index]
    return (own if sequence in own else dataset.SharedFunctionalGroupsSequence[0])[sequence][0]


@pytest.mark.parametrize("kind", ["source", "enhanced"])
def test_the_numbers_are_those_given_bit_for_bit(tmp_path, request, kind):
    result = written(request.getfixturevalue(kind), tmp_path / "noise.dcm")
    count = 4 if kind == "enhanced" else 3
    expected = np.stack([map_of(index) for index in range(count)])
    assert result.file_meta.TransferSyntaxUID == uid.ExplicitVRLittleEndian
    assert result["FloatPixelData"].VR == "OF"
    assert result.FloatPixelData == expected.astype("<f4").tobytes()
    np.testing.assert_array_equal(result.pixel_array, expected)
    assert "PixelData" not in result
    assert (result.BitsAllocated, result.NumberOfFrames) == (32, count)


def test_frames_lie_where_their_source_slices_lie(source, tmp_path):
    volume = read(source)
    assert volume.skew
    result = written(source, tmp_path / "noise.dcm")
    for index, frame in enumerate(volume.headers.frames):
        header = frame.header
        position = group(result, index, "PlanePositionSequence").ImagePositionPatient
        assert list(map(str, position)) == list(map(str, header.ImagePositionPatient))
        orientation = group(result, index, "PlaneOrientationSequence").ImageOrientationPatient
        assert list(orientation) == list(header.ImageOrientationPatient)
        measures = group(result, index, "PixelMeasuresSequence")
        assert list(measures.PixelSpacing) == list(header.PixelSpacing)
        assert measures.SliceThickness == header.SliceThickness
        content = group(result, index, "FrameContentSequence")
        assert content.DimensionIndexValues == [1, index + 1]
        (image,) = group(result, index, "DerivationImageSequence").SourceImageSequence
        assert image.ReferencedSOPInstanceUID == frame.sop_uid
        assert "ReferencedFrameNumber" not in image
    along = [
        group(result, index, "PlanePositionSequence").ImagePositionPatient[2] for index in range(3)
    ]
    assert along == [0, 4.5, 9]
    shared = result.SharedFunctionalGroupsSequence[0]
    assert "PlaneOrientationSequence" in shared
    assert "PixelMeasuresSequence" in shared


def test_what_differs_between_slices_stays_with_its_frame(tmp_path):
    datasets = [ct_dataset(index) for index in range(3)]
    datasets[2].SliceThickness = "2.5"
    result = written(save_series(tmp_path / "ct", datasets), tmp_path / "noise.dcm")
    thick = [group(result, index, "PixelMeasuresSequence").SliceThickness for index in range(3)]
    assert thick == [5, 5, 2.5]
    assert "PixelMeasuresSequence" not in result.SharedFunctionalGroupsSequence[0]


def test_frames_of_enhanced_ct_are_named_by_number(enhanced, tmp_path):
    result = written(enhanced, tmp_path / "noise.dcm")
    original = dcmread(enhanced)
    for index in range(4):
        own = 3 - index
        (image,) = group(result, index, "DerivationImageSequence").SourceImageSequence
        assert image.ReferencedFrameNumber == own + 1
        for sequence in ("PlanePositionSequence", "PlaneOrientationSequence"):
            assert group(result, index, sequence) == group(original, own, sequence)


def test_it_is_a_new_series_of_the_same_patient_study_and_space(source, tmp_path):
    result = written(source, tmp_path / "noise.dcm")
    first = read(source).headers.frames[0].header
    assert result.SOPClassUID == "1.2.840.10008.5.1.4.1.1.30"
    for keyword in KEPT:
        assert result[keyword].value == first[keyword].value, keyword
    assert result.PatientName.family_name == FAMILY_NAME
    assert result.SeriesInstanceUID != SERIES
    assert not result.SOPInstanceUID.startswith(SERIES)
    assert result.SeriesNumber != first.SeriesNumber
    assert result.SeriesDescription == "Lung 5.0 predicted noise research"
    (series,) = result.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == SERIES
    named = {item.ReferencedSOPInstanceUID for item in series.ReferencedInstanceSequence}
    assert named == {f"{SERIES}.{number}" for number in (1, 2, 3)}


def test_it_says_that_it_is_derived_by_whom_and_for_research(source, tmp_path):
    result = written(source, tmp_path / "noise.dcm")
    assert list(result.ImageType) == ["DERIVED", "PRIMARY", "VOLUME", "QUANTITY"]
    assert group(result, 0, "ParametricMapFrameTypeSequence").FrameType == [
        "DERIVED",
        "PRIMARY",
        "VOLUME",
        "QUANTITY",
    ]
    assert result.ContentQualification == "RESEARCH"
    assert "Research use only" in result.ImageComments
    assert (result.Manufacturer, result.SoftwareVersions) == ("cddnet", "0.1.0")
    scanner, software = result.ContributingEquipmentSequence
    assert (scanner.Manufacturer, scanner.ManufacturerModelName) == ("Maker", "Model")
    assert software.Manufacturer == "cddnet"
    (derivation,) = result.PerFrameFunctionalGroupsSequence[0].DerivationImageSequence
    assert derivation.DerivationCodeSequence[0].CodeValue == "NOISEPREDICT"


@pytest.mark.parametrize(
    ("quantity", "unit", "defined"),
    [
        (RADIOLOGICAL_DEPTH, "1", ["RADIOLDEPTH"]),
        (PREDICTED_NOISE, "[hnsf'U]", ["112031", "386136009"]),
    ],
)
def test_the_numbers_have_a_unit_a_quantity_and_a_range(source, tmp_path, quantity, unit, defined):
    result = written(source, tmp_path / "map.dcm", quantity)
    mapping = group(result, 0, "RealWorldValueMappingSequence")
    (code,) = mapping.MeasurementUnitsCodeSequence
    assert (code.CodeValue, code.CodingSchemeDesignator) == (unit, "UCUM")
    values = [item.ConceptCodeSequence[0].CodeValue for item in mapping.QuantityDefinitionSequence]
    assert values == defined
    assert (mapping.RealWorldValueSlope, mapping.RealWorldValueIntercept) == (1, 0)
    every = np.stack([map_of(index) for index in range(3)])
    assert mapping.DoubleFloatRealWorldValueFirstValueMapped == every.min()
    assert mapping.DoubleFloatRealWorldValueLastValueMapped == every.max()
    assert result.ContentLabel == quantity.label
    assert len(quantity.label) <= 16
    assert len(quantity.meaning) <= 64


def test_uids_depend_on_the_source_and_the_recipe_alone(source, tmp_path):
    def uids(name, step=STEP, of=source):
        result = written(of, tmp_path / name, step=step)
        dimensions = result.DimensionOrganizationSequence[0].DimensionOrganizationUID
        return result.SeriesInstanceUID, result.SOPInstanceUID, dimensions

    first = uids("a.dcm")
    assert len(set(first)) == 3
    assert uids("b.dcm") == first
    other = replace(STEP, parameters=(("dose_fraction", "0.5"),))
    fewer = save_series(tmp_path / "fewer", [ct_dataset(index) for index in range(2)])
    for changed in (uids("c.dcm", other), uids("d.dcm", of=fewer)):
        assert not set(first) & set(changed)


def test_nothing_of_the_old_pixels_or_of_the_sender_stays(source, tmp_path):
    datasets = [ct_dataset(index) for index in range(2)]
    for dataset in datasets:
        dataset.add_new((0x0009, 0x0010), "LO", "SENDER")
        dataset.add_new((0x0009, 0x1001), "LO", "secret")
        dataset.SmallestImagePixelValue = 3
        dataset.BurnedInAnnotation = "YES"
    result = written(save_series(tmp_path / "own", datasets), tmp_path / "noise.dcm")
    assert not [keyword for keyword in GONE if keyword in result]
    assert not [element for element in result.iterall() if element.tag.is_private]
    assert result.BurnedInAnnotation == "NO"


def test_one_frame_is_in_memory_at_a_time(source, tmp_path):
    volume, alive, most = read(source), [], 0

    class Held(np.ndarray):
        """An array that can be watched."""

    def read_slice(index):
        nonlocal most
        values = map_of(index).view(Held)
        most = max(most, sum(reference() is not None for reference in alive))
        alive.append(weakref.ref(values))
        return values

    write_parametric_map(volume.derived(read_slice, STEP), tmp_path / "a.dcm", PREDICTED_NOISE)
    assert len(alive) == 6
    # The one before, while its successor is made.
    assert most <= 1


def bad(value):
    def change(hu):
        values = hu.copy()
        values[3, 4] = value
        return values

    return change


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_no_numbers_are_refused(source, tmp_path, value):
    volume = derive(read(source), bad(value), STEP)
    with pytest.raises(FormatError, match="map 1 is not finite"):
        write_parametric_map(volume, tmp_path / "a.dcm", PREDICTED_NOISE)
    assert not (tmp_path / "a.dcm").exists()


def test_a_failure_half_way_leaves_nothing(source, tmp_path):
    calls = []

    def read_slice(index):
        calls.append(index)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return map_of(index)

    before = sorted(tmp_path.iterdir())
    with pytest.raises(KeyboardInterrupt):
        write_parametric_map(
            read(source).derived(read_slice, STEP), tmp_path / "a.dcm", PREDICTED_NOISE
        )
    assert sorted(tmp_path.iterdir()) == before


def test_an_existing_file_is_kept(source, tmp_path):
    target = tmp_path / "a.dcm"
    target.write_text("mine")
    with pytest.raises(FormatError, match="exists already"):
        write_parametric_map(maps(read(source)), target, PREDICTED_NOISE)
    assert target.read_text() == "mine"


def test_a_volume_that_is_not_from_dicom_or_was_not_worked_on_is_refused(source, tmp_path):
    plain = CTVolume.from_hu(np.zeros((2, *SIZE), np.float32), (5.0, 0.7, 0.8))
    for volume in (maps(plain), read(source)):
        with pytest.raises(FormatError):
            write_parametric_map(volume, tmp_path / "a.dcm", PREDICTED_NOISE)


def test_a_place_that_is_not_one_is_refused(tmp_path):
    apart = [ct_dataset(index) for index in range(2)]
    apart[1].FrameOfReferenceUID = f"{ROOT}.77"
    lost = ct_dataset()
    del lost.ImagePositionPatient
    for name, datasets, error, reason in (
        ("apart", apart, GeometryError, "2 frames of reference"),
        ("lost", [lost], DicomError, "does not say where it lies"),
    ):
        volume = maps(read(save_series(tmp_path / name, datasets)))
        with pytest.raises(error, match=reason) as caught:
            write_parametric_map(volume, tmp_path / "a.dcm", PREDICTED_NOISE)
        assert FAMILY_NAME not in str(caught.value)


def test_maps_of_a_series_without_a_space_of_its_own_share_one(tmp_path):
    datasets = [ct_dataset(index) for index in range(2)]
    for dataset in datasets:
        del dataset.FrameOfReferenceUID
    source = save_series(tmp_path / "ct", datasets)
    first = written(source, tmp_path / "a.dcm", RADIOLOGICAL_DEPTH, replace(STEP, label="other"))
    second = written(source, tmp_path / "b.dcm")
    assert first.FrameOfReferenceUID == second.FrameOfReferenceUID != ""
    assert first.SeriesInstanceUID != second.SeriesInstanceUID


def test_a_map_is_not_taken_for_ct(source, tmp_path):
    written(source, tmp_path / "noise.dcm")
    with pytest.raises(CddnetError, match="Parametric Map"):
        read(tmp_path / "noise.dcm")


@pytest.mark.parametrize("kind", ["source", "enhanced"])
def test_a_map_is_read_back_bit_for_bit_where_it_lies(tmp_path, request, kind):
    volume = read(request.getfixturevalue(kind))
    write_parametric_map(maps(volume), tmp_path / "noise.dcm", PREDICTED_NOISE)
    found = read_parametric_map(tmp_path / "noise.dcm", PREDICTED_NOISE)
    assert found.shape == volume.shape
    # By index and backwards: each read seeks on its own.
    for index in reversed(range(found.shape[0])):
        np.testing.assert_array_equal(found.read_slice(index), map_of(index))
    assert found.hu.dtype == np.float32
    for told in ("spacing_mm", "origin_mm", "direction", "positions_mm", "thickness_mm"):
        assert getattr(found, told) == getattr(volume, told), told
    assert found.volume_problems == volume.volume_problems


def test_the_places_decide_the_order_of_frames(source, tmp_path):
    """A file of another hand may hold them otherwise; the numbers stay with their place."""
    dataset = written(source, tmp_path / "noise.dcm")
    forward = read_parametric_map(tmp_path / "noise.dcm")
    dataset.PerFrameFunctionalGroupsSequence = dataset.PerFrameFunctionalGroupsSequence[::-1]
    dataset.save_as(tmp_path / "turned.dcm")
    turned = read_parametric_map(tmp_path / "turned.dcm")
    assert turned.slice_positions_mm() == forward.slice_positions_mm()
    np.testing.assert_array_equal(turned.hu, forward.hu[::-1])


def cut_short(path):
    path.write_bytes(path.read_bytes()[:-1])


def without(sequence):
    def change(path):
        dataset = dcmread(path)
        del dataset.PerFrameFunctionalGroupsSequence[1][sequence]
        dataset.save_as(path)

    return change


def not_finite(path):
    path.write_bytes(path.read_bytes()[:-4] + np.float32(np.nan).tobytes())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (cut_short, "are there"),
        (without("PlanePositionSequence"), "header is damaged"),
        (not_finite, "NaN or infinite"),
        (lambda path: path.write_bytes(b"no DICOM at all" * 99), "no DICOM"),
        (lambda path: path.unlink(), "No such file"),
    ],
)
def test_what_is_no_whole_map_is_refused(source, tmp_path, change, said):
    written(source, tmp_path / "noise.dcm")
    change(tmp_path / "noise.dcm")
    with pytest.raises(CddnetError, match=said) as caught:
        list(read_parametric_map(tmp_path / "noise.dcm").slices())
    assert FAMILY_NAME not in str(caught.value)


def test_ct_and_maps_of_something_else_are_refused(source, tmp_path):
    with pytest.raises(DicomError, match="Parametric Map but: CT Image"):
        read_parametric_map(sorted(source.iterdir())[0])
    written(source, tmp_path / "noise.dcm")
    with pytest.raises(DicomError, match="PREDICTED_NOISE, expected EXPECTED_ERROR"):
        read_parametric_map(tmp_path / "noise.dcm", PREDICTED_ERROR)


def test_no_ct_is_written_from_a_map(source, tmp_path):
    written(source, tmp_path / "noise.dcm")
    found = derive(read_parametric_map(tmp_path / "noise.dcm"), lambda hu: hu, STEP)
    with pytest.raises(FormatError):
        write_volume(found, tmp_path / "ct_again")
    assert not (tmp_path / "ct_again").exists()


@pytest.mark.net
@pytest.mark.parametrize("quantity", [RADIOLOGICAL_DEPTH, PREDICTED_NOISE])
@pytest.mark.parametrize("kind", ["source", "enhanced"])
def test_dciodvfy_finds_no_error(tmp_path, request, kind, quantity):
    path = tmp_path / "map.dcm"
    written(request.getfixturevalue(kind), path, quantity)
    said = complaints(path)
    assert not {line for line in said if line.startswith("Error")}
    assert not {line for line in said if not any(known in line for known in KNOWN_WARNINGS)}


@pytest.mark.net
def test_dciodvfy_finds_no_error_in_real_ct_that_its_source_has_not(tmp_path):
    (tmp_path / "ct").mkdir()
    for name in ("0001.dcm", "0004.dcm"):
        shutil.copy(DEMO / name, tmp_path / "ct")
    volume = read(tmp_path / "ct")
    path = tmp_path / "map.dcm"
    write_parametric_map(derive(volume, lambda hu: hu / 100, STEP), path, PREDICTED_NOISE)
    errors = {line for line in complaints(path) if line.startswith("Error")}
    assert errors <= complaints(DEMO / "0001.dcm")
