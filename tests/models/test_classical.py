"""Filters without training: their definition in HU, by the noise of each slice."""

import sys

import numpy as np
import pytest
import torch
from skimage import restoration

from cddnet import models, plugins
from cddnet.errors import ModelError
from cddnet.models import _classical
from cddnet.physics import phantom
from cddnet.physics.beam import SliceGeometry
from cddnet.physics.dose import insert_noise
from cddnet.physics.kernel import SHARP_KERNEL, SOFT_KERNEL
from cddnet.runtime import store

NAMES = ("bilateral", "non_local_means", "total_variation")
PIXEL_MM = 1.5
every_filter = pytest.mark.parametrize("name", NAMES)


def directly(name, hu):
    """The numbers of the Config in scikit-image, or in the definition by single pixels."""
    noise = _classical.noise_hu(hu)
    config = plugins.load("models", name).Config()
    if name == "non_local_means":
        return restoration.denoise_nl_means(
            hu,
            config.patch_pixels,
            config.search_pixels,
            config.cutoff_per_noise * noise,
            preserve_range=True,
        )
    if name == "total_variation":
        return restoration.denoise_tv_chambolle(hu, config.weight_per_noise * noise, eps=2e-5)
    return bilateral(hu, config.near_pixels, config.near_per_noise * noise)


def bilateral(hu, near_pixels, near_hu):
    rows, columns = np.indices(hu.shape)
    denoised = np.empty_like(hu)
    for row, column in np.ndindex(hu.shape):
        far = np.hypot(rows - row, columns - column) / near_pixels
        unlike = (hu - hu[row, column]) / near_hu
        weight = np.exp(-0.5 * (far**2 + unlike**2)) * (far <= 3)
        denoised[row, column] = (weight * hu).sum() / weight.sum()
    return denoised


def applied(network, hu):
    image = torch.from_numpy(hu)[None, None] / 1024
    return network(image).image[0, 0].numpy() * 1024


@pytest.fixture(scope="module")
def slices():
    """A water disc with an insert of 300 HU, in air: (clean, noisy), both (H, W), odd sides."""
    clean = phantom.render(phantom.build("water-200"), 161, PIXEL_MM, supersampling=2)
    clean = clean.astype(np.float64)[:, 4:]
    clean[70:95, 60:85] = 300.0
    noisy = insert_noise(
        clean.astype(np.float32),
        SliceGeometry(pixel_mm=PIXEL_MM),
        np.random.default_rng(1),
        dose_fraction=0.1,
        kernel=SHARP_KERNEL,
    )
    return clean, noisy.hu.astype(np.float64)


@every_filter
def test_noise_falls_and_an_edge_stays(name, slices):
    clean, noisy = slices
    denoised = applied(models.build(name), noisy)
    disc, insert = np.s_[40:65, 60:95], np.s_[74:91, 64:81]
    assert (denoised - clean)[disc].std() < 0.7 * (noisy - clean)[disc].std()
    assert (denoised - clean)[insert].std() < 0.7 * (noisy - clean)[insert].std()
    # Across the insert's edge, one pixel inside against one outside, mean over the side.
    step = (denoised[72:93, 61] - denoised[72:93, 58]).mean()
    assert step > 0.85 * 300
    assert abs((denoised - noisy)[disc].mean()) < 1.0


@every_filter
def test_the_answer_is_that_of_scikit_image_or_the_definition_in_hu(name, slices):
    noisy = slices[1][60:101, 50:97]
    expected = directly(name, noisy)
    found = applied(models.build(name), noisy)
    # The definition has no border to repeat.
    inner = np.s_[10:-10, 10:-10] if name == "bilateral" else np.s_[:, :]
    assert np.abs(found - expected)[inner].max() < 1e-6
    assert np.abs(found - noisy)[inner].max() > 20


@every_filter
def test_without_noise_nothing_changes(name, slices):
    clean, _ = slices
    flat_parts = np.rint(clean / 100) * 100
    assert _classical.noise_hu(flat_parts) < 1e-9
    assert np.abs(applied(models.build(name), flat_parts) - flat_parts).max() < 1e-9


@every_filter
def test_shifted_hu_give_the_same_answer_shifted(name, slices):
    _, noisy = slices
    # So small that the same pixels are above -300 HU.
    shift = 16.0
    assert np.array_equal(noisy > -300, noisy + shift > -300)
    network = models.build(name)
    assert applied(network, noisy + shift) == pytest.approx(
        applied(network, noisy) + shift, abs=1e-6
    )


@every_filter
@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_the_parameters_are_relative_to_the_noise(name, factor, slices):
    """Of an image that is body everywhere: scaled values give the same answer, scaled."""
    noisy = slices[1][45:110, 45:110]
    body = noisy - noisy.min()
    network = models.build(name)
    scaled = applied(network, factor * body)
    assert scaled == pytest.approx(factor * applied(network, body), abs=1e-6)


@every_filter
def test_two_slices_are_two_singles(name, slices):
    _, noisy = slices
    pair = torch.from_numpy(np.stack([noisy, 0.3 * noisy[::-1]]))[:, None] / 1024
    network = models.build(name)
    together = network(pair).image
    assert torch.equal(together, torch.cat([network(single[None]).image for single in pair]))
    assert together.dtype == pair.dtype
    assert network(pair.float()).image.dtype == torch.float32


@every_filter
def test_a_gradient_is_refused_not_zero(name):
    network = models.build(name)
    image = torch.randn(1, 1, 9, 9, requires_grad=True)
    with pytest.raises(ModelError, match="has no gradient"):
        network(image)
    with torch.no_grad():
        assert not network(image).image.requires_grad


@every_filter
def test_what_is_no_slice_is_refused(name):
    with pytest.raises(ModelError, match=r"give it \(B, 1, H, W\)"):
        models.build(name)(torch.zeros(1, 3, 9, 9))


@pytest.mark.parametrize("name", ["non_local_means", "total_variation"])
def test_a_missing_library_is_named_with_the_extra(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage.restoration", None)
    with pytest.raises(ModelError, match=r"pip install cddnet\[classical\]"):
        models.build(name)


@every_filter
def test_options_below_0_are_refused(name):
    for option in models.all_options(name):
        with pytest.raises(ModelError, match=f"{option} is 0, expected"):
            models.build(name, **{option: 0})


@every_filter
def test_it_ships_with_the_defaults_of_its_config(name):
    network, card = store.load(name)
    assert (card.name, card.model, card.strength) == (f"{name}@1", name, 1.0)
    assert card.options == models.all_options(name)
    assert not list(network.parameters())


def test_shipped_files_without_tensors_have_hashes_of_their_own():
    assert len({store.load(name)[1].sha256 for name in NAMES}) == len(NAMES)


@pytest.mark.parametrize("kernel", [SOFT_KERNEL, SHARP_KERNEL], ids=["soft", "sharp"])
@pytest.mark.parametrize("dose_fraction", [0.1, 0.5])
@pytest.mark.parametrize("name", ["water", "abdomen"])
def test_the_noise_of_a_simulated_scan_is_found(name, dose_fraction, kernel):
    shape = phantom.build(name)
    clean = phantom.render(shape, int(shape.field_mm / 0.9), 0.9, supersampling=2)
    noisy = insert_noise(
        clean,
        SliceGeometry(pixel_mm=0.9),
        np.random.default_rng(0),
        dose_fraction=dose_fraction,
        kernel=kernel,
    )
    noise = (noisy.hu - clean)[clean > -300].astype(np.float64)
    true_hu = 1.4826 * np.median(np.abs(noise))
    assert 0.85 * true_hu < _classical.noise_hu(noisy.hu.astype(np.float64)) < 1.15 * true_hu


def test_white_noise_is_found_in_air_too(rng):
    air = rng.normal(-1000.0, 20.0, (101, 133))
    # The Gaussian mean takes away its own share of the variance: below a part in a hundred.
    assert _classical.noise_hu(air) == pytest.approx(20.0, rel=0.05)
