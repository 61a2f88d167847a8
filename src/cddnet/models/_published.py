"""What networks of other authors share: grey levels 0..1 of HU, sizes, loading of weights."""

# Shapes: B batch, C channel, H row, W column.

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from cddnet.errors import ModelError
from cddnet.intensity.normalise import to_hu, to_network

Network = TypeVar("Network", bound=nn.Module)

# Names under which training code keeps the network whose keys are wanted: DataParallel, Lightning.
WRAPPERS = ("module", "model", "net", "network", "generator", "denoiser")
DEEPEST_WRAPPER = 4
# What torch.compile puts before the keys of a module, anywhere in their path.
_COMPILED = "_orig_mod"


@dataclass(frozen=True, kw_only=True)
class UnitRange:
    """HU that became 0 and 1 where a network was trained; values outside are not clipped.

    Raises: ModelError if the two do not span a range.
    """

    lowest_hu: float
    highest_hu: float

    def __post_init__(self) -> None:
        if not self.lowest_hu < self.highest_hu:
            raise ModelError(
                f"a network cannot work from {self.lowest_hu} HU to {self.highest_hu} HU; "
                "lowest_hu must be below highest_hu."
            )

    @property
    def width_hu(self) -> float:
        return self.highest_hu - self.lowest_hu

    def to_unit(self, image: Tensor) -> Tensor:
        """Fractions of the range, of an image in network range."""
        return (to_hu(image) - self.lowest_hu) / self.width_hu

    def from_unit(self, fractions: Tensor) -> Tensor:
        """Network range of fractions of the range, the inverse of `to_unit`."""
        return to_network(fractions * self.width_hu + self.lowest_hu)

    def difference_from_unit(self, fractions: Tensor) -> Tensor:
        """Network range of a difference of two images, such as noise, given as fractions."""
        return to_network(fractions * self.width_hu)


def pad_to_multiple(image: Tensor, multiple: int, smallest: int = 1) -> Tensor:
    """The image (B, C, H, W) with its border repeated to multiples, no side below `smallest`."""
    height, width = image.shape[-2:]
    below, right = (
        -(-max(side, smallest) // multiple) * multiple - side for side in (height, width)
    )
    if not below and not right:
        return image
    return functional.pad(image, (0, right, 0, below), mode="replicate")


def check_channels(image: Tensor, channels: int, network: str) -> None:
    """Raises: ModelError if the image is not (B, channels, H, W)."""
    if image.ndim != 4 or image.shape[1] != channels or 0 in image.shape:
        raise ModelError(
            f"{network} cannot take an image of shape {tuple(image.shape)}; "
            f"give it (B, {channels}, H, W)."
        )


def load(
    build: Callable[[], Network],
    state_dict: Mapping[str, Tensor],
    what: str,
    *,
    remedy: str = (
        "Pass its state dict, complete and alone, not a whole checkpoint "
        "(often it is one entry of it)."
    ),
) -> Network:
    """A network in evaluation mode with published weights, which are copied.

    Parameters: build makes the network; state_dict has its keys, bare or all under names that
    training code wraps a network in; what names the weights in the refusal, remedy says what to do.
    Raises: ModelError if a key is missing, unexpected, or holds something of another shape.
    """
    with torch.device("meta"):
        network = build()
    expected = network.state_dict()
    weights = _unwrapped(state_dict, expected)
    problems = _problems(weights, expected)
    if problems:
        raise ModelError(f"These are not weights of {what}: {'; '.join(problems)}. {remedy}")
    network.to_empty(device="cpu").load_state_dict(weights)
    return network.eval()


def _problems(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    missing = [key for key in expected if key not in weights]
    unexpected = [key for key in weights if key not in expected]
    unlike = [
        f"{key} {_shape(weights[key])} instead of {_shape(values)}"
        for key, values in expected.items()
        if key in weights and _shape(weights[key]) != _shape(values)
    ]
    listed = (
        _listed("missing", missing),
        _listed("unexpected", unexpected),
        _listed("of another shape", unlike),
    )
    return [problem for problem in listed if problem]


def inside(state_dict: Mapping[str, Tensor], wrapper: str) -> dict[str, Tensor]:
    """The tensors whose keys are under one name, without that name."""
    start = f"{wrapper}."
    return {
        key.removeprefix(start): values
        for key, values in state_dict.items()
        if key.startswith(start)
    }


def without_compiled(state_dict: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The tensors by keys without the mark of torch.compile."""
    return {
        ".".join(part for part in key.split(".") if part != _COMPILED): values
        for key, values in state_dict.items()
    }


def _unwrapped(
    state_dict: Mapping[str, Tensor], expected: Mapping[str, Tensor]
) -> Mapping[str, Tensor]:
    """The tensors by the keys of the network, where all keys share the names around it."""
    weights = without_compiled(state_dict)
    for _ in range(DEEPEST_WRAPPER):
        if weights.keys() & expected.keys():
            break
        within = (inside(weights, wrapper) for wrapper in WRAPPERS)
        whole = next((part for part in within if len(part) == len(weights)), None)
        if whole is None:
            break
        weights = whole
    return weights


def _shape(values: object) -> str:
    return str(tuple(values.shape)) if isinstance(values, Tensor) else type(values).__name__


def _listed(problem: str, keys: list[str], shown: int = 3) -> str:
    if not keys:
        return ""
    more = f" and {len(keys) - shown} more" if len(keys) > shown else ""
    return f"{len(keys)} {problem} ({', '.join(keys[:shown])}{more})"
