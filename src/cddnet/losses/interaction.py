"""Difference perception: the error of one task says where the other task must look.

Either form gives weights of mean 1 per image. The fixed one is a softmax of the smoothed error. The
trainable one, `Player`, plays against the tasks: it maximises `objective`, whose entropy keeps the
weights apart from a single pixel and whose optimum over all weights is the fixed form without
smoothing (Gibbs' variational principle). Trained to make the weighted loss small, as a part of
either task, it would hide the errors that it shall show.
Source: DCMPNet (Zhang et al., CVPR 2024) for the two directions; normalisation, cap and the
adversary are ours.
"""

# Shapes: B batch, H row, W column; maps (B, 1, H, W).

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

# Weights need a partner's error, which (prediction, target) does not have.
LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {}


@dataclass(frozen=True, kw_only=True)
class Perception:
    """temperature: in mean errors of the image; small is sharp.  cap: largest weight, above 1.
    smoothing: side of the mean over neighbours, odd; 1: none.
    """

    temperature: float = 1.0
    cap: float = 10.0
    smoothing: int = 5


def difference_weights(prediction: Tensor, target: Tensor, perception: Perception) -> Tensor:
    """Weights (B, 1, H, W) of mean 1 per image, large where |error| is; no gradient passes."""
    relative = relative_error(prediction, target)
    side = perception.smoothing
    smooth = functional.avg_pool2d(
        relative, side, stride=1, padding=side // 2, count_include_pad=False
    )
    return capped_softmax(smooth / perception.temperature, perception.cap)


class Player(nn.Module):
    """The trainable form, one for each direction; starts with weights of 1."""

    def __init__(self, width: int, cap: float) -> None:
        super().__init__()
        self._cap = cap
        self.convolution = nn.Conv2d(1, width, 3, padding=1, padding_mode="replicate")
        self.hidden = nn.Conv2d(width, width, 1)
        self.score = nn.Conv2d(width, 1, 1)
        nn.init.zeros_(self.score.weight)

    def forward(self, relative: Tensor) -> Tensor:
        """Weights of a `relative_error`, both (B, 1, H, W)."""
        # Compressed: a single error may be thousands of times the mean.
        features = self.convolution(torch.log1p(relative))
        features = functional.relu(self.hidden(functional.relu(features)))
        return capped_softmax(self.score(features), self._cap)


def objective(weights: Tensor, relative: Tensor, temperature: float) -> Tensor:
    """What a `Player` maximises, scalar: mean weighted error plus temperature times entropy."""
    entropy = -torch.xlogy(weights, weights).mean()
    return (weights * relative).mean() + temperature * entropy


def relative_error(prediction: Tensor, target: Tensor) -> Tensor:
    """|error| over its mean in the image (B, 1, H, W), without gradient; 0 where there is none."""
    error = (prediction - target).detach().abs()
    mean = error.mean(dim=(1, 2, 3), keepdim=True)
    return error / mean.clamp(min=torch.finfo(error.dtype).tiny)


def weighted_absolute(prediction: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """Mean absolute error with a weight for each pixel, which learns nothing from it."""
    return (weights.detach() * (prediction - target).abs()).mean()


def capped_softmax(scores: Tensor, cap: float) -> Tensor:
    """min(cap, c * exp(score)) with the c of each image (B, 1, H, W) that gives it mean 1.

    Raises: ValueError unless the cap is above 1; below it no weights have mean 1.
    """
    if cap <= 1:
        raise ValueError(f"cap is {cap}; give a number above 1, the mean of the weights.")
    flat = scores.flatten(1)
    count = flat.shape[1]
    descending = flat.sort(dim=1, descending=True).values
    # With the k largest at the cap, the others share count - k * cap. Logarithms: exp underflows.
    remaining = descending.flip(1).logcumsumexp(1).flip(1)
    capped = torch.arange(min(count, math.ceil(count / cap)), device=flat.device)
    share = torch.log(count - cap * capped.to(flat.dtype))
    offsets = share - remaining[:, : len(capped)]
    fits = descending[:, : len(capped)] + offsets <= math.log(cap)
    # Equal scores at the end may miss the cap by rounding; the last k then holds.
    fits = torch.cat((fits[:, :-1], torch.ones_like(fits[:, -1:])), dim=1)
    chosen = offsets.gather(1, fits.int().argmax(dim=1, keepdim=True))
    return (flat + chosen).clamp(max=math.log(cap)).exp().reshape(scores.shape)
