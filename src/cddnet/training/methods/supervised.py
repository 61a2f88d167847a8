"""One network against the full dose: Charbonnier, local mean and depth, or plain MSE or L1."""

# Shapes: B batch, H row, W column; images (B, 1, H, W) in network range.

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

from cddnet.config import LossWeights, TrainConfig
from cddnet.losses.pixel import absolute, charbonnier, local_mean
from cddnet.models._output import Output
from cddnet.training.methods import Updates, adamw
from cddnet.training.pairs import Pair

USES_LOSS = True

# 50 and 30 HU: an error after 20 HU of mean absolute noise counts once.
_NOISE_UNIT, _NOISE_FLOOR = 50 / 1024, 30 / 1024
# What an inserted lesion adds where it counts as one, and the side of its means in pixels.
_SEEN, _SPOT = 2 / 1024, 5


class Supervised:
    def __init__(self, config: TrainConfig, denoiser: nn.Module) -> None:
        self._weights = config.loss
        self.denoiser = denoiser
        self.networks: Mapping[str, nn.Module] = {"denoiser": denoiser}
        self.optimisers: Mapping[str, Optimizer] = {
            "denoiser": adamw(denoiser.parameters(), config)
        }

    def step(self, pair: Pair, updates: Updates) -> Mapping[str, Tensor]:
        with updates.autocast():
            output = updates.network("denoiser")(pair.low_dose)
        terms = losses(output, pair, self._weights)
        updates.minimise("denoiser", terms["total"])
        return terms


def build(config: TrainConfig, denoiser: nn.Module) -> Supervised:
    return Supervised(config, denoiser)


def losses(output: Output, pair: Pair, weights: LossWeights) -> dict[str, Tensor]:
    """Terms and their weighted total, each a mean over the batch."""
    denoised = output.image.to(pair.full_dose.dtype)
    if weights.error == "charbonnier":
        denoised = relative_to_noise(denoised, pair)
        image = charbonnier(denoised, pair.full_dose)
    elif weights.error == "mse":
        image = functional.mse_loss(denoised, pair.full_dose)
    else:
        image = absolute(denoised, pair.full_dose)
    mean = local_mean(denoised, pair.full_dose)
    terms = {"image": image, "local_mean": mean}
    total = weights.image * image + weights.local_mean * mean
    if output.depth is not None:
        depth = output.depth.to(pair.depth.dtype)
        # Where the body is cut the depth is not known, and nothing is learned of it.
        terms["depth"] = absolute(
            depth, torch.where(pair.depth.isnan(), depth.detach(), pair.depth)
        )
        total = total + weights.depth * terms["depth"]
    if weights.lesion_bias:
        terms["lesion_bias"] = lesion_bias(output.image.to(pair.full_dose.dtype), pair)
        total = total + weights.lesion_bias * terms["lesion_bias"]
    if weights.lesion:
        terms["lesion"] = lesion_error(denoised, pair)
        total = total + weights.lesion * terms["lesion"]
    return terms | {"total": total}


def lesion_error(denoised: Tensor, pair: Pair) -> Tensor:
    """Absolute error of means over 5 x 5 pixels, averaged where inserted lesions have over 2 HU.

    Lesions fill a hundredth of a slice; here they weigh as much as all of it. Unlike the bias it
    rewards finding a lesion, not letting all noise of its size pass.
    """
    inside = pair.lesions[:, -1:].abs() > _SEEN
    error = functional.avg_pool2d(denoised - pair.full_dose, _SPOT, stride=1, padding=_SPOT // 2)
    return (error.abs() * inside).sum() / inside.sum().clamp(min=1)


def lesion_bias(denoised: Tensor, pair: Pair) -> Tensor:
    """Square of the mean share that inserted lesions lose or gain of their contrast, by strata.

    Estimated without bias as the product of two halves of the batch, whose noise is independent,
    so that it does not reward less noise. May be negative.
    """
    strata, lesions = pair.lesions[:, :-1], pair.lesions[:, -1:]
    changed = ((denoised - pair.full_dose) * strata).sum(dim=(2, 3))
    present = (lesions * strata).sum(dim=(2, 3))
    half = len(changed) // 2
    one, other = (
        changed[part].sum(0) / present[part].sum(0).clamp(min=1.0)
        for part in (slice(0, half), slice(half, None))
    )
    return (one * other).mean()


def relative_to_noise(denoised: Tensor, pair: Pair) -> Tensor:
    """Errors relative to the inserted noise, so that quiet slices matter beside starved ones."""
    noise = (pair.low_dose - pair.full_dose).abs().mean(dim=(1, 2, 3), keepdim=True)
    scale = _NOISE_UNIT / (noise + _NOISE_FLOOR)
    return pair.full_dose + scale * (denoised - pair.full_dose)
