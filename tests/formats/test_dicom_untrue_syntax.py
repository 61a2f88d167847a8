"""A transfer syntax in the meta header that is not that of the data set behind it."""

import zlib

import numpy as np
import pytest
from dicom_series import (
    ct_dataset,
    derive,
    enhanced_dataset,
    read,
    save,
    set_stored,
    stored_of,
    write,
    written,
)
from pydicom import dcmread, uid

from cddnet.errors import DicomError
from cddnet.formats import dicom
from cddnet.formats._dicom_pixels import read_stored
from cddnet.formats._facts import read_facts

IMPLICIT, EXPLICIT = uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian
BIG, DEFLATED = uid.ExplicitVRBigEndian, uid.DeflatedExplicitVRLittleEndian


def parts(path):
    """Everything up to the value of the transfer syntax, and everything behind the meta header."""
    content = path.read_bytes()
    behind = 144 + dcmread(path, stop_before_pixels=True).file_meta.FileMetaInformationGroupLength
    return content[:behind], content[behind:]


def saved_as(dataset, path, is_coded, says):
    """A file coded in one transfer syntax, whose meta header names another."""
    path.parent.mkdir(exist_ok=True)
    dataset.file_meta.TransferSyntaxUID = is_coded
    if is_coded == BIG:
        set_stored(dataset, np.frombuffer(dataset.PixelData, "<i2").reshape(-1, dataset.Columns))
    _, body = parts(save(dataset, path))
    dataset.file_meta.TransferSyntaxUID = says
    other = path.with_name("other")
    plain = ct_dataset()
    plain.SOPClassUID, plain.SOPInstanceUID = dataset.SOPClassUID, dataset.SOPInstanceUID
    plain.file_meta.TransferSyntaxUID = says
    head, _ = parts(save(plain, other))
    other.unlink()
    path.write_bytes(head + body)
    return path


@pytest.mark.parametrize(("is_coded", "says"), [(IMPLICIT, EXPLICIT), (EXPLICIT, IMPLICIT)])
@pytest.mark.parametrize("private", [False, True])
def test_the_representation_of_the_data_set_counts(tmp_path, is_coded, says, private):
    folder = tmp_path / "ct"
    for index in range(3):
        dataset = ct_dataset(index)
        if private:
            # Sequences and private elements are the first that a wrong guess would break.
            block = dataset.private_block(0x0009, "MAKER", create=True)
            block.add_new(1, "LO", "something")
            dataset.ProcedureCodeSequence = [ct_dataset(9).copy()]
            del dataset.ProcedureCodeSequence[0].PixelData
        saved_as(dataset, folder / f"{index}.dcm", is_coded, says)
    volume = read(folder)
    assert volume.shape[0] == 3
    assert volume.notes == ()
    for index in range(3):
        expected = stored_of(ct_dataset(index))
        np.testing.assert_array_equal(read_stored(folder / f"{index}.dcm"), expected)
        np.testing.assert_array_equal(volume.read_slice(index), expected - 1024.0)
    assert read_facts(folder / "0.dcm").kernel == "B30f"
    results = written(write(derive(volume, lambda hu: hu + 3), tmp_path / "out"))
    for index, result in enumerate(results):
        np.testing.assert_array_equal(stored_of(result), stored_of(ct_dataset(index)) + 3)
        assert result.PatientName == ct_dataset().PatientName
        assert list(result.PixelSpacing) == [0.7, 0.8]


@pytest.mark.parametrize(("is_coded", "says"), [(IMPLICIT, EXPLICIT), (EXPLICIT, IMPLICIT)])
def test_frames_under_an_untrue_representation(tmp_path, is_coded, says):
    expected = read(save(enhanced_dataset(), tmp_path / "right.dcm"))
    volume = read(saved_as(enhanced_dataset(), tmp_path / "a.dcm", is_coded, says))
    np.testing.assert_array_equal(volume.hu, expected.hu)
    write(derive(volume), tmp_path / "out.dcm")
    np.testing.assert_array_equal(read(tmp_path / "out.dcm").hu, expected.hu)


def test_compressed_pixels_behind_an_implicit_header(tmp_path):
    dataset = ct_dataset()
    dataset.compress(uid.JPEGLSLossless)
    path = save(dataset, tmp_path / "explicit.dcm")
    head, _ = parts(path)
    pixels = dataset.PixelData
    del dataset.PixelData
    _, body = parts(saved_as(dataset, tmp_path / "implicit.dcm", IMPLICIT, IMPLICIT))
    start = b"\xe0\x7f\x10\x00" + b"\xff" * 4
    end = b"\xfe\xff\xdd\xe0" + bytes(4)
    path.write_bytes(head + body + start + pixels + end)
    volume = read(path)
    np.testing.assert_array_equal(volume.read_slice(0), stored_of(ct_dataset()) - 1024.0)


@pytest.mark.parametrize(
    ("is_coded", "says", "found"),
    [
        (BIG, EXPLICIT, "its data set is big endian, but its transfer syntax says Explicit VR Li"),
        (BIG, IMPLICIT, "its data set is big endian, but its transfer syntax says Implicit VR Li"),
        (
            EXPLICIT,
            BIG,
            "its data set is little endian, but its transfer syntax says Explicit VR B",
        ),
        (
            IMPLICIT,
            BIG,
            "its data set is little endian, but its transfer syntax says Explicit VR B",
        ),
        (EXPLICIT, DEFLATED, "its transfer syntax says deflated, but its data set is not"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, is_coded, says, found):
    path = saved_as(ct_dataset(), tmp_path / "a.dcm", is_coded, says)
    for read_it in (read, read_stored, read_facts, dicom.list_series):
        with pytest.raises(DicomError) as caught:
            read_it(path)
        assert f"a.dcm: {found}" in str(caught.value)
        assert "export it again" in str(caught.value)


def test_a_data_set_deflated_without_saying_so(tmp_path):
    path = save(ct_dataset(), tmp_path / "a.dcm")
    head, body = parts(path)
    packed = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    path.write_bytes(head + packed.compress(body) + packed.flush())
    with pytest.raises(DicomError, match=r"data set is deflated, but its transfer syntax says Ex"):
        read(path)


@pytest.mark.parametrize(
    ("compressed", "says", "found"),
    [
        (True, EXPLICIT, "pixel data is compressed, but its transfer syntax says Explicit VR Li"),
        (True, IMPLICIT, "pixel data is compressed, but its transfer syntax says Implicit VR Li"),
        (
            False,
            uid.JPEGLSLossless,
            "pixel data is not compressed, but its transfer syntax says JP",
        ),
        (False, uid.RLELossless, "pixel data is not compressed, but its transfer syntax says RLE"),
    ],
)
def test_pixels_of_the_other_kind_are_named(tmp_path, compressed, says, found):
    dataset = ct_dataset()
    if compressed:
        dataset.compress(uid.JPEGLSLossless)
    path = save(dataset, tmp_path / "a.dcm")
    _, body = parts(path)
    plain = ct_dataset()
    plain.file_meta.TransferSyntaxUID = EXPLICIT if says.is_encapsulated else says
    head, _ = parts(save(plain, path))
    if says.is_encapsulated:
        stated = dcmread(path)
        stated.compress(says)
        head, _ = parts(save(stated, path))
    path.write_bytes(head + body)
    for read_it in (read, read_stored):
        with pytest.raises(DicomError, match=found):
            read_it(path)
