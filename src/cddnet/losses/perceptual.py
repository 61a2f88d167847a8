"""Distance of images by the features of a network, which is passed in.

A distance needs those features; so none is in LOSSES.
"""

# Shapes: B batch, C channel, H row, W column.

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {}

Features = Callable[[Tensor], Tensor]
Convention = Literal["paper", "authors", "ports"]


def feature_distance(
    features: Features, prediction: Tensor, target: Tensor, *, convention: Convention
) -> Tensor:
    """Distance of the features of two images (B, C, H, W); no gradient reaches the target.

    convention: of WGAN-VGG, which differ by orders of magnitude and so need other weights. "paper":
    mean square (Yang et al., IEEE TMI 37(6), 2018). "authors": half the sum of squares over B, as
    their code has it. "ports": mean absolute difference, as public PyTorch forms have it.
    """
    with torch.no_grad():
        wanted = features(target).to(target.dtype)
    return _DISTANCES[convention](features(prediction).to(prediction.dtype), wanted)


def _half_sum_of_squares(found: Tensor, wanted: Tensor) -> Tensor:
    return (found - wanted).square().sum() / (2 * len(found))


_DISTANCES: Mapping[Convention, Callable[[Tensor, Tensor], Tensor]] = {
    "paper": functional.mse_loss,
    "authors": _half_sum_of_squares,
    "ports": functional.l1_loss,
}
