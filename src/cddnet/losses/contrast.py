"""Contrastive loss: in a feature space, near to the full dose and far from the low dose."""

# Shapes: B batch, C channel, H row, W column; images (B, 1, H, W) in network range.

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

# It compares three images in features of a network, so it is none of (prediction, target).
LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {}

Features = Callable[[Tensor], Sequence[Tensor]]


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """features: (B, 1, H, W) to maps (B, C, H, W) of any sizes, the same function for all three
    images; a projection, if any, belongs into it.  largest: bound of the ratio.  floor: added to
    the distance from the low dose.

    Source: Wu et al., CVPR 2021, who sum the ratios over the maps with growing weights. Here every
    map counts the same, features have norm 1 at each pixel, and the ratio is bounded, because an
    output that equals its input makes it infinite.
    """

    features: Features
    largest: float = 10.0
    floor: float = 1e-3

    def __call__(self, restored: Tensor, full_dose: Tensor, low_dose: Tensor) -> Tensor:
        """Mean of d(restored, full) / (d(restored, low) + floor) over images and maps, scalar.

        0 at the full dose, `largest` at most, where it has no gradient.
        """
        with torch.no_grad():
            positives, negatives = self.features(full_dose), self.features(low_dose)
        ratios = [
            _distance(anchor, positive) / (_distance(anchor, negative) + self.floor)
            for anchor, positive, negative in zip(
                self.features(restored), positives, negatives, strict=True
            )
        ]
        return torch.stack(ratios).clamp(max=self.largest).mean()


def _distance(first: Tensor, second: Tensor) -> Tensor:
    """Mean absolute difference of features of norm 1 at each pixel, for each image (B,)."""
    difference = _unit(first) - _unit(second)
    return difference.abs().mean(dim=(1, 2, 3))


def _unit(features: Tensor) -> Tensor:
    return functional.normalize(features.to(torch.promote_types(features.dtype, torch.float32)))
