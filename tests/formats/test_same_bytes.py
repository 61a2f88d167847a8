"""The same volume gives the same bytes, whatever the clock says and wherever it is written."""

import time
from dataclasses import replace
from datetime import datetime, timezone

import numpy as np
import pytest
from dicom_series import (
    STEP,
    ct_dataset,
    derive,
    enhanced_dataset,
    fingerprint,
    read,
    save,
    save_series,
)
from pydicom import dcmread

from cddnet.formats import write_volume
from cddnet.formats._new_series import NewSeries, write_new_series
from cddnet.formats._parametric import PREDICTED_NOISE, write_parametric_map
from cddnet.volume import CTVolume
from cddnet.workflows._pictures import write_named

WINDOW_HU = (-160.0, 240.0)
YEAR_S = 366 * 86_400
NAMES = (
    "a.nii",
    "a.nii.gz",
    "a.mha",
    "a.mhd",
    "a.npy",
    "a.npz",
    "a.tif",
    "a.tiff",
    "a.png",
    "a.jpg",
)


@pytest.fixture
def next_year(monkeypatch):
    """Call it, and every clock that a library may ask is a year on."""
    clocks = {name: getattr(time, name) for name in ("time", "time_ns", "localtime", "gmtime")}

    def turn():
        monkeypatch.setattr(time, "time", lambda: clocks["time"]() + YEAR_S)
        monkeypatch.setattr(time, "time_ns", lambda: clocks["time_ns"]() + YEAR_S * 10**9)
        for name in ("localtime", "gmtime"):
            clock = clocks[name]
            monkeypatch.setattr(
                time, name, lambda at=None, clock=clock: clock(time.time() if at is None else at)
            )

    return turn


def noise(slices=3):
    hu = np.random.default_rng(3).normal(0, 50, (slices, 24, 20)).astype(np.float32)
    return CTVolume.from_hu(hu, (2.0, 0.7, 0.8), derivation=(STEP,), thickness_mm=2.0)


def plain(folder, name):
    bits = 8 if name.endswith("jpg") else 16
    write_volume(noise(), folder / name, window_hu=WINDOW_HU, bits=bits)


def one_picture(folder, name):
    write_volume(noise(1), folder / name, window_hu=WINDOW_HU, bits=8)


def named_pictures(folder, name):
    window_hu = WINDOW_HU if name == "png" else None
    write_named(noise(), folder / name, ("x", "y", "z"), window_hu)


def new_series(folder, name):
    phantom = NewSeries("water", WINDOW_HU)
    write_new_series(noise(), folder / name, phantom)


def source(folder, name):
    """The series to derive from, made anew, so that its files have other times too."""
    if name.startswith("enhanced"):
        return read(save(enhanced_dataset(), folder / "source.dcm"))
    return read(save_series(folder / "source", [ct_dataset(index) for index in range(3)]))


def derived(folder, name):
    step = (
        replace(STEP, created=datetime(2026, 2, 3, tzinfo=timezone.utc))
        if "dated" in name
        else STEP
    )
    write_volume(derive(source(folder, name), step=step), folder / name)


def parametric_map(folder, name):
    write_parametric_map(derive(source(folder, name)), folder / f"{name}.dcm", PREDICTED_NOISE)


CASES = [
    *((plain, name) for name in NAMES),
    *((one_picture, name) for name in ("a.png", "a.jpg")),
    *((named_pictures, name) for name in ("png", "tif")),
    (new_series, "series"),
    *((derived, name) for name in ("series", "enhanced.dcm", "dated", "enhanced_dated.dcm")),
    *((parametric_map, name) for name in ("map", "enhanced_map")),
]


@pytest.mark.parametrize(("write", "name"), CASES, ids=[f"{w.__name__} {n}" for w, n in CASES])
def test_the_same_volume_gives_the_same_bytes(tmp_path, next_year, write, name):
    for folder in ("one", "another folder"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder, name)
        next_year()
    first, second = (fingerprint(tmp_path / folder) for folder in ("one", "another folder"))
    assert first == second


def test_the_clock_of_this_test_is_turned(next_year):
    before = time.localtime().tm_year, time.gmtime().tm_year
    next_year()
    assert (time.localtime().tm_year, time.gmtime().tm_year) == tuple(year + 1 for year in before)


@pytest.mark.parametrize("enhanced", [False, True])
def test_another_moment_is_another_object_unless_the_series_grows(tmp_path, enhanced):
    volume = source(tmp_path, "enhanced" if enhanced else "")
    moments = [datetime(2026, 2, 3, second, tzinfo=timezone.utc) for second in (1, 2)]

    def uids(name, **changes):
        target = tmp_path / (f"{name}.dcm" if enhanced else name)
        write_volume(derive(volume, step=replace(STEP, **changes)), target)
        file = target if enhanced else target / "0001.dcm"
        result = dcmread(file)
        return result.SOPInstanceUID, result.SeriesInstanceUID

    undated, first, second = uids("a"), uids("b", created=moments[0]), uids("c", created=moments[1])
    assert not set(undated) & set(first)
    assert not set(first) & set(second)
    growing = [uids(f"d{index}", created=at, grows=True) for index, at in enumerate(moments)]
    assert growing[0] == growing[1]


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({}, ("20240102", "101112")),
        ({"ContentTime": ""}, ("20240103", "111213")),
        ({"ContentDate": None, "AcquisitionTime": None}, ("20240104", "121314")),
        (
            {"ContentDate": None, "AcquisitionDateTime": "20240105131415.5+0100"},
            ("20240105", "131415.5"),
        ),
        (
            {"ContentDate": None, "AcquisitionDateTime": "20240105131415-0100"},
            ("20240105", "131415"),
        ),
        (
            dict.fromkeys(("ContentDate", "AcquisitionDate", "SeriesDate"), ""),
            ("20240101", "091011"),
        ),
    ],
)
def test_a_map_states_when_its_source_was_made(tmp_path, told, expected):
    dataset = ct_dataset()
    dataset.AcquisitionDate, dataset.AcquisitionTime = "20240103", "111213"
    dataset.SeriesDate, dataset.SeriesTime = "20240104", "121314"
    dataset.StudyDate, dataset.StudyTime = "20240101", "091011"
    for keyword, value in told.items():
        if value is None:
            del dataset[keyword]
        else:
            setattr(dataset, keyword, value)
    volume = read(save(dataset, tmp_path / "a.dcm"))
    write_parametric_map(derive(volume), tmp_path / "map.dcm", PREDICTED_NOISE)
    result = dcmread(tmp_path / "map.dcm")
    assert (result.ContentDate, str(result.ContentTime)) == expected
    assert "InstanceCreationDate" not in result


@pytest.mark.parametrize(
    ("study", "created", "expected"),
    [
        ("", datetime(2026, 2, 3, 4, 5, 6, tzinfo=timezone.utc), ("20260203", "040506.000000")),
        ("20240101", None, ("20240101", "000000")),
        ("", None, ("19000101", "000000")),
    ],
)
def test_a_map_of_a_source_without_times_is_legal_too(tmp_path, study, created, expected):
    dataset = ct_dataset()
    for event in ("Study", "Series", "Acquisition", "Content"):
        for part in ("Date", "Time"):
            setattr(dataset, f"{event}{part}", "")
    dataset.StudyDate = study
    volume = read(save(dataset, tmp_path / "a.dcm"))
    step = replace(STEP, created=created)
    write_parametric_map(derive(volume, step=step), tmp_path / "map.dcm", PREDICTED_NOISE)
    result = dcmread(tmp_path / "map.dcm")
    assert (result.ContentDate, result.ContentTime) == expected
