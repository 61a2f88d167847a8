"""The contrastive loss: least at the full dose, bounded wherever the output is."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from cddnet.losses.contrast import Contrast


def images(shape=(2, 1, 21, 17), seed=0, dtype=torch.float64):
    """Full and low dose in network range."""
    generator = torch.Generator().manual_seed(seed)
    full_dose = torch.randn(shape, generator=generator, dtype=dtype)
    return full_dose, full_dose + 0.2 * torch.randn(shape, generator=generator, dtype=dtype)


def network(dtype=torch.float64):
    """Features at two resolutions, smooth so that finite differences hold."""
    torch.manual_seed(0)
    first = nn.Conv2d(1, 6, 3, padding=1).to(dtype).requires_grad_(False)
    second = nn.Conv2d(6, 9, 3, stride=2).to(dtype).requires_grad_(False)

    def features(image):
        fine = torch.tanh(first(image))
        return fine, torch.tanh(second(fine))

    return features


def test_nothing_at_the_full_dose_and_the_bound_at_the_low_dose():
    full_dose, low_dose = images()
    contrast = Contrast(features=network(), largest=7.0)
    losses = [
        contrast(torch.lerp(full_dose, low_dose, share), full_dose, low_dose).item()
        for share in (0.0, 0.1, 0.3, 0.5, 0.7, 1.0)
    ]
    assert losses[0] == 0.0
    assert losses == sorted(set(losses))
    assert losses[-1] == 7.0


def test_it_is_the_ratio_of_distances_computed_by_hand():
    full_dose, low_dose = images()
    restored = torch.lerp(full_dose, low_dose, 0.4)
    features, floor = network(), 0.05
    ratios = []
    for restored_map, full_map, low_map in zip(
        *(features(image) for image in (restored, full_dose, low_dose)), strict=True
    ):
        for number in range(2):
            unit = [
                one[number].numpy() / (one[number].numpy() ** 2).sum(axis=0) ** 0.5
                for one in (restored_map, full_map, low_map)
            ]
            ratios.append(abs(unit[0] - unit[1]).mean() / (abs(unit[0] - unit[2]).mean() + floor))
    found = Contrast(features=features, floor=floor)(restored, full_dose, low_dose)
    assert found.item() == pytest.approx(sum(ratios) / 4, rel=1e-12)
    assert len({round(ratio, 6) for ratio in ratios}) == 4


def test_the_strength_of_features_does_not_matter():
    full_dose, low_dose = images()
    restored = torch.lerp(full_dose, low_dose, 0.4)
    features = network()
    weak = Contrast(features=features)(restored, full_dose, low_dose)
    strong = Contrast(features=lambda image: [1e3 * one for one in features(image)])
    assert strong(restored, full_dose, low_dose).item() == pytest.approx(weak.item(), rel=1e-12)


@pytest.mark.parametrize("hu", [-32768.0, 0.0, 65535.0])
@pytest.mark.parametrize(
    "features", [network(torch.float32), lambda image: [functional.relu(image)]]
)
def test_finite_at_extremes(hu, features):
    """Also where features vanish, and where all three images are one."""
    full_dose, low_dose = images(dtype=torch.float32)
    extreme = torch.full_like(full_dose, hu / 1024)
    contrast = Contrast(features=features)
    for restored, positive, negative in (
        (extreme, full_dose, low_dose),
        (full_dose, extreme, low_dose),
        (full_dose, full_dose, extreme),
        (extreme, extreme, extreme),
        (low_dose, full_dose, low_dose),
    ):
        leaf = restored.clone().requires_grad_()
        loss = contrast(leaf, positive, negative)
        (gradient,) = torch.autograd.grad(loss, leaf)
        assert 0 <= loss <= contrast.largest
        assert torch.isfinite(gradient).all()


def test_gradients_are_those_of_finite_differences_and_reach_the_restored_image_alone():
    full_dose, low_dose = images((1, 1, 6, 5))
    restored = torch.lerp(full_dose, low_dose, 0.4).requires_grad_()
    full_dose.requires_grad_()
    low_dose.requires_grad_()
    contrast = Contrast(features=network())
    gradients = torch.autograd.grad(
        contrast(restored, full_dose, low_dose), (restored, full_dose, low_dose), allow_unused=True
    )
    assert gradients[0].abs().max() > 0
    assert gradients[1:] == (None, None)
    fixed = (full_dose.detach(), low_dose.detach())
    assert torch.autograd.gradcheck(lambda image: contrast(image, *fixed), (restored,))
