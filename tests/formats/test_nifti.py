"""NIfTI against nibabel, by world coordinates, and what is refused."""

import gzip
import os
import sys
from dataclasses import replace

import nibabel
import numpy as np
import pytest

from cddnet.errors import FormatError, GeometryError
from cddnet.formats import _stored, read_volume, write_volume
from cddnet.formats._stored import CompressedSlices
from cddnet.volume import CTVolume, Storage

# Columns: what one step of i, j, k does in RAS mm. Rotated, 23 degrees off axial, with a mirrored i
# and three spacings.
ROTATION = np.array([[10.4, -7.8, 0], [7.2, 9.6, -5], [3, 4, 12]]) / 13
AFFINE = np.eye(4)
AFFINE[:3, :3] = ROTATION * [-0.7, 0.8, 2.5]
AFFINE[:3, 3] = [-101.5, 33.25, -12.75]
MARKED = (4, 2, 1)


def stored_array(dtype=np.int16):
    array = np.arange(7 * 5 * 3).reshape(7, 5, 3).astype(dtype)
    array[MARKED] = 3000
    return array


def save(path, array, affine=AFFINE, kind=nibabel.Nifti1Image, **header):
    image = kind(array, affine)
    for name, value in header.items():
        getattr(image.header, f"set_{name}")(*np.atleast_1d(value))
    nibabel.save(image, path)
    return path


def world_lps(volume, index_dhw):
    steps = np.array(volume.direction) * np.array(volume.spacing_mm)[:, None]
    return np.array(volume.origin_mm) + np.array(index_dhw) @ steps


def position_of_the_marked_voxel(volume):
    return world_lps(volume, np.unravel_index(volume.hu.argmax(), volume.shape))


RAS_TO_LPS = np.array([-1, -1, 1])
EXPECTED_LPS = (AFFINE @ [*MARKED, 1])[:3] * RAS_TO_LPS


@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz"])
@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_a_marked_voxel_is_where_nibabel_puts_it(name, kind, tmp_path):
    volume = read_volume(save(tmp_path / name, stored_array(), kind=kind))
    assert volume.shape == (3, 5, 7)
    np.testing.assert_allclose(position_of_the_marked_voxel(volume), EXPECTED_LPS, atol=1e-4)
    np.testing.assert_allclose(volume.spacing_mm, (2.5, 0.8, 0.7), rtol=1e-6)
    np.testing.assert_array_equal(volume.hu, stored_array().transpose(2, 1, 0))
    assert volume.notes == ()
    # The position is none by chance: in RAS, or with two axes swapped, it is centimetres off.
    in_ras = EXPECTED_LPS * RAS_TO_LPS
    assert np.linalg.norm(position_of_the_marked_voxel(volume) - in_ras) > 10


@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz"])
def test_nibabel_reads_what_is_written(name, tmp_path):
    source = save(tmp_path / f"source_{name}", stored_array())
    volume = read_volume(source)
    write_volume(replace(volume, storage=Storage()), tmp_path / name)
    image = nibabel.load(tmp_path / name)
    np.testing.assert_array_equal(np.asarray(image.dataobj), stored_array())
    assert image.header.get_data_dtype() == np.float32
    assert image.header.get_xyzt_units()[0] == "mm"
    assert (image.header["qform_code"], image.header["sform_code"]) == (1, 1)
    for affine in (image.get_sform(), image.get_qform(), nibabel.load(source).affine):
        np.testing.assert_allclose(affine, AFFINE, atol=1e-4)
    assert b"research use only" in bytes(image.header["descrip"])


def test_the_same_volume_gives_the_same_bytes(tmp_path):
    volume = CTVolume.from_hu(stored_array(np.float32), (1.0, 1.0, 1.0))
    for name in ("a.nii.gz", "b.nii.gz"):
        write_volume(volume, tmp_path / name)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, ">i2", np.int32, np.float64])
def test_slope_and_intercept_are_applied_to_every_type(dtype, tmp_path):
    image = nibabel.Nifti1Image(np.zeros((7, 5, 3)), AFFINE)
    header = nibabel.Nifti1Header(endianness=">" if dtype == ">i2" else "<")
    header.set_data_shape((7, 5, 3))
    header.set_data_dtype(dtype)
    header.set_sform(image.affine, 1)
    header.set_slope_inter(0.5, -1024)
    header["vox_offset"] = 352
    stored = np.arange(105).reshape(7, 5, 3)
    voxels = stored.astype(np.dtype(dtype).newbyteorder(header.endianness))
    path = tmp_path / "scan.nii"
    path.write_bytes(header.binaryblock + bytes(4) + voxels.tobytes(order="F"))
    np.testing.assert_array_equal(nibabel.load(path).get_fdata(), stored * 0.5 - 1024)
    np.testing.assert_array_equal(read_volume(path).hu.transpose(2, 1, 0), stored * 0.5 - 1024)


def test_one_slice_and_one_time_point_are_volumes(tmp_path):
    flat = save(tmp_path / "flat.nii", stored_array()[:, :, 0], np.diag([-1.0, -1, 1, 1]))
    assert read_volume(flat).shape == (1, 5, 7)
    single = save(tmp_path / "single.nii", stored_array()[..., None])
    np.testing.assert_array_equal(read_volume(single).hu, stored_array().transpose(2, 1, 0))


def test_several_time_points_are_refused(tmp_path):
    path = save(tmp_path / "scan.nii", np.zeros((4, 3, 2, 5), np.int16))
    with pytest.raises(FormatError, match="4 x 3 x 2 x 5"):
        read_volume(path)


def test_a_grid_that_is_folded_together_is_refused(tmp_path):
    folded = AFFINE.copy()
    folded[:3, 1] = folded[:3, 0] + 0.01 * folded[:3, 1]
    path = tmp_path / "scan.nii"
    image = nibabel.Nifti1Image(stored_array(), None)
    image.set_sform(folded, 1)
    nibabel.save(image, path)
    with pytest.raises(GeometryError, match="two of its axes are nearly parallel"):
        read_volume(path)


@pytest.mark.parametrize("step", [0, np.inf])
def test_a_grid_without_size_is_refused(step, tmp_path):
    flat = AFFINE.copy()
    flat[:3, 2] = step
    image = nibabel.Nifti1Image(stored_array(), None)
    image.set_sform(flat, 1)
    nibabel.save(image, tmp_path / "scan.nii")
    with pytest.raises(GeometryError, match="zero or no number"):
        read_volume(tmp_path / "scan.nii")


def test_a_header_without_orientation_is_noted(tmp_path):
    image = nibabel.Nifti1Image(stored_array(), None)
    image.header.set_zooms((0.7, 0.8, 2.5))
    nibabel.save(image, tmp_path / "scan.nii")
    volume = read_volume(tmp_path / "scan.nii")
    assert any("pixdim only" in note for note in volume.notes)
    np.testing.assert_allclose(volume.spacing_mm, (2.5, 0.8, 0.7), rtol=1e-6)


def test_two_different_orientations_are_noted_and_the_sform_counts(tmp_path):
    image = nibabel.Nifti1Image(stored_array(), AFFINE)
    image.set_qform(np.diag([1.0, 1, 1, 1]), 1)
    image.set_sform(AFFINE, 1)
    nibabel.save(image, tmp_path / "scan.nii")
    volume = read_volume(tmp_path / "scan.nii")
    assert any("sform is used" in note for note in volume.notes)
    np.testing.assert_allclose(position_of_the_marked_voxel(volume), EXPECTED_LPS, atol=1e-4)


@pytest.mark.parametrize(("unit", "mm"), [("meter", 1000), ("micron", 0.001), ("unknown", 1)])
def test_lengths_are_in_mm_whatever_the_unit(unit, mm, tmp_path):
    path = save(tmp_path / "scan.nii", stored_array(), np.diag([1 / mm] * 3 + [1]), xyzt_units=unit)
    np.testing.assert_allclose(read_volume(path).spacing_mm, (1, 1, 1), rtol=1e-6)


def test_complex_voxels_are_refused(tmp_path):
    path = save(tmp_path / "scan.nii", stored_array(np.complex64))
    with pytest.raises(FormatError, match="complex64, expected real numbers"):
        read_volume(path)


def test_voxels_without_a_number_are_refused_when_read(tmp_path):
    array = stored_array(np.float32)
    array[0, :2, 1] = np.nan
    volume = read_volume(save(tmp_path / "scan.nii", array))
    assert np.isfinite(volume.read_slice(0)).all()
    with pytest.raises(FormatError, match=r"slice 2: 2 of 35 values are NaN"):
        volume.read_slice(1)


def test_a_truncated_file_is_refused(tmp_path):
    path = save(tmp_path / "scan.nii", stored_array())
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(FormatError, match="ends too early"):
        read_volume(path)


def test_a_truncated_header_is_refused(tmp_path):
    path = save(tmp_path / "scan.nii", stored_array())
    path.write_bytes(path.read_bytes()[:347])
    with pytest.raises(FormatError):
        read_volume(path)


@pytest.mark.parametrize("cut", [1, 4, 60])
def test_a_truncated_gzip_is_refused(cut, tmp_path):
    path = save(tmp_path / "scan.nii.gz", stored_array())
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(FormatError, match="ends too early"):
        _ = read_volume(path).hu


def test_a_wrong_checksum_is_noticed(tmp_path):
    path = save(tmp_path / "scan.nii.gz", stored_array())
    damaged = bytearray(path.read_bytes())
    damaged[-8] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(FormatError, match="damaged"):
        _ = read_volume(path).hu


@pytest.mark.parametrize("piece_bytes", [1 << 20, 7, 1])
def test_gzip_in_several_parts_and_with_padding_is_one_file(piece_bytes, tmp_path, monkeypatch):
    monkeypatch.setattr(_stored, "PIECE_BYTES", piece_bytes)
    plain = save(tmp_path / "plain.nii", stored_array()).read_bytes()
    path = tmp_path / "scan.nii.gz"
    parts = (gzip.compress(plain[start : start + 400]) for start in range(0, len(plain), 400))
    path.write_bytes(b"".join(parts) + bytes(100))
    assert gzip.decompress(path.read_bytes()) == plain
    np.testing.assert_array_equal(read_volume(path).hu, stored_array().transpose(2, 1, 0))


def test_reading_onwards_unpacks_each_byte_once(tmp_path, monkeypatch):
    rewinds = []
    rewind = CompressedSlices._rewind
    monkeypatch.setattr(
        CompressedSlices, "_rewind", lambda self: (rewinds.append(1), rewind(self))[1]
    )
    # More slices than are kept.
    many = np.concatenate([stored_array()] * 3, axis=2)
    volume = read_volume(save(tmp_path / "scan.nii.gz", many))
    _ = volume.hu
    assert len(rewinds) == 1
    volume.read_slice(0)
    assert len(rewinds) == 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_does_not_disturb_the_reader(tmp_path):
    rng = np.random.default_rng(0)
    array = rng.integers(-1000, 1000, (64, 64, 40)).astype(np.int16)
    volume = read_volume(save(tmp_path / "scan.nii.gz", array))
    volume.read_slice(3)
    child = os.fork()
    if child == 0:
        same = np.array_equal(volume.read_slice(39), array[..., 39].T)
        os._exit(0 if same else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    np.testing.assert_array_equal(volume.read_slice(4), array[..., 4].T)


def test_without_nibabel_the_extra_is_named(tmp_path, monkeypatch):
    path = save(tmp_path / "scan.nii", stored_array())
    monkeypatch.setitem(sys.modules, "nibabel", None)
    with pytest.raises(FormatError, match=r"pip install cddnet\[nifti\]"):
        read_volume(path)
    volume = CTVolume.from_hu(stored_array(np.float32), (1.0, 1.0, 1.0))
    with pytest.raises(FormatError, match=r"pip install cddnet\[nifti\]"):
        write_volume(volume, tmp_path / "out.nii")
