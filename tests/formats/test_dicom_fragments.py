"""Compressed pixel data whose end is not closed as the standard asks."""

import numpy as np
import pytest
from dicom_series import ct_dataset, derive, enhanced_dataset, read, save, stored_of, write
from pydicom import dcmread, uid
from pydicom.encaps import encapsulate, get_frame

from cddnet.errors import DicomError
from cddnet.formats._dicom_pixels import read_stored

DELIMITER = b"\xfe\xff\xdd\xe0" + bytes(4)
NOTE = "the compressed pixel data of 1 file lacks its closing delimiter"
# What some systems put in place of the delimiter; the last is its tag without its length.
ENDS = [bytes(8), bytes(64), bytes(12), bytes(3), b"", DELIMITER[:4]]
SYNTAXES = [uid.JPEGLSLossless, uid.RLELossless]


def compressed(syntax, *, table=True):
    dataset = ct_dataset()
    dataset.compress(syntax)
    if not table:
        stream = get_frame(dataset.PixelData, 0, number_of_frames=1)
        dataset.PixelData = encapsulate([stream], has_bot=False)
    return dataset


def with_end(path, end):
    content = path.read_bytes()
    assert content.endswith(DELIMITER)
    path.write_bytes(content[: -len(DELIMITER)] + end)
    return path


@pytest.mark.parametrize("end", ENDS, ids=lambda end: end.hex()[:24] or "nothing")
@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda syntax: syntax.name)
@pytest.mark.parametrize("table", [True, False])
def test_pixels_without_their_delimiter_are_read_with_a_note(tmp_path, syntax, end, table):
    path = with_end(save(compressed(syntax, table=table), tmp_path / "a.dcm"), end)
    volume = read(path)
    np.testing.assert_array_equal(volume.read_slice(0), stored_of(ct_dataset()) - 1024.0)
    assert volume.notes == (NOTE,)
    write(derive(volume), tmp_path / "out.dcm")
    assert read(tmp_path / "out.dcm").notes[-1] != NOTE


def test_a_closed_one_has_no_note(tmp_path):
    for syntax in SYNTAXES:
        assert read(save(compressed(syntax), tmp_path / f"{syntax}.dcm")).notes == ()


def test_an_element_behind_the_zeros_does_not_matter(tmp_path):
    padding = b"\xfc\xff\xfc\xffOB\0\0" + (4).to_bytes(4, "little") + bytes(4)
    path = with_end(save(compressed(uid.JPEGLSLossless), tmp_path / "a.dcm"), bytes(8) + padding)
    assert read(path).notes == (NOTE,)
    np.testing.assert_array_equal(read_stored(path), stored_of(ct_dataset()))


@pytest.mark.parametrize("table", [True, False])
@pytest.mark.parametrize("end", [bytes(8), b""])
def test_frames_without_a_delimiter_behind_the_last(tmp_path, table, end):
    dataset = enhanced_dataset()
    dataset.compress(uid.JPEGLSLossless)
    if not table:
        streams = [get_frame(dataset.PixelData, index, number_of_frames=4) for index in range(4)]
        dataset.PixelData = encapsulate(streams, has_bot=False)
    expected = read(save(enhanced_dataset(), tmp_path / "plain.dcm")).hu
    volume = read(with_end(save(dataset, tmp_path / "a.dcm"), end))
    np.testing.assert_array_equal(volume.hu, expected)
    assert volume.notes == (NOTE,)


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda syntax: syntax.name)
@pytest.mark.parametrize("filled", [0, 400])
def test_a_stream_that_is_cut_stays_refused(tmp_path, syntax, filled):
    """Also where a copy went on with zeros, as after an interrupted download."""
    path = save(compressed(syntax), tmp_path / "a.dcm")
    content = path.read_bytes()
    path.write_bytes(content[:-400] + bytes(filled))
    with pytest.raises(DicomError, match=r"a\.dcm: its .*pixel data .*(cut short|damaged)"):
        read(path).read_slice(0)


def test_zeros_between_fragments_are_damage(tmp_path):
    dataset = ct_dataset()
    dataset.compress(uid.JPEGLSLossless)
    stream = get_frame(dataset.PixelData, 0, number_of_frames=1)
    dataset.PixelData = encapsulate([stream], fragments_per_frame=3)
    path = save(dataset, tmp_path / "a.dcm")
    np.testing.assert_array_equal(read_stored(path), stored_of(ct_dataset()))
    content = path.read_bytes()
    second = content.index(b"\xfe\xff\x00\xe0", content.index(stream[:40]))
    path.write_bytes(content[:second] + bytes(8) + content[second:])
    with pytest.raises(DicomError, match="damaged at byte"):
        read(path).read_slice(0)


def test_no_name_of_an_error_is_shown(tmp_path):
    path = with_end(save(compressed(uid.JPEGLSLossless), tmp_path / "a.dcm"), b"garbage " * 4)
    with pytest.raises(DicomError) as caught:
        read(path).read_slice(0)
    assert "Error" not in str(caught.value)
    assert "send or export this image again" in str(caught.value)
    assert dcmread(path, stop_before_pixels=True).Rows == 31
