"""What every format but DICOM owes: what was written is read again, or refused."""

import shutil
from dataclasses import replace

import numpy as np
import pytest

from cddnet import plugins
from cddnet.errors import FormatError, GeometryError
from cddnet.formats import head_of, read_volume, write_volume
from cddnet.volume import CTVolume, Derivation

NAMES = [name for name in plugins.names("formats") if name != "dicom"]
SUFFIXES = [suffix for name in NAMES for suffix in plugins.load("formats", name).SUFFIXES]

WINDOW = (-1024.0, 3071.0)
GREY_BITS = {".png": 16, ".jpg": 8, ".jpeg": 8}
WITHOUT_GEOMETRY = {".npy", *GREY_BITS}

STEP = Derivation(
    label="cddnet 80%",
    description="Low-dose denoising",
    parameters=(("seed", "7"), ("strength", "0.8")),
    version="0.1.0",
    weights_sha256="ab" * 32,
)


def options_for(suffix):
    if suffix in GREY_BITS:
        return {"window_hu": WINDOW, "bits": GREY_BITS[suffix]}
    return {}


def window_for(suffix):
    return {"window_hu": WINDOW} if suffix in GREY_BITS else {}


def tolerance_hu(suffix):
    """Half a grey level; JPEG changes this smooth volume by at most two levels more."""
    if suffix not in GREY_BITS:
        return 0.0
    level = (WINDOW[1] - WINDOW[0]) / (2 ** GREY_BITS[suffix] - 1)
    return level * (0.51 if suffix == ".png" else 2.5)


def oblique() -> tuple[tuple[float, float, float], ...]:
    about_z = np.array([[np.cos(0.3), -np.sin(0.3), 0], [np.sin(0.3), np.cos(0.3), 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, np.cos(0.5), -np.sin(0.5)], [0, np.sin(0.5), np.cos(0.5)]])
    column, row, normal = (about_z @ about_x).T
    return tuple(tuple(map(float, axis)) for axis in (normal, row, column))


def volume_of(depth=3, **fields) -> CTVolume:
    """Smooth, different along every axis in both directions, with parts of an HU."""
    d, h, w = np.mgrid[:depth, :17, :23].astype(np.float32)
    hu = -900 + 410 * d + 35.3 * h + 61.7 * w - 2.1 * h * w
    assert hu.min() > WINDOW[0]
    assert hu.max() < WINDOW[1]
    geometry = {"origin_mm": (-112.3, 45.6, -789.1), "direction": oblique()}
    return CTVolume.from_hu(hu, (2.5, 0.7, 0.8), **{**geometry, **fields})


def differences(expected: CTVolume, found: CTVolume, *, hu: float) -> list[str]:
    """What of a volume did not survive; positions to 0.1 micrometre at 1 m, as float32 holds."""
    if expected.shape != found.shape:
        return ["shape"]
    wrong = [] if np.abs(expected.hu - found.hu).max() <= hu else ["hu"]
    for name, tolerance in (("spacing_mm", 1e-6), ("origin_mm", 1e-4), ("direction", 1e-6)):
        if not np.allclose(getattr(expected, name), getattr(found, name), rtol=0, atol=tolerance):
            wrong.append(name)
    return wrong


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("depth", [1, 3])
def test_what_was_written_is_read_again(suffix, depth, tmp_path):
    volume = volume_of(depth)
    path = tmp_path / f"scan{suffix}"
    write_volume(volume, path, **options_for(suffix))
    found = read_volume(path, **window_for(suffix))
    if suffix in WITHOUT_GEOMETRY:
        assert any("geometry" in note for note in found.notes)
        found = replace(
            found,
            spacing_mm=volume.spacing_mm,
            origin_mm=volume.origin_mm,
            direction=volume.direction,
        )
    else:
        assert found.notes == ()
    assert differences(volume, found, hu=tolerance_hu(suffix)) == []
    assert found.hu.dtype == np.float32


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_comparison_sees_every_swap(suffix):
    volume, tolerance = volume_of(), tolerance_hu(suffix)
    for axis in range(3):
        swapped = volume.hu[tuple(slice(None, None, -1 if axis == n else 1) for n in range(3))]
        found = CTVolume.from_hu(
            swapped, volume.spacing_mm, origin_mm=volume.origin_mm, direction=volume.direction
        )
        assert differences(volume, found, hu=tolerance) == ["hu"]
    turned = volume.hu.transpose(0, 2, 1)
    assert differences(volume, CTVolume.from_hu(turned, (1, 1, 1)), hu=tolerance) == ["shape"]
    nothing = CTVolume.from_hu(np.zeros(volume.shape, np.float32), (1.0, 1.0, 1.0))
    missing = ["hu", "spacing_mm", "origin_mm", "direction"]
    assert differences(volume, nothing, hu=tolerance) == missing
    axes = replace(volume, direction=volume.direction[::-1])
    assert differences(volume, axes, hu=tolerance) == ["direction"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_slices_are_read_in_any_order(suffix, tmp_path):
    path = tmp_path / f"scan{suffix}"
    write_volume(volume_of(5), path, **options_for(suffix))
    found = read_volume(path, **window_for(suffix))
    in_order = found.hu
    for index in (3, 1, 4, 4, 0):
        np.testing.assert_array_equal(found.read_slice(index), in_order[index])
    with pytest.raises(IndexError):
        found.read_slice(5)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_content_decides_and_exactly_one_format_knows_it(suffix, tmp_path):
    path, other = tmp_path / f"scan{suffix}", tmp_path / "renamed.dat"
    volume = volume_of(1)
    write_volume(volume, path, **options_for(suffix))
    if suffix == ".mhd":
        other = other.with_suffix(".other")
    shutil.copy(path, other)
    found = read_volume(other, **window_for(suffix))
    assert np.abs(found.hu - volume.hu).max() <= tolerance_hu(suffix)
    head = head_of(other)
    formats = [plugins.load("formats", name) for name in plugins.names("formats")]
    assert sum(module.recognises(head) for module in formats) == 1


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_nothing_is_overwritten(suffix, tmp_path):
    path = tmp_path / f"scan{suffix}"
    path.write_bytes(b"precious")
    with pytest.raises(FormatError, match="exists already"):
        write_volume(volume_of(), path, **options_for(suffix))
    assert [item.name for item in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == b"precious"


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_failure_half_way_leaves_nothing(suffix, tmp_path):
    volume = volume_of()

    def read_slice(index):
        if index == 2:
            raise KeyboardInterrupt
        return volume.read_slice(index)

    with pytest.raises(KeyboardInterrupt):
        write_volume(
            replace(volume, read_slice=read_slice),
            tmp_path / f"scan{suffix}",
            **options_for(suffix),
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_no_number_is_not_written(suffix, bad, tmp_path):
    hu = volume_of().hu
    hu[1, 3, 4:6] = bad
    with pytest.raises(FormatError, match=r"slice 2: 2 of 391 values are NaN or infinite"):
        write_volume(
            CTVolume.from_hu(hu, (1, 1, 1)), tmp_path / f"scan{suffix}", **options_for(suffix)
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("depth", [1, 3])
def test_the_record_of_processing_travels_along(suffix, depth, tmp_path):
    volume = volume_of(depth, derivation=(STEP, replace(STEP, label="again", neighbours=2)))
    path = tmp_path / f"scan{suffix}"
    write_volume(volume, path, **options_for(suffix))
    assert read_volume(path, **window_for(suffix)).derivation == volume.derivation
    texts = [file.read_bytes() for file in tmp_path.rglob("*.json")]
    if suffix == ".npz":
        texts = [str(np.load(path)["derivation"]).encode()]
    assert len(texts) == 1
    assert b"research use only" in texts[0]


@pytest.mark.parametrize("suffix", [s for s in SUFFIXES if s != ".npz"])
def test_a_record_left_over_from_another_file_is_not_taken_over(suffix, tmp_path):
    path = tmp_path / f"scan{suffix}"
    write_volume(volume_of(1, derivation=(STEP,)), path, **options_for(suffix))
    path.unlink()
    path.with_suffix(".raw").unlink(missing_ok=True)
    with pytest.raises(FormatError, match="would be taken for the record"):
        write_volume(volume_of(1), path, **options_for(suffix))


@pytest.mark.parametrize("suffix", [s for s in SUFFIXES if s not in WITHOUT_GEOMETRY])
def test_gaps_are_refused_where_the_geometry_is_written(suffix, tmp_path):
    with pytest.raises(GeometryError, match="a gap"):
        write_volume(volume_of(volume_problems=("a gap",)), tmp_path / f"scan{suffix}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", [s for s in SUFFIXES if s not in WITHOUT_GEOMETRY])
@pytest.mark.parametrize(
    ("direction", "words"),
    [
        (((0, np.sin(0.2), np.cos(0.2)), (0, 1, 0), (1, 0, 0)), "leans by 11.5 degrees"),
        (((np.sin(-0.3), 0, np.cos(0.3)), (0, 1, 0), (1, 0, 0)), "leans by 17.2 degrees"),
        (((0, 0, 1), (0, 1, 0), (np.cos(0.01), np.sin(0.01), 0)), "meet at 89.43 degrees"),
    ],
)
def test_skewed_axes_are_kept_with_a_note(suffix, direction, words, tmp_path):
    volume, path = volume_of(direction=direction), tmp_path / f"scan{suffix}"
    write_volume(volume, path)
    found = read_volume(path)
    assert differences(volume, found, hu=0.0) == []
    assert found.notes == found.skew
    assert len(found.skew) == 1
    assert words in found.skew[0]


@pytest.mark.parametrize("suffix", [s for s in SUFFIXES if s not in WITHOUT_GEOMETRY])
def test_a_left_handed_grid_keeps_its_side(suffix, tmp_path):
    normal, row, column = oblique()
    volume = volume_of(direction=(tuple(-x for x in normal), row, column))
    path = tmp_path / f"scan{suffix}"
    write_volume(volume, path)
    assert differences(volume, read_volume(path), hu=0.0) == []
