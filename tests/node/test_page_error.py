"""The expected error on the page: its numbers, its places, its pixels."""

import numpy as np
import pytest
from small_page import DEMO, write_after

from cddnet.errors import CddnetError, GeometryError
from cddnet.formats import read_volume, write_volume
from cddnet.formats._parametric import (
    PREDICTED_ERROR,
    PREDICTED_NOISE,
    write_parametric_map,
)
from cddnet.node.web.pairs import LocalPair, Pair
from cddnet.volume import CTVolume, Derivation

TestClient = pytest.importorskip("fastapi.testclient").TestClient

from cddnet.node.web.access import Access  # noqa: E402
from cddnet.node.web.http import app  # noqa: E402

STEP = Derivation(label="expected error", description="A test", parameters=(), version="0")
SPACING_MM = (3.0, 0.7, 0.9)


def error_hu(index, shape=(512, 512)):
    """What no other slice holds, with tenths of HU, and one value beyond 16 bits."""
    values = np.random.default_rng(index).uniform(0.5, 30 + index, shape).astype(np.float32)
    values[1, 2] = 4000
    return values


def write_map(path, quantity=PREDICTED_ERROR):
    write_parametric_map(read_volume(DEMO).derived(error_hu, STEP), path, quantity)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("error")
    write_after(made / "after")
    write_after(made / "part", slice(3, 11, 2))
    write_map(made / "error.dcm")
    return made


@pytest.fixture
def arrays(rng):
    """A series of a format without DICOM header, before and after, and its error."""
    hu = rng.normal(40, 30, (3, 11, 7)).astype(np.float32)
    error = rng.uniform(0.5, 20, hu.shape).astype(np.float32)
    return *(CTVolume.from_hu(a, SPACING_MM) for a in (hu, hu + 5)), error


def stored(values):
    """The oracle: tenths of HU as the page gets them."""
    return np.clip(np.rint(values * np.float32(10)), -32768, 32767).astype("<i2").tobytes()


@pytest.mark.parametrize(("after", "slices"), [("after", range(12)), ("part", range(3, 11, 2))])
def test_the_layer_is_the_map_at_the_place_of_each_slice(folder, after, slices):
    local = LocalPair(DEMO, folder / after, error=folder / "error.dcm")
    client = TestClient(app(local, Access()), base_url="http://localhost")
    told = client.get("/api/pairs/pair").json()
    assert told["slices"] == len(slices)
    assert told["layers"][3] == {"name": "error", "label": "expected error", "hu_per_unit": 0.1}
    for index, source in enumerate(slices):
        got = client.get(f"/api/pairs/pair/error/{index}").content
        assert got == stored(error_hu(source))
    assert client.get(f"/api/pairs/pair/error/{len(slices)}").status_code == 404


def test_without_a_map_there_is_no_such_layer(folder):
    client = TestClient(
        app(LocalPair(DEMO, folder / "after"), Access()), base_url="http://localhost"
    )
    names = [layer["name"] for layer in client.get("/api/pairs/pair").json()["layers"]]
    assert names == ["before", "after", "noise"]
    assert client.get("/api/pairs/pair/error/0").status_code == 404


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_an_array_is_the_map_of_a_series_without_dicom(arrays, tmp_path, suffix):
    before, after, error = arrays
    for name, volume in (("before.nii.gz", before), ("after.nii.gz", after)):
        write_volume(volume, tmp_path / name)
    path = tmp_path / f"error{suffix}"
    write_volume(before.derived(error.__getitem__, STEP), path)
    pair = LocalPair(tmp_path / "before.nii.gz", tmp_path / "after.nii.gz", error=path).pair("pair")
    for index in range(3):
        assert pair.slice_bytes("error", index) == stored(error[index])


@pytest.mark.parametrize("change", [lambda e: e[:2], lambda e: e[:, 1:], lambda e: e[..., :-1]])
def test_a_map_of_other_slices_is_refused(arrays, change):
    before, after, error = arrays
    with pytest.raises(GeometryError, match="the expected error"):
        Pair(before, after, error=CTVolume.from_hu(change(error), SPACING_MM))


def test_a_map_that_lacks_slices_or_lies_elsewhere_is_refused(folder, tmp_path):
    part = read_volume(folder / "part").derived(error_hu, STEP)
    write_parametric_map(part, tmp_path / "part.dcm", PREDICTED_ERROR)
    with pytest.raises(GeometryError, match="lacks 8 of the 12 slices"):
        LocalPair(DEMO, folder / "after", error=tmp_path / "part.dcm")
    # Of the part alone it is whole.
    shown = LocalPair(DEMO, folder / "part", error=tmp_path / "part.dcm").pair("pair")
    assert shown.slice_bytes("error", 2) == stored(error_hu(2))


def test_another_map_and_a_map_of_a_lone_series_are_refused(folder, tmp_path):
    write_map(tmp_path / "noise.dcm", PREDICTED_NOISE)
    with pytest.raises(CddnetError, match="expected EXPECTED_ERROR"):
        LocalPair(DEMO, folder / "after", error=tmp_path / "noise.dcm")
    with pytest.raises(CddnetError, match="give both"):
        LocalPair(DEMO, None, error=folder / "error.dcm")
    with pytest.raises(CddnetError, match="no such file"):
        LocalPair(DEMO, folder / "after", error=tmp_path / "none.dcm")
