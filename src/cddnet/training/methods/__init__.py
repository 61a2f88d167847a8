"""Training schemes: one file is one scheme.

A scheme is one file with `build(config, denoiser) -> Method`. Where it has options of its own, it
has `Options` (pydantic, frozen, extra="forbid") and reads the recipe's `method_options` by
`options_of`; where it reads the recipe's `loss`, it says `USES_LOSS = True`; where it learns the
depth of every slice, `NEEDS_DEPTH = True`: it is not given slices that cut the body. The engine
owns data, precision, clipping, averaging, checkpoints, log and processes; the method owns the
losses and the order of its updates.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol, TypeVar

import torch
from pydantic import BaseModel
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from cddnet import plugins
from cddnet.config import ConfigError, LossWeights, TrainConfig, checked, nearest
from cddnet.training.pairs import Pair

Checked = TypeVar("Checked", bound=BaseModel)


class Updates(Protocol):
    """What the engine does for a method within one step."""

    @property
    def step(self) -> int:
        """Number of the step, from 1."""
        ...

    def network(self, name: str) -> nn.Module:
        """Network `name` to call where `minimise` shall train it: its gradients are then averaged
        over the processes. As a partner that stays as it is, use the method's own, `frozen`.
        """
        ...

    def autocast(self) -> AbstractContextManager[object]:
        """Around forward passes; losses and gradient penalties belong outside, in float32."""
        ...

    def minimise(self, name: str, loss: Tensor) -> bool:
        """One step of optimiser `name` down the loss: gradient, clipping, update.

        Returns: whether the gradient was finite; if not, nothing was changed.
        """
        ...

    def uniform(self, *shape: int) -> Tensor:
        """Random numbers in [0, 1), shape (B, ...) of this process's samples: each sample's are
        the same however many processes there are.
        """
        ...


class Method(Protocol):
    """networks: all that are trained, by name; what a method must remember is in their buffers.
    optimisers: by name.  denoiser: one of the networks; it is averaged, validated and saved.
    A method may have a `label`: what ran, for the model card, in place of its file name.
    """

    @property
    def networks(self) -> Mapping[str, nn.Module]: ...
    @property
    def optimisers(self) -> Mapping[str, Optimizer]: ...
    @property
    def denoiser(self) -> nn.Module: ...

    def step(self, pair: Pair, updates: Updates) -> Mapping[str, Tensor]:
        """Learn from one batch, crops (B, 1, H, W); returns the named losses, for the log."""
        ...


def names() -> tuple[str, ...]:
    """Every scheme that can train."""
    return plugins.names("training.methods")


def build(config: TrainConfig, denoiser: nn.Module) -> Method:
    """The recipe's method around a denoiser, which is on the device and of the type it trains in.

    Raises: ConfigError for an unknown method, or options that it does not have.
    """
    if config.method not in names():
        raise ConfigError(
            f"there is no training method '{config.method}'{nearest(config.method, names())}; "
            f"choose one of: {', '.join(names())}."
        )
    module = plugins.load("training.methods", config.method)
    if config.loss != LossWeights() and not getattr(module, "USES_LOSS", False):
        raise ConfigError(
            f"method '{config.method}' has losses of its own; take `loss` out and use "
            "`method_options`."
        )
    if config.method_options and not hasattr(module, "Options"):
        raise ConfigError(f"method '{config.method}' has no options; take `method_options` out.")
    method: Method = module.build(config, denoiser)
    return method


def needs_depth(config: TrainConfig) -> bool:
    """Whether the recipe's method, which `build` has taken, learns the depth of every slice."""
    return bool(getattr(plugins.load("training.methods", config.method), "NEEDS_DEPTH", False))


def options_of(config: TrainConfig, kind: type[Checked]) -> Checked:
    """The recipe's `method_options`, checked.  Raises ConfigError naming every wrong key."""
    return checked(config.method_options, kind, "method_options")


def adamw(parameters: Iterable[nn.Parameter], config: TrainConfig) -> AdamW:
    """AdamW by the recipe; without weight decay it is Adam."""
    return AdamW(
        parameters, lr=config.learning_rate, betas=config.betas, weight_decay=config.weight_decay
    )


@contextmanager
def frozen(*networks: nn.Module) -> Iterator[None]:
    """Networks that pass gradients on and get none themselves."""
    trained = [p for network in networks for p in network.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def like(extra: nn.Module, denoiser: nn.Module) -> nn.Module:
    """A further network of a method, moved to the denoiser's device and type of numbers."""
    parameter = next(denoiser.parameters(), torch.empty(0))
    return extra.to(parameter.device, parameter.dtype)
