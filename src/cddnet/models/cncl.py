"""CNCL-U-Net: one U-Net predicts content, one predicts noise, a 1x1 convolution fuses both.

Source: Geng et al., "Content-Noise Complementary Learning for Medical Image Denoising", IEEE TMI
41(2), 2022. Held to outputs of a public implementation (tests/golden), whose names of layers are
kept, because they are the keys of its weights: `_01` is the content network, `_02` the noise one.

The published form divides each image, less its mean, by its variance (`PUBLISHED`), so that what
the network sees depends on the unit of the values. Here it is the standard deviation by default.
Either way it is of the whole image: tiles of an image are not denoised as the image would be.

The discriminator is for training: `build_discriminator` makes it, nothing builds it to denoise.
`DEAD_PARAMETERS` belong to normalisations that the published forward never calls: its last two 3x3
convolutions follow each other without one, and without a ReLU.
"""

# Shapes: B batch, H row, W column. Images are in network range; `normalised` is what the network
# sees.

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from cddnet.errors import ModelError
from cddnet.models._output import Output
from cddnet.models._published import UnitRange, check_channels, load, pad_to_multiple

DEAD_PARAMETERS: tuple[str, ...] = (
    "upbn1_1_01.weight",
    "upbn1_1_01.bias",
    "upbn1_2_01.weight",
    "upbn1_2_01.bias",
    "upbn1_1_02.weight",
    "upbn1_1_02.bias",
    "upbn1_2_02.weight",
    "upbn1_2_02.bias",
)

CONTENT, NOISE = "01", "02"
NORMALISATIONS = ("deviation", "variance")
_STRIDE = 16
_INITIAL_DEVIATION = 0.02


@dataclass(frozen=True, kw_only=True)
class Config:
    """width: channels at full resolution, even.
    normalisation: what an image less its mean is divided by, "deviation" or "variance".
    lowest_hu, highest_hu: HU that are 0 and 1 before that; 0 and 1 leave HU as they are.
    """

    width: int = 64
    normalisation: str = "deviation"
    lowest_hu: float = 0.0
    highest_hu: float = 1.0


PUBLISHED = Config(normalisation="variance")


class Statistics(NamedTuple):
    """Of each image: what is taken off, and what the rest is divided by, both (B, 1, 1, 1)."""

    mean: Tensor
    scale: Tensor


class Normaliser:
    """Network range <-> what the network sees, by the statistics of the noisy image.

    Raises: ModelError if the configuration names another normalisation.
    """

    def __init__(self, config: Config) -> None:
        if config.normalisation not in NORMALISATIONS:
            raise ModelError(
                f"CNCL has no normalisation '{config.normalisation}'; "
                f"choose one of: {', '.join(NORMALISATIONS)}."
            )
        self.by_variance = config.normalisation == "variance"
        self.range = UnitRange(lowest_hu=config.lowest_hu, highest_hu=config.highest_hu)

    def statistics(self, noisy: Tensor) -> Statistics:
        """Of images (B, 1, H, W) in network range, as fractions of the range."""
        values = self.range.to_unit(noisy)
        variance = values.var(dim=(1, 2, 3), keepdim=True, correction=0)
        # An image of one value has none; below 1 HU no CT image is left.
        variance = variance.clamp(min=self.range.width_hu**-2)
        mean = values.mean(dim=(1, 2, 3), keepdim=True)
        return Statistics(mean, variance if self.by_variance else variance.sqrt())

    def normalise(self, image: Tensor, of: Statistics) -> Tensor:
        return (self.range.to_unit(image) - of.mean) / of.scale

    def image(self, normalised: Tensor, of: Statistics) -> Tensor:
        """Network range of an image that the network gave."""
        return self.range.from_unit(normalised * of.scale + of.mean)

    def noise(self, normalised: Tensor, of: Statistics) -> Tensor:
        """Network range of noise that the network gave."""
        return self.range.difference_from_unit(normalised * of.scale)

    def normalise_noise(self, noise: Tensor, of: Statistics) -> Tensor:
        """What the network should give for noise in network range."""
        return (self.range.to_unit(noise) - self.range.to_unit(torch.zeros_like(noise))) / of.scale


class Generator(nn.Module):
    """(B, 1, H, W) network range in, `Output` with image and noise out; any size."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.normaliser = Normaliser(config)
        for network in (CONTENT, NOISE):
            for name, before, after in _layers(config.width):
                self.add_module(f"{name}_{network}", nn.Conv2d(before, after, 3, padding=1))
                # That one is never called; its published width is a slip.
                normalisation = nn.BatchNorm2d(config.width if name == "upconv1_2" else after)
                self.add_module(f"{name.replace('conv', 'bn')}_{network}", normalisation)
        self.final_conv = nn.Conv2d(2, 1, 1)

    def published_forward(self, normalised: Tensor) -> Tensor:
        """Content and noise (B, 2, H, W) of an image (B, 1, H, W), all normalised."""
        height, width = normalised.shape[-2:]
        padded = pad_to_multiple(normalised, _STRIDE)
        content = self._predict(padded, CONTENT)
        noise = self._predict(padded, NOISE)
        fused = self.final_conv(torch.cat((content, padded - noise), dim=1))
        return torch.cat((fused, noise), dim=1)[..., :height, :width]

    def forward(self, image: Tensor) -> Output:
        check_channels(image, 1, "CNCL")
        statistics = self.normaliser.statistics(image)
        answer = self.published_forward(self.normaliser.normalise(image, statistics))
        content, noise = answer.chunk(2, dim=1)
        return Output(
            image=self.normaliser.image(content, statistics),
            estimation=self.normaliser.noise(noise, statistics),
        )

    def _predict(self, image: Tensor, network: str) -> Tensor:
        features, skips = image, []
        for level in (1, 2, 3, 4):
            features = self._pair(features, f"conv{level}", network)
            skips.append(features)
            features = functional.max_pool2d(features, 2)
        features = self._pair(features, "conv5", network)
        for level in (4, 3, 2):
            features = self._pair(_enlarge(features, skips.pop()), f"upconv{level}", network)
        joined = _enlarge(features, skips.pop())
        hidden = self.get_submodule(f"upconv1_1_{network}")(joined)
        predicted: Tensor = self.get_submodule(f"upconv1_2_{network}")(hidden)
        return predicted

    def _pair(self, features: Tensor, name: str, network: str) -> Tensor:
        return self._layer(self._layer(features, f"{name}_1", network), f"{name}_2", network)

    def _layer(self, features: Tensor, name: str, network: str) -> Tensor:
        convolution = self.get_submodule(f"{name}_{network}")
        normalisation = self.get_submodule(f"{name.replace('conv', 'bn')}_{network}")
        return functional.relu(normalisation(convolution(features)))


def _enlarge(features: Tensor, skip: Tensor) -> Tensor:
    """Twice the rows and columns, with the skipped features behind."""
    enlarged = functional.interpolate(features, scale_factor=2, mode="bilinear", align_corners=True)
    return torch.cat((enlarged, skip), dim=1)


def _layers(width: int) -> list[tuple[str, int, int]]:
    """Name, channels before and after, of every 3x3 convolution of one U-Net, in order."""
    down = [(1, width), (width, 2 * width), (2 * width, 4 * width), (4 * width, 8 * width)]
    layers = []
    for level, (before, after) in enumerate(down, start=1):
        layers += [(f"conv{level}_1", before, after), (f"conv{level}_2", after, after)]
    layers += [("conv5_1", 8 * width, 16 * width), ("conv5_2", 16 * width, 8 * width)]
    for level in (4, 3, 2):
        joined = width * 2**level
        layers += [
            (f"upconv{level}_1", joined, joined // 2),
            (f"upconv{level}_2", joined // 2, joined // 4),
        ]
    return [*layers, ("upconv1_1", 2 * width, width // 2), ("upconv1_2", width // 2, 1)]


class Discriminator(nn.Module):
    """Scores (B, 1, H / 16, W / 16) of patches of content and noise, given the noisy image."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.normaliser = Normaliser(config)
        layers: list[nn.Module] = [nn.Conv2d(3, 64, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for width in (64, 128, 256):
            layers += [
                nn.Conv2d(width, 2 * width, 4, stride=2, padding=1),
                nn.InstanceNorm2d(2 * width),
                nn.LeakyReLU(0.2),
            ]
        # The zeros left and above let an even convolution keep the size.
        layers += [nn.ZeroPad2d((1, 0, 1, 0)), nn.Conv2d(512, 1, 4, padding=1, bias=False)]
        self.model = nn.Sequential(*layers)

    def published_forward(self, pair: Tensor, noisy: Tensor) -> Tensor:
        """Scores of content and noise (B, 2, H, W) and the noisy image (B, 1, H, W), normalised."""
        scores: Tensor = self.model(torch.cat((pair, noisy), dim=1))
        return scores

    def forward(self, content: Tensor, noise: Tensor, noisy: Tensor) -> Tensor:
        """Scores of a content image, a noise image and the noisy image, (B, 1, H, W) each,
        network range.
        """
        statistics = self.normaliser.statistics(noisy)
        pair = torch.cat(
            (
                self.normaliser.normalise(content, statistics),
                self.normaliser.normalise_noise(noise, statistics),
            ),
            dim=1,
        )
        return self.published_forward(pair, self.normaliser.normalise(noisy, statistics))


def build(config: Config) -> Generator:
    network = Generator(config)
    _draw_weights(network)
    return network


def build_discriminator(config: Config) -> Discriminator:
    """A discriminator with fresh weights, for images of the same normalisation."""
    discriminator = Discriminator(config)
    _draw_weights(discriminator)
    return discriminator


def _draw_weights(network: nn.Module) -> None:
    """As the published training does: N(0, 0.02) for convolutions."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=_INITIAL_DEVIATION)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def from_published(state_dict: Mapping[str, Tensor], config: Config = PUBLISHED) -> Generator:
    """The generator in evaluation mode, with weights that have the published keys.

    Raises: ModelError if a key is missing, unexpected, or holds something of another shape.
    """
    return load(lambda: Generator(config), state_dict, "the published CNCL generator")


def discriminator_from_published(
    state_dict: Mapping[str, Tensor], config: Config = PUBLISHED
) -> Discriminator:
    """The discriminator in evaluation mode, with weights that have the published keys.

    Raises: ModelError if a key is missing, unexpected, or holds something of another shape.
    """
    return load(lambda: Discriminator(config), state_dict, "the published CNCL discriminator")
