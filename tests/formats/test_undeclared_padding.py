"""Padding that no header declares: the same mask in every format, and its values come back."""

import gzip
from dataclasses import replace

import nibabel
import numpy as np
import pytest
from dicom_series import STEP, ct_dataset, save_series, set_stored
from pydicom import dcmread

from cddnet.formats import read_volume, write_volume
from cddnet.volume import CTVolume
from cddnet.workflows.denoise import DenoiseOptions, denoise_file, denoise_hu

SHAPE = (3, 60, 66)
SPACING_MM = (5.0, 0.7, 0.8)
CONSTANTS = (-3024, -2048)


def ignore(*_):
    """No progress shown."""


def scanned(constant, rng):
    """Whole HU (D, H, W) in a round field of view, and where it ends."""
    _, height, width = SHAPE
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    empty = np.broadcast_to(y**2 + x**2 > 1, SHAPE)
    tissue = np.where(y**2 + x**2 < 0.6, 40, -1000)
    hu = np.where(empty, constant, np.rint(tissue + 12 * rng.standard_normal(SHAPE)))
    return hu.astype(np.int16), empty


def as_dicom(hu, path, **told):
    datasets = []
    for index, one in enumerate(hu):
        dataset = ct_dataset(index, size=SHAPE[1:])
        set_stored(dataset, (one + 1024).astype(np.int16))
        for keyword, value in told.items():
            dataset.add_new(keyword, "SS", value)
        datasets.append(dataset)
    save_series(path, datasets)
    return path


def as_nifti(hu, path, dtype=np.int16, slope=1.0, intercept=0.0):
    stored = np.rint((hu - intercept) / slope).astype(dtype)
    image = nibabel.Nifti1Image(stored.transpose(2, 1, 0), np.diag([-0.8, -0.7, 5.0, 1.0]))
    image.header.set_slope_inter(slope, intercept)
    nibabel.save(image, path)
    return path


def written(hu, path):
    write_volume(CTVolume.from_hu(hu.astype(np.float32), SPACING_MM), path)
    return path


def as_numpy(hu, path):
    np.save(path, hu)
    return path


MAKERS = {
    "dicom": lambda hu, folder: as_dicom(hu, folder / "series"),
    "dicom, another value declared": lambda hu, folder: as_dicom(
        hu, folder / "series", PixelPaddingValue=-1999
    ),
    "nifti": lambda hu, folder: as_nifti(hu, folder / "a.nii"),
    "nifti, compressed and scaled": lambda hu, folder: as_nifti(
        hu, folder / "a.nii.gz", np.uint16, 1.0, -4096.0
    ),
    "metaimage": lambda hu, folder: written(hu, folder / "a.mhd"),
    "npy": lambda hu, folder: as_numpy(hu, folder / "a.npy"),
    "npz": lambda hu, folder: written(hu, folder / "a.npz"),
    "tiff": lambda hu, folder: written(hu, folder / "a.tif"),
}


@pytest.mark.parametrize("constant", CONSTANTS)
@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_every_format_has_the_mask(tmp_path, rng, make, constant):
    hu, empty = scanned(constant, rng)
    volume = read_volume(make(hu, tmp_path))
    for index in range(SHAPE[0]):
        assert np.array_equal(volume.padding(index), empty[index])
        assert np.array_equal(volume.read_slice(index), hu[index])


def test_the_dicom_tag_and_the_constant_come_to_the_same(tmp_path, rng, tiny_weights):
    hu, empty = scanned(-3024, rng)
    declared = as_dicom(hu, tmp_path / "declared", PixelPaddingValue=-2000)
    undeclared = as_dicom(hu, tmp_path / "undeclared")
    options = DenoiseOptions(model=tiny_weights, force=True)
    stored = []
    for source in (declared, undeclared):
        target = tmp_path / f"{source.name}_denoised"
        denoise_file(source, target, options, ignore)
        stored.append(np.stack([dcmread(file).pixel_array for file in sorted(target.iterdir())]))
    assert np.array_equal(*stored)
    assert (stored[1][empty] == -2000).all()
    assert (stored[1] != hu + 1024)[~empty].any()


@pytest.mark.parametrize("name", ["a.nii.gz", "a.mha", "a.npy", "a.tif"])
def test_what_is_written_keeps_the_constant(tmp_path, rng, tiny_weights, name):
    hu, empty = scanned(-2048, rng)
    air = np.where(empty, -1000, hu)
    results = []
    for values, folder in ((hu, tmp_path / "hu"), (air, tmp_path / "air")):
        folder.mkdir()
        source = written(values, folder / name)
        target = folder / f"denoised_{name}"
        denoise_file(source, target, DenoiseOptions(model=tiny_weights, force=True), ignore)
        results.append(read_volume(target).hu)
    assert (results[0][empty] == -2048).all()
    assert np.array_equal(results[0][~empty], results[1][~empty])


def test_an_array_is_no_exception(rng, tiny_weights):
    hu, empty = scanned(-3024, rng)
    out = denoise_hu(hu.astype(np.float32), SPACING_MM, tiny_weights)
    filled = denoise_hu(np.where(empty, -1000, hu).astype(np.float32), SPACING_MM, tiny_weights)
    assert (out[empty] == -3024).all()
    assert np.array_equal(out[~empty], filled[~empty])


def test_slices_that_cannot_hold_such_a_value_are_not_decoded_for_it(tmp_path, rng):
    datasets = [ct_dataset(index, bits=12, signed=False) for index in range(2)]
    save_series(tmp_path / "series", datasets)
    assert read_volume(tmp_path / "series").read_padding is None


def test_slices_of_one_series_may_be_scaled_differently(tmp_path, rng):
    hu, empty = scanned(-3024, rng)
    datasets = []
    for index, one in enumerate(hu):
        dataset = ct_dataset(index, size=SHAPE[1:], intercept=str(-1024 - index))
        # The same stored constant, as a scanner writes it.
        set_stored(dataset, np.where(empty[index], -2000, one + 1024 + index).astype(np.int16))
        datasets.append(dataset)
    save_series(tmp_path / "series", datasets)
    volume = read_volume(tmp_path / "series")
    assert np.array_equal([volume.padding(index) for index in range(SHAPE[0])], empty)


def test_a_compressed_file_is_unpacked_once_in_order(tmp_path, rng, monkeypatch):
    hu, _ = scanned(-3024, rng)
    many = np.concatenate([hu] * 8)
    path = as_nifti(many, tmp_path / "a.nii.gz")
    volume = read_volume(path)
    opened = []
    plain = gzip.zlib.decompressobj
    monkeypatch.setattr(
        "cddnet.formats._stored.zlib.decompressobj",
        lambda *given: opened.append(given) or plain(*given),
    )
    for index in range(len(many)):
        volume.read_slice(index)
        volume.padding(index)
    assert opened == []


def test_a_derived_volume_keeps_the_mask_of_its_source(tmp_path, rng):
    hu, empty = scanned(-2048, rng)
    volume = read_volume(written(hu, tmp_path / "a.mha"))
    made = volume.derived(lambda index: np.zeros(SHAPE[1:], np.float32), STEP)
    assert np.array_equal(made.padding(1), empty[1])
    assert np.array_equal(replace(made, notes=()).padding(1), empty[1])
