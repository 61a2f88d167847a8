"""Depth and noise maps of a series: those of the physics, whole or not at all."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread

from cddnet.errors import CddnetError, FormatError
from cddnet.formats import read_volume
from cddnet.physics.beam import Scanner, SliceGeometry
from cddnet.physics.depth import predicted_noise_hu, radiological_depth
from cddnet.physics.kernel import Kernel
from cddnet.training.slices import filled
from cddnet.volume import CTVolume
from cddnet.workflows import depth as workflow
from cddnet.workflows._matching import SourceNoise
from cddnet.workflows.demo import demo_series
from cddnet.workflows.depth import DepthOptions, depth_file

MATCHED = SourceNoise(
    kernel=Kernel(cutoff_per_mm=0.9),
    scanner=Scanner(photons=2e8, electronic_std=0.0),
    geometry=SliceGeometry(pixel_mm=3.0, thickness_mm=5.0),
    measured=None,
    model_frequency_per_mm=None,
    basis="made up",
)
AUTO = DepthOptions()


def ignore(what, done, total):
    """No bar."""


@pytest.fixture
def matched(monkeypatch):
    """Physics of a series without a look at it."""
    asked = []

    def match_source(volume, *, kernel):
        asked.append(kernel)
        return MATCHED

    monkeypatch.setattr(workflow, "match_source", match_source)
    return asked


@pytest.fixture
def body():
    """Two odd slices of a disc with a heart of bone, and padding in a corner."""
    rows, columns = np.indices((63, 81))
    radius = np.hypot(rows - 31, columns - 40)
    hu = np.where(radius < 25, 40.0, -1000.0)
    hu = np.stack([hu, np.where(radius < 8, 900.0, hu)]).astype(np.float32)
    hu[:, :9, :9] = 3000
    return hu


@pytest.fixture
def source(monkeypatch, matched, body):
    """Stands for a file of the body, its corner padding, its slices unevenly spaced."""
    padding = body[0] == 3000
    volume = CTVolume.from_hu(
        body,
        (5.0, 3.0, 3.0),
        read_padding=lambda index: padding,
        volume_problems=("slices are missing",),
        notes=("a note",),
    )
    monkeypatch.setattr(workflow, "read_volume", lambda path, **options: volume)
    return volume


@pytest.fixture
def dicom(tmp_path):
    """Three real slices, one missing between them."""
    folder = tmp_path / "dicom"
    folder.mkdir()
    for name in ("0005.dcm", "0006.dcm", "0008.dcm"):
        shutil.copy(demo_series() / name, folder)
    return folder


def expected_depth(hu, dose_fraction=1.0):
    return radiological_depth(
        hu, MATCHED.geometry, dose_fraction=dose_fraction, scanner=MATCHED.scanner
    )


def expected_noise(depth, dose_fraction=1.0):
    return predicted_noise_hu(
        depth,
        MATCHED.geometry,
        dose_fraction=dose_fraction,
        scanner=MATCHED.scanner,
        kernel=MATCHED.kernel,
    )


def test_the_maps_are_those_of_the_physics_with_padding_as_air(source, body, tmp_path):
    result = depth_file(tmp_path, tmp_path / "out", AUTO, ignore)
    measured = np.where(body == 3000, np.float32(-1000), body)
    depth = np.stack([expected_depth(hu) for hu in measured])
    noise = np.stack([expected_noise(item) for item in depth])
    assert result.files == ("depth.npy", "noise.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "depth.npy"), depth)
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "noise.npy"), noise)
    assert result.depth_range == (depth.min(), depth.max())
    assert result.noise_range_hu == (noise.min(), noise.max())
    inside = np.hypot(*(np.indices(body.shape[1:]) - np.array([31, 40])[:, None, None])) < 25
    medians = [np.median(item[inside]) for item in noise]
    # The body is opened by three pixels, which this disc hardly feels.
    assert result.body_noise_hu == pytest.approx(np.median(medians), rel=0.02)
    assert (result.basis, result.notes) == ("made up", ("a note",))
    as_if_measured = np.stack([expected_depth(hu) for hu in body])
    assert np.abs(as_if_measured - depth).max() > 0.1


def test_the_noise_of_a_quarter_of_the_dose_is_twice_that(source, tmp_path):
    for name, dose in (("full", 1.0), ("quarter", 0.25)):
        depth_file(tmp_path, tmp_path / name, DepthOptions(dose_fraction=dose), ignore)
    full, quarter = (np.load(tmp_path / name / "noise.npy") for name in ("full", "quarter"))
    # The logarithm of a count adds 5/2 of its variance: 4e3 photons are left here.
    np.testing.assert_allclose(quarter, 2 * full, rtol=1.25 / 4e3)


def test_the_record_beside_an_array_says_what_it_holds(source, tmp_path):
    depth_file(tmp_path, tmp_path / "out", DepthOptions(dose_fraction=0.5), ignore)
    for name, unit in (("depth", "no unit"), ("noise", "in HU")):
        held = json.loads((tmp_path / "out" / f"{name}.npy.json").read_text())
        (step,) = held["derivation"]
        assert held["use"] == "research use only"
        assert unit in step["description"]
        assert dict(step["parameters"])["dose_fraction"] == "0.5"


def test_maps_of_dicom_are_parametric_maps_of_its_slices(dicom, matched, tmp_path):
    seen = []
    result = depth_file(dicom, tmp_path / "out", AUTO, lambda *told: seen.append(told))
    assert matched == ["auto"]
    assert seen == [(what, done, 3) for what in ("depth", "drawing") for done in (1, 2, 3)]
    assert sorted(item.name for item in (tmp_path / "out").iterdir()) == [
        *("depth.dcm", "noise.dcm", "png"),
    ]
    volume = read_volume(dicom)
    assert volume.volume_problems
    maps = [dcmread(tmp_path / "out" / name) for name in result.files]
    for index in range(3):
        depth = expected_depth(filled(volume, index))
        np.testing.assert_array_equal(maps[0].pixel_array[index], depth)
        np.testing.assert_array_equal(maps[1].pixel_array[index], expected_noise(depth))
    series = {item.SeriesInstanceUID for item in maps}
    assert len(series | {volume.series_uid}) == 3
    assert [item.ContentLabel for item in maps] == ["RADIOL_DEPTH", "PREDICTED_NOISE"]
    for item in maps:
        assert item.StudyInstanceUID == dcmread(dicom / "0005.dcm").StudyInstanceUID


def test_the_uids_follow_the_parameters(dicom, matched, tmp_path):
    def uids(name, dose):
        options = DepthOptions(dose_fraction=dose)
        depth_file(dicom / "0005.dcm", tmp_path / name, options, ignore)
        files = [tmp_path / name / file for file in ("depth.dcm", "noise.dcm")]
        return [dcmread(file, stop_before_pixels=True).SOPInstanceUID for file in files]

    first = uids("a", 1.0)
    assert uids("b", 1.0) == first
    assert not set(first) & set(uids("c", 0.5))


def test_the_pictures_show_slice_depth_and_noise(source, body, tmp_path):
    result = depth_file(tmp_path, tmp_path / "out", AUTO, ignore)
    names = sorted(item.name for item in (tmp_path / "out" / "png").iterdir())
    assert names == ["0001.png", "0002.png"]
    with Image.open(tmp_path / "out" / "png" / "0002.png") as picture:
        assert picture.info == {}
        pixels = np.asarray(picture)
    # Each pixel of a slice as narrow as this is four pixels wide.
    top, side, gap = 40, 4, 8
    height, width = (side * length for length in body.shape[1:])
    shown = [
        pixels[top : top + height : side, left : left + width : side]
        for left in (0, width + gap, 2 * (width + gap))
    ]
    low, high = workflow.SHOWN_WINDOW_HU
    measured = np.where(body == 3000, -1000, body)[1]
    grey = np.rint(255 * np.clip((measured - low) / (high - low), 0, 1))
    assert np.abs(shown[0] - grey[..., None]).max() <= 0.5
    for panel, name in zip(shown[1:], ("depth", "noise"), strict=True):
        values = np.load(tmp_path / "out" / f"{name}.npy")[1]
        least, most = getattr(result, {"depth": "depth_range", "noise": "noise_range_hu"}[name])
        brightness = panel @ np.array([0.30, 0.59, 0.11]) / 255
        assert np.abs(brightness - (values - least) / (most - least)).max() < 0.01


def test_the_colours_grow_evenly_brighter(source):
    ramp = np.linspace(0, 1, 1001, dtype=np.float32)[None]
    colours = workflow._cubehelix(ramp)
    assert colours[0, 0].tolist() == [0, 0, 0]
    assert colours[0, -1].tolist() == [255, 255, 255]
    brightness = colours @ np.array([0.30, 0.59, 0.11]) / 255
    # Half a level in each channel, and what is cut off at the ends of the scale.
    assert np.abs(brightness - ramp).max() < 0.01
    assert np.ptp(colours.astype(int), axis=-1).max() > 50


def test_a_series_of_air_has_no_depth_and_can_be_drawn(monkeypatch, matched, tmp_path):
    air = CTVolume.from_hu(np.full((1, 33, 47), -1000, np.float32), (5.0, 3.0, 3.0))
    monkeypatch.setattr(workflow, "read_volume", lambda path, **options: air)
    result = depth_file(tmp_path, tmp_path / "out", AUTO, ignore)
    assert result.depth_range[0] >= 0
    assert (tmp_path / "out" / "png" / "0001.png").exists()


def test_nothing_names_the_patient_outside_the_dicom_objects(dicom, matched, tmp_path):
    depth_file(dicom, tmp_path / "out", AUTO, ignore)
    name = str(dcmread(demo_series() / "0001.dcm").PatientName).encode()
    assert name in (tmp_path / "out" / "depth.dcm").read_bytes()
    for picture in (tmp_path / "out" / "png").iterdir():
        assert name not in picture.read_bytes()


@pytest.mark.parametrize("stage", [("depth", 2), ("drawing", 1)])
def test_an_interruption_leaves_nothing(source, tmp_path, stage):
    def stop(what, done, total):
        if (what, done) == stage:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        depth_file(tmp_path, tmp_path / "out", AUTO, stop)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_output_is_refused_before_the_work(source, matched, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").touch()
    with pytest.raises(FormatError, match="exists already"):
        depth_file(tmp_path, tmp_path / "out", AUTO, ignore)
    assert matched == []


@pytest.mark.parametrize("dose", [0.0, -0.5, 1.5, float("nan")])
def test_a_dose_outside_its_range_is_refused(source, tmp_path, dose):
    with pytest.raises(CddnetError, match="give a fraction"):
        depth_file(tmp_path, tmp_path / "out", DepthOptions(dose_fraction=dose), ignore)
    assert list(tmp_path.iterdir()) == []


def test_the_noise_predicted_for_real_slices_is_what_they_carry(dicom, tmp_path):
    """Against the spread in small blocks of soft tissue, which vessels can only widen."""
    result = depth_file(dicom, tmp_path / "out", AUTO, ignore)
    assert result.basis != MATCHED.basis
    predicted = dcmread(tmp_path / "out" / "noise.dcm").pixel_array
    ratios = []
    for hu, noise_hu in zip(read_volume(dicom).slices(), predicted, strict=True):
        blocks, expected = (
            image.reshape(32, 16, 32, 16).swapaxes(1, 2).reshape(-1, 256).astype(np.float64)
            for image in (hu, noise_hu)
        )
        middle = np.median(blocks, axis=1)
        tissue = (middle > 40) & (middle < 160)
        # The spread of a normal law, by quartiles: a vessel in the block hardly counts.
        spread = np.ptp(np.quantile(blocks, [0.25, 0.75], axis=1), axis=0) / 1.349
        ratios.extend((spread / expected.mean(axis=1))[tissue])
    quiet = np.sort(ratios)[: len(ratios) // 2]
    assert len(quiet) > 100
    assert 0.85 < np.median(quiet) < 1.15
