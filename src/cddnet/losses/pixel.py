"""Losses on pixels and on their local means."""

# Shapes: B batch, C channel, H row, W column; network range.

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

# About 8 HU: below it the loss is quadratic, above it linear.
_KNEE = 8.0 / 1024.0
_BLOCK = 16


def charbonnier(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean of sqrt(e^2 + knee^2) - knee over all pixels.  Source: Charbonnier et al., ICIP 1994."""
    return torch.sqrt((prediction - target).square() + _KNEE**2).mean() - _KNEE


def local_mean(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error of the means over 16 x 16 blocks: removed noise has no local mean."""
    return functional.avg_pool2d(prediction - target, _BLOCK, ceil_mode=True).abs().mean()


def absolute(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error."""
    return (prediction - target).abs().mean()


LOSSES = {"charbonnier": charbonnier, "local_mean": local_mean, "absolute": absolute}
