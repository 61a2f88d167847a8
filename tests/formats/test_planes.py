"""Files whose planes are not axial: worked on as axial slices, written as they were."""

import gc
import itertools
from dataclasses import replace

import nibabel
import numpy as np
import pytest
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, ornt_transform

from cddnet.errors import FormatError, GeometryError
from cddnet.formats import _planes, _stored, read_volume, write_volume
from cddnet.grid import orientation_words, plane_of
from cddnet.training.slices import calibrated_geometry
from cddnet.volume import CTVolume

# A turn by 11.5 degrees, so that no axis is one of the patient's.
TURNED = np.array([[0.98, -0.1, 0.17], [0.11, 0.99, -0.05], [-0.165, 0.07, 0.98]])
TURNED = np.linalg.svd(TURNED)[0] @ np.linalg.svd(TURNED)[2]
SPACING_MM = (0.8, 0.7, 1.2)
AFFINE = np.eye(4)
AFFINE[:3, :3] = TURNED * SPACING_MM
AFFINE[:3, 3] = (-31.5, 42.25, -700.0)
SIDES = (7, 6, 4)
CODES = [
    "".join(code)
    for names in itertools.permutations(("LR", "PA", "SI"))
    for code in itertools.product(*names)
]
WRITTEN = ("scan.nii", "scan.nii.gz", "scan.mha", "scan.mhd", "scan.npz", "scan.tif")


def stored(code, affine=AFFINE, sides=SIDES):
    """Array and affine of one volume, stored with axes that run as `code` says."""
    array = np.arange(np.prod(sides), dtype=np.float32).reshape(sides)
    # The unturned axes run as R, A and S do.
    turn = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(code))
    return apply_orientation(array, turn), affine @ inv_ornt_aff(turn, sides)


def save(path, code, affine=AFFINE, sides=SIDES):
    nibabel.save(nibabel.Nifti1Image(*stored(code, affine, sides)), path)
    return path


def by_place(values, places_mm):
    """Values in the order of their places, whichever way an array lists them."""
    order = np.lexsort(np.round(places_mm, 2).T)
    return values.ravel()[order], places_mm[order]


def world_of(volume):
    index = np.indices(volume.shape).reshape(3, -1).T
    steps = np.array(volume.direction) * np.array(volume.spacing_mm)[:, None]
    return by_place(volume.hu, np.array(volume.origin_mm) + index @ steps)


def world_of_nifti(array, affine):
    index = np.indices(array.shape).reshape(3, -1).T
    places = nibabel.affines.apply_affine(affine, index) * (-1, -1, 1)
    return by_place(np.asarray(array), places)


@pytest.mark.parametrize("code", CODES)
def test_slices_are_axial_whatever_the_order_of_the_file(code, tmp_path):
    volume = read_volume(save(tmp_path / "scan.nii", code))
    assert plane_of(volume.direction) == "axial"
    assert volume.shape[0] == SIDES[2]
    assert volume.spacing_mm[0] == pytest.approx(SPACING_MM[2])
    for found, expected in zip(world_of(volume), world_of_nifti(*stored("RAS")), strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3)
    turned = code[2] not in "SI"
    assert any("in its own order" in note for note in volume.notes) is turned
    if turned:
        assert volume.shape[1] == SIDES[1]


@pytest.mark.parametrize("code", CODES)
def test_what_is_written_has_the_order_of_the_file(code, tmp_path):
    path = save(tmp_path / "scan.nii", code)
    volume = read_volume(path)
    slices = iter(volume.slices())

    def read_slice(index):
        """In order and once each, as a network works."""
        return next(slices) + 0.5

    write_volume(replace(volume, read_slice=read_slice), tmp_path / "out.nii")
    source, written = nibabel.load(path), nibabel.load(tmp_path / "out.nii")
    np.testing.assert_array_equal(written.get_fdata(), source.get_fdata() + 0.5)
    np.testing.assert_array_equal(written.affine, source.affine)


@pytest.mark.parametrize("name", WRITTEN)
@pytest.mark.parametrize("code", ["RSA", "PIR", "SAR", "ASL", "LPS"])
def test_the_order_survives_other_formats(name, code, tmp_path):
    """NIfTI to another format and back: the voxels where they were."""
    path = save(tmp_path / "source.nii.gz", code)
    write_volume(read_volume(path), tmp_path / name)
    volume = read_volume(tmp_path / name)
    assert plane_of(volume.direction) == "axial"
    write_volume(volume, tmp_path / "back.nii")
    source, back = nibabel.load(path), nibabel.load(tmp_path / "back.nii")
    np.testing.assert_array_equal(back.get_fdata(), source.get_fdata())
    np.testing.assert_allclose(back.affine, source.affine, atol=1e-4)


def test_a_metaimage_holds_the_planes_of_the_nifti(tmp_path):
    """The sizes in its header are those of the array, column first."""
    write_volume(read_volume(save(tmp_path / "a.nii", "RSA")), tmp_path / "a.mha")
    header = (tmp_path / "a.mha").read_bytes().split(b"ElementDataFile")[0].decode()
    assert "DimSize = 7 4 6" in header


def test_an_array_without_places_holds_axial_slices(tmp_path):
    volume = read_volume(save(tmp_path / "a.nii", "RSA"))
    write_volume(volume, tmp_path / "a.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), volume.hu)


@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz"])
@pytest.mark.parametrize("block_bytes", [1, 400, 1 << 26])
def test_the_file_is_read_once_whatever_is_asked(name, block_bytes, tmp_path, monkeypatch):
    monkeypatch.setattr(_planes, "_BLOCK_BYTES", block_bytes)
    starts = []
    rewind = _stored.CompressedSlices._rewind
    monkeypatch.setattr(
        _stored.CompressedSlices, "_rewind", lambda self: (starts.append(1), rewind(self))[1]
    )
    volume = read_volume(save(tmp_path / name, "RSA"))
    expected = stored("RSA")[0].transpose(1, 2, 0)
    for index in (2, 0, 3, 1, 0):
        np.testing.assert_array_equal(volume.read_slice(index), expected[index])
    assert len(starts) == name.endswith(".gz")
    with pytest.raises(IndexError):
        volume.read_slice(4)


def test_no_more_than_a_block_is_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(_planes, "_BLOCK_BYTES", 2 * 4 * 7 * 4)
    held = []
    empty = np.empty
    monkeypatch.setattr(
        _planes.np, "empty", lambda shape, dtype: (held.append(shape), empty(shape, dtype))[1]
    )
    read_volume(save(tmp_path / "a.nii", "RSA")).read_slice(0)
    assert held == [(2, 4, 7)] * 3


def test_the_temporary_file_goes_with_the_volume(tmp_path, monkeypatch):
    made = []
    temporary = _planes.TemporaryFile
    monkeypatch.setattr(
        _planes, "TemporaryFile", lambda **where: (made.append(temporary(**where)), made[-1])[1]
    )
    volume = read_volume(save(tmp_path / "a.nii", "PIR"))
    volume.read_slice(0)
    assert not made[0].closed
    del volume
    gc.collect()
    assert made[0].closed


def test_without_room_the_place_is_named_and_nothing_is_written(tmp_path, monkeypatch):
    volume = read_volume(save(tmp_path / "a.nii", "RSA"))

    def full(**where):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(_planes, "TemporaryFile", full)
    with pytest.raises(FormatError, match=r"672 bytes of temporary space .*TMPDIR"):
        volume.read_slice(0)
    hu = np.zeros(volume.shape, np.float32)
    with pytest.raises(FormatError, match="TMPDIR"):
        write_volume(replace(volume, read_slice=hu.__getitem__), tmp_path / "out.nii")
    assert [file.name for file in tmp_path.iterdir()] == ["a.nii"]


def about_x(degrees):
    turn = np.radians(degrees)
    affine = np.eye(4)
    affine[1:3, 1:3] = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
    return affine


@pytest.mark.parametrize(
    ("degrees", "through", "plane"),
    [(0, 4, "axial"), (30, 4, "axial"), (45, 4, "oblique"), (-45, 4, "oblique"), (60, 6, "axial")],
)
def test_oblique_axes_keep_the_order_of_the_file_where_two_are_as_near(
    degrees, through, plane, tmp_path
):
    volume = read_volume(save(tmp_path / "a.nii", "RAS", about_x(degrees)))
    assert volume.shape[0] == through
    assert plane_of(volume.direction) == plane
    assert any(note.startswith("slices are") for note in volume.notes) is (plane == "oblique")


# Right to left, front to back, feet to head: sizes and spacing.
REFORMATTED = [
    ("RSA", (33, 32, 34), (0.8, 3.0, 0.8), "coronal"),
    ("ASR", (32, 33, 34), (2.0, 0.9, 0.9), "sagittal"),
    ("RSA", (33, 5, 34), (0.8, 0.8, 0.8), "coronal"),
    ("SAL", (31, 32, 32), (1.0, 1.0, 1.0), "sagittal"),
]


@pytest.mark.parametrize(("code", "sides", "spacing_mm", "plane"), REFORMATTED)
def test_planes_that_were_reformatted_thick_or_few_are_kept(
    code, sides, spacing_mm, plane, tmp_path
):
    """Axial slices would have long pixels or hardly a row; the planes look like slices."""
    path = save(tmp_path / "a.nii", code, np.diag([*spacing_mm, 1.0]), sides)
    volume = read_volume(path)
    assert plane_of(volume.direction) == plane
    assert volume.notes == (f"slices are {plane}, and the networks were trained on axial ones",)
    with pytest.raises(GeometryError, match=f"slices are {plane}"):
        calibrated_geometry(volume)


@pytest.mark.parametrize(("code", "sides", "spacing_mm", "plane"), REFORMATTED)
def test_planes_of_an_axial_scan_are_not(code, sides, spacing_mm, plane, tmp_path):
    """Thick or few axial slices, stored in the same orders."""
    affine, sides = np.diag([0.8, 0.8, max(spacing_mm), 1.0]), (33, 35, min(sides))
    volume = read_volume(save(tmp_path / "a.nii", code, affine, sides))
    assert plane_of(volume.direction) == "axial"
    assert volume.shape == (min(sides), 35, 33)


@pytest.mark.parametrize("shape", [(7, 6), (7, 6, 1), (7, 6, 1, 1)])
def test_one_plane_alone_is_a_slice(shape, tmp_path):
    array, affine = stored("RSA")
    image = nibabel.Nifti1Image(array[:, :, :1].repeat(6, 1)[:, :6].reshape(shape), affine)
    nibabel.save(image, tmp_path / "a.nii")
    volume = read_volume(tmp_path / "a.nii")
    assert volume.shape == (1, 6, 7)
    assert any("slices are coronal" in note for note in volume.notes)
    write_volume(volume, tmp_path / "b.nii")
    assert nibabel.load(tmp_path / "b.nii").shape == shape


@pytest.mark.parametrize("code", ["RAS", "RSA", "PIR"])
def test_one_time_point_comes_back_as_one(code, tmp_path):
    array, affine = stored(code)
    nibabel.save(nibabel.Nifti1Image(array[..., None], affine), tmp_path / "a.nii")
    volume = read_volume(tmp_path / "a.nii")
    assert volume.shape[0] == SIDES[2]
    write_volume(volume, tmp_path / "b.nii")
    written = nibabel.load(tmp_path / "b.nii")
    assert written.shape == (*array.shape, 1)
    np.testing.assert_array_equal(written.get_fdata()[..., 0], array)


def shape_of(axis, odd=4, side=6):
    return tuple(odd if number == axis else side for number in range(3))


def array_file(folder, kind, array):
    path = folder / f"scan{kind}"
    if kind == ".npy":
        np.save(path, array)
    elif kind == ".npz":
        np.savez(path, hu=array, spacing_mm=np.ones(3))
    elif kind == ".tif":
        import tifffile

        tifffile.imwrite(path, array, photometric="minisblack")
    elif kind == ".mha":
        fields = "NDims = 3\nDimSize = {} {} {}\nElementType = MET_FLOAT\nElementDataFile = LOCAL\n"
        path.write_bytes(fields.format(*array.shape).encode() + array.tobytes(order="F"))
    else:
        nibabel.save(nibabel.Nifti1Image(array, None), path)
    return path


def usual_axis(kind):
    """NIfTI and MetaImage count their axes from the fastest."""
    return 2 if kind in (".nii", ".mha") else 0


@pytest.mark.parametrize("kind", [".npy", ".npz", ".tif", ".mha", ".nii"])
@pytest.mark.parametrize("odd_axis", [0, 1, 2])
def test_an_array_without_orientation_is_asked_about(kind, odd_axis, tmp_path):
    array = np.arange(144, dtype=np.float32).reshape(shape_of(odd_axis))
    path = array_file(tmp_path, kind, array)
    if odd_axis == usual_axis(kind):
        volume = read_volume(path)
    else:
        with pytest.raises(FormatError, match=f"--slice-axis {odd_axis} or --slice-axis"):
            read_volume(path)
        volume = read_volume(path, slice_axis=odd_axis)
    expected = np.moveaxis(array, odd_axis, 0)
    if usual_axis(kind) == 2:
        expected = expected.transpose(0, 2, 1)
    np.testing.assert_array_equal(volume.hu, expected)


@pytest.mark.parametrize("kind", [".npy", ".tif", ".nii"])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_an_array_comes_back_in_its_own_order(kind, axis, tmp_path):
    array = np.arange(144, dtype=np.float32).reshape(shape_of(axis))
    volume = read_volume(array_file(tmp_path, kind, array), slice_axis=axis)
    write_volume(
        replace(volume, read_slice=lambda i: volume.read_slice(i) + 0.5), tmp_path / f"out{kind}"
    )
    if kind == ".nii":
        found = nibabel.load(tmp_path / "out.nii").get_fdata()
    elif kind == ".npy":
        found = np.load(tmp_path / "out.npy")
    else:
        import tifffile

        found = tifffile.imread(tmp_path / "out.tif")
    np.testing.assert_array_equal(found, array + 0.5)


@pytest.mark.parametrize("shape", [(6, 7, 1), (6, 1, 7), (6, 6, 1)])
def test_a_side_of_one_is_that_of_the_slices(shape, tmp_path):
    np.save(tmp_path / "a.npy", np.zeros(shape, np.float32))
    axis = shape.index(1)
    with pytest.raises(FormatError, match=f"axis {axis} has the odd length"):
        read_volume(tmp_path / "a.npy")
    assert read_volume(tmp_path / "a.npy", slice_axis=axis).shape[0] == 1


def test_a_cube_is_noted_and_other_arrays_are_as_documented(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((6, 6, 6), np.float32))
    assert "all sides are equal" in read_volume(tmp_path / "a.npy").notes[-1]
    for name, shape in (("b", (4, 6, 6)), ("c", (5, 6, 7)), ("d", (1, 6, 7)), ("e", (6, 7))):
        np.save(tmp_path / f"{name}.npy", np.zeros(shape, np.float32))
        volume = read_volume(tmp_path / f"{name}.npy")
        assert volume.shape == (*shape, 1)[:0] + ((1, *shape) if len(shape) == 2 else shape)
        assert len(volume.notes) == 1


@pytest.mark.parametrize("axis", [-1, 3])
def test_only_three_axes_are_there(axis, tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((4, 6, 6), np.float32))
    with pytest.raises(FormatError, match="give 0, 1 or 2"):
        read_volume(tmp_path / "a.npy", slice_axis=axis)


def test_the_answer_is_not_needed_where_the_file_states_it(tmp_path):
    volume = read_volume(save(tmp_path / "a.nii", "RSA"), slice_axis=0)
    assert plane_of(volume.direction) == "axial"


@pytest.mark.parametrize(
    ("normal", "down", "across", "plane", "words"),
    [
        (
            (0, 0, 1),
            (0, 1, 0),
            (1, 0, 0),
            "axial",
            "rows from front to back, columns from right to left",
        ),
        (
            (0, 0, 1),
            (0, -1, 0),
            (-1, 0, 0),
            "axial",
            "rows from back to front, columns from left to right",
        ),
        (
            (0, 1, 0),
            (0, 0, -1),
            (1, 0, 0),
            "coronal",
            "rows from head to feet, columns from right to left",
        ),
        (
            (1, 0, 0),
            (0, 0, -1),
            (0, 1, 0),
            "sagittal",
            "rows from head to feet, columns from front to back",
        ),
    ],
)
def test_planes_and_orientations_have_words(normal, down, across, plane, words):
    assert plane_of((normal, down, across)) == plane
    assert orientation_words((normal, down, across)) == words


@pytest.mark.parametrize("degrees", [-34, -30, 0, 30, 34])
def test_a_tilted_gantry_makes_axial_slices(degrees):
    turn = np.radians(degrees)
    direction = ((0, 0, 1), (0, np.cos(turn), np.sin(turn)), (1, 0, 0))
    assert plane_of(direction) == "axial"
    volume = CTVolume.from_hu(np.zeros((2, 4, 4), np.float32), (1.0, 1.0, 1.0), direction=direction)
    assert calibrated_geometry(volume).pixel_mm == 1.0
