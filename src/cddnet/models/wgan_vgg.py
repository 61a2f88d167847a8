"""WGAN-VGG: eight small convolutions, trained against a critic and for features of VGG19.

Source: Yang et al., "Low-Dose CT Image Denoising Using a Generative Adversarial Network With
Wasserstein Distance and Perceptual Loss", IEEE TMI 37(6), 2018. Held to outputs of a public PyTorch
form (tests/golden), whose names of layers are kept, because they are the keys of its weights.

The network is the generator alone. The critic is for training: `build_critic` makes one for patches
of a given side, and nothing builds it to denoise.

Differs from the authors' own code, as the public form does: convolutions are padded and have a bias
(theirs shrink the image by 16 pixels); the critic's are not padded and its leaky ReLU has a slope
of 0.01 (theirs are, and 0.2). Differs from the public form, unless built with `PUBLISHED`: no ReLU
at the end. There is no shortcut, so one that starts below 0 gives black images without a gradient.
"""

# Shapes: B batch, H row, W column, P side of a patch. Images are in network range; `grey` is 0..1
# of `Config`'s range.

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional

from cddnet.errors import ModelError
from cddnet.models._output import Output
from cddnet.models._published import UnitRange, check_channels, load

_CRITIC_WIDTHS = (1, 64, 64, 128, 128, 256, 256)
_CRITIC_STRIDES = (1, 2, 1, 2, 1, 2)
_CRITIC_HIDDEN = 1024
_CRITIC_SLOPE = 0.01
_SMALLEST_PATCH = 29


@dataclass(frozen=True, kw_only=True)
class Config:
    """channels: of every hidden layer of the generator.
    final_relu: a ReLU at the end, as published.
    lowest_hu, highest_hu: HU that are 0 and 1 inside; public training uses -1024 and 3072.
    """

    channels: int = 32
    final_relu: bool = False
    lowest_hu: float = -1024.0
    highest_hu: float = 3072.0

    @property
    def range(self) -> UnitRange:
        return UnitRange(lowest_hu=self.lowest_hu, highest_hu=self.highest_hu)


PUBLISHED = Config(final_relu=True)


class Generator(nn.Module):
    """(B, 1, H, W) network range in, `Output` with the image out; any size."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.range = config.range
        widths = (1, *(config.channels,) * 7, 1)
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU()]
        self.net = nn.Sequential(*(layers if config.final_relu else layers[:-1]))

    def published_forward(self, grey: Tensor) -> Tensor:
        """Denoised grey levels of grey levels, both (B, 1, H, W)."""
        denoised: Tensor = self.net(grey)
        return denoised

    def forward(self, image: Tensor) -> Output:
        check_channels(image, 1, "WGAN-VGG")
        return Output(self.range.from_unit(self.published_forward(self.range.to_unit(image))))


class Critic(nn.Module):
    """Score (B, 1) of patches (B, 1, P, P) in network range: higher looks more like full dose."""

    def __init__(self, config: Config, patch: int) -> None:
        super().__init__()
        if patch < _SMALLEST_PATCH:
            raise ModelError(
                f"the critic of WGAN-VGG cannot judge patches of {patch} pixels; "
                f"give it at least {_SMALLEST_PATCH}."
            )
        self.patch = patch
        self.range = config.range
        layers: list[nn.Module] = []
        side = patch
        widths = pairwise(_CRITIC_WIDTHS)
        for (before, after), stride in zip(widths, _CRITIC_STRIDES, strict=True):
            layers += [nn.Conv2d(before, after, 3, stride=stride), nn.LeakyReLU(_CRITIC_SLOPE)]
            side = (side - 3) // stride + 1
        self.net = nn.Sequential(*layers)
        self.fc1 = nn.Linear(_CRITIC_WIDTHS[-1] * side**2, _CRITIC_HIDDEN)
        self.fc2 = nn.Linear(_CRITIC_HIDDEN, 1)

    def published_forward(self, grey: Tensor) -> Tensor:
        """Score (B, 1) of grey levels (B, 1, P, P)."""
        features = self.fc1(self.net(grey).flatten(1))
        score: Tensor = self.fc2(functional.leaky_relu(features, _CRITIC_SLOPE))
        return score

    def forward(self, image: Tensor) -> Tensor:
        """Raises: ModelError if the patches are not of the size the critic was built for."""
        if tuple(image.shape[1:]) != (1, self.patch, self.patch):
            raise ModelError(
                f"this critic was built for patches (B, 1, {self.patch}, {self.patch}) and cannot "
                f"judge {tuple(image.shape)}; build it for that size."
            )
        return self.published_forward(self.range.to_unit(image))


def build(config: Config) -> Generator:
    return Generator(config)


def build_critic(config: Config, patch: int) -> Critic:
    """A critic with fresh weights for patches of `patch` pixels per side.

    Raises: ModelError if the patch is too small for its convolutions.
    """
    return Critic(config, patch)


def from_published(state_dict: Mapping[str, Tensor], config: Config = PUBLISHED) -> Generator:
    """The generator in evaluation mode, with weights that have the published keys.

    Raises: ModelError if a key is missing, unexpected, or holds something of another shape.
    """
    return load(lambda: Generator(config), state_dict, "the published WGAN-VGG generator")


def critic_from_published(
    state_dict: Mapping[str, Tensor], patch: int, config: Config = PUBLISHED
) -> Critic:
    """The critic for patches of `patch` pixels, in evaluation mode, with published weights.

    Raises: ModelError if a key is missing, unexpected, or holds something of another shape.
    """
    what = f"the published WGAN-VGG critic for patches of {patch} pixels"
    return load(lambda: Critic(config, patch), state_dict, what)
