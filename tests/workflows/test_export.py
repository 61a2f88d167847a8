"""Pictures of a window: rounded to the nearest level, without text, readable again."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread

from cddnet.errors import FormatError
from cddnet.formats import read_volume, write_volume
from cddnet.volume import CTVolume
from cddnet.workflows.demo import demo_series
from cddnet.workflows.export import ExportOptions, export_file

WINDOW_HU = (-160.0, 240.0)
OPTIONS = ExportOptions(window_hu=WINDOW_HU)


def ignore(done, total):
    """No bar."""


@pytest.fixture
def source(tmp_path, rng):
    """Three odd slices in and around the window, none of them on a whole HU."""
    hu = rng.uniform(-400, 500, (3, 31, 45)).astype(np.float32)
    path = tmp_path / "source.nii.gz"
    write_volume(CTVolume.from_hu(hu, (3.0, 0.7, 0.7)), path)
    return path, hu


@pytest.fixture
def dicom(tmp_path):
    folder = tmp_path / "dicom"
    folder.mkdir()
    for name in ("0001.dcm", "0002.dcm", "0005.dcm"):
        shutil.copy(demo_series() / name, folder)
    return folder


def level_hu(bits):
    return (WINDOW_HU[1] - WINDOW_HU[0]) / (2**bits - 1)


@pytest.mark.parametrize("bits", [8, 16])
def test_reading_back_is_within_half_a_level(source, tmp_path, bits):
    path, hu = source
    result = export_file(path, tmp_path / "out", replace(OPTIONS, bits=bits), ignore)
    assert result.slices == 3
    assert result.level_hu == pytest.approx(level_hu(bits))
    back = read_volume(tmp_path / "out", window_hu=WINDOW_HU).hu
    clipped = np.clip(hu, *WINDOW_HU)
    # The fraction of the window is float32: half a level, and its rounding.
    most = 0.5 * level_hu(bits) + 4 * np.finfo(np.float32).eps * 400
    assert np.abs(back - clipped).max() <= most
    # Cutting off instead of rounding would leave half a level as the mean, nothing done far more.
    inside = (hu > WINDOW_HU[0]) & (hu < WINDOW_HU[1])
    error = (back - clipped)[inside]
    assert abs(error.mean()) < 4 * level_hu(bits) / np.sqrt(12 * inside.sum())


def test_levels_are_rounded_not_cut_off(tmp_path):
    level = level_hu(8)
    hu = WINDOW_HU[0] + level * np.array([[0.4, 0.6, 1.49, 1.51, 253.6, 254.6]])
    source = tmp_path / "source.nii.gz"
    write_volume(CTVolume.from_hu(hu.astype(np.float32), (1.0, 1.0, 1.0)), source)
    export_file(source, tmp_path / "out", OPTIONS, ignore)
    with Image.open(tmp_path / "out" / "0001.png") as picture:
        assert np.asarray(picture).tolist() == [[0, 1, 1, 2, 254, 255]]


def test_names_are_in_slice_order_of_a_dicom_series(dicom, tmp_path):
    seen = []
    out = tmp_path / "out"
    export_file(dicom, out, OPTIONS, lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert sorted(file.name for file in out.iterdir()) == [
        *("0001.png", "0002.png", "0003.png"),
        "derivation.json",
    ]
    expected = np.clip(read_volume(dicom).hu, *WINDOW_HU)
    back = read_volume(out, window_hu=WINDOW_HU).hu
    assert np.abs(back - expected).max() <= 0.5 * level_hu(8) + 1e-3


def test_nothing_names_the_patient_or_the_file(dicom, tmp_path):
    header = dcmread(demo_series() / "0001.dcm", stop_before_pixels=True)
    out = tmp_path / "out"
    for picture in ("png", "jpeg"):
        target = out.with_name(picture)
        export_file(dicom, target, replace(OPTIONS, picture=picture), ignore)
        files = list(target.iterdir())
        for text in (header.PatientName, header.PatientID, header.SeriesInstanceUID, tmp_path):
            assert str(text)
            assert not any(str(text).encode() in file.read_bytes() for file in files)
        for file in files:
            if file.suffix != ".json":
                with Image.open(file) as image:
                    assert not image.info.keys() & {"exif", "comment", "Description", "Title"}
                    assert (image.mode, image.getexif().keys()) == ("L", {}.keys())


def test_the_record_says_what_was_done_and_what_is_lost(source, tmp_path):
    export_file(source[0], tmp_path / "out", OPTIONS, ignore)
    held = json.loads((tmp_path / "out" / "derivation.json").read_text())
    assert held["use"] == "research use only"
    (step,) = read_volume(tmp_path / "out", window_hu=WINDOW_HU).derivation
    told = dict(step.parameters)
    assert (told["bits"], told["format"], told["window_hu"]) == ("8", "png", "-160.0 240.0")
    assert "Lost: values outside -160 to 240 HU, differences below 1.57 HU" in step.description
    assert "lossy" not in step.description


def test_jpeg_is_near_and_said_to_be_lossy(dicom, tmp_path):
    result = export_file(dicom, tmp_path / "out", replace(OPTIONS, picture="jpeg"), ignore)
    assert "quality 95 is lossy" in result.lost
    assert "not for measurement" in result.lost
    back = read_volume(tmp_path / "out", window_hu=WINDOW_HU)
    assert any("JPEG" in note for note in back.notes)
    expected = np.clip(read_volume(dicom).hu, *WINDOW_HU)
    error = np.abs(back.hu - expected)
    assert 0.5 * level_hu(8) + 1e-3 < error.max()
    assert error.mean() < 2 * level_hu(8)


def test_pictures_of_the_same_window_come_out_as_they_are(source, tmp_path):
    export_file(source[0], tmp_path / "first", OPTIONS, ignore)
    export_file(tmp_path / "first", tmp_path / "second", OPTIONS, ignore)
    for name in ("0001.png", "0003.png"):
        first, second = (tmp_path / folder / name for folder in ("first", "second"))
        assert first.read_bytes() == second.read_bytes()
    assert len(read_volume(tmp_path / "second", window_hu=WINDOW_HU).derivation) == 2


def test_an_existing_output_is_refused_and_kept(source, tmp_path):
    out = tmp_path / "out"
    export_file(source[0], out, OPTIONS, ignore)
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    with pytest.raises(FormatError, match="exists already"):
        export_file(source[0], out, replace(OPTIONS, bits=16), ignore)
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before


def test_an_interrupted_export_leaves_nothing(source, tmp_path):
    def stop(done, total):
        if done == 2:
            raise KeyboardInterrupt

    before = sorted(tmp_path.iterdir())
    with pytest.raises(KeyboardInterrupt):
        export_file(source[0], tmp_path / "out", OPTIONS, stop)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"window_hu": (240.0, -160.0)}, "low, then high"),
        ({"window_hu": (0.0, float("inf"))}, "low, then high"),
        ({"bits": 12}, "png has 8 or 16"),
        ({"picture": "jpeg", "bits": 16}, "jpeg has 8"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_made(source, tmp_path, change, reason):
    before = sorted(tmp_path.iterdir())
    with pytest.raises(FormatError, match=reason):
        export_file(source[0], tmp_path / "out", replace(OPTIONS, **change), ignore)
    assert sorted(tmp_path.iterdir()) == before
