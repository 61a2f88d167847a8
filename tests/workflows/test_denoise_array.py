"""Denoising arrays and volumes in HU, with a small untrained network."""

import numpy as np
import pytest

from cddnet.errors import CddnetError, ModelError
from cddnet.runtime import store
from cddnet.volume import CTVolume
from cddnet.workflows.denoise import denoise_hu, denoise_volume

SPACING_MM = (3.0, 0.7, 0.7)
# One float32 rounding each of HU up to 4096: of the blend, and of the attenuation in the network.
ROUNDING_HU = 4 * np.spacing(np.float32(4096))


@pytest.fixture
def hu(rng):
    return rng.normal(40, 30, (3, 33, 47)).astype(np.float32)


@pytest.mark.parametrize("as_slice", [False, True])
def test_shape_and_type_are_kept_and_the_input_too(hu, tiny_weights, as_slice):
    source = hu[1] if as_slice else hu
    before = source.copy()
    out = denoise_hu(source, SPACING_MM, tiny_weights)
    assert out.shape == source.shape
    assert out.dtype == np.float32
    assert np.array_equal(source, before)
    assert not np.array_equal(out, source)


def test_slices_are_denoised_each_on_its_own(hu, tiny_weights):
    whole = denoise_hu(hu, SPACING_MM, tiny_weights)
    assert np.array_equal(denoise_hu(hu[2], SPACING_MM, str(tiny_weights)), whole[2])
    assert np.array_equal(denoise_hu(hu, SPACING_MM, tiny_weights), whole)


def test_strength_blends_between_source_and_network(hu, tiny_weights):
    network = denoise_hu(hu, SPACING_MM, tiny_weights, strength=1.0).astype(np.float64)
    assert np.abs(network - hu).max() > 100 * ROUNDING_HU
    for strength in (0.25, 0.5, 0.8):
        out = denoise_hu(hu, SPACING_MM, tiny_weights, strength=strength)
        assert np.abs(out - (hu + strength * (network - hu))).max() <= ROUNDING_HU


def test_strength_zero_is_the_source_bit_for_bit(hu, tiny_weights):
    hu[0, 0, 0], hu[1, 1, 1] = -0.0, 30000.1
    out = denoise_hu(hu, SPACING_MM, tiny_weights, strength=0.0)
    assert out.tobytes() == hu.tobytes()
    assert not np.shares_memory(out, hu)


def test_the_cards_strength_is_the_default(hu, tiny_weights):
    _, card = store.load(tiny_weights)
    expected = denoise_hu(hu, SPACING_MM, tiny_weights, strength=card.strength)
    assert np.array_equal(denoise_hu(hu, SPACING_MM, tiny_weights), expected)


def padded_volume(hu, value):
    mask = np.zeros(hu.shape[1:], bool)
    mask[:9, :20] = True
    stack = np.where(mask, np.float32(value), hu)
    return CTVolume.from_hu(stack, SPACING_MM, read_padding=lambda index: mask), mask


def test_padding_comes_back_and_leaves_no_trace(hu, tiny_weights):
    results = []
    for value in (-2000.0, -32768.0, 5000.5):
        volume, mask = padded_volume(hu, value)
        out = denoise_volume(volume, tiny_weights).hu
        assert (out[:, mask] == np.float32(value)).all()
        results.append(out[:, ~mask])
    assert np.array_equal(results[0], results[1])
    assert np.array_equal(results[0], results[2])
    as_tissue = denoise_hu(padded_volume(hu, -1050.0)[0].hu, SPACING_MM, tiny_weights)
    assert (as_tissue[:, mask] != -1050).any()


def test_dense_metal_is_unchanged_and_what_lies_beside_it_is_not(hu, tiny_weights):
    hu = np.rint(hu)
    hu[:, 10:15, 10:15] = 3072
    hu[:, 20:25, 20:25] = 30000
    hu[:, 30, 30] = 3071
    out = denoise_hu(hu, SPACING_MM, tiny_weights)
    dense = hu >= 3072
    assert np.array_equal(out[dense], hu[dense])
    assert (out[~dense] != hu[~dense]).mean() > 0.9


def test_the_derived_volume_says_what_was_done(hu, tiny_weights):
    source = CTVolume.from_hu(hu, SPACING_MM, series_uid="1.2")
    derived = denoise_volume(source, tiny_weights, strength=0.5)
    (step,) = derived.derivation
    assert source.derivation == ()
    assert step.label == "tiny@1 50%"
    assert step.weights_sha256 == store.load(tiny_weights)[1].sha256
    assert dict(step.parameters)["strength"] == "0.5"
    assert list(step.parameters) == sorted(step.parameters)
    assert "Research use only" in step.description
    assert step.description.isascii()


@pytest.mark.parametrize("strength", [-0.01, 1.01, float("nan"), float("inf")])
def test_a_strength_out_of_range_is_refused(hu, tiny_weights, strength):
    with pytest.raises(ModelError, match="give 0 \\(source\\) to 1"):
        denoise_hu(hu, SPACING_MM, tiny_weights, strength=strength)


def test_an_unknown_model_is_refused(hu, tmp_path):
    for model in ("no-such-network", tmp_path / "nowhere.safetensors"):
        with pytest.raises(ModelError):
            denoise_hu(hu, SPACING_MM, model)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(hu, tiny_weights, value):
    hu[1, 2, 3] = value
    with pytest.raises(CddnetError, match="not finite"):
        denoise_hu(hu, SPACING_MM, tiny_weights)


@pytest.mark.parametrize("dtype", [np.int16, np.float64])
def test_another_type_is_refused(hu, tiny_weights, dtype):
    with pytest.raises(CddnetError, match="expected float32"):
        denoise_hu(hu.astype(dtype), SPACING_MM, tiny_weights)


@pytest.mark.parametrize("shape", [(7,), (1, 2, 33, 47)])
def test_another_shape_is_refused(tiny_weights, shape):
    with pytest.raises(CddnetError, match="no CT volume"):
        denoise_hu(np.zeros(shape, np.float32), SPACING_MM, tiny_weights)
