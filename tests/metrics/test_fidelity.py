"""Fidelity against scikit-image, and laws that every metric keeps."""

import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from cddnet.metrics import fidelity
from cddnet.metrics.fidelity import psnr, rmse_hu, ssim

WINDOWS = [(-160.0, 240.0), (-1350.0, 150.0), (0.0, 80.0)]
SHAPES = [(33, 47), (7, 7), (8, 51), (64, 64)]
every_window = pytest.mark.parametrize("window_hu", WINDOWS)
every_shape = pytest.mark.parametrize("shape", SHAPES)
every_metric = pytest.mark.parametrize("name", fidelity.METRICS)
PERFECT = {
    "PSNR": float("inf"),
    "SSIM": 1.0,
    "SSIM-Gaussian": 1.0,
    "RMSE": 0.0,
    "MAE": 0.0,
    "VIF": 1.0,
    "VIF-ldctbench": 1.0,
}


@pytest.fixture
def pair(rng, shape):
    """Tissue with structure, partly outside every window, and the same with noise."""
    rows, columns = np.indices(shape)
    full_dose = 60 * np.sin(rows / 3) * np.cos(columns / 5) + rng.normal(30, 10, shape)
    full_dose[: shape[0] // 4] = -900
    noisy = full_dose + rng.normal(0, 40, shape)
    return full_dose.astype(np.float32), noisy.astype(np.float32)


def windowed(hu, window_hu):
    low, high = window_hu
    return np.clip((hu.astype(np.float64) - low) / (high - low), 0, 1)


@every_window
@every_shape
def test_psnr_and_ssim_are_those_of_scikit_image(pair, window_hu):
    x, y = (windowed(hu, window_hu) for hu in pair)
    # Fractions of the window are kept in float32.
    expected = peak_signal_noise_ratio(x, y, data_range=1)
    assert psnr(*pair, window_hu=window_hu) == pytest.approx(expected, abs=1e-5)
    expected = structural_similarity(x, y, data_range=1)
    assert ssim(*pair, window_hu=window_hu) == pytest.approx(expected, abs=1e-5)
    assert expected < 0.999


@every_window
@every_shape
def test_rmse_is_that_of_clipped_hu_and_goes_with_psnr(pair, window_hu):
    low, high = window_hu
    error = np.clip(pair[0].astype(float), low, high) - np.clip(pair[1].astype(float), low, high)
    expected = np.sqrt(np.mean(error**2))
    assert rmse_hu(*pair, window_hu=window_hu) == pytest.approx(expected, rel=1e-6)
    from_psnr = (high - low) * 10 ** (-psnr(*pair, window_hu=window_hu) / 20)
    assert from_psnr == pytest.approx(expected, rel=1e-5)


@every_shape
def test_masks_choose_the_pixels(pair, shape, rng):
    window_hu = (-160.0, 240.0)
    mask = rng.random(shape) < 0.5
    x, y = (windowed(hu, window_hu) for hu in pair)
    expected = -10 * np.log10(np.mean((x - y)[mask] ** 2))
    assert psnr(*pair, window_hu=window_hu, mask=mask) == pytest.approx(expected, abs=1e-5)
    _, full_map = structural_similarity(x, y, data_range=1, full=True)
    inner = np.s_[3:-3, 3:-3]
    mask[shape[0] // 2, shape[1] // 2] = True
    expected = full_map[inner][mask[inner]].mean()
    assert ssim(*pair, window_hu=window_hu, mask=mask) == pytest.approx(expected, abs=1e-5)


@every_metric
def test_perfect_on_identical_images(name, rng):
    metric = fidelity.METRICS[name][0]
    image = rng.normal(40, 100, (43, 47)).astype(np.float32)
    assert metric(image, image.copy(), window_hu=WINDOWS[0]) == pytest.approx(PERFECT[name])


@every_metric
def test_worse_with_more_noise_and_the_same_when_swapped(name, rng):
    metric, _, direction, *_ = fidelity.METRICS[name]
    image = rng.normal(40, 30, (43, 47)).astype(np.float32)
    noise = rng.normal(0, 1, image.shape).astype(np.float32)
    noisy = [image + level * noise for level in (1, 5, 20, 80)]
    scores = [metric(image, test, window_hu=WINDOWS[0]) for test in noisy]
    assert scores == sorted(scores, reverse=direction == "higher")
    assert len(set(scores)) == len(scores)
    if name.startswith("VIF"):
        # One of the images is the source of all information; the other twin is the swapped one.
        metric = fidelity.METRICS["VIF" if name == "VIF-ldctbench" else "VIF-ldctbench"].function
    swapped = [metric(test, image, window_hu=WINDOWS[0]) for test in noisy]
    assert swapped == pytest.approx(scores, rel=1e-12)


@every_metric
def test_what_lies_outside_the_window_does_not_count(name):
    metric = fidelity.METRICS[name][0]
    image = np.full((43, 47), 40.0, np.float32)
    image[:9], image[9:18] = -1000, 2000
    other = np.where(image == -1000, -400, np.where(image == 2000, 700, image))
    assert metric(image, other, window_hu=WINDOWS[0]) == pytest.approx(PERFECT[name])
    assert metric(image, other, window_hu=(-1024.0, 3071.0)) != pytest.approx(PERFECT[name])


@every_metric
def test_an_empty_mask_is_refused(name):
    image = np.zeros((43, 47), np.float32)
    with pytest.raises(ValueError, match="no pixel"):
        fidelity.METRICS[name][0](image, image, window_hu=WINDOWS[0], mask=image > 0)


@every_metric
def test_the_smallest_side_is_the_smallest_that_can_be_measured(name, rng):
    metric, smallest = fidelity.METRICS[name].function, fidelity.METRICS[name].smallest_side
    image, test = rng.normal(40, 20, (2, smallest, smallest + 3))
    assert np.isfinite(metric(image, test, window_hu=WINDOWS[0]))
    with pytest.raises(ValueError, match=r"no pixel|sides of"):
        metric(image[1:], test[1:], window_hu=WINDOWS[0])
