"""`cddnet view` pairs slices by position, and refuses what is not one grid in one orientation."""

from dataclasses import replace

import numpy as np
import pytest

from cddnet.cli import main
from cddnet.errors import GeometryError
from cddnet.formats import read_volume, write_volume
from cddnet.node.web.pairs import LocalPair
from cddnet.volume import CTVolume
from cddnet.workflows._upright import upright
from cddnet.workflows.evaluate import EvaluateOptions, evaluate
from ct_tree import uid_of, write_slice

SPACING_MM = (2.5, 0.7, 0.7)
ORIGIN_MM = (-20.0, -15.0, -300.0)


@pytest.fixture
def hu(rng):
    return np.rint(rng.normal(40, 30, (4, 33, 39))).astype(np.float32)


def volume(hu, **fields):
    return CTVolume.from_hu(hu, SPACING_MM, **({"origin_mm": ORIGIN_MM} | fields))


def opened(tmp_path, before, after, suffix=".nii.gz"):
    paths = [tmp_path / f"{name}{suffix}" for name in ("before", "after")]
    for path, one in zip(paths, (before, after), strict=True):
        write_volume(one, path)
    return LocalPair(*paths).pair("pair")


def shown_pairs(pair):
    """What the page shows of each slice, before and after."""
    return [
        tuple(np.frombuffer(pair.slice_bytes(layer, index), "<i2") for layer in ("before", "after"))
        for index in range(pair.manifest().slices)
    ]


# Mirrored or exchanged axes: direction, corner, and the same voxels in that order.
def rows_up(hu):
    return volume(
        hu[:, ::-1],
        direction=((0, 0, 1), (0, -1, 0), (1, 0, 0)),
        origin_mm=(-20, -15 + 0.7 * 32, -300),
    )


def columns_back(hu):
    return volume(
        hu[:, :, ::-1],
        direction=((0, 0, 1), (0, 1, 0), (-1, 0, 0)),
        origin_mm=(-20 + 0.7 * 38, -15, -300),
    )


def both(hu):
    return volume(
        hu[:, ::-1, ::-1],
        direction=((0, 0, 1), (0, -1, 0), (-1, 0, 0)),
        origin_mm=(-20 + 0.7 * 38, -15 + 0.7 * 32, -300),
    )


def exchanged(hu):
    return volume(hu.transpose(0, 2, 1), direction=((0, 0, 1), (1, 0, 0), (0, 1, 0)))


@pytest.mark.parametrize("suffix", [".nii.gz", ".mha", ".npz"])
@pytest.mark.parametrize("turn", [rows_up, columns_back, both, exchanged])
def test_mirrored_copies_are_matched_and_evaluate_decides_alike(turn, suffix, hu, tmp_path):
    pair = opened(tmp_path, volume(hu), turn(hu + 3), suffix)
    for index, (before, after) in enumerate(shown_pairs(pair)):
        np.testing.assert_array_equal(before, hu[index].ravel())
        np.testing.assert_array_equal(after, before + 3)
    found = evaluate(
        tmp_path / f"before{suffix}",
        {"after": tmp_path / f"after{suffix}"},
        protocol="full",
        options=EvaluateOptions(with_physics=False),
    )
    assert found.rows[0].mean["RMSE"].value == pytest.approx(3, rel=1e-6)


@pytest.mark.parametrize("turn", [rows_up, both])
def test_the_map_of_the_error_is_turned_with_its_series(turn, hu, tmp_path):
    write_volume(turn(hu), tmp_path / "before.nii")
    write_volume(volume(hu), tmp_path / "after.nii")
    write_volume(turn(np.abs(hu)), tmp_path / "error.npz")
    paths = [tmp_path / name for name in ("before.nii", "after.nii", "error.npz")]
    pair = LocalPair(*paths[:2], error=paths[2]).pair("pair")
    shown = np.frombuffer(pair.slice_bytes("error", 1), "<i2")
    np.testing.assert_array_equal(shown, 10 * np.abs(hu[1]).ravel())
    # A .npy states no orientation: it lies as its series is stored, and so is everything shown.
    np.save(tmp_path / "error.npy", np.abs(turn(hu).hu))
    write_volume(turn(hu), tmp_path / "same.nii")
    pair = LocalPair(paths[0], tmp_path / "same.nii", error=tmp_path / "error.npy").pair("pair")
    shown = np.frombuffer(pair.slice_bytes("error", 1), "<i2")
    np.testing.assert_array_equal(shown, 10 * np.abs(turn(hu).read_slice(1)).ravel())
    before = np.frombuffer(pair.slice_bytes("before", 1), "<i2")
    np.testing.assert_array_equal(before, turn(hu).read_slice(1).ravel())


def turned_series(folder, hu):
    """A DICOM series whose rows run to the front, as of a patient who lies on the belly."""
    for index, values in enumerate(hu):
        write_slice(
            folder / f"{index}.dcm",
            np.round(values[::-1, ::-1]),
            PatientID="a",
            StudyInstanceUID=uid_of("study"),
            SeriesInstanceUID=uid_of("series"),
            SOPInstanceUID=uid_of("image", index),
            ImageOrientationPatient=[-1, 0, 0, 0, -1, 0],
            ImagePositionPatient=[-20 + 0.7 * 38, -15 + 0.7 * 32, -300 + 2.5 * index],
            SliceThickness="2.5",
        )
    return folder


def test_two_orientations_are_refused_in_words_and_evaluate_decides_alike(hu, tmp_path):
    """DICOM is shown as it is, and so it is not turned to another file either."""
    before = turned_series(tmp_path / "before", hu)
    write_volume(volume(hu), tmp_path / "after.nii")
    words = "rows from back to front, columns from left to right"
    with pytest.raises(GeometryError, match="different orientations") as refused:
        LocalPair(before, tmp_path / "after.nii")
    assert f"{words} before" in str(refused.value)
    assert "rows from front to back, columns from right to left in after" in str(refused.value)
    options = EvaluateOptions(with_physics=False)
    with pytest.raises(GeometryError, match="the orientation is") as evaluated:
        evaluate(before, {"x": tmp_path / "after.nii"}, protocol="full", options=options)
    assert words in str(evaluated.value)


def test_the_command_says_it_and_starts_no_page(hu, tmp_path, monkeypatch, capsys):
    before = turned_series(tmp_path / "before", hu)
    write_volume(volume(hu), tmp_path / "b.nii")
    arguments = ["cddnet", "view", str(before), str(tmp_path / "b.nii"), "--no-browser"]
    monkeypatch.setattr("sys.argv", arguments)
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 1
    assert "rows from back to front" in capsys.readouterr().err


def test_a_small_turn_is_told_from_none(hu, tmp_path):
    cosine, sine = np.cos(0.05), np.sin(0.05)
    turned = volume(hu, direction=((0, 0, 1), (-sine, cosine, 0), (cosine, sine, 0)))
    with pytest.raises(GeometryError, match=r"turned by 2\.9 degrees"):
        opened(tmp_path, volume(hu), turned)


@pytest.mark.parametrize("suffix", [".nii.gz", ".mha", ".npz", ".tif"])
def test_slices_from_head_to_feet_are_matched(suffix, hu, tmp_path):
    downwards = volume(
        hu[::-1],
        direction=((0, 0, -1), (0, 1, 0), (1, 0, 0)),
        origin_mm=(-20, -15, -300 + 2.5 * 3),
    )
    pair = opened(tmp_path, volume(hu), downwards, suffix)
    assert pair.manifest().slices == 4
    for before, after in shown_pairs(pair):
        np.testing.assert_array_equal(before, after)


def test_a_part_of_a_volume_is_shown_at_its_place(hu, tmp_path):
    pair = opened(tmp_path, volume(hu), volume(hu[2:], origin_mm=(-20, -15, -295)))
    assert pair.manifest().positions_mm == [5.0, 7.5]
    for before, after in shown_pairs(pair):
        np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize(
    ("origin_mm", "words"),
    [((-20, -15, -200), "no slice of after lies within"), ((-18, -15, -300), "shifted by 2.0 mm")],
)
def test_other_places_are_refused(origin_mm, words, hu, tmp_path):
    with pytest.raises(GeometryError, match=words):
        opened(tmp_path, volume(hu), volume(hu, origin_mm=origin_mm))


@pytest.mark.parametrize("code", ["RSA", "PIR"])
def test_a_file_of_coronal_planes_is_shown_in_axial_slices(code, hu, tmp_path):
    import nibabel

    write_volume(volume(hu), tmp_path / "axial.nii")
    source = nibabel.load(tmp_path / "axial.nii")
    orientations = [nibabel.io_orientation(source.affine), nibabel.orientations.axcodes2ornt(code)]
    turned = source.as_reoriented(nibabel.orientations.ornt_transform(*orientations))
    nibabel.save(turned, tmp_path / "before.nii")
    before = read_volume(tmp_path / "before.nii")
    changed = replace(before, read_slice=lambda index: before.read_slice(index) + 7)
    write_volume(changed, tmp_path / "after.nii")
    pair = LocalPair(tmp_path / "before.nii", tmp_path / "after.nii").pair("pair")
    manifest = pair.manifest()
    assert (manifest.slices, manifest.rows, manifest.columns) == (4, 33, 39)
    for index, (one, other) in enumerate(shown_pairs(pair)):
        np.testing.assert_array_equal(other, one + 7)
        source = hu[-1 - index if code[1] == "I" else index]
        np.testing.assert_array_equal(np.sort(one), np.sort(source.ravel()))


def test_arrays_are_paired_by_order(hu, tmp_path):
    pair = opened(tmp_path, volume(hu), volume(hu + 1), ".npy")
    for before, after in shown_pairs(pair):
        np.testing.assert_array_equal(before + 1, after)
    fewer = tmp_path / "fewer"
    fewer.mkdir()
    with pytest.raises(GeometryError, match="before has 4 slices, after 3"):
        opened(fewer, volume(hu), volume(hu[:3]), ".npy")


@pytest.mark.parametrize("code", ["RAS", "LPS", "ARI", "PLS", "RSA", "AIL"])
def test_a_volume_stands_upright_and_every_voxel_keeps_its_place(code, hu, tmp_path):
    import nibabel

    write_volume(volume(hu), tmp_path / "axial.nii")
    source = nibabel.load(tmp_path / "axial.nii")
    orientations = [nibabel.io_orientation(source.affine), nibabel.orientations.axcodes2ornt(code)]
    nibabel.save(
        source.as_reoriented(nibabel.orientations.ornt_transform(*orientations)),
        tmp_path / "turned.nii",
    )
    stored = read_volume(tmp_path / "turned.nii")
    turned = upright(stored)
    assert (turned.shape, turned.direction[1:]) == (hu.shape, ((0, 1, 0), (1, 0, 0)))
    down = turned.direction[0][2] < 0
    np.testing.assert_array_equal(turned.hu, hu[::-1] if down else hu)
    corner = (-20, -15, -300 + 2.5 * 3 * down)
    np.testing.assert_allclose(turned.origin_mm, corner, atol=1e-4)
    padded = replace(stored, read_padding=lambda index: stored.read_slice(index) > 60)
    np.testing.assert_array_equal(upright(padded).padding(1), turned.read_slice(1) > 60)
