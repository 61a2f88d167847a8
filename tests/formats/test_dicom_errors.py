"""Refusals: each names the file, says what was found and what to do, and nobody's name."""

from pathlib import Path

import numpy as np
import pytest
from dicom_series import (
    FAMILY_NAME,
    SERIES,
    ct_dataset,
    enhanced_dataset,
    read,
    save,
    save_series,
    set_stored,
    stored_of,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import dcmread, uid
from pydicom.data import get_testdata_file

from cddnet.errors import CddnetError, DicomError, FormatError, GeometryError
from cddnet.formats import dicom
from cddnet.formats._dicom_pixels import quiet, read_stored

WHEEL_FILES = sorted(
    path.name
    for path in Path(get_testdata_file("CT_small.dcm", download=False)).parent.glob("*.dcm")
)


def refusal(path, error=DicomError, index=0):
    with pytest.raises(error) as caught:
        read(path).read_slice(index)
    message = str(caught.value)
    assert FAMILY_NAME not in message
    assert "4711" not in message
    return message


def changed(**fields):
    dataset = ct_dataset()
    for keyword, value in fields.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    return dataset


@pytest.mark.parametrize(
    ("fields", "found", "remedy"),
    [
        ({"RescaleSlope": None}, "RescaleSlope is missing", "cannot be turned into HU"),
        ({"RescaleIntercept": None}, "RescaleIntercept is missing", "export the original CT"),
        ({"RescaleSlope": "0"}, "RescaleSlope is 0", "export the original CT"),
        ({"RescaleType": "ED"}, "are in ED (RescaleType)", "choose a CT series in HU"),
        ({"Modality": "MR"}, "modality MR", "choose a CT series"),
        ({"SOPClassUID": uid.MRImageStorage, "Modality": "MR"}, "MR Image", "choose a CT series"),
        ({"SOPClassUID": uid.SecondaryCaptureImageStorage}, "Secondary Capture", "choose a CT"),
        ({"SOPClassUID": uid.LegacyConvertedEnhancedCTImageStorage}, "Legacy", "original CT"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "localizer (scout", "axial series"),
        ({"ImageType": ["DERIVED", "PRIMARY", "AXIAL", "VMI"]}, "X-ray energies", "axial series"),
        ({"ImageType": ["DERIVED", "SECONDARY", "AXIAL", "RCBF"]}, "perfusion", "axial series"),
        ({"ImageType": ["DERIVED", "SECONDARY", "MIP"]}, "from other images", "axial series"),
        ({"ImageType": ["DERIVED", "SECONDARY", "OTHER", "CT_SOM5 PROT"]}, "page of text", "axial"),
        ({"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}, "colour", "choose a CT"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "palette", "choose a CT"),
        ({"PixelSpacing": None}, "PixelSpacing is missing", "export the original CT"),
        ({"PixelSpacing": ["0", "0.7"]}, "not positive", "export the original CT"),
        ({"HighBit": 14}, "16 bits stored in 16 with high bit 14", "export this image again"),
        ({"BitsAllocated": 32}, "in 32", "export this image again"),
        ({"BitsStored": None}, "BitsStored is missing", "export this image again"),
        ({"ImageOrientationPatient": ["1", "0", "0", "1", "0", "0"]}, "perpendicular", "again"),
        ({"NumberOfFrames": "2"}, "2 frames", "one file per slice"),
        ({"PixelData": b""}, "pixel data is empty", "export this image again"),
        ({"PixelData": None}, "no pixel data", "export this image again"),
        ({"PixelData": b"\x00" * 200}, "cut short, 200 of 2790 bytes", "export this image again"),
        ({"PixelData": b"\x00" * 5580}, "longer than 1 slices", "export this image again"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_unfit_images_are_refused(tmp_path, fields, found, remedy):
    message = refusal(save(changed(**fields), tmp_path / "bad.dcm"))
    assert message.startswith("bad.dcm: ")
    assert found in message
    assert remedy in message


@pytest.mark.parametrize("text", [b"inf ", b"nan ", b"abc "])
def test_a_slope_that_is_no_number(tmp_path, text):
    path = save(changed(RescaleSlope="7531"), tmp_path / "bad.dcm")
    path.write_bytes(path.read_bytes().replace(b"7531", text))
    assert "RescaleSlope is not a number" in refusal(path)


def test_a_file_cut_short_is_refused_before_any_slice_is_read(tmp_path):
    folder = save_series(tmp_path / "ct", [ct_dataset(index) for index in range(3)])
    last = sorted(folder.iterdir())[1]
    last.write_bytes(last.read_bytes()[:-100])
    with pytest.raises(DicomError, match=f"{last.name}: its pixel data is cut short, 2690 of 2790"):
        read(folder)


def test_a_length_beyond_its_element_reads_no_other_tags(tmp_path):
    dataset = changed(PixelData=b"\x00" * 2000)
    dataset.add_new(0xFFFCFFFC, "OB", b"\x07" * 4000)
    path = save(dataset, tmp_path / "bad.dcm")
    assert "2000 of 2790" in refusal(path)
    with pytest.raises(DicomError, match="cut short"):
        read_stored(path)


def test_a_file_that_vanishes_or_breaks_after_scanning(tmp_path):
    folder = save_series(
        tmp_path / "ct", [ct_dataset(index) for index in range(3)], order=[0, 1, 2]
    )
    volume = read(folder)
    (folder / "im0").unlink()
    (folder / "im1").write_bytes(b"nothing")
    for index in (0, 1):
        with pytest.raises(DicomError, match=f"im{index}: "):
            volume.read_slice(index)


def test_a_compressed_stream_cut_short_or_damaged(tmp_path):
    dataset = ct_dataset()
    dataset.compress(uid.JPEGLSLossless)
    path = save(dataset, tmp_path / "a.dcm")
    whole = path.read_bytes()
    start = whole.index(b"\xff\xd8\xff")
    path.write_bytes(whole[: start + 600])
    assert "cut short" in refusal(path) or "damaged" in refusal(path)
    path.write_bytes(whole[: start + 60] + b"\xff\xd9" * 20 + whole[start + 100 :])
    assert "damaged" in refusal(path)


def test_run_length_data_cut_short(tmp_path):
    dataset = ct_dataset()
    dataset.compress(uid.RLELossless)
    path = save(dataset, tmp_path / "a.dcm")
    path.write_bytes(path.read_bytes()[:-700])
    assert "damaged or cut short" in refusal(path)


@pytest.mark.parametrize(
    ("keyword", "value", "what"),
    [
        ("PixelSpacing", ["0.9", "0.8"], "pixel spacing (mm) differs, (0.7, 0.8) in"),
        ("ImageOrientationPatient", ["1", "0", "0", "0", "0.8", "0.6"], "orientation differs"),
    ],
)
def test_slices_of_two_grids(tmp_path, keyword, value, what):
    datasets = [ct_dataset(index) for index in range(3)]
    setattr(datasets[1], keyword, value)
    message = refusal(save_series(tmp_path / "ct", datasets, order=[0, 1, 2]), GeometryError)
    assert what in message
    assert "im0 but" in message
    assert "in im1; export" in message


def test_slices_of_two_sizes(tmp_path):
    datasets = [ct_dataset(0), ct_dataset(1, size=(33, 45))]
    message = refusal(save_series(tmp_path / "ct", datasets), GeometryError)
    assert "(31, 45)" in message
    assert "(33, 45)" in message


def test_a_series_without_positions(tmp_path):
    datasets = [ct_dataset(index) for index in range(2)]
    del datasets[1].ImagePositionPatient
    message = refusal(save_series(tmp_path / "ct", datasets, order=[0, 1]), GeometryError)
    assert "im1 has no ImagePositionPatient" in message


def test_one_uid_with_two_images(tmp_path):
    one, other = ct_dataset(), ct_dataset()
    set_stored(other, stored_of(one) + 1)
    message = refusal(save_series(tmp_path / "ct", [one, other]))
    assert "one SOPInstanceUID but different pixels" in message
    other.ImagePositionPatient = ["-20", "-30", "5"]
    assert "carry the SOPInstanceUID" in refusal(save_series(tmp_path / "b", [one, other]))


@pytest.mark.parametrize(
    "values",
    [
        {"PatientID": ("ID-1", "ID-2")},
        {"PatientID": ("ID-1", "")},
        {"PatientID": ("ID-1", "ID-1"), "PatientName": ("Doe^Jane", "Roe^Jane")},
        {"PatientID": ("", ""), "PatientName": ("Doe^Jane", "Doe^John")},
        {"PatientID": ("", ""), "PatientBirthDate": ("19500101", "19500102")},
    ],
)
def test_two_patients_in_one_series(tmp_path, values):
    message = refusal(save_series(tmp_path / "ct", patients_of(values)))
    assert "belong to 2 patients" in message
    assert "Doe" not in message


@pytest.mark.parametrize(
    "values",
    [
        {"PatientName": ("Doe^Jane", "DOE^JANE^^ ")},
        {"PatientName": ("Doe^Jane", "")},
        {"PatientBirthDate": ("19500101", "")},
        {
            "SpecificCharacterSet": ("ISO_IR 100", "ISO_IR 192"),
            "PatientName": ("M\u00fcller^Jane", "M\u00fcller^Jane"),
        },
    ],
)
def test_one_patient_written_in_two_ways(tmp_path, values):
    assert read(save_series(tmp_path / "ct", patients_of(values))).shape[0] == 2


def patients_of(values):
    datasets = [ct_dataset(index) for index in range(2)]
    for keyword, pair in values.items():
        for dataset, value in zip(datasets, pair, strict=True):
            setattr(dataset, keyword, value)
    return datasets


def test_a_tree_without_ct_lists_what_is_there(tmp_path):
    for name in ("MR_small.dcm", "test-SR.dcm"):
        source = Path(get_testdata_file(name, download=False))
        (tmp_path / name).write_bytes(source.read_bytes())
    message = refusal(tmp_path)
    assert "none of its 2 series is CT" in message
    assert "MR, 1 slice, 64 x 64" in message
    assert "choose a folder with one" in message


def test_nothing_dicom_there(tmp_path):
    assert "no DICOM image was found" in refusal(tmp_path)
    (tmp_path / "a.dcm").write_bytes(b"nothing to see here")
    assert "a.dcm: is no DICOM image" in refusal(tmp_path / "a.dcm")
    assert "no such file or folder" in refusal(tmp_path / "b.dcm")


def test_only_localizers(tmp_path):
    datasets = [ct_dataset(index) for index in range(2)]
    for dataset in datasets:
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    assert "is a localizer" in refusal(save_series(tmp_path / "ct", datasets))


def test_several_enhanced_files_in_one_series(tmp_path):
    first, second = enhanced_dataset(), enhanced_dataset()
    second.SOPInstanceUID += "1"
    folder = save_series(tmp_path / "ct", [first, second])
    assert "2 Enhanced CT files" in refusal(folder)


def test_a_source_without_uids_cannot_be_referred_to(tmp_path):
    from dicom_series import derive, write

    dataset = ct_dataset()
    path = save(dataset, tmp_path / "a.dcm")
    raw = path.read_bytes()
    path.write_bytes(raw.replace(SERIES.encode(), b"\x00" * len(SERIES)))
    volume = read(path)
    with pytest.raises((DicomError, FormatError), match=r"UID"):
        write(derive(volume), tmp_path / "out")


@pytest.mark.parametrize("name", WHEEL_FILES)
def test_published_files_are_read_or_refused_in_a_sentence(name):
    path = Path(get_testdata_file(name, download=False))
    dicom.recognises(path.read_bytes()[:1024])
    try:
        volume = read(path)
        volume.read_slice(0)
    except CddnetError as error:
        message = str(error)
        assert len(message) > 30
        with quiet():
            header = dcmread(path, stop_before_pixels=True, force=True)
            for keyword in ("PatientName", "PatientID"):
                value = str(header.get(keyword) or "").strip("^ ")
                assert len(value) < 5 or value not in message


@given(data=st.data())
@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_damaged_bytes_never_end_in_a_traceback(tmp_path, data):
    path = tmp_path / "a.dcm"
    if not (tmp_path / "whole").exists():
        compressed = ct_dataset()
        compressed.compress(uid.JPEGLSLossless)
        save(ct_dataset(), tmp_path / "whole")
        save(compressed, tmp_path / "compressed")
    source = tmp_path / data.draw(st.sampled_from(["whole", "compressed"]))
    raw = bytearray(source.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, min(len(raw), 1500) - 1))] = data.draw(st.integers(0, 255))
    raw = raw[: data.draw(st.integers(1, len(raw)))] if data.draw(st.booleans()) else raw
    path.write_bytes(bytes(raw))
    try:
        volume = read(path)
        hu = volume.read_slice(0)
    except CddnetError:
        return
    assert hu.dtype == np.float32
    assert np.isfinite(hu).all()
