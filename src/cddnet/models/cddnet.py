"""CDD-Net, our own form: estimate E from contrast and depth, then restore in closed form.

The two stages and the formula C = (N - E) / (1 - E / B) are CDD-Net's ("Contrast Depth Dual
Network for Low-Dose CT Image Denoising"). What differs from the published code, and why:

- One channel of attenuation relative to water instead of three equal 8-bit channels.
- Contrast is local, 1 - min / mean over a neighbourhood; over three equal channels it is zero.
- B is the attenuation at which restoration ends (dense metal), not a grey level inside the tissue
  range: C = N holds at N = B for every E, values above pass unchanged, and a bounded E keeps the
  denominator away from zero.
- The depth map used at inference is the one that training supervises (radiological depth).
- The body works at half resolution behind a pixel unshuffle and sees compressed attenuation, so
  that bone and metal stay within the range of its convolutions.

Blocks of the body, inputs and depth network are options, for ablations (configs/ablation).

Above 300 lines: a model file is the whole model.
"""

# Shapes: B batch, C channel, H row, W column. Images are in network range, HU / 1024.

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from cddnet.errors import ModelError
from cddnet.models._cdd_blocks import (
    LightBlock,
    LightDepthHead,
    LocalGlobal,
    SmallDepthHead,
    double_drdb,
    drdb,
)
from cddnet.models._output import Output

_STRIDE = 64
# Axes along which a view is turned round.
_VIEWS: tuple[tuple[int, ...], ...] = ((), (-1,), (-2,), (-2, -1))
# Features of size one then stand for 51 HU, the size of noise.
_ESTIMATE_UNIT = 0.05


@dataclass(frozen=True, kw_only=True)
class Config:
    """width: channels at half resolution.  depth_width: channels of the depth head.
    contrast_window: side of the contrast neighbourhood at half resolution, odd.
    restoration_end: attenuation relative to water above which nothing is changed.
    largest_estimate: bound of E; with `restoration_end` 4 the denominator stays above 0.87.
    body_block: residual; dense blocks, one or two in each place; or cdd: a dense block at the
    entrance, light gated ones after it, window attention last at the bottom.
    contrast_input, depth_input: false puts zeros in place of the map; no depth is estimated then.
    depth_network: unet; light, the published form without skips; small, three convolutions.
    views: of the slice that are restored and averaged: itself, mirrored, upside down, both.
    """

    width: int = 24
    depth_width: int = 16
    contrast_window: int = 7
    restoration_end: float = 4.0
    largest_estimate: float = 0.5
    body_block: Literal["residual", "drdb", "double_drdb", "cdd"] = "residual"
    contrast_input: bool = True
    depth_input: bool = True
    depth_network: Literal["unet", "light", "small"] = "unet"
    views: int = 1


def build(config: Config) -> nn.Module:
    """Raises: ModelError for a block of the body or a depth network that there is not."""
    network = CDDNet(config)
    # Twice as fast on a processor; the weights on disk do not depend on it.
    for parameter in network.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return network


class ResidualBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        change: Tensor = self.second(functional.relu(self.first(features)))
        return features + change


class Upsample(nn.Sequential):
    def __init__(self, channels: int) -> None:
        super().__init__(nn.Conv2d(channels, channels * 2, 1), nn.PixelShuffle(2))


class DepthHead(nn.Module):
    """Radiological depth from attenuation at an eighth of the resolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.enter = nn.Conv2d(1, width, 3, padding=1)
        self.down = nn.ModuleList(
            nn.Conv2d(width * 2**level, width * 2 ** (level + 1), 2, stride=2) for level in range(3)
        )
        self.bottom = ResidualBlock(width * 8)
        self.up = nn.ModuleList(Upsample(width * 2 ** (level + 1)) for level in (2, 1, 0))
        self.mix = nn.ModuleList(ResidualBlock(width * 2**level) for level in (2, 1, 0))
        self.leave = nn.Conv2d(width, 1, 3, padding=1)

    def forward(self, attenuation: Tensor) -> Tensor:
        features = self.enter(attenuation)
        skips = []
        for down in self.down:
            skips.append(features)
            features = functional.relu(down(features))
        features = self.bottom(features)
        for up, mix in zip(self.up, self.mix, strict=True):
            features = mix(up(features) + skips.pop())
        depth: Tensor = self.leave(features)
        return depth


class Levels(NamedTuple):
    """Features of the encoder at a half, a quarter and an eighth of the resolution."""

    half: Tensor
    quarter: Tensor
    eighth: Tensor


class Blocks(NamedTuple):
    """What makes a block of so many channels, by its place."""

    entrance: Callable[[int], nn.Module]
    deepest: Callable[[int], nn.Module]
    others: Callable[[int], nn.Module]


class Body(nn.Module):
    """U-shaped network over (unshuffled image, contrast, depth) at half resolution."""

    def __init__(self, width: int, blocks: Blocks) -> None:
        super().__init__()
        block = blocks.others
        self.enter = nn.Conv2d(6, width, 3, padding=1)
        self.encode1 = blocks.entrance(width)
        self.down1 = nn.Conv2d(width, width * 2, 2, stride=2)
        self.encode2 = block(width * 2)
        self.down2 = nn.Conv2d(width * 2, width * 4, 2, stride=2)
        self.bottom = nn.Sequential(block(width * 4), blocks.deepest(width * 4))
        self.up2 = Upsample(width * 4)
        self.decode2 = block(width * 2)
        self.up1 = Upsample(width * 2)
        self.decode1 = nn.Sequential(block(width), block(width))
        self.leave = nn.Conv2d(width, 4, 3, padding=1)
        # Start near E = 0, the identity: a random E costs thousands of steps to unlearn.
        for parameter in self.leave.parameters():
            nn.init.normal_(parameter, std=1e-3)

    def encode(self, maps: Tensor) -> Levels:
        half = self.encode1(self.enter(maps))
        quarter = self.encode2(self.down1(half))
        return Levels(half, quarter, self.bottom(self.down2(quarter)))

    def forward(self, maps: Tensor) -> Tensor:
        levels = self.encode(maps)
        features = self.decode2(self.up2(levels.eighth) + levels.quarter)
        features = self.decode1(self.up1(features) + levels.half)
        estimate: Tensor = self.leave(features) * _ESTIMATE_UNIT
        return estimate


BODY_BLOCKS: Mapping[str, Blocks] = {
    "residual": Blocks(ResidualBlock, ResidualBlock, ResidualBlock),
    "drdb": Blocks(drdb, drdb, drdb),
    "double_drdb": Blocks(double_drdb, double_drdb, double_drdb),
    "cdd": Blocks(entrance=drdb, deepest=LocalGlobal, others=LightBlock),
}
DEPTH_NETWORKS: Mapping[str, Callable[[int], nn.Module]] = {
    "unet": DepthHead,
    "light": LightDepthHead,
    "small": SmallDepthHead,
}


class CDDNet(nn.Module):
    """(B, 1, H, W) network range in, `Output` with image, depth and estimation out; any size."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        head = _chosen(DEPTH_NETWORKS, "depth_network", config.depth_network)(config.depth_width)
        # Made even where it is not kept, so that a body starts from the same weights either way.
        self.depth_head = head if config.depth_input else None
        self.body = Body(config.width, _chosen(BODY_BLOCKS, "body_block", config.body_block))
        if config.views not in range(1, len(_VIEWS) + 1):
            raise ModelError(
                f"network 'cddnet' has no views {config.views}; choose 1 to {len(_VIEWS)}."
            )

    def forward(self, image: Tensor) -> Output:
        turned = _VIEWS[: self.config.views]
        if len(turned) == 1:
            return self._one_view(image)
        height, width = image.shape[-2:]
        padded = pad_to_stride(image)
        seen = [self._one_view(padded.flip(axes)) for axes in turned]
        means = {
            name: _mean(maps, turned)[..., :height, :width]
            for name, maps in zip(Output._fields, zip(*seen, strict=True), strict=True)
            if maps[0] is not None
        }
        return Output(**means)

    def _one_view(self, image: Tensor) -> Output:
        height, width = image.shape[-2:]
        attenuation = pad_to_stride(image + 1.0)
        depth = self._depth(attenuation)
        raw = self.body(self._maps(attenuation, depth))
        limit = self.config.largest_estimate
        estimate = limit * torch.tanh(functional.pixel_shuffle(raw, 2) / limit)
        restored = restore(attenuation, estimate, self.config.restoration_end) - 1.0
        full_depth = None if depth is None else _enlarge(depth, 2)[..., :height, :width]
        return Output(
            image=restored[..., :height, :width],
            depth=full_depth,
            estimation=estimate[..., :height, :width],
        )

    def encode(self, image: Tensor) -> Levels:
        """Features of an image (B, 1, H, W) in the encoder; sides are padded to multiples of 64."""
        attenuation = pad_to_stride(image + 1.0)
        return self.body.encode(self._maps(attenuation, self._depth(attenuation)))

    def _depth(self, attenuation: Tensor) -> Tensor | None:
        """(B, 1, H / 2, W / 2)."""
        if self.depth_head is None:
            return None
        return _enlarge(self.depth_head(functional.avg_pool2d(attenuation.clamp(0.0, 4.0), 8)), 4)

    def _maps(self, attenuation: Tensor, depth: Tensor | None) -> Tensor:
        """What the body sees, (B, 6, H / 2, W / 2)."""
        halved = functional.avg_pool2d(attenuation, 2)
        absent = torch.zeros_like(halved)
        if self.config.contrast_input:
            contrast = local_contrast(halved, self.config.contrast_window)
        else:
            contrast = absent
        compressed = functional.pixel_unshuffle(compress(attenuation), 2)
        return torch.cat((compressed, contrast, absent if depth is None else depth), dim=1)


def restore(noisy: Tensor, estimate: Tensor, end: float) -> Tensor:
    """C = (N - E) / (1 - E / B) below B = `end`; values from B on pass unchanged."""
    restored = (noisy - estimate) / (1.0 - estimate / end)
    return torch.where(noisy < end, restored, noisy)


def local_contrast(attenuation: Tensor, window: int) -> Tensor:
    """1 - min / mean over a neighbourhood, within [0, 1); an offset keeps air from 0 / 0."""
    # Rows, then columns: with a window of 7, 14 values are looked at in place of 49.
    positive = attenuation.clamp(min=0.0) + 0.1
    smallest, mean = -positive, positive
    for kernel, padding in (((window, 1), (window // 2, 0)), ((1, window), (0, window // 2))):
        smallest = functional.max_pool2d(smallest, kernel, stride=1, padding=padding)
        mean = functional.avg_pool2d(
            mean, kernel, stride=1, padding=padding, count_include_pad=False
        )
    return 1.0 + smallest / mean


def compress(attenuation: Tensor) -> Tensor:
    """Linear around water, logarithmic in bone, metal and air: asinh, of which engines have no
    fast one.
    """
    scaled = (attenuation - 1.0) * 10.0
    size = scaled.abs()
    return scaled.sign() * torch.log(size + torch.sqrt(size * size + 1.0))


def pad_to_stride(image: Tensor) -> Tensor:
    """Repeat the border until both sides are multiples of the network's stride."""
    height, width = image.shape[-2:]
    below, right = -height % _STRIDE, -width % _STRIDE
    return (
        functional.pad(image, (0, right, 0, below), mode="replicate") if below or right else image
    )


def _mean(views: Sequence[Tensor], turned: Sequence[tuple[int, ...]]) -> Tensor:
    """Maps (B, C, H, W) of the views, turned back and averaged."""
    back = [maps.flip(axes) for maps, axes in zip(views, turned, strict=True)]
    return torch.stack(back).mean(dim=0)


def _enlarge(depth: Tensor, factor: int) -> Tensor:
    return functional.interpolate(depth, scale_factor=factor, mode="bilinear", align_corners=False)


Made = TypeVar("Made")


def _chosen(table: Mapping[str, Made], option: str, value: str) -> Made:
    if value not in table:
        raise ModelError(
            f"network 'cddnet' has no {option} '{value}'; choose one of: {', '.join(table)}."
        )
    return table[value]
