"""The forms of a NIfTI header come back as they were; what a form cannot hold is said."""

from dataclasses import replace

import nibabel
import numpy as np
import pytest
from dicom_series import ct_dataset, read, save_series

from cddnet.formats import read_volume, write_volume

SHAPE = (7, 6, 4)
SFORM = np.array(
    [[-0.7, 0.05, 0.0, 80.0], [0.05, 0.7, 0.1, -90.5], [0.0, -0.04, 2.5, -700.0], [0, 0, 0, 1.0]]
)
QFORM = np.array(
    [[-0.7, 0.0, 0.0, 81.0], [0.0, 0.7, 0.0, -90.0], [0.0, 0.0, 2.5, -701.0], [0, 0, 0, 1.0]]
)
CODES = [(0, 0), (1, 0), (0, 1), (1, 1), (0, 2), (2, 4), (4, 3), (3, 0)]
GEOMETRY = (
    *("qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d"),
    *("qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z"),
)


def image(qform_code, sform_code, kind=nibabel.Nifti1Image, shape=SHAPE):
    made = kind(np.arange(np.prod(shape), dtype=np.int16).reshape(shape), None)
    made.set_sform(SFORM, sform_code)
    made.set_qform(QFORM, qform_code)
    made.header.set_xyzt_units("mm", "sec")
    return made


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize(("qform_code", "sform_code"), CODES)
def test_codes_and_both_forms_are_those_of_the_input(qform_code, sform_code, kind, tmp_path):
    source = image(qform_code, sform_code, kind)
    nibabel.save(source, tmp_path / "a.nii")
    volume = read_volume(tmp_path / "a.nii")
    write_volume(replace(volume, read_slice=lambda i: volume.read_slice(i) - 1), tmp_path / "b.nii")
    written = nibabel.load(tmp_path / "b.nii").header
    for field in GEOMETRY:
        np.testing.assert_array_equal(written[field], source.header[field].astype("f4"), field)
    np.testing.assert_array_equal(written["pixdim"][:4], source.header["pixdim"][:4].astype("f4"))
    assert written.get_xyzt_units()[0] == "mm"
    assert any("pixdim only" in note for note in volume.notes) is (qform_code == sform_code == 0)


@pytest.mark.parametrize("unit", ["meter", "micron", "mm", "unknown"])
def test_forms_keep_the_unit_that_they_are_in(unit, tmp_path):
    source = image(1, 2)
    source.header.set_xyzt_units(unit)
    nibabel.save(source, tmp_path / "a.nii")
    write_volume(read_volume(tmp_path / "a.nii"), tmp_path / "b.nii")
    written = nibabel.load(tmp_path / "b.nii").header
    np.testing.assert_array_equal(written.get_sform(), source.header.get_sform())
    assert written.get_xyzt_units()[0] == ("mm" if unit == "unknown" else unit)
    assert read_volume(tmp_path / "b.nii").spacing_mm == read_volume(tmp_path / "a.nii").spacing_mm


@pytest.mark.parametrize("change", ["origin_mm", "spacing_mm", "shape", "direction"])
def test_forms_of_another_geometry_are_not_written(change, tmp_path):
    nibabel.save(image(2, 4), tmp_path / "a.nii")
    volume = read_volume(tmp_path / "a.nii")
    other = {
        "origin_mm": (1.0, 2.0, 3.0),
        "spacing_mm": (1.25, *volume.spacing_mm[1:]),
        "shape": (3, *volume.shape[1:]),
        "direction": tuple(tuple(-x for x in axis) for axis in volume.direction),
    }[change]
    changed = replace(volume, **{change: other})
    write_volume(changed, tmp_path / "b.nii")
    header = nibabel.load(tmp_path / "b.nii").header
    assert (header["qform_code"], header["sform_code"]) in ((0, 1), (1, 1))
    found = read_volume(tmp_path / "b.nii")
    assert found.shape == changed.shape
    for name in ("origin_mm", "spacing_mm", "direction"):
        np.testing.assert_allclose(getattr(found, name), getattr(changed, name), atol=1e-4)


def sheared(column, row, step):
    affine = np.diag([0.8, 0.8, 2.5, 1.0])
    affine[row, column] += step
    return affine


@pytest.mark.parametrize(
    ("affine", "note"),
    [
        (sheared(2, 1, 2.5 * np.tan(np.radians(15))), "leans by 15.0 degrees"),
        (sheared(2, 1, -2.5 * np.tan(np.radians(25))), "leans by 25.0 degrees"),
        (sheared(2, 0, 0.3), "leans by 6.8 degrees"),
        (sheared(1, 0, 0.0013), "meet at 89.91 degrees"),
        (sheared(0, 1, 0.004), "meet at 89.71 degrees"),
    ],
)
@pytest.mark.parametrize("suffix", [".nii.gz", ".mha", ".npz"])
def test_a_sheared_grid_is_noted_and_kept(affine, note, suffix, tmp_path):
    source = image(1, 1)
    source.set_sform(affine, 1)
    nibabel.save(source, tmp_path / "a.nii")
    volume = read_volume(tmp_path / "a.nii")
    assert any(note in text for text in volume.notes)
    assert volume.volume_problems == ()
    write_volume(volume, tmp_path / f"b{suffix}")
    write_volume(read_volume(tmp_path / f"b{suffix}"), tmp_path / "c.nii")
    written = nibabel.load(tmp_path / "c.nii")
    np.testing.assert_allclose(written.get_sform(), affine, atol=1e-3)
    np.testing.assert_array_equal(written.get_fdata(), source.get_fdata())


def tilted(degrees, count=4):
    datasets = [ct_dataset(index) for index in range(count)]
    turn = np.radians(degrees)
    for dataset in datasets:
        down = (0, round(np.cos(turn), 9), round(np.sin(turn), 9))
        dataset.ImageOrientationPatient = [1, 0, 0, *down]
        dataset.GantryDetectorTilt = str(degrees)
    return datasets


@pytest.mark.parametrize("degrees", [-15, 25, 0.5])
@pytest.mark.parametrize("suffix", [".nii", ".mha", ".npz"])
def test_a_tilted_series_becomes_a_file_whose_voxels_lie_where_its_slices_do(
    degrees, suffix, tmp_path
):
    datasets = tilted(degrees)
    volume = read(save_series(tmp_path / "ct", datasets))
    assert any("gantry tilt" in note for note in volume.notes)
    write_volume(volume, tmp_path / f"a{suffix}")
    write_volume(read_volume(tmp_path / f"a{suffix}"), tmp_path / "b.nii")
    written = nibabel.load(tmp_path / "b.nii")
    assert (written.header["qform_code"], written.header["sform_code"]) == (0, 1)
    np.testing.assert_allclose(written.header.get_zooms(), (0.8, 0.7, 5), rtol=1e-6)
    for index, dataset in enumerate(datasets):
        across, down = np.reshape(np.array(dataset.ImageOrientationPatient, float), (2, 3))
        corner = np.array(dataset.ImagePositionPatient, float)
        place = corner + 3 * 0.8 * across + 2 * 0.7 * down
        found = nibabel.affines.apply_affine(written.affine, (3, 2, index)) * (-1, -1, 1)
        np.testing.assert_allclose(found, place, atol=1e-3)
        np.testing.assert_array_equal(written.get_fdata()[..., index], volume.read_slice(index).T)


def test_a_tilt_that_only_the_header_states_does_not_forbid_writing(tmp_path):
    datasets = [ct_dataset(index) for index in range(3)]
    for dataset in datasets:
        dataset.GantryDetectorTilt = "-14"
    write_volume(read(save_series(tmp_path / "ct", datasets)), tmp_path / "a.nii")
    header = nibabel.load(tmp_path / "a.nii").header
    assert (header["qform_code"], header["sform_code"]) == (1, 1)


@pytest.mark.parametrize("sheared_in", ["RAS", "RSA"])
def test_a_leaning_file_in_another_order_is_turned_too(sheared_in, tmp_path):
    affine = sheared(2, 1, 0.6)
    array = np.arange(np.prod(SHAPE), dtype=np.float32).reshape(SHAPE)
    order = ["RAS".index(name) for name in sheared_in]
    stored = nibabel.Nifti1Image(array.transpose(order), affine[:, [*order, 3]])
    nibabel.save(stored, tmp_path / "a.nii")
    volume = read_volume(tmp_path / "a.nii")
    assert volume.shape == SHAPE[::-1]
    assert "leans by 13.5 degrees" in volume.skew[0]
    np.testing.assert_array_equal(volume.hu, array.transpose(2, 1, 0))
    write_volume(volume, tmp_path / "b.nii")
    written = nibabel.load(tmp_path / "b.nii")
    np.testing.assert_array_equal(written.get_fdata(), stored.get_fdata())
    np.testing.assert_allclose(written.affine, stored.affine, atol=1e-6)
