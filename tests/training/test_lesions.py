"""Lesions put into training slices: where they lie, and the bias that they let a loss see."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from cddnet.config import ConfigError, LesionRange, LossWeights, TrainConfig, checked
from cddnet.intensity.normalise import HU_PER_UNIT
from cddnet.physics.beam import SliceGeometry
from cddnet.physics.depth import euclidean_depth
from cddnet.training.lesions import draw_lesions
from cddnet.training.methods.supervised import lesion_bias, lesion_error
from cddnet.training.pairs import FullDoseSlice, NoisyPairs, Pair

PIXEL_MM = 0.7
RANGE = LesionRange(per_slice=30)


def disc(shape=(231, 257)):
    rows, columns = np.indices(shape)
    inside = np.hypot(rows - shape[0] / 2, columns - shape[1] / 2) < 100
    return np.where(inside, 40.0, -1000.0).astype(np.float32)


def drawn(seed=0, lesions=RANGE):
    return draw_lesions(disc(), PIXEL_MM, lesions, np.random.default_rng(seed))


def test_weights_count_the_lesions_of_each_stratum():
    counts = np.zeros(len(RANGE.strata))
    for seed in range(20):
        hu, weights = drawn(seed)
        present = (weights * hu).sum(axis=(1, 2))
        np.testing.assert_allclose(present, np.round(present), atol=1e-4)
        assert 10 < present.sum() <= RANGE.per_slice
        counts += present
    share = counts / counts.sum()
    standard_error = np.sqrt(share * (1 - share) / counts.sum())
    assert np.all(np.abs(share - 1 / 3) < 4 * standard_error)


def test_each_pixel_is_of_one_lesion_at_most_and_in_tissue():
    hu, weights = drawn()
    assert np.count_nonzero(weights, axis=0).max() == 1
    # The centre is in tissue, so that more than half of a lesion at the skin is.
    centres = np.abs(hu) > 0.5
    assert np.mean(disc()[centres] > 0) > 0.8
    assert (hu > 5).any()
    assert (hu < -5).any()


def test_contrast_and_size_are_those_of_the_stratum():
    one = {"strata": [{"diameter_mm": (6.0, 6.0), "contrast_hu": (20.0, 20.0)}]}
    hu, weights = drawn(lesions=LesionRange(per_slice=9, edge_mm=(0.4, 0.4), **one))
    count = np.round((weights[0] * hu).sum())
    assert np.abs(hu).max() == pytest.approx(20, rel=1e-3)
    area_mm2 = np.abs(hu).sum() / 20 * PIXEL_MM**2 / count
    # A blurred disc has the area of the disc plus pi times the variance of the blur.
    assert area_mm2 == pytest.approx(np.pi * (9 + 0.4**2), rel=0.01)


def test_no_room_no_lesions():
    hu, weights = draw_lesions(
        np.full((33, 35), -1000, np.float32), 0.7, RANGE, np.random.default_rng(0)
    )
    assert not hu.any()
    assert not weights.any()


def batch(seed, crops=4):
    found = [drawn(seed * crops + number) for number in range(crops)]
    lesions = np.stack(
        [np.concatenate((w * HU_PER_UNIT, hu[None] / HU_PER_UNIT)) for hu, w in found]
    )
    full_dose = np.stack([disc() + hu for hu, _ in found])[:, None] / HU_PER_UNIT
    full = torch.from_numpy(full_dose.astype(np.float64))
    return Pair(full, full, torch.zeros_like(full), torch.from_numpy(lesions).double())


@pytest.mark.parametrize("lost", [0.0, 0.3, 1.0, -0.2])
def test_the_bias_is_the_square_of_the_share_that_is_lost(lost):
    pair = batch(0)
    kept = pair.full_dose - lost * pair.lesions[:, -1:]
    assert lesion_bias(kept, pair).item() == pytest.approx(lost**2, abs=1e-5)


def test_noise_has_no_bias():
    generator = torch.Generator().manual_seed(3)
    found = []
    for seed in range(30):
        pair = batch(seed, crops=2)
        noise = 0.02 * torch.randn(pair.full_dose.shape, generator=generator)
        kept = pair.full_dose - 0.4 * pair.lesions[:, -1:] + noise
        found.append(lesion_bias(kept, pair).item())
    standard_error = np.std(found) / np.sqrt(len(found))
    assert standard_error > 1e-4
    assert abs(np.mean(found) - 0.16) < 4 * standard_error


def test_its_gradient_asks_for_the_lost_contrast():
    pair = batch(1)
    kept = (pair.full_dose - 0.5 * pair.lesions[:, -1:]).requires_grad_()
    lesion_bias(kept, pair).backward()
    assert (kept.grad * pair.lesions[:, -1:]).sum() < 0
    assert not kept.grad[(pair.lesions[:, -1:] == 0)].any()


@pytest.mark.parametrize("lost", [0.0, 0.3, 1.0, -0.2])
def test_the_error_within_lesions_is_what_is_lost_of_their_means(lost):
    pair = batch(2)
    lesions = pair.lesions[:, -1:]
    means = ndimage.uniform_filter(lesions.numpy(), (1, 1, 5, 5), mode="constant")
    inside = np.abs(lesions.numpy()) > 2 / HU_PER_UNIT
    error = lesion_error(pair.full_dose - lost * lesions, pair).item()
    assert error == pytest.approx(abs(lost) * np.abs(means[inside]).mean(), rel=1e-9)


def test_it_sees_nothing_but_lesions():
    pair = batch(2)
    far = ~ndimage.maximum_filter(pair.lesions[:, -1:].abs().numpy() > 0, (1, 1, 9, 9))
    assert far.any()
    assert lesion_error(pair.full_dose + torch.from_numpy(far) * 0.1, pair).item() == 0.0
    without = pair._replace(lesions=torch.zeros_like(pair.lesions))
    assert lesion_error(pair.full_dose + 0.1, without).item() == 0.0


def slice_of(index=0):
    return FullDoseSlice(disc(), SliceGeometry(PIXEL_MM, 3.0), "1.2.3", index)


def pair_of(**values):
    config = TrainConfig(split="none", crop=128, crops_per_slice=1, **values)
    return next(iter(NoisyPairs([slice_of()], config)))


def test_low_and_full_dose_show_the_same_lesions():
    values = {"noise": {"full_dose_share": 1.0}, "lesions": {"per_slice": 20}}
    pair = pair_of(**values)
    assert torch.equal(pair.low_dose, pair.full_dose)
    changed = pair.full_dose * HU_PER_UNIT - 40
    inside = pair.full_dose > -0.5
    assert pair.lesions[-1].abs().max() > 5 / HU_PER_UNIT
    torch.testing.assert_close(
        changed[inside], pair.lesions[-1:][inside] * HU_PER_UNIT, atol=1e-3, rtol=0
    )


def test_depth_targets_of_ablations():
    radiological = pair_of()
    euclidean = pair_of(depth_target="euclidean")
    shuffled = pair_of(depth_target="shuffled")
    assert torch.equal(radiological.low_dose, euclidean.low_dose)
    assert not torch.equal(radiological.depth, shuffled.depth)
    whole = euclidean_depth(disc(), PIXEL_MM)
    assert 0 < euclidean.depth.max() * 30 <= whole.max() + 1e-3
    assert not torch.equal(radiological.depth, euclidean.depth)


@pytest.mark.parametrize("name", ["lesion", "lesion_bias"])
def test_a_loss_of_lesions_without_lesions_is_refused(name):
    with pytest.raises(ConfigError, match=f"{name} needs.*per_slice"):
        checked({"split": "x", "loss": {name: 0.1}}, TrainConfig, "recipe")
    assert getattr(LossWeights(**{name: 0.1}), name) == 0.1
