"""`cddnet view` pairs slices by position, and refuses what is not one grid in one orientation."""

from dataclasses import replace

import numpy as np
import pytest

from cddnet.cli import main
from cddnet.errors import GeometryError
from cddnet.formats import read_volume, write_volume
from cddnet.node.web.pairs import LocalPair
from cddnet.volume import CTVolume
from cddnet.workflows.evaluate import EvaluateOptions, evaluate

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


@pytest.mark.parametrize("suffix", [".nii.gz", ".mha", ".npz"])
@pytest.mark.parametrize(
    ("turn", "words"),
    [
        (rows_up, "rows from back to front, columns from right to left"),
        (columns_back, "rows from front to back, columns from left to right"),
        (both, "rows from back to front, columns from left to right"),
    ],
)
def test_two_orientations_are_refused_in_words_and_evaluate_decides_alike(
    turn, words, suffix, hu, tmp_path
):
    with pytest.raises(GeometryError, match="different orientations") as refused:
        opened(tmp_path, volume(hu), turn(hu), suffix)
    assert words in str(refused.value)
    assert "rows from front to back, columns from right to left before" in str(refused.value)
    options = EvaluateOptions(with_physics=False)
    with pytest.raises(GeometryError, match="the orientation is") as evaluated:
        evaluate(
            tmp_path / f"before{suffix}",
            {"after": tmp_path / f"after{suffix}"},
            protocol="redcnn",
            options=options,
        )
    assert words in str(evaluated.value)


def test_the_command_says_it_and_starts_no_page(hu, tmp_path, monkeypatch, capsys):
    write_volume(volume(hu), tmp_path / "a.nii")
    write_volume(rows_up(hu), tmp_path / "b.nii")
    arguments = ["cddnet", "view", str(tmp_path / "a.nii"), str(tmp_path / "b.nii"), "--no-browser"]
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
