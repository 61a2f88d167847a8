"""NETWORKS: one file is one whole network.

A model is one file with `Config` (frozen dataclass, every field with a default) and
`build(config) -> nn.Module`; the module maps an image (B, 1, H, W) in network range to an `Output`.
`DEAD_PARAMETERS` names parameters that nothing depends on. A network kept as published may say
`PUBLISHED_FORWARD = True` and keep its own forward over `WINDOW`; `from_published(state_dict)`
loads the weights of the authors' code. A filter that learns nothing has no parameters and no
gradient, and says so. A file with a leading underscore is no denoiser: networks for training only,
features, cards.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from difflib import get_close_matches
from types import ModuleType
from typing import TYPE_CHECKING

from cddnet import plugins
from cddnet.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor, nn


def names() -> tuple[str, ...]:
    """Every network that can be built."""
    return plugins.names("models")


def published_names() -> tuple[str, ...]:
    """Every network that loads the weights of its authors' code."""
    return tuple(name for name in names() if hasattr(_load(name), "from_published"))


def build(name: str, **options: object) -> nn.Module:
    """Network `name` with fresh weights; options are the fields of its `Config`.

    Raises: ModelError if there is no such network, or no such option of it.
    """
    model = _load(name)
    known = tuple(field.name for field in fields(model.Config))
    unknown = [option for option in options if option not in known]
    if unknown:
        raise ModelError(
            f"network '{name}' has no option '{unknown[0]}'{_nearest(unknown[0], known)}; "
            f"its options are: {', '.join(known) or 'none'}."
        )
    network: nn.Module = model.build(model.Config(**options))
    return network


def all_options(name: str, **options: object) -> dict[str, bool | int | float | str]:
    """Options of network `name` with its defaults filled in: what a model card keeps."""
    return asdict(_load(name).Config(**options))


def from_published(name: str, state_dict: Mapping[str, Tensor]) -> nn.Module:
    """Network `name` in evaluation mode, with weights saved by its authors' code.

    Raises: ModelError if there is no such network, it cannot load such weights, or they do not fit.
    """
    model = _load(name)
    if not hasattr(model, "from_published"):
        raise ModelError(
            f"network '{name}' cannot load published weights; "
            f"these can: {', '.join(published_names()) or 'none'}."
        )
    network: nn.Module = model.from_published(state_dict)
    return network


def in_network_range(name: str, network: nn.Module) -> nn.Module:
    """A network to denoise with: one that keeps its published forward is given the common one."""
    model = _load(name)
    if not getattr(model, "PUBLISHED_FORWARD", False):
        return network
    from cddnet.models._grey_window import GreyWindow

    return GreyWindow(network, model.WINDOW)


def _load(name: str) -> ModuleType:
    known = names()
    if name not in known:
        raise ModelError(
            f"there is no network '{name}'{_nearest(name, known)}; "
            f"choose one of: {', '.join(known)}."
        )
    return plugins.load("models", name)


def _nearest(word: str, known: tuple[str, ...]) -> str:
    close = get_close_matches(word, known, n=1)
    return f" (did you mean '{close[0]}'?)" if close else ""
