"""Convolutional features of AlexNet and VGG, for losses and metrics that compare images by them.

Layers are numbered as in torchvision's files, so that `features.<layer>.weight` fits. There are no
fresh weights: features of a random network mean nothing.
Source: Krizhevsky, arXiv 1404.5997, 2014 (AlexNet, one tower); Simonyan and Zisserman, ICLR 2015.
"""

# Shapes: B batch, C channel, H row, W column.

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from cddnet.errors import ModelError

_PREFIX = "features."


class _Layout(NamedTuple):
    """taps: the layers, all ReLU, whose output is given.  smallest: side of an image, pixels."""

    layers: tuple[nn.Module, ...]
    taps: tuple[int, ...]
    smallest: int


def parsed(content: bytes, path: Path) -> dict[str, Tensor]:
    """Weights by key of a file's bytes, whose digest the caller has checked; tensors alone.

    Raises: ModelError for bytes that are no weights, naming the path.
    """
    try:
        state = (
            safetensors.torch.load(content)
            if path.suffix == ".safetensors"
            else torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        )
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise ModelError(
            f"{path}: is no file of weights ({type(error).__name__}); fetch it again, or save a "
            "state_dict."
        ) from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ModelError(f"{path}: is no table of weights by key; save a state_dict.")
    return state


def names() -> tuple[str, ...]:
    """Every feature network."""
    return tuple(_LAYOUTS)


class FeatureNetwork(nn.Module):
    """Frozen features: (B, 3, H, W), normalised as the weights expect it, to (B, C, H, W) per tap.

    Parameters do not learn; gradients reach the image.
    """

    def __init__(self, name: str, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        layers, self.taps, self.smallest = _LAYOUTS[name]()
        self.features = nn.Sequential(*layers)
        # Published files hold the classifier as well.
        kept = {key: value for key, value in state.items() if key.startswith(_PREFIX)}
        try:
            self.load_state_dict(kept, assign=True)
        except RuntimeError as error:
            found = ", ".join(sorted(state)[:3]) or "nothing"
            raise ModelError(
                f"weights do not fit {name}: expected keys such as features.0.weight, found "
                f"{found}; give the file that torchvision publishes."
            ) from error
        self.requires_grad_(False).eval()

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        if min(image.shape[-2:]) < self.smallest:
            raise ModelError(
                f"an image of {image.shape[-2]} x {image.shape[-1]} pixels is too small for these "
                f"features; they need {self.smallest} pixels on each side."
            )
        found = []
        for number, layer in enumerate(islice(self.features, self.taps[-1] + 1)):
            image = layer(image)
            if number in self.taps:
                found.append(image)
        return tuple(found)


def _convolution(before: int, width: int, side: int, stride: int = 1) -> nn.Conv2d:
    """Without memory or values until weights are loaded."""
    padding = 2 if side > 3 else 1
    return nn.Conv2d(before, width, side, stride=stride, padding=padding, device="meta")


def _alexnet() -> _Layout:
    layers = (
        _convolution(3, 64, 11, stride=4),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),
        _convolution(64, 192, 5),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),
        _convolution(192, 384, 3),
        nn.ReLU(),
        _convolution(384, 256, 3),
        nn.ReLU(),
        _convolution(256, 256, 3),
        nn.ReLU(),
    )
    return _Layout(layers, taps=(1, 4, 7, 9, 11), smallest=31)


def _vgg(depths: tuple[int, ...], taps: tuple[int, ...]) -> _Layout:
    """depths: convolutions at each of the five resolutions."""
    layers: list[nn.Module] = []
    before = 3
    for level, depth in enumerate(depths):
        width = min(64 * 2**level, 512)
        for _ in range(depth):
            layers += [_convolution(before, width, 3), nn.ReLU()]
            before = width
        layers.append(nn.MaxPool2d(2, 2))
    return _Layout(tuple(layers[:-1]), taps, smallest=16)


# VGG16 gives the last ReLU of each resolution, as LPIPS takes them; VGG19 the first, as perceptual
# and contrastive losses do (Wu et al., CVPR 2021).
_LAYOUTS: dict[str, Callable[[], _Layout]] = {
    "alexnet": _alexnet,
    "vgg16": lambda: _vgg((2, 2, 3, 3, 3), taps=(3, 8, 15, 22, 29)),
    "vgg19": lambda: _vgg((2, 2, 4, 4, 4), taps=(1, 6, 11, 20, 29)),
}
