"""Blocks and depth networks that the ablations of `cddnet` put in place of its own.

Dense blocks (DRDB), FEPC and the light depth network are the published ones of `cddnet_published`,
with dilation 2 and padding 2, which keep the size as they are. What is righted here: SCAB weights
by sigmoids, which cannot flip a sign; FEPC starts without its sharpening, which makes noise eight
times larger; LEGM attends within windows as DCMPNet (Zhang et al., CVPR 2024) means it, not by one
softmax over the whole image.
"""

# Shapes: B batch, C channel, H row, W column.

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from cddnet.models.cddnet_published import (
    DenseBlock,
    PartialMixing,
    double,
    halve,
    light_dense_block,
)

_WINDOW = 8
_HEADS = 4


def drdb(channels: int) -> nn.Module:
    """One dilated dense block; growth by a quarter costs what two full convolutions cost."""
    return _dense(channels, max(1, channels // 4))


def double_drdb(channels: int) -> nn.Module:
    """Two in a row, growth by a sixth: together 1.3 times the cost of two full convolutions."""
    growth = max(1, channels // 6)
    return nn.Sequential(_dense(channels, growth), _dense(channels, growth))


class GridDenseBlock(DenseBlock):
    """The dense block with dilation 2, computed on the four grids of every second pixel.

    The grids do not mix within the block, and on each the convolutions are plain ones. Even sides.
    Dilated ones over channels that are no multiple of 16 have a gradient of NaN in bfloat16 on a
    processor (torch 2.13, channels last).
    """

    def forward(self, features: Tensor) -> Tensor:
        batch, channels, height, width = features.shape
        split = features.reshape(batch, channels, height // 2, 2, width // 2, 2)
        grids = split.permute(0, 3, 5, 1, 2, 4).reshape(
            4 * batch, channels, height // 2, width // 2
        )
        # The reshape loses the layout that is fast on a processor.
        changed = super().forward(grids.contiguous(memory_format=torch.channels_last))
        split = changed.reshape(batch, 2, 2, channels, height // 2, width // 2)
        return split.permute(0, 3, 4, 1, 5, 2).reshape(features.shape)


def _dense(channels: int, growth: int) -> nn.Module:
    return GridDenseBlock(
        channels, growth, 5, lambda inputs, outputs: nn.Conv2d(inputs, outputs, 3, padding=1)
    )


class LightBlock(nn.Module):
    """FEPC twice, a gate over input and both, SCAB; a change of the input, which joins at the end.

    SCAB sees a mean over the whole image, so that a crop comes out a little different.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mixing = nn.ModuleList(PartialMixing(channels) for _ in range(2))
        self.point = nn.ModuleList(nn.Conv2d(channels, channels, 1) for _ in range(2))
        self.gate = nn.Conv2d(3 * channels, channels, 1)
        self.activation = nn.PReLU()
        self.attention = CrossAttention(channels)
        for parameter in (fepc.get_parameter("param") for fepc in self.mixing):
            nn.init.zeros_(parameter)

    def forward(self, features: Tensor) -> Tensor:
        seen = [features]
        for mixing, point in zip(self.mixing, self.point, strict=True):
            seen.append(self.activation(point(mixing(seen[-1]))))
        change: Tensor = self.attention(self.activation(self.gate(torch.cat(seen, dim=1))))
        return features + change


class CrossAttention(nn.Module):
    """SCAB: each half of the channels is weighted, within 0 and 1, by what the other half shows."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        few = max(1, half // 4)
        self.first = nn.Conv2d(half, half, 1)
        self.second = nn.Conv2d(half, half, 1)
        self.per_channel = nn.Sequential(
            nn.Conv2d(half, few, 1), nn.PReLU(), nn.Conv2d(few, half, 1), nn.Sigmoid()
        )
        self.per_pixel = nn.Sequential(
            nn.Conv2d(half, few, 1), nn.PReLU(), nn.Conv2d(few, 1, 1), nn.Sigmoid()
        )

    def forward(self, features: Tensor) -> Tensor:
        first, second = features.chunk(2, dim=1)
        weighted_first = self.first(first) * self.per_channel(second.mean((2, 3), keepdim=True))
        weighted_second = self.second(second) * self.per_pixel(first)
        return torch.cat((weighted_first, weighted_second), dim=1)


class LocalGlobal(nn.Module):
    """LEGM: attention within windows of 8 x 8 and a convolution of its values across them; an MLP.

    Sides are multiples of 8. Differs from DCMPNet: the norm is of each pixel, not of the image, a
    learned bias for each offset replaces an MLP of it, and no window is shifted.
    """

    offset: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.enter = nn.Conv2d(channels, 3 * channels, 1)
        self.local = nn.Conv2d(channels, channels, 5, padding=2, groups=channels)
        self.leave = nn.Conv2d(channels, channels, 1)
        self.mlp = nn.Sequential(
            nn.Conv2d(channels, 2 * channels, 1), nn.ReLU(), nn.Conv2d(2 * channels, channels, 1)
        )
        span = 2 * _WINDOW - 1
        self.bias = nn.Parameter(torch.zeros(_HEADS, span * span))
        along = torch.arange(_WINDOW)
        row, column = (place.flatten() for place in torch.meshgrid(along, along, indexing="ij"))
        steps = [one[:, None] - one[None, :] + _WINDOW - 1 for one in (row, column)]
        self.register_buffer("offset", steps[0] * span + steps[1], persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        normed = self.norm(features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        query, key, value = self.enter(normed).chunk(3, dim=1)
        scores = _windows(query) @ _windows(key).transpose(-1, -2)  # (windows, heads, 64, 64)
        scale = (features.shape[1] // _HEADS) ** -0.5
        attention = functional.softmax(scores * scale + self.bias[:, self.offset], dim=-1)
        attended = _image(attention @ _windows(value), features.shape)
        features = features + self.leave(attended + self.local(value))
        enhanced: Tensor = features + self.mlp(features)
        return enhanced


def _windows(features: Tensor) -> Tensor:
    """(B, C, H, W) -> (B H W / 64, heads, 64, C / heads)."""
    batch, channels, height, width = features.shape
    rows, columns = height // _WINDOW, width // _WINDOW
    split = features.reshape(batch, _HEADS, -1, rows, _WINDOW, columns, _WINDOW)
    return split.permute(0, 3, 5, 1, 4, 6, 2).reshape(-1, _HEADS, _WINDOW**2, channels // _HEADS)


def _image(windows: Tensor, shape: torch.Size) -> Tensor:
    """Inverse of `_windows`; shape of the features."""
    batch, channels, height, width = shape
    rows, columns = height // _WINDOW, width // _WINDOW
    split = windows.reshape(batch, rows, columns, _HEADS, _WINDOW, _WINDOW, channels // _HEADS)
    return split.permute(0, 3, 6, 1, 4, 2, 5).reshape(shape)


class LightDepthHead(nn.Sequential):
    """The published light depth network for one channel: separable, nothing skips its bottom."""

    def __init__(self, width: int) -> None:
        super().__init__(
            nn.Conv2d(1, width, 3, padding=1),
            halve(width, width),
            light_dense_block(width),
            halve(width, width * 2),
            light_dense_block(width * 2),
            halve(width * 2, width * 4),
            light_dense_block(width * 4),
            double(width * 4, width * 2),
            light_dense_block(width * 2),
            double(width * 2, width),
            light_dense_block(width),
            double(width, width),
            nn.Conv2d(width, 1, 1),
        )


class SmallDepthHead(nn.Sequential):
    """Three convolutions; sees 56 pixels of the image at once, less than a body."""

    def __init__(self, width: int) -> None:
        super().__init__(
            nn.Conv2d(1, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, 1, 3, padding=1),
        )
