"""Losses of two networks against each other: Wasserstein with gradient penalty, least squares.

They take scores, not images; so none is in LOSSES.
"""

# Shapes: B batch, C channel, H row, W column. Scores have any shape with B first.

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {}


def wasserstein_critic(real_scores: Tensor, fake_scores: Tensor) -> Tensor:
    """Mean score of fakes less that of real images: minus the estimated distance between them.

    Source: Arjovsky et al., ICML 2017.
    """
    return fake_scores.mean() - real_scores.mean()


def wasserstein_generator(fake_scores: Tensor) -> Tensor:
    """Minus the mean score of fakes."""
    return -fake_scores.mean()


def gradient_penalty(
    critic: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor, share: Tensor
) -> Tensor:
    """Mean of (||gradient|| - 1)^2, one norm per sample, over all its pixels and channels.

    Parameters: critic, without layers that mix samples; real and fake (B, C, H, W); share
    (B, 1, 1, 1), uniform in [0, 1), of the real image in the point between both that is judged.
    Its unit is a score per unit of the images. It is in float32 or longer, autocast or not, and
    teaches the critic alone: no gradient reaches the images.
    Source: Gulrajani et al., NeurIPS 2017, eq. 3.
    """
    mixed = (share * real + (1 - share) * fake).detach()
    mixed = mixed.to(torch.promote_types(mixed.dtype, torch.float32)).requires_grad_()
    with torch.autocast(mixed.device.type, enabled=False):
        (gradient,) = torch.autograd.grad(critic(mixed).sum(), mixed, create_graph=True)
    # Unlike a root of squares, this norm has a finite gradient where the critic is flat.
    norms: Tensor = torch.linalg.vector_norm(gradient.flatten(1), dim=1)
    return (norms - 1).square().mean()


def least_squares_discriminator(real_scores: Tensor, fake_scores: Tensor) -> Tensor:
    """Half the mean squares of real scores less 1 and of fake ones.  Source: Mao et al., ICCV 2017.

    At 0 if every real score is 1 and every fake one 0.
    """
    return 0.5 * ((real_scores - 1).square().mean() + fake_scores.square().mean())


def least_squares_generator(fake_scores: Tensor) -> Tensor:
    """Mean square of fake scores less 1, as Isola et al. and Geng et al. use it, without a half."""
    return (fake_scores - 1).square().mean()
