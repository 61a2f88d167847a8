"""Derived CT: pixels that did not change are the same bits, and the new object says what it is.

Above 300 lines: pixels, header and identity of one written series.
"""

import os
import warnings
from collections import Counter
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pytest
from dicom_series import (
    FAMILY_NAME,
    SERIES,
    SIZE,
    STEP,
    ct_dataset,
    derive,
    fingerprint,
    read,
    save,
    save_series,
    set_stored,
    stored_of,
    write,
    written,
)
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydicom import dcmread, uid
from pydicom.data import get_testdata_file

import cddnet
from cddnet.errors import CddnetError, FormatError
from cddnet.formats._derived_pixels import derived_stored
from cddnet.formats._dicom_frames import Frame
from cddnet.volume import CTVolume, Derivation
from peers import complaints, peer

DEMO = Path(cddnet.__file__).parent / "data" / "demo" / "series"
SLOPES = ["1", "1.0002441", "0.5", "2.0002442", "1e-4", "-1"]
LOW_DOSE = Derivation(
    label="low dose 25%",
    description="Simulated noise of a quarter of the dose",
    parameters=(("dose_fraction", "0.25"), ("seed", "3")),
    version="0.1.0",
)


@pytest.fixture
def volume(tmp_path):
    return read(save_series(tmp_path / "ct", [ct_dataset(index) for index in range(4)]))


def noisy(hu):
    return hu + np.random.default_rng(2).normal(0, 30, hu.shape).astype(np.float32)


# --- pixels


@pytest.mark.parametrize("slope", SLOPES)
@pytest.mark.parametrize(("bits", "signed"), [(16, True), (12, False), (16, False), (12, True)])
def test_unchanged_hu_keeps_every_stored_bit(tmp_path, slope, bits, signed):
    dataset = ct_dataset(bits=bits, signed=signed, slope=slope)
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    every = np.linspace(low, high, SIZE[0] * SIZE[1]).round().astype(np.int32).reshape(SIZE)
    set_stored(dataset, every)
    source = read(save_series(tmp_path / "ct", [dataset]))
    (result,) = written(write(derive(source), tmp_path / "out"))
    np.testing.assert_array_equal(stored_of(result), every)
    (moved,) = written(write(derive(source, lambda hu: hu + 50), tmp_path / "moved"))
    assert not np.array_equal(stored_of(moved), every)


@given(
    slope=st.floats(1e-4, 40).map(lambda value: float(f"{value:.7g}")),
    intercept=st.floats(-5000, 5000),
    bits=st.integers(8, 16),
    signed=st.booleans(),
    seed=st.integers(0, 99),
)
@example(slope=1e-4, intercept=5000.0, bits=12, signed=False, seed=0)
@settings(max_examples=60, deadline=None)
def test_stored_values_are_nearest_legal_and_never_padding(slope, intercept, bits, signed, seed):
    legal = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    rng = np.random.default_rng(seed)
    padding = tuple(sorted(rng.integers(legal[0], legal[1], 2)))
    frame = _frame(slope, intercept, legal, padding)
    stored = rng.integers(legal[0], legal[1] + 1, (9, 11)).astype(np.int16 if signed else np.uint16)
    hu = frame.hu(stored)
    np.testing.assert_array_equal(derived_stored(frame, stored, hu), stored)
    reach = 2 * slope * (legal[1] - legal[0])
    wanted = (hu + rng.uniform(-reach, reach, hu.shape)).astype(np.float32)
    result = derived_stored(frame, stored, wanted)
    mask = frame.padding_mask(stored)
    assert result.dtype == stored.dtype
    np.testing.assert_array_equal(result[mask], stored[mask])
    free = result[~mask].astype(int)
    assert ((free >= legal[0]) & (free <= legal[1])).all()
    assert ((free < padding[0]) | (free > padding[1])).all()
    exact = (wanted[~mask].astype(np.float64) - intercept) / slope
    inside = (exact > legal[0]) & (exact < legal[1])
    inside &= (exact < padding[0] - 1) | (exact > padding[1] + 1)
    assert (np.abs(free - exact)[inside] <= 0.5 + 1e-6).all()
    assert (free[exact > legal[1]] >= min(legal[1], padding[0] - 1)).all()
    assert (free[exact < legal[0]] <= max(legal[0], padding[1] + 1)).all()


def _frame(slope, intercept, legal, padding):
    return Frame(
        path=Path("a"),
        index=0,
        kept=ct_dataset(),
        sop_uid="1.2",
        instance_number="1",
        size=(9, 11),
        spacing_mm=(1.0, 1.0),
        thickness_mm=1.0,
        position_mm=None,
        row_direction=None,
        column_direction=None,
        slope=slope,
        intercept=intercept,
        gantry_tilt_degrees=0.0,
        acquisition="1",
        legal=legal,
        padding=padding,
    )


def test_values_are_clipped_not_wrapped(tmp_path):
    source = read(save_series(tmp_path / "ct", [ct_dataset(bits=12, signed=False)]))
    for hu, expected in ((-5000, 0), (9000, 4095)):
        step = replace(STEP, parameters=(("hu", str(hu)),))
        folder = write(
            derive(source, lambda old, hu=hu: np.full_like(old, hu), step), tmp_path / str(expected)
        )
        assert set(stored_of(written(folder)[0]).ravel()) == {expected}


@pytest.mark.parametrize(("vr", "value"), [("SS", -2000), ("US", 63536)])
def test_padding_is_untouched_and_its_vr_follows_the_pixels(tmp_path, vr, value):
    dataset = ct_dataset()
    stored = stored_of(dataset).copy()
    stored[:5] = -2000
    set_stored(dataset, stored)
    dataset.add_new("PixelPaddingValue", vr, value)
    source = read(save_series(tmp_path / "ct", [dataset]))
    new = derive(source, lambda hu: np.full_like(hu, -3024))
    (result,) = written(write(new, tmp_path / "out"))
    assert (stored_of(result)[:5] == -2000).all()
    assert (stored_of(result)[5:] == -1999).all()
    assert result["PixelPaddingValue"].VR == "SS"
    assert result.PixelPaddingValue == -2000


def test_every_slice_keeps_its_own_scale(tmp_path):
    datasets = [ct_dataset(0, slope="0.5"), ct_dataset(1, slope="2", intercept="-1000")]
    source = read(save_series(tmp_path / "ct", datasets))
    results = written(write(derive(source, lambda hu: hu + 10), tmp_path / "out"))
    for dataset, result, step in zip(datasets, results, (20, 5), strict=True):
        np.testing.assert_array_equal(stored_of(result), stored_of(dataset) + step)
        assert result.RescaleSlope == dataset.RescaleSlope


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_is_refused_and_leaves_nothing(volume, tmp_path, bad):
    def spoil(hu):
        hu = hu.copy()
        hu[3, 4] = bad
        return hu

    with pytest.raises(FormatError, match="NaN or infinite"):
        write(derive(volume, spoil), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["ct"]


# --- headers


def test_the_new_object_says_what_it_is(volume, tmp_path):
    results = written(write(derive(volume, noisy), tmp_path / "out"))
    assert [path.name for path in sorted((tmp_path / "out").iterdir())] == [
        f"{number:04}.dcm" for number in range(1, 5)
    ]
    assert len({result.SOPInstanceUID for result in results}) == 4
    assert len({result.SeriesInstanceUID for result in results}) == 1
    for index, result in enumerate(results):
        source = ct_dataset(index)
        assert result.SOPClassUID == uid.CTImageStorage
        assert result.SeriesInstanceUID.startswith("2.25.")
        assert result.SOPInstanceUID.startswith("2.25.")
        assert len(result.SOPInstanceUID) <= 44
        assert result.file_meta.MediaStorageSOPInstanceUID == result.SOPInstanceUID
        assert result.file_meta.TransferSyntaxUID == uid.ExplicitVRLittleEndian
        assert result.file_meta.ImplementationClassUID != uid.PYDICOM_IMPLEMENTATION_UID
        assert len(result.file_meta.ImplementationVersionName) <= 16
        assert list(result.ImageType) == ["DERIVED", "SECONDARY", "AXIAL"]
        assert result.SeriesDescription == "Lung 5.0 cddnet 80% research"
        assert result.SeriesNumber % 10000 == 9003
        assert result.DerivationDescription == (
            "Noise reduction by a convolutional network (cddnet 0.1.0, weights abababababab; "
            "model=cddnet, strength=0.8)"
        )
        values = [item.CodeValue for item in result.DerivationCodeSequence]
        assert values == ["113087", "123110"]
        (reference,) = result.SourceImageSequence
        assert reference.ReferencedSOPInstanceUID == source.SOPInstanceUID
        assert reference.SpatialLocationsPreserved == "YES"
        assert reference.PurposeOfReferenceCodeSequence[0].CodeValue == "121322"
        (series,) = result.ReferencedSeriesSequence
        assert series.SeriesInstanceUID == SERIES
        (instance,) = series.ReferencedInstanceSequence
        assert instance.ReferencedSOPInstanceUID == source.SOPInstanceUID
        (equipment,) = result.ContributingEquipmentSequence
        assert equipment.PurposeOfReferenceCodeSequence[0].CodeValue == "109102"
        assert equipment.Manufacturer == "cddnet"
        assert equipment.SoftwareVersions == "0.1.0"
        assert equipment.DeviceUID.startswith("2.25.")
        assert result.BurnedInAnnotation == "NO"
        assert result.LossyImageCompression == "00"
        assert result.ImageComments == "Research use only. Not for diagnosis."


def test_everything_else_is_copied_byte_for_byte(volume, tmp_path):
    write(derive(volume), tmp_path / "out")
    ours = {
        *("ImageType", "SOPInstanceUID", "SeriesInstanceUID", "SeriesDescription"),
        *("SeriesNumber", "PixelData"),
    }
    for index, file in enumerate(sorted((tmp_path / "out").iterdir())):
        source, result = ct_dataset(index), dcmread(file)
        original = dcmread(save(source, tmp_path / "one.dcm"))
        for tag in original.keys():  # noqa: SIM118
            if original[tag].keyword not in ours:
                before, after = dcmread(tmp_path / "one.dcm"), dcmread(file)
                assert after.get_item(tag).value == before.get_item(tag).value, original[
                    tag
                ].keyword
        assert f"{FAMILY_NAME}^J\xfcrgen".encode("latin-1") in file.read_bytes()
        assert result.AcquisitionDate == "20240102"
        assert result.Exposure == 80


@pytest.mark.parametrize("charset", [None, "ISO_IR 192"])
def test_names_in_a_wrong_character_set_stay_the_bytes_they_were(tmp_path, charset):
    path = save(ct_dataset(), tmp_path / "a.dcm")
    raw = path.read_bytes()
    declared = b"CS\x0a\x00ISO_IR 100"
    wrong = b"CS\x0a\x00" + (charset or "").encode().ljust(10)
    assert declared in raw
    path.write_bytes(raw.replace(declared, wrong, 1))
    write(derive(read(path)), tmp_path / "out.dcm")
    assert f"{FAMILY_NAME}^J\xfcrgen".encode("latin-1") in (tmp_path / "out.dcm").read_bytes()


def test_neighbours_are_references_and_enter_the_uid(volume, tmp_path):
    step = replace(STEP, neighbours=1)
    results = written(write(derive(volume, step=step), tmp_path / "out"))
    used = [[item.ReferencedSOPInstanceUID for item in r.SourceImageSequence] for r in results]
    uids = [ct_dataset(index).SOPInstanceUID for index in range(4)]
    assert used == [
        [uids[0], uids[1]],
        [uids[1], uids[0], uids[2]],
        [uids[2], uids[1], uids[3]],
        [uids[3], uids[2]],
    ]
    alone = written(write(derive(volume), tmp_path / "alone"))
    assert alone[0].SOPInstanceUID != results[0].SOPInstanceUID


def test_uids_are_deterministic(volume, tmp_path):
    first = written(write(derive(volume, noisy), tmp_path / "a"))
    again = written(write(derive(volume, noisy), tmp_path / "b"))
    for one, two in zip(first, again, strict=True):
        assert one.SOPInstanceUID == two.SOPInstanceUID
        assert one.SeriesInstanceUID == two.SeriesInstanceUID
        assert one.SeriesNumber == two.SeriesNumber
        assert one.PixelData == two.PixelData


@pytest.mark.parametrize(
    "other",
    [
        replace(STEP, parameters=(("model", "cddnet"), ("strength", "0.9"))),
        replace(STEP, weights_sha256="cd" * 32),
        replace(STEP, version="0.2.0"),
        replace(STEP, neighbours=1),
        replace(STEP, image_type="PRIMARY"),
        replace(STEP, label="x"),
    ],
)
def test_any_difference_in_a_step_gives_new_uids(volume, tmp_path, other):
    first = written(write(derive(volume), tmp_path / "a"))
    second = written(write(derive(volume, step=other), tmp_path / "b"))
    mine = {result.SOPInstanceUID for result in first} | {first[0].SeriesInstanceUID}
    theirs = {result.SOPInstanceUID for result in second} | {second[0].SeriesInstanceUID}
    assert not mine & theirs
    assert list(second[0].ImageType)[1] == other.image_type


def test_a_slice_alone_and_in_its_series_are_two_objects(volume, tmp_path):
    whole = written(write(derive(volume), tmp_path / "whole"))
    alone = read(volume.headers.frames[0].path)
    (single,) = written(write(derive(alone), tmp_path / "single.dcm"))
    assert single.SeriesInstanceUID != whole[0].SeriesInstanceUID
    assert single.SOPInstanceUID != whole[0].SOPInstanceUID


def test_retraining_changes_the_device(volume, tmp_path):
    devices = []
    for name, weights in (("a", "11" * 32), ("b", "22" * 32)):
        step = replace(STEP, weights_sha256=weights)
        (result, *_) = written(write(derive(volume, step=step), tmp_path / name))
        devices.append(result.ContributingEquipmentSequence[0].DeviceUID)
    assert devices[0] != devices[1]


def test_two_steps_are_both_told(volume, tmp_path):
    twice = derive(derive(volume, noisy, LOW_DOSE))
    once = derive(volume, noisy)
    result = written(write(twice, tmp_path / "a"))[0]
    assert result.SeriesDescription == "Lung 5.0 low dose 25% + cddnet 80% research"
    assert "quarter of the dose" in result.DerivationDescription
    assert "convolutional" in result.DerivationDescription
    found = [item.CodeMeaning for item in result.DerivationCodeSequence]
    assert found == ["Pixel by pixel addition", "Smoothing", "Artificial Intelligence"]
    assert len(result.ContributingEquipmentSequence) == 2
    other = written(write(once, tmp_path / "b"))[0]
    assert other.SOPInstanceUID != result.SOPInstanceUID


def test_derived_from_derived_keeps_the_history(volume, tmp_path):
    first = read(write(derive(volume, noisy, LOW_DOSE), tmp_path / "a"))
    assert "itself a derived image" in first.notes[0]
    result = written(write(derive(first), tmp_path / "b"))[0]
    source = first.headers.frames[0]
    assert result.SourceImageSequence[0].ReferencedSOPInstanceUID == source.sop_uid
    assert len(result.ContributingEquipmentSequence) == 2
    assert result.DerivationDescription.startswith("Simulated noise")
    assert "convolutional" in result.DerivationDescription
    assert result.ImageComments.count("Research use only") == 1
    assert result.StudyInstanceUID == ct_dataset().StudyInstanceUID


def test_long_and_odd_texts_stay_legal(tmp_path):
    dataset = ct_dataset()
    dataset.SeriesDescription = "D\xfcnnschicht " + "x" * 52
    dataset.SeriesNumber = "2147483647"
    dataset.DerivationDescription = "y" * 1000
    source = read(save(dataset, tmp_path / "a.dcm"))
    step = replace(
        STEP,
        label="st\xe4rke\\80",
        parameters=tuple((f"p{n:03}", "v" * 20) for n in range(100)),
        description="d" * 2000,
    )
    (result,) = written(write(derive(source, step=step), tmp_path / "out"))
    assert len(result.SeriesDescription) <= 64
    assert result.SeriesDescription.endswith("st?rke/80 research")
    assert result.SeriesDescription.startswith("D\xfcnn")
    assert len(result.DerivationDescription) <= 1024
    assert 0 < result.SeriesNumber < 2**31


def test_what_is_untrue_of_the_new_pixels_goes(tmp_path):
    dataset = ct_dataset()
    dataset.add_new("SmallestImagePixelValue", "SS", -500)
    dataset.add_new("LargestImagePixelValue", "SS", 3000)
    icon = ct_dataset()
    del icon.file_meta
    dataset.IconImageSequence = [icon]
    dataset.private_block(0x0021, "VENDOR", create=True).add_new(1, "LO", "checksum")
    request = ct_dataset(1)
    request.clear()
    request.private_block(0x0041, "VENDOR", create=True).add_new(1, "LO", "inside")
    request.RequestedProcedureID = "R1"
    dataset.RequestAttributesSequence = [request]
    dataset.add_new(0x60000010, "US", 31)
    dataset.add_new(0x60000102, "US", 12)
    dataset.add_new(0x60020010, "US", 31)
    dataset.add_new(0x60023000, "OW", b"\x01" * 176)
    dataset.LossyImageCompression = "01"
    dataset.LossyImageCompressionRatio = "12"
    dataset.LossyImageCompressionMethod = "ISO_15444_1"
    dataset.BurnedInAnnotation = "YES"
    dataset.Laterality = ""
    source = read(save(dataset, tmp_path / "a.dcm"))
    (result,) = written(write(derive(source, lambda hu: hu + 7), tmp_path / "out"))
    stored = stored_of(result)
    assert result.SmallestImagePixelValue == stored.min()
    assert result.LargestImagePixelValue == stored.max()
    assert result["LargestImagePixelValue"].VR == "SS"
    assert "IconImageSequence" not in result
    assert not [element for element in result.iterall() if element.tag.is_private]
    assert result.RequestAttributesSequence[0].RequestedProcedureID == "R1"
    assert 0x60000010 not in result
    assert result[0x60023000].value == b"\x01" * 176
    assert result.LossyImageCompression == "01"
    assert result.LossyImageCompressionRatio == 12
    assert result.BurnedInAnnotation == "YES"
    assert result.Laterality == ""


def test_a_lossy_transfer_syntax_is_remembered(tmp_path):
    dataset = ct_dataset()
    dataset.compress(uid.JPEGLSNearLossless, jls_error=2)
    for keyword in list(dataset.dir("LossyImage")):
        delattr(dataset, keyword)
    source = read(save(dataset, tmp_path / "a.dcm"))
    (result,) = written(write(derive(source), tmp_path / "out"))
    assert result.LossyImageCompression == "01"
    assert result.LossyImageCompressionMethod == "ISO_14495_1"
    assert result.LossyImageCompressionRatio >= 1


def test_headers_name_no_moment_of_creation_unless_one_is_given(tmp_path):
    dataset = ct_dataset()
    dataset.InstanceCreationDate, dataset.InstanceCreationTime = "20240102", "111213"
    source = read(save(dataset, tmp_path / "a"))
    (result,) = written(write(derive(source), tmp_path / "b"))
    assert "InstanceCreationDate" not in result
    assert "InstanceCreationTime" not in result
    assert "ContributionDateTime" not in result.ContributingEquipmentSequence[0]
    for keyword in ("SeriesDate", "SeriesTime", "ContentDate", "ContentTime", "StudyDate"):
        assert result[keyword] == dataset[keyword]


@pytest.mark.parametrize(
    ("zone", "date", "time"),
    [("+1300", "20260104", "0105"), ("-1100", "20260103", "0105"), ("", "20260103", "1305")],
)
def test_a_moment_that_is_given_is_told_in_the_zone_of_the_header(tmp_path, zone, date, time):
    dataset = ct_dataset()
    if zone:
        dataset.TimezoneOffsetFromUTC = zone
    moment = datetime(2026, 1, 3, 13, 5, 6, 789, tzinfo=timezone(timedelta(hours=1)))
    step = replace(STEP, created=moment)
    (result,) = written(
        write(derive(read(save(dataset, tmp_path / "a")), step=step), tmp_path / "b")
    )
    assert (result.InstanceCreationDate, result.InstanceCreationTime) == (date, f"{time}06.000789")
    (equipment,) = result.ContributingEquipmentSequence
    assert equipment.ContributionDateTime == f"{date}{time}06.000789"
    for keyword in ("SeriesDate", "SeriesTime", "ContentDate", "ContentTime"):
        assert result[keyword] == dataset[keyword]


def test_a_seed_needs_no_moment(tmp_path, volume):
    step = replace(LOW_DOSE, timeless=True, created=datetime(2026, 1, 3, tzinfo=timezone.utc))
    result = written(write(derive(volume, step=step), tmp_path / "out"))[0]
    assert "InstanceCreationDate" not in result


@pytest.mark.parametrize(
    "syntax", [uid.ImplicitVRLittleEndian, uid.ExplicitVRBigEndian], ids=lambda syntax: syntax.name
)
def test_sources_in_other_byte_orders(tmp_path, syntax):
    dataset = ct_dataset()
    stored = stored_of(dataset).copy()
    stored[0] = -2000
    dataset.file_meta.TransferSyntaxUID = syntax
    set_stored(dataset, stored)
    dataset.add_new("PixelPaddingValue", "SS", -2000)
    source = read(save(dataset, tmp_path / "a.dcm"))
    (result,) = written(write(derive(source), tmp_path / "out"))
    np.testing.assert_array_equal(stored_of(result), stored)
    assert result.PixelPaddingValue == -2000
    assert (result.Rows, result.Columns) == SIZE
    assert result.PatientName == f"{FAMILY_NAME}^J\xfcrgen"


# --- files


def test_sources_stay_as_they_are(volume, tmp_path):
    before = fingerprint(tmp_path / "ct")
    headers = [frame.header.to_json() for frame in volume.headers.frames]
    write(derive(volume, noisy), tmp_path / "out")
    assert fingerprint(tmp_path / "ct") == before
    assert [frame.header.to_json() for frame in volume.headers.frames] == headers


def test_nothing_is_overwritten(volume, tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine").write_text("mine")
    for target in (tmp_path / "taken", tmp_path / "ct"):
        before = fingerprint(target)
        with pytest.raises(FormatError, match="exists"):
            write(derive(volume), target)
        assert fingerprint(target) == before
    single = read(volume.headers.frames[0].path)
    (tmp_path / "a.dcm").write_text("mine")
    with pytest.raises(FormatError, match="exists"):
        write(derive(single), tmp_path / "a.dcm")


def test_an_interrupted_write_leaves_nothing(volume, tmp_path):
    seen = Counter()

    def stop(hu):
        seen["slices"] += 1
        if seen["slices"] == 3:
            raise KeyboardInterrupt
        return hu

    with pytest.raises(KeyboardInterrupt):
        write(derive(volume, stop), tmp_path / "out")
    assert sorted(os.listdir(tmp_path)) == ["ct"]


def test_each_slice_is_computed_once_and_in_order(volume, tmp_path):
    asked = []

    def read_slice(index):
        asked.append(index)
        return volume.read_slice(index)

    write(volume.derived(read_slice, STEP), tmp_path / "out")
    assert asked == [0, 1, 2, 3]


def test_what_cannot_be_derived_is_refused(volume, tmp_path):
    with pytest.raises(FormatError, match="nothing was done"):
        write(volume, tmp_path / "out")
    with pytest.raises(FormatError, match="4 slices; name a folder"):
        write(derive(volume), tmp_path / "out.dcm")
    array = CTVolume.from_hu(np.zeros((4, *SIZE), np.float32), (1, 1, 1), derivation=(STEP,))
    with pytest.raises(FormatError, match="only what was read from DICOM"):
        write(array, tmp_path / "out")
    other = replace(derive(volume), shape=(3, *SIZE))
    with pytest.raises(FormatError, match="has the shape"):
        write(other, tmp_path / "out")
    wrong = derive(volume, lambda hu: hu[1:])
    with pytest.raises(FormatError, match="same size"):
        write(wrong, tmp_path / "out")
    assert sorted(os.listdir(tmp_path)) == ["ct"]


def test_a_written_series_is_read_again(volume, tmp_path):
    again = read(write(derive(volume, noisy), tmp_path / "out"))
    np.testing.assert_allclose(again.hu, derive(volume, noisy).hu, atol=0.5)
    assert again.spacing_mm == volume.spacing_mm
    assert again.origin_mm == volume.origin_mm


# --- independent validators


def test_a_damaged_header_element_is_refused_by_name(tmp_path):
    dataset = ct_dataset()
    file = save(dataset, tmp_path / "a.dcm")
    whole = file.read_bytes()
    # An element of the file meta group among those of the image, as a damaged tag may look.
    place = whole.index(b"\x08\x00\x60\x00CS")
    stray = b"\x02\x00\xee\xeeLO" + len(FAMILY_NAME).to_bytes(2, "little")
    file.write_bytes(whole[:place] + stray + FAMILY_NAME.encode() + whole[place:])
    with pytest.raises(CddnetError, match=r"a\.dcm.*damaged") as told:
        write(derive(read(file), noisy), tmp_path / "out")
    assert FAMILY_NAME not in str(told.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.net
@pytest.mark.parametrize("name", ["synthetic", "lossy", "demo", "CT_small"])
def test_dciodvfy_and_dcentvfy_find_nothing_new(tmp_path, name):
    if name == "demo":
        folder = DEMO
        assert any(folder.iterdir()), "the demonstration series belongs to the package"
    elif name == "CT_small":
        folder = Path(get_testdata_file("CT_small.dcm", download=False))
    else:
        datasets = [ct_dataset(index) for index in range(3)]
        if name == "lossy":
            for dataset in datasets:
                dataset.compress(uid.JPEGLSNearLossless, jls_error=2)
        folder = save_series(tmp_path / "ct", datasets)
    source = read(folder)
    step = replace(STEP, neighbours=1)
    files = sorted(write(derive(source, noisy, step), tmp_path / "out").iterdir())
    for file, frame in zip(files, source.headers.frames, strict=True):
        assert complaints(file) <= complaints(frame.path)
    before, after = (
        peer("dcentvfy", *map(str, paths))
        for paths in ([frame.path for frame in source.headers.frames], files)
    )
    new = set((after.stdout + after.stderr).splitlines())
    assert new <= set((before.stdout + before.stderr).splitlines())


@pytest.mark.net
def test_the_synthetic_source_is_legal_itself(tmp_path):
    assert not complaints(save(ct_dataset(), tmp_path / "a.dcm"))


def test_warnings_of_the_library_stay_inside(tmp_path):
    dataset = ct_dataset()
    path = save(dataset, tmp_path / "a.dcm")
    raw = path.read_bytes()
    path.write_bytes(raw.replace(b"20240102", b"2024-1-2"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write(derive(read(path)), tmp_path / "out")
