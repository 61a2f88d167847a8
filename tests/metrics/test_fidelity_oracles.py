"""Fidelity against scikit-image and torchmetrics, and as ldct-benchmark defines it."""

import inspect

import numpy as np
import pytest
import torch
from scipy.signal import convolve2d
from skimage.metrics import mean_squared_error, peak_signal_noise_ratio, structural_similarity
from torchmetrics.functional.image import (
    structural_similarity_index_measure,
    visual_information_fidelity,
)

from cddnet.metrics.fidelity import (
    METRICS,
    VIF_WINDOW_HU,
    mae_hu,
    psnr,
    rmse_hu,
    ssim,
    ssim_gaussian,
    vif,
    vif_ldctbench,
)

WINDOWS = [(-160.0, 240.0), (-1024.0, 3071.0), (0.0, 80.0)]
SHAPES = [(43, 61), (64, 64), (101, 77)]
every_window = pytest.mark.parametrize("window_hu", WINDOWS)
every_shape = pytest.mark.parametrize("shape", SHAPES)


@pytest.fixture
def pair(rng, shape):
    """Tissue, air below any window and dense bone above, and the same with noise."""
    rows, columns = np.indices(shape)
    full_dose = 60 * np.sin(rows / 3) * np.cos(columns / 5) + rng.normal(30, 10, shape)
    full_dose[: shape[0] // 4] = -1100
    full_dose[-5:, :9] = 2500
    noisy = 0.9 * full_dose + rng.normal(0, 25, shape)
    return full_dose.astype(np.float32), noisy.astype(np.float32)


def clipped(hu, window_hu):
    """HU above the window's lower end, in float64."""
    return np.clip(hu.astype(np.float64), *window_hu) - window_hu[0]


def fraction(hu, window_hu):
    return clipped(hu, window_hu) / (window_hu[1] - window_hu[0])


def batch(image):
    return torch.from_numpy(image)[None, None]


def plain_vif(x, y, mask):
    """The definition with full two-dimensional kernels, pixel by pixel of the mask."""
    kept = held = 0.0
    for scale in range(4):
        side = 2 ** (4 - scale) + 1
        place = np.arange(side) - side // 2
        kernel = np.exp(-(place[:, None] ** 2 + place**2) / (2 * (side / 5) ** 2))
        kernel /= kernel.sum()

        def local(image, kernel=kernel):
            return convolve2d(image, kernel, mode="valid")

        rim = side // 2
        if scale:
            x, y = local(x)[::2, ::2], local(y)[::2, ::2]
            mask = mask[rim:-rim, rim:-rim][::2, ::2]
        centres = mask[rim:-rim, rim:-rim]
        mean_x, mean_y = local(x), local(y)
        var_x, var_y = local(x * x) - mean_x**2, local(y * y) - mean_y**2
        cov = local(x * y) - mean_x * mean_y
        for vx, vy, c in zip(var_x[centres], var_y[centres], cov[centres], strict=True):
            gain = c / vx if vx > 1e-9 and vy > 1e-9 and c > 0 else 0
            kept += np.log2(1 + gain**2 * max(vx, 0) / (max(vy - gain * c, 0) + 2))
            held += np.log2(1 + max(vx, 0) / 2)
    return kept / held


@every_window
@every_shape
def test_ssim_in_both_variants(pair, window_hu):
    x, y = (fraction(hu, window_hu) for hu in pair)
    uniform = structural_similarity(x, y, data_range=1)
    gaussian = structural_similarity(
        x, y, data_range=1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    assert ssim(*pair, window_hu=window_hu) == pytest.approx(uniform, abs=1e-5)
    assert ssim_gaussian(*pair, window_hu=window_hu) == pytest.approx(gaussian, abs=1e-5)
    assert abs(uniform - gaussian) > 1e-4


@every_shape
def test_the_gaussian_variant_is_that_of_torchmetrics_in_the_interior(pair, shape):
    window_hu = WINDOWS[0]
    x, y = (batch(fraction(hu, window_hu)) for hu in pair)
    _, full = structural_similarity_index_measure(x, y, data_range=1.0, return_full_image=True)
    expected = full[0, 0, 5:-5, 5:-5].mean().item()
    assert ssim_gaussian(*pair, window_hu=window_hu) == pytest.approx(expected, abs=1e-5)


@every_window
@every_shape
def test_masks_choose_pixels_of_both_variants(pair, window_hu, shape, rng):
    mask = rng.random(shape) < 0.3
    x, y = (fraction(hu, window_hu) for hu in pair)
    wang = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    for metric, rim, choice in ((ssim, 3, {}), (ssim_gaussian, 5, wang)):
        _, full = structural_similarity(x, y, data_range=1, full=True, **choice)
        inner = np.s_[rim:-rim, rim:-rim]
        expected = full[inner][mask[inner]].mean()
        found = metric(*pair, window_hu=window_hu, mask=mask)
        assert found == pytest.approx(expected, abs=1e-5)


@every_window
@every_shape
def test_vif_is_that_of_torchmetrics(pair, window_hu):
    x, y = (batch(clipped(hu, window_hu)) for hu in pair)
    expected = visual_information_fidelity(y, x).item()
    swapped = visual_information_fidelity(x, y).item()
    assert vif(*pair, window_hu=window_hu) == pytest.approx(expected, rel=1e-6)
    assert vif_ldctbench(*pair, window_hu=window_hu) == pytest.approx(swapped, rel=1e-6)
    assert abs(expected - swapped) > 1e-4


@every_shape
def test_vif_of_a_mask_is_a_sum_over_its_pixels(pair, shape):
    rows, columns = np.indices(shape)
    mask = np.hypot(rows - shape[0] / 2, columns - shape[1] / 2) < 0.35 * min(shape)
    x, y = (clipped(hu, VIF_WINDOW_HU) for hu in pair)
    expected = plain_vif(x, y, mask)
    found = vif(*pair, window_hu=VIF_WINDOW_HU, mask=mask)
    assert found == pytest.approx(expected, rel=1e-6)
    assert abs(found - vif(*pair, window_hu=VIF_WINDOW_HU)) > 1e-4
    whole = np.ones(shape, np.bool_)
    assert vif(*pair, window_hu=VIF_WINDOW_HU, mask=whole) == pytest.approx(
        vif(*pair, window_hu=VIF_WINDOW_HU), rel=1e-12
    )


@every_window
@every_shape
def test_errors_in_hu(pair, window_hu, shape, rng):
    mask = rng.random(shape) < 0.3
    error = clipped(pair[0], window_hu) - clipped(pair[1], window_hu)
    for pixels, chosen in ((None, error), (mask, error[mask])):
        kept = {"window_hu": window_hu, "mask": pixels}
        assert mae_hu(*pair, **kept) == pytest.approx(np.abs(chosen).mean(), rel=1e-5)
        assert rmse_hu(*pair, **kept) == pytest.approx(np.sqrt((chosen**2).mean()), rel=1e-5)


@pytest.mark.parametrize(("centre", "width"), [(-600, 1500), (50, 400), (40, 80)])
@every_shape
def test_ldct_benchmark_is_reproduced(pair, centre, width):
    """Eulig et al. 2024: HU + 1024; windows for PSNR and SSIM, [0, 2924] and VIF(t, p) else."""
    t, p = (hu.astype(np.float64) + 1024 for hu in pair)
    window = (centre - width / 2, centre + width / 2)
    shown = [np.clip((v - 1024 - window[0]) / width, 0, 1) for v in (t, p)]
    t, p = (np.clip(v, 0, 2924) for v in (t, p))
    expected = {
        "PSNR": peak_signal_noise_ratio(*shown, data_range=1),
        "SSIM": structural_similarity(*shown, data_range=1),
        "RMSE": np.sqrt(mean_squared_error(t, p)),
        "VIF-ldctbench": visual_information_fidelity(batch(t), batch(p)).item(),
    }
    found = {
        "PSNR": psnr(*pair, window_hu=window),
        "SSIM": ssim(*pair, window_hu=window),
        "RMSE": rmse_hu(*pair, window_hu=VIF_WINDOW_HU),
        "VIF-ldctbench": vif_ldctbench(*pair, window_hu=VIF_WINDOW_HU),
    }
    assert found == pytest.approx(expected, abs=1e-3)
    assert abs(vif(*pair, window_hu=VIF_WINDOW_HU) - expected["VIF-ldctbench"]) > 1e-3


def test_vif_of_contrast_alone(rng):
    """Test = c x reference and no noise: gain c, no distortion, so log(1 + c^2 s / 2) is kept.

    Of log(1 + s / 2), with s the local variance of the reference; above 1 where c is.
    """
    image = (
        1000 + 300 * np.sin(np.indices((151, 151)).sum(axis=0) / 2) + rng.normal(0, 9, (151, 151))
    )
    values = [
        vif(image, 1000 + c * (image - 1000), window_hu=(-5e3, 5e3)) for c in (0.1, 0.5, 1.0, 1.5)
    ]
    assert values == sorted(values)
    assert values[2] == pytest.approx(1)
    assert values[3] > 1
    # A shift of all HU is no loss of structure.
    assert vif(image, image + 77, window_hu=(-5e3, 5e3)) == pytest.approx(1)


def test_vif_refuses_small_images_and_knows_no_structure():
    flat = np.full((43, 43), 40.0)
    assert np.isnan(vif(flat, flat + 1, window_hu=VIF_WINDOW_HU))
    with pytest.raises(ValueError, match="41"):
        vif(flat[:40], flat[:40], window_hu=VIF_WINDOW_HU)


@pytest.mark.parametrize("name", METRICS)
def test_no_metric_is_callable_without_its_window(name):
    measure = METRICS[name]
    image = np.zeros((43, 43), np.float32)
    with pytest.raises(TypeError, match="window_hu"):
        measure.function(image, image)
    window = inspect.signature(measure.function).parameters["window_hu"]
    assert window.kind is inspect.Parameter.KEYWORD_ONLY
    assert window.default is inspect.Parameter.empty
    assert measure.definition
    assert measure.direction in ("higher", "lower")
    side = measure.smallest_side
    rng = np.random.default_rng(0)
    small = rng.normal(40, 10, (side, side)).astype(np.float32)
    assert np.isfinite(measure.function(small, small + 3 * small**0, window_hu=(-160, 240)))
