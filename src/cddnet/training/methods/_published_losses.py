"""Terms of the published training of CDD-Net, and beside each what it takes the place of.

Source: a description of the published code; for the corrected forms as named.
"""

# Shapes: B batch, C channel, H row, W column; images (B, 3, H, W) grey levels, depths (B, 1, H, W).

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cddnet.losses.interaction import capped_softmax
from cddnet.losses.pixel import absolute

Features = Callable[[Tensor], Sequence[Tensor]]
Map = Callable[[Tensor], Tensor]

_SMALLEST_WEIGHT = 1e-7
_CAP = 10.0
_LEVEL_WEIGHTS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1.0)
_FLOOR = 1e-7
# Not known of the published code, and without meaning: nothing is learned there.
_DEEPEST, _HIDDEN, _PROJECTED = 512, 256, 128
_SEED = 0


def over_the_batch(maps: Tensor) -> Tensor:
    """0 at the smallest value of the whole batch, 1 at its largest; gradients pass both."""
    lowest, highest = maps.min(), maps.max()
    return (maps - lowest) / (highest - lowest).clamp(min=torch.finfo(maps.dtype).eps)


def by_image(depth: Tensor) -> Tensor:
    """Each depth less its median, over its mean distance from it.

    Source: Ranftl et al., IEEE TPAMI 44(3), 2022, for depths of unknown scale and shift.
    """
    flat = depth.flatten(1)
    centred = flat - flat.median(dim=1, keepdim=True).values
    spread = centred.abs().mean(dim=1, keepdim=True)
    return (centred / spread.clamp(min=torch.finfo(depth.dtype).eps)).reshape(depth.shape)


def signed(difference: Tensor) -> Tensor:
    """What is too bright scores high, what is too dark low."""
    return difference


def softmax_over_everything(scores: Tensor) -> Tensor:
    """Weights (B, 1, H, W) of sum 1 per image, whatever its size: nothing, beside a mean of 1."""
    weights = scores.flatten(1).softmax(dim=1).clamp(min=_SMALLEST_WEIGHT)
    return weights.reshape(scores.shape).sum(dim=1, keepdim=True)


def weights_of_mean_one(scores: Tensor) -> Tensor:
    """Weights (B, 1, H, W) of mean 1 per image, 10 at most, from the mean over the channels."""
    return capped_softmax(scores.mean(dim=1, keepdim=True), _CAP)


@dataclass(frozen=True, kw_only=True)
class Perception:
    """size: of a difference, `signed` or `torch.abs`.  spread: scores to weights, one of the two
    above.
    """

    size: Map
    spread: Map

    def __call__(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Weights (B, 1, H, W) of where two maps (B, C, H, W) differ; no gradient passes."""
        difference = (prediction - target).detach()
        return self.spread(over_the_batch(self.size(difference)))


@dataclass(frozen=True, kw_only=True)
class PublishedContrast:
    """features: images to five maps.  projections: of the deepest map of the restored, the full and
    the low dose.  largest: bound of a ratio.

    Source: Wu et al., CVPR 2021, whose levels weigh 1/32, 1/16, 1/8, 1/4 and 1.
    """

    features: Features
    projections: tuple[Map, Map, Map]
    largest: float

    def __call__(self, restored: Tensor, full_dose: Tensor, low_dose: Tensor) -> Tensor:
        """Weighted sum over the levels of d(restored, full) / d(restored, low), scalar."""
        anchor, positive, negative = self.projections
        with torch.no_grad():
            positives = _projected(self.features(full_dose), positive)
            negatives = _projected(self.features(low_dose), negative)
        anchors = _projected(self.features(restored), anchor)
        terms = [
            weight * (absolute(a, p) / (absolute(a, n) + _FLOOR)).clamp(max=self.largest)
            for weight, a, p, n in zip(_LEVEL_WEIGHTS, anchors, positives, negatives, strict=True)
        ]
        return torch.stack(terms).sum()


def random_projections() -> nn.ModuleList:
    """Three untrained perceptrons at each position of the deepest map of VGG19, all different."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        made = [
            nn.Sequential(
                nn.Conv2d(_DEEPEST, _HIDDEN, 1), nn.ReLU(), nn.Conv2d(_HIDDEN, _PROJECTED, 1)
            )
            for _ in range(3)
        ]
    return nn.ModuleList(made).requires_grad_(False)


def _projected(maps: Sequence[Tensor], projection: Map) -> list[Tensor]:
    whole = [features.to(torch.promote_types(features.dtype, torch.float32)) for features in maps]
    return [*whole[:-1], projection(whole[-1])]
