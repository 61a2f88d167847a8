"""The demo end to end: a real series, the shipped weights, DICOM that real peers accept."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread
from scipy import ndimage

from cddnet.errors import FormatError, ModelError
from cddnet.formats import read_volume
from cddnet.workflows.demo import demo_series, run_demo
from cddnet.workflows.denoise import DenoiseOptions, denoise_file, denoise_volume
from peers import complaints, peer

sys.path.append(str(Path(__file__).parents[1] / "node"))

from orthanc_peer import Orthanc

TISSUES_HU = {"fat": (-130, -70), "soft tissue": (30, 75), "bone": (300, 1500)}


def ignore(*_):
    """No progress shown."""


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "out"
    return out, run_demo(out, DenoiseOptions(), ignore)


def test_the_demo_reaches_the_promised_share_of_what_its_noise_allows(demo):
    _, result = demo
    gain_db = result.denoised.psnr_db - result.low_dose.psnr_db
    assert result.noise.ratio > 1.5
    assert gain_db >= 0.55 * result.noise.noise_free_gain_db
    assert result.denoised.ssim > result.low_dose.ssim
    assert result.denoised.rmse_hu < result.low_dose.rmse_hu


def test_the_demo_writes_two_series_and_one_picture(demo):
    out, result = demo
    full_dose, low_dose, denoised = (
        read_volume(path) for path in (demo_series(), out / "low_dose", out / "denoised")
    )
    assert full_dose.shape == low_dose.shape == denoised.shape == (12, 512, 512)
    assert len({full_dose.series_uid, low_dose.series_uid, denoised.series_uid}) == 3
    header = dcmread(out / "denoised" / "0001.dcm")
    assert "low-dose" in header.DerivationDescription.lower()
    assert "research" in (header.SeriesDescription + header.ImageComments).lower()
    with Image.open(result.picture) as picture:
        grey = np.asarray(picture)
    # Four panels with different content, not one repeated.
    panels = [grey[60:500, 520 * n + 40 : 520 * n + 460].astype(float) for n in range(4)]
    assert all(np.abs(panels[0] - panel).mean() > 1 for panel in panels[1:])


def test_the_demo_overwrites_nothing(demo):
    out, _ = demo
    with pytest.raises(FormatError, match="exists"):
        run_demo(out, DenoiseOptions(), ignore)


def test_an_unknown_model_leaves_no_folder(tmp_path):
    with pytest.raises(ModelError):
        run_demo(tmp_path / "out", DenoiseOptions(model="nothing"), ignore)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_an_interrupted_demo_leaves_nothing(error, tmp_path, monkeypatch):
    def stopped(source, *_):
        assert source.is_dir()
        raise error

    monkeypatch.setattr("cddnet.workflows.demo.denoise_file", stopped)
    expected = FormatError if isinstance(error, OSError) else error
    with pytest.raises(expected):
        run_demo(tmp_path / "out", DenoiseOptions(), ignore)
    assert list(tmp_path.iterdir()) == []


def test_strength_zero_returns_the_stored_values_bit_for_bit(tmp_path):
    out = tmp_path / "same"
    denoise_file(demo_series(), out, DenoiseOptions(strength=0.0), ignore)
    for name in sorted(path.name for path in out.iterdir()):
        source, copy = dcmread(demo_series() / name), dcmread(out / name)
        assert np.array_equal(source.pixel_array, copy.pixel_array)
        assert source.SOPInstanceUID != copy.SOPInstanceUID


def shifts_hu(tissue_of, before, after):
    """Change of the mean, and the mean, in each tissue; the smoothed image chooses the pixels."""
    smooth = ndimage.gaussian_filter(tissue_of, (0, 2, 2))
    for name, (low, high) in TISSUES_HU.items():
        inside = ndimage.binary_erosion((smooth > low) & (smooth < high), np.ones((1, 5, 5)))
        assert inside.sum() > 500, name
        yield name, float((after - before)[inside].mean()), float(before[inside].mean())


@pytest.mark.parametrize("dose", ["quarter", "full"])
def test_mean_hu_of_tissues_stays_at_full_strength(demo, dose):
    """Fat and soft tissue within 2 HU, bone within 1 %."""
    out, _ = demo
    source = demo_series() if dose == "full" else out / "low_dose"
    before = read_volume(source)
    after = denoise_volume(before, strength=1.0).hu
    assert np.abs(after - before.hu).mean() > 0.5
    for name, shift, mean in shifts_hu(read_volume(demo_series()).hu, before.hu, after):
        assert abs(shift) < (0.01 * mean if name == "bone" else 2.0), (name, shift)


@pytest.mark.net
def test_dciodvfy_says_nothing_new_of_the_denoised_series(demo):
    out, _ = demo
    for file in sorted((out / "denoised").iterdir()):
        assert complaints(file) <= complaints(demo_series() / file.name)


@pytest.mark.net
def test_orthanc_stores_the_denoised_series_in_the_same_study(demo, tmp_path):
    out, _ = demo
    with Orthanc(tmp_path).running() as orthanc:
        to = ("-aec", "ARCHIVE", "127.0.0.1", str(orthanc.port))
        for folder in (demo_series(), out / "denoised", out / "denoised"):
            files = [str(path) for path in sorted(folder.iterdir())]
            sent = peer("storescu", "-xt" if folder == demo_series() else "-xe", *to, *files)
            assert sent.returncode == 0, sent.stderr
        found = orthanc.get("/statistics")
    assert (found["CountStudies"], found["CountSeries"]) == (1, 2)
    # Sent twice, stored once: the UIDs are deterministic.
    assert found["CountInstances"] == 24
