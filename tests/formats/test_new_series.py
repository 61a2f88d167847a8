"""A series that no scanner made: read back, legal, reproducible, whole or not there."""

from dataclasses import replace

import numpy as np
import pytest
from pydicom import dcmread

from cddnet.errors import FormatError
from cddnet.formats import read_volume
from cddnet.formats._new_series import NewSeries, write_new_series
from cddnet.volume import Acquisition, CTVolume, Derivation
from peers import complaints, peer

STEP = Derivation(
    label="phantom disc",
    description="Simulated disc. Research use only.",
    parameters=(("seed", "3"),),
    version="9.9",
)
DESCRIPTION = NewSeries("disc", (-100.0, 300.0))


@pytest.fixture
def volume(rng):
    hu = rng.normal(0, 700, (3, 33, 47)).astype(np.float32)
    hu[0, 0, :2] = -3000.4, 4000.4
    return CTVolume.from_hu(
        hu,
        (2.5, 0.8125, 0.6),
        origin_mm=(-12.5, 7.25, 30.0),
        thickness_mm=3.0,
        acquisition=Acquisition(kernel="cddnet soft"),
        derivation=(STEP,),
    )


def bytes_of(folder):
    return [file.read_bytes() for file in sorted(folder.iterdir())]


def test_what_is_written_is_read_back(volume, tmp_path):
    uid = write_new_series(volume, tmp_path / "out", DESCRIPTION)
    back = read_volume(tmp_path / "out")
    assert back.shape == volume.shape
    assert np.abs(back.hu - volume.hu).max() <= 0.5
    assert back.hu.min() == -3000
    assert back.spacing_mm == pytest.approx(volume.spacing_mm, rel=1e-12)
    assert back.origin_mm == pytest.approx(volume.origin_mm, rel=1e-12)
    assert np.allclose(back.direction, volume.direction)
    assert back.thickness_mm == 3.0
    assert back.series_uid == uid
    assert back.acquisition.kernel == "cddnet soft"
    assert back.acquisition.patient_id == "cddnet-phantom-disc"
    assert back.volume_problems == ()
    assert back.notes == ("the source is itself a derived image, not the scanner's original",)


def test_tilted_slices_keep_their_place(volume, tmp_path):
    cosine, sine = 0.8, 0.6
    tilted = replace(
        volume,
        direction=((0.0, -sine, cosine), (0.0, cosine, sine), (1.0, 0.0, 0.0)),
        positions_mm=(0.0, 2.5, 5.0),
    )
    write_new_series(tilted, tmp_path / "out", DESCRIPTION)
    back = read_volume(tmp_path / "out")
    assert np.allclose(back.direction, tilted.direction)
    assert back.origin_mm == pytest.approx(volume.origin_mm)
    assert np.abs(back.hu - volume.hu).max() <= 0.5


def test_headers_say_what_it_is(volume, tmp_path):
    write_new_series(volume, tmp_path / "out", DESCRIPTION)
    headers = [dcmread(file) for file in sorted((tmp_path / "out").iterdir())]
    first = headers[0]
    assert str(first.PatientName) == "PHANTOM^disc"
    assert list(first.ImageType) == ["DERIVED", "SECONDARY", "AXIAL"]
    assert "Simulated disc. Research use only." in first.DerivationDescription
    assert "seed=3" in first.DerivationDescription
    assert first.SeriesDescription == "phantom disc research"
    assert first.QualityControlImage == "YES"
    assert (first.RescaleSlope, first.RescaleIntercept, first.KVP) == (1, -1024, None)
    assert (first.WindowCenter, first.WindowWidth) == (100, 400)
    assert len({header.SOPInstanceUID for header in headers}) == 3
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
        assert len({header[keyword].value for header in headers}) == 1
    assert [header.ImagePositionPatient[2] for header in headers] == [30, 32.5, 35]


def test_the_same_recipe_gives_the_same_bytes_and_another_one_other_uids(volume, tmp_path):
    first = write_new_series(volume, tmp_path / "a", DESCRIPTION)
    assert write_new_series(volume, tmp_path / "b", DESCRIPTION) == first
    assert bytes_of(tmp_path / "a") == bytes_of(tmp_path / "b")
    others = [
        replace(volume, derivation=(replace(STEP, parameters=(("seed", "4"),)),)),
        replace(volume, origin_mm=(0.0, 0.0, 0.0)),
        replace(volume, thickness_mm=2.0),
        replace(volume, acquisition=Acquisition(kernel="cddnet sharp")),
    ]
    uids = {
        write_new_series(other, tmp_path / f"c{number}", DESCRIPTION)
        for number, other in enumerate(others)
    }
    assert len(uids - {first}) == len(others)


def test_an_odd_number_of_pixels_stays_even_in_the_file(volume, tmp_path):
    odd = replace(volume, shape=(3, 33, 45), read_slice=lambda i: volume.read_slice(i)[:, :45])
    write_new_series(odd, tmp_path / "out", DESCRIPTION)
    assert all(len(content) % 2 == 0 for content in bytes_of(tmp_path / "out"))
    assert np.abs(read_volume(tmp_path / "out").hu - odd.hu).max() <= 0.5


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"headers": object()}, "comes from DICOM"),
        ({"derivation": ()}, "derivation"),
        ({"thickness_mm": None}, "thickness"),
        ({"shape": (3, 33, 33)}, "has shape"),
    ],
)
def test_what_cannot_be_told_is_refused(volume, tmp_path, changes, reason):
    with pytest.raises(FormatError, match=reason):
        write_new_series(replace(volume, **changes), tmp_path / "out", DESCRIPTION)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["", "John^Doe", "a" * 33, "disc\\x"])
def test_a_name_is_no_place_for_anything_else(volume, tmp_path, name):
    with pytest.raises(FormatError, match="is no name"):
        write_new_series(volume, tmp_path / "out", NewSeries(name, (0.0, 1.0)))


@pytest.mark.parametrize("value", [np.nan, np.inf, 40_000.0, -40_000.0])
def test_nothing_is_left_of_a_series_that_fails_at_its_last_slice(volume, tmp_path, value):
    def read_slice(index):
        hu = volume.read_slice(index).copy()
        hu[5, 5] = value if index == 2 else 0
        return hu

    with pytest.raises(FormatError, match="slice 3"):
        write_new_series(replace(volume, read_slice=read_slice), tmp_path / "out", DESCRIPTION)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_left_of_an_interrupted_series_and_nothing_overwritten(volume, tmp_path):
    def read_slice(index):
        if index == 1:
            raise KeyboardInterrupt
        return volume.read_slice(index)

    with pytest.raises(KeyboardInterrupt):
        write_new_series(replace(volume, read_slice=read_slice), tmp_path / "out", DESCRIPTION)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").touch()
    with pytest.raises(FormatError, match="nothing is overwritten"):
        write_new_series(volume, tmp_path / "out", DESCRIPTION)
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["precious"]


@pytest.mark.net
def test_dciodvfy_and_dcentvfy_find_nothing_but_the_missing_date(volume, tmp_path):
    write_new_series(volume, tmp_path / "out", DESCRIPTION)
    files = sorted((tmp_path / "out").iterdir())
    allowed = ("StudyDate", "StudyTime", "StudyID")
    for file in files:
        said = {line for line in complaints(file) if not any(word in line for word in allowed)}
        assert said == set()
        assert not any(line.startswith("Error") for line in complaints(file))
    together = peer("dcentvfy", *map(str, files))
    assert together.stdout + together.stderr == ""
