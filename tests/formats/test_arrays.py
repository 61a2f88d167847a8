"""NumPy arrays: any real type in, and nothing that is not a volume of numbers."""

import numpy as np
import pytest

from cddnet.errors import CddnetError, FormatError
from cddnet.formats import read_volume
from cddnet.volume import CTVolume

HU = np.arange(2 * 3 * 4).reshape(2, 3, 4)
DTYPES = ["i1", "u1", "<i2", ">i2", "u2", "i4", "i8", "u8", "f2", "f4", ">f4", "f8", "g"]


def saved(path, values, **more):
    if path.suffix == ".npy":
        np.save(path, values)
    else:
        np.savez(path, **{"hu": values, "spacing_mm": (2.5, 0.7, 0.8), **more})
    return path


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_real_type_is_hu_as_it_stands(suffix, dtype, tmp_path):
    volume = read_volume(saved(tmp_path / f"a{suffix}", HU.astype(dtype)))
    np.testing.assert_array_equal(volume.hu, HU)
    assert volume.hu.dtype == np.float32


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_the_order_in_memory_does_not_matter(suffix, tmp_path):
    volume = read_volume(saved(tmp_path / f"a{suffix}", np.asfortranarray(HU)))
    np.testing.assert_array_equal(volume.hu, HU)


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_one_slice_is_a_volume(suffix, tmp_path):
    np.testing.assert_array_equal(read_volume(saved(tmp_path / f"a{suffix}", HU[0])).hu, HU[:1])


def test_npy_says_that_it_knows_no_spacing(tmp_path):
    volume = read_volume(saved(tmp_path / "a.npy", HU))
    assert volume.spacing_mm == (1.0, 1.0, 1.0)
    assert any("no geometry" in note for note in volume.notes)


def test_npz_holds_the_geometry(tmp_path):
    turned = ((0.0, 0.0, -1.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0))
    path = saved(tmp_path / "a.npz", HU, origin_mm=(1.0, 2.0, -3.5), direction=turned)
    volume = read_volume(path)
    assert volume.spacing_mm == (2.5, 0.7, 0.8)
    assert volume.origin_mm == (1.0, 2.0, -3.5)
    assert volume.direction == turned
    assert volume.notes == ()


def test_npz_without_position_has_the_usual_one(tmp_path):
    volume = read_volume(saved(tmp_path / "a.npz", HU))
    usual = CTVolume.from_hu(HU, (1.0, 1.0, 1.0))
    assert (volume.origin_mm, volume.direction) == (usual.origin_mm, usual.direction)


def test_npy_stays_on_the_disk(tmp_path):
    """A slice read later has what the file holds later, so the file was not read whole."""
    path = saved(tmp_path / "a.npy", HU.astype(np.int16))
    volume = read_volume(path)
    mapped = np.load(path, mmap_mode="r+")
    mapped[1, 2, 3] = -77
    mapped.flush()
    assert volume.read_slice(1)[2, 3] == -77


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
@pytest.mark.parametrize(
    "values",
    [
        HU.astype(complex),
        HU.astype(bool),
        HU.astype("S3"),
        HU.astype("M8[s]"),
        np.zeros((2, 3), [("a", "i2"), ("b", "i2")]),
        np.array([{"no": "number"}] * 4).reshape(2, 2),
    ],
    ids=["complex", "bool", "text", "time", "record", "object"],
)
def test_what_is_not_real_numbers_is_refused(suffix, values, tmp_path):
    with pytest.raises(FormatError):
        read_volume(saved(tmp_path / f"a{suffix}", values))


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
@pytest.mark.parametrize("shape", [(), (5,), (1, 2, 3, 4), (0, 3, 4)])
def test_what_is_not_a_volume_is_refused(suffix, shape, tmp_path):
    with pytest.raises(FormatError, match="shape"):
        read_volume(saved(tmp_path / f"a{suffix}", np.zeros(shape)))


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_values_that_are_not_finite_are_counted(suffix, dtype, tmp_path):
    values = HU.astype(dtype)
    values[0, 0, 0], values[1, 2, 2:] = np.nan, -np.inf
    with pytest.raises(FormatError, match="3 of 24 values are NaN or infinite"):
        read_volume(saved(tmp_path / f"a{suffix}", values))


def test_values_beyond_float32_are_refused_when_read(tmp_path):
    values = HU.astype("f8")
    values[1, 1, 1] = 1e300
    volume = read_volume(saved(tmp_path / "a.npy", values))
    with pytest.raises(FormatError, match="slice 2: 1 of 12"):
        volume.read_slice(1)


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_a_truncated_file_is_refused(suffix, tmp_path):
    path = saved(tmp_path / f"a{suffix}", HU)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(FormatError, match="damaged"):
        read_volume(path)


def test_a_damaged_archive_is_refused(tmp_path):
    path = saved(tmp_path / "a.npz", HU)
    data = bytearray(path.read_bytes())
    data[200] ^= 1
    path.write_bytes(data)
    with pytest.raises(FormatError, match="damaged"):
        read_volume(path)


def test_other_names_are_listed(tmp_path):
    np.savez(tmp_path / "a.npz", arr_0=HU, hu=HU)
    with pytest.raises(FormatError, match="holds arr_0, hu, expected hu, spacing_mm"):
        read_volume(tmp_path / "a.npz")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("spacing_mm", (1.0, 1.0)),
        ("spacing_mm", (1.0, 0.0, 1.0)),
        ("spacing_mm", ("a", "b", "c")),
        ("origin_mm", (0.0, 0.0, np.nan)),
        ("direction", np.ones((3, 3))),
        ("direction", np.eye(2)),
        ("derivation", "no JSON"),
        ("derivation", '{"derivation": [{"label": "x"}]}'),
    ],
)
def test_a_wrong_geometry_or_record_is_refused(name, value, tmp_path):
    with pytest.raises(CddnetError, match=r"a\.npz"):
        read_volume(saved(tmp_path / "a.npz", HU, **{name: value}))
