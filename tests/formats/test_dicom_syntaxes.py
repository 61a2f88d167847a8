"""Every transfer syntax that CT is sent in: lossless ones bit for bit, the others told apart."""

from pathlib import Path

import gdcm
import numpy as np
import pytest
from dicom_series import SIZE, ct_dataset, read, save, set_stored, stored_of
from pydicom import dcmread, uid
from pydicom.data import get_testdata_file
from pydicom.encaps import encapsulate, get_frame

from cddnet.errors import DicomError
from cddnet.formats._dicom_pixels import decode_stored, read_stored
from peers import peer

WIDTHS = [(16, True), (12, True), (12, False), (16, False)]
GDCM = {
    uid.JPEGLosslessSV1: gdcm.TransferSyntax.JPEGLosslessProcess14_1,
    uid.JPEGLossless: gdcm.TransferSyntax.JPEGLosslessProcess14,
    uid.JPEG2000Lossless: gdcm.TransferSyntax.JPEG2000Lossless,
    uid.JPEGLSLossless: gdcm.TransferSyntax.JPEGLSLossless,
}


def source(bits, signed):
    """A slice that uses every bit it may."""
    dataset = ct_dataset(bits=bits, signed=signed)
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    ramp = np.linspace(low, high, SIZE[0] * SIZE[1]).round().astype(np.int32).reshape(SIZE)
    set_stored(dataset, ramp)
    return dataset, ramp


def by_gdcm(path, target, syntax):
    reader = gdcm.ImageReader()
    reader.SetFileName(str(path))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(GDCM[syntax]))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFileName(str(target))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    assert dcmread(target).file_meta.TransferSyntaxUID == syntax
    return target


@pytest.mark.parametrize(("bits", "signed"), WIDTHS)
@pytest.mark.parametrize(
    "syntax",
    [
        uid.ImplicitVRLittleEndian,
        uid.ExplicitVRLittleEndian,
        uid.ExplicitVRBigEndian,
        uid.DeflatedExplicitVRLittleEndian,
        uid.JPEGLSLossless,
        uid.RLELossless,
    ],
    ids=lambda syntax: syntax.name,
)
def test_lossless_syntaxes_give_every_bit_back(tmp_path, syntax, bits, signed):
    dataset, stored = source(bits, signed)
    if syntax.is_encapsulated:
        dataset.compress(syntax)
    else:
        dataset.file_meta.TransferSyntaxUID = syntax
        set_stored(dataset, stored)
    path = save(dataset, tmp_path / "a.dcm")
    np.testing.assert_array_equal(read_stored(path), stored)
    np.testing.assert_array_equal(decode_stored(dcmread(path)), stored)
    np.testing.assert_array_equal(read(path).read_slice(0), stored - 1024.0)


@pytest.mark.parametrize(("bits", "signed"), WIDTHS)
@pytest.mark.parametrize("syntax", GDCM, ids=lambda syntax: syntax.name)
def test_lossless_jpeg_of_another_encoder(tmp_path, syntax, bits, signed):
    dataset, stored = source(bits, signed)
    path = by_gdcm(save(dataset, tmp_path / "a.dcm"), tmp_path / "b.dcm", syntax)
    np.testing.assert_array_equal(read_stored(path), stored)


@pytest.mark.parametrize("syntax", GDCM, ids=lambda syntax: syntax.name)
def test_half_a_stream_is_not_filled_up_with_grey(tmp_path, syntax):
    dataset, _ = source(12, False)
    path = by_gdcm(save(dataset, tmp_path / "a.dcm"), tmp_path / "b.dcm", syntax)
    compressed = dcmread(path)
    stream = get_frame(compressed.PixelData, 0, number_of_frames=1)
    compressed.PixelData = encapsulate([stream[: len(stream) // 4 * 2]])
    compressed.save_as(tmp_path / "c.dcm")
    with pytest.raises(DicomError, match=r"c\.dcm: its compressed pixel data is cut short"):
        read(tmp_path / "c.dcm").read_slice(0)


def test_near_lossless_stays_near_and_is_noted(tmp_path):
    dataset, stored = source(12, False)
    dataset.compress(uid.JPEGLSNearLossless, jls_error=3)
    path = save(dataset, tmp_path / "a.dcm")
    assert 0 < np.abs(read_stored(path).astype(int) - stored).max() <= 3
    assert "compressed with loss" in read(path).notes[-1]


def test_published_twins_of_one_image_agree():
    plain = read_stored(Path(get_testdata_file("MR_small.dcm", download=False)))
    for name in ("RLE", "bigendian", "expb", "implicit", "jp2klossless", "jpeg_ls_lossless"):
        path = Path(get_testdata_file(f"MR_small_{name}.dcm", download=False))
        np.testing.assert_array_equal(read_stored(path), plain)


@pytest.mark.parametrize("name", ["JPEG-lossy.dcm", "JPGExtended.dcm"])
def test_extended_jpeg_of_12_bits_is_decoded(name):
    stored = read_stored(Path(get_testdata_file(name, download=False)))
    assert stored.dtype == np.uint16
    # The published image: PS3.5 allows decoders to differ by a rounding step.
    assert stored.max() < 4096
    assert stored.std() > 0
    if name == "JPGExtended.dcm":
        assert stored.shape == (1024, 256)
        assert abs(int(stored[420, 140]) - 244) <= 1


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.4.66", "1.2.840.10008.1.2.4.100", "1.2.3.4"])
def test_syntaxes_nobody_decodes_are_named(tmp_path, syntax):
    dataset, _ = source(16, True)
    dataset.compress(uid.JPEGLSLossless)
    dataset.file_meta.TransferSyntaxUID = uid.UID(syntax)
    if syntax == "1.2.3.4":
        dataset.file_meta.TransferSyntaxUID = uid.JPEGLSLossless
    path = save(dataset, tmp_path / "a.dcm")
    if syntax == "1.2.3.4":
        known = uid.JPEGLSLossless.encode().ljust(22, b"\x00")
        path.write_bytes(path.read_bytes().replace(known, syntax.encode().ljust(22, b"\x00"), 1))
    with pytest.raises(DicomError, match=f"{syntax}.*ask the sending system for an uncompressed"):
        read(path).read_slice(0)


def test_a_missing_decoder_is_an_error_not_a_traceback(tmp_path):
    dataset, _ = source(16, True)
    dataset.compress(uid.JPEGLSLossless)
    dataset.file_meta.TransferSyntaxUID = uid.UID("1.2.840.10008.1.2.4.203")
    with pytest.raises(DicomError, match=r"a\.dcm: its pixel"):
        read(save(dataset, tmp_path / "a.dcm")).read_slice(0)


def run(*command):
    done = peer(*command)
    assert done.returncode == 0, done.stderr


@pytest.mark.net
@pytest.mark.parametrize(("bits", "signed"), WIDTHS)
@pytest.mark.parametrize("option", ["+e1", "+el"])
def test_dcmtk_lossless_jpeg(tmp_path, option, bits, signed):
    dataset, stored = source(bits, signed)
    path = save(dataset, tmp_path / "a.dcm")
    run("dcmcjpeg", option, str(path), str(tmp_path / "b.dcm"))
    np.testing.assert_array_equal(read_stored(tmp_path / "b.dcm"), stored)


@pytest.mark.net
@pytest.mark.parametrize("option", ["+ee", "+es", "+ep"])
def test_dcmtk_decodes_12_bit_jpeg_to_the_same_values(tmp_path, option):
    rng = np.random.default_rng(4)
    dataset = ct_dataset(size=(64, 80), bits=12, signed=False)
    rows, columns = np.mgrid[:64, :80]
    noise = rng.normal(0, 20, (64, 80))
    smooth = 1500 + 900 * np.sin(rows / 9) * np.cos(columns / 7) + noise
    set_stored(dataset, smooth.round().clip(0, 4095))
    path = save(dataset, tmp_path / "a.dcm")
    run("dcmcjpeg", option, "+q", "95", str(path), str(tmp_path / "b.dcm"))
    run("dcmdjpeg", str(tmp_path / "b.dcm"), str(tmp_path / "c.dcm"))
    syntax = dcmread(tmp_path / "b.dcm").file_meta.TransferSyntaxUID
    assert syntax in ("1.2.840.10008.1.2.4.51", "1.2.840.10008.1.2.4.53", "1.2.840.10008.1.2.4.55")
    np.testing.assert_array_equal(read_stored(tmp_path / "b.dcm"), read_stored(tmp_path / "c.dcm"))
    # DCMTK puts the values on a scale of its own and says so in the slope.
    error_hu = read(tmp_path / "b.dcm").read_slice(0) - (stored_of(dataset) - 1024.0)
    assert 0 < np.abs(error_hu).mean() < 5


@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.RLELossless])
@pytest.mark.parametrize(
    ("keyword", "value"),
    [("Rows", 0), ("Columns", 0), ("BitsAllocated", 12), ("BitsStored", 17), ("BitsStored", 0)],
)
def test_a_layout_of_no_pixels_is_damage(syntax, keyword, value):
    dataset, _ = source(16, True)
    if syntax.is_encapsulated:
        dataset.compress(syntax)
    setattr(dataset, keyword, value)
    with pytest.raises(DicomError, match="is damaged or cut short; send or export"):
        decode_stored(dataset)


@pytest.mark.parametrize("syntax", [uid.RLELossless, uid.JPEGLSLossless])
def test_a_damaged_stream_is_refused_or_read_and_nothing_else(tmp_path, syntax):
    dataset, _ = source(16, True)
    dataset.compress(syntax)
    whole = bytearray(save(dataset, tmp_path / "a.dcm").read_bytes())
    rng, refused = np.random.default_rng(3), 0
    start = len(whole) - len(dataset.PixelData)
    for case in range(60):
        damaged = bytearray(whole)
        for _ in range(6):
            damaged[int(rng.integers(start, len(whole)))] = int(rng.integers(256))
        path = tmp_path / f"{case}.dcm"
        path.write_bytes(damaged)
        try:
            read(path).read_slice(0)
        except DicomError:
            refused += 1
    assert refused
