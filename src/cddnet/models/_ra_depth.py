"""RA-Depth: the teacher of the published training, depth of street scenes from one picture.

Nothing denoises with it; its file starts with an underscore so that it is not among the denoisers.
The published code and weights of RA-Depth are for non-commercial use only, and patent-pending. None
of either is here: this is written from the papers and a list of the weights' names and shapes, and
weights come from the user's own files, whose terms are theirs to keep.

Sources: He et al., "RA-Depth: Resolution Adaptive Self-Supervised Monocular Depth Estimation",
ECCV 2022; encoder HRNet-W18, Wang et al., IEEE TPAMI 43(10), 2021. Held to outputs of the published
code (tests/golden), whose names of layers are kept, because they are the keys of its weights.

A picture with a side below 64 or no multiple of 32 is padded by its border and cropped at the end.
What it says of an axial CT slice means nothing: it has seen roads, and a slice has no scene depth.
"""

# Shapes: B batch, C channel, H row, W column. Images are grey levels in [0, 1], not network range.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor, nn
from torch.nn import functional

from cddnet.models._published import check_channels, load, pad_to_multiple

_STEM = 64
_WIDTHS = (18, 36, 72, 144)
_BLOCKS = 4
_STRIDE = 32
# Reflected borders need two pixels at 1/32.
_SMALLEST_SIDE = 64
# Encoder files of this family also hold the size of the training pictures.
_NOT_WEIGHTS = ("height", "width", "use_stereo")


@dataclass(frozen=True, kw_only=True)
class Config:
    """The published network has no options."""


def _convolution(before: int, after: int, side: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(before, after, side, stride=stride, padding=side // 2, bias=False)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 to four times `width` channels, added to the input."""

    def __init__(self, before: int, width: int) -> None:
        super().__init__()
        after = 4 * width
        self.conv1 = _convolution(before, width, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _convolution(width, width, 3)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = _convolution(width, after, 1)
        self.bn3 = nn.BatchNorm2d(after)
        self.downsample: nn.Module = nn.Identity()
        if before != after:
            self.downsample = nn.Sequential(_convolution(before, after, 1), nn.BatchNorm2d(after))

    def forward(self, features: Tensor) -> Tensor:
        change = functional.relu(self.bn1(self.conv1(features)))
        change = functional.relu(self.bn2(self.conv2(change)))
        return functional.relu(self.bn3(self.conv3(change)) + self.downsample(features))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, added to the input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = _convolution(width, width, 3)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _convolution(width, width, 3)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, features: Tensor) -> Tensor:
        change = functional.relu(self.bn1(self.conv1(features)))
        return functional.relu(self.bn2(self.conv2(change)) + features)


def _shrink(before: int, after: int) -> list[nn.Module]:
    return [_convolution(before, after, 3, stride=2), nn.BatchNorm2d(after)]


def _exchange(source: int, target: int) -> nn.Module:
    """From resolution `source` to resolution `target`, 0 the finest; enlarging comes later."""
    before, after = _WIDTHS[source], _WIDTHS[target]
    if source == target:
        return nn.Identity()
    if source > target:
        return nn.Sequential(_convolution(before, after, 1), nn.BatchNorm2d(after))
    steps = [nn.Sequential(*_shrink(before, before), nn.ReLU()) for _ in range(target - source - 1)]
    return nn.Sequential(*steps, nn.Sequential(*_shrink(before, after)))


class HighResolutionModule(nn.Module):
    """Blocks at every resolution, then every resolution gets the sum of all of them."""

    def __init__(self, resolutions: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(*(BasicBlock(width) for _ in range(_BLOCKS)))
            for width in _WIDTHS[:resolutions]
        )
        self.fuse_layers = nn.ModuleList(
            nn.ModuleList(_exchange(source, target) for source in range(resolutions))
            for target in range(resolutions)
        )

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        own = [branch(map_) for branch, map_ in zip(self.branches, features, strict=True)]
        fused = []
        for target, exchanges in enumerate(self.fuse_layers):
            size = own[target].shape[-2:]
            given = [
                _enlarge(exchange(map_), size)
                for exchange, map_ in zip(exchanges.children(), own, strict=True)
            ]
            fused.append(functional.relu(reduce(torch.add, given)))
        return fused


def _enlarge(features: Tensor, size: torch.Size) -> Tensor:
    if features.shape[-2:] == size:
        return features
    return functional.interpolate(features, size=size, mode="bilinear", align_corners=True)


class Encoder(nn.Module):
    """HRNet-W18: features at 1/2, 1/4, 1/8, 1/16 and 1/32 of a picture (B, 3, H, W)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = _convolution(3, _STEM, 3, stride=2)
        self.bn1 = nn.BatchNorm2d(_STEM)
        self.conv2 = _convolution(_STEM, _STEM, 3, stride=2)
        self.bn2 = nn.BatchNorm2d(_STEM)
        wide = 4 * _STEM
        self.layer1 = nn.Sequential(
            *(Bottleneck(_STEM if block == 0 else wide, _STEM) for block in range(_BLOCKS))
        )
        same = nn.Sequential(
            _convolution(wide, _WIDTHS[0], 3), nn.BatchNorm2d(_WIDTHS[0]), nn.ReLU()
        )
        self.transition1 = nn.ModuleList((same, self._coarser(wide, 1)))
        self.stage2 = nn.ModuleList((HighResolutionModule(2),))
        self.transition2 = self._one_more(2)
        self.stage3 = nn.ModuleList(HighResolutionModule(3) for _ in range(4))
        self.transition3 = self._one_more(3)
        self.stage4 = nn.ModuleList(HighResolutionModule(4) for _ in range(3))

    @staticmethod
    def _coarser(before: int, resolution: int) -> nn.Sequential:
        return nn.Sequential(nn.Sequential(*_shrink(before, _WIDTHS[resolution]), nn.ReLU()))

    @classmethod
    def _one_more(cls, resolution: int) -> nn.ModuleList:
        kept = (nn.Identity() for _ in range(resolution))
        return nn.ModuleList((*kept, cls._coarser(_WIDTHS[resolution - 1], resolution)))

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        half = functional.relu(self.bn1(self.conv1(image)))
        quarter = self.layer1(functional.relu(self.bn2(self.conv2(half))))
        maps = [quarter]
        for transition, stage in (
            (self.transition1, self.stage2),
            (self.transition2, self.stage3),
            (self.transition3, self.stage4),
        ):
            # What is new is made from the coarsest map there is.
            maps = [step(map_) for step, map_ in zip(transition, [*maps, maps[-1]], strict=True)]
            for module in stage:
                maps = module(maps)
        return half, *maps


class _Reflected(nn.Module):
    """A convolution behind reflected borders (3x3) or none (1x1)."""

    def __init__(self, before: int, after: int, side: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            before, after, side, padding=side // 2, padding_mode="reflect" if side > 1 else "zeros"
        )

    def forward(self, features: Tensor) -> Tensor:
        convolved: Tensor = self.conv(features)
        return convolved


class _Convolved(nn.Module):
    """The same, with ELU. The published code wraps 3x3 and 1x1 alike, hence conv.conv."""

    def __init__(self, before: int, after: int, side: int) -> None:
        super().__init__()
        self.conv = _Reflected(before, after, side)

    def forward(self, features: Tensor) -> Tensor:
        return functional.elu(self.conv(features))


def _up(features: Tensor, factor: int = 2) -> Tensor:
    return functional.interpolate(features, scale_factor=float(factor), mode="nearest")


class Decoder(nn.Module):
    """Multi-scale fusion: disparity (B, 1, H, W) in (0, 1) of an encoder's features."""

    def __init__(self) -> None:
        super().__init__()
        fine, half, quarter, eighth = _WIDTHS
        layers: list[nn.Module] = [_Convolved(width, width, 3) for width in _WIDTHS]
        layers += [
            _Convolved(half, fine, 1),
            _Convolved(quarter, half, 1),
            _Convolved(quarter, fine, 1),
            _Convolved(eighth, quarter, 1),
            _Convolved(eighth, half, 1),
            _Convolved(eighth, fine, 1),
            _Convolved(fine, fine, 3),
            _Convolved(half, half, 3),
            _Convolved(quarter, quarter, 3),
            _Convolved(half, fine, 1),
            _Convolved(quarter, half, 1),
            _Convolved(quarter, fine, 1),
            _Convolved(fine, fine, 3),
            _Convolved(half, half, 3),
            _Convolved(half, fine, 1),
            _Convolved(_STEM, _STEM, 3),
            _Convolved(fine, fine, 3),
            _Convolved(fine, _STEM, 1),
            _Convolved(_STEM, 32, 3),
            _Convolved(32, 16, 3),
            _Reflected(16, 1, 3),
        ]
        self.decoder = nn.ModuleList(layers)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        layers = self.decoder
        stem, *maps = features
        a1, a2, a3, a4 = (layers[level](map_) for level, map_ in enumerate(maps))
        b1 = a1 + _up(layers[4](a2)) + _up(layers[6](a3), 4) + _up(layers[9](a4), 8)
        b2 = a2 + _up(layers[5](a3)) + _up(layers[8](a4), 4)
        b3 = a3 + _up(layers[7](a4))
        c1, c2, c3 = layers[10](b1), layers[11](b2), layers[12](b3)
        d1 = c1 + _up(layers[13](c2)) + _up(layers[15](c3), 4)
        d2 = c2 + _up(layers[14](c3))
        quarter = layers[16](d1) + _up(layers[18](layers[17](d2)))
        half = layers[19](stem) + _up(layers[21](layers[20](quarter)))
        return torch.sigmoid(layers[24](layers[23](_up(layers[22](half)))))


class RaDepth(nn.Module):
    """Disparity (B, 1, H, W) in (0, 1), near is large, of a picture (B, 3, H, W) in [0, 1]."""

    def __init__(self, encoder: Encoder, decoder: Decoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder

    def forward(self, image: Tensor) -> Tensor:
        """Raises: ModelError if the image has another shape."""
        check_channels(image, 3, "RA-Depth")
        height, width = image.shape[-2:]
        padded = pad_to_multiple(image, _STRIDE, _SMALLEST_SIDE)
        disparity: Tensor = self.decoder(self.encoder(padded))
        return disparity[..., :height, :width]


def build(config: Config) -> RaDepth:
    """The network with fresh weights, which estimate nothing; `config` leaves nothing to choose."""
    return RaDepth(Encoder(), Decoder())


def from_published(encoder: Mapping[str, Tensor], decoder: Mapping[str, Tensor]) -> RaDepth:
    """The network in evaluation mode, with weights of the user's two published files.

    Raises: ModelError if a key is missing, unexpected, or holds something of another shape.
    """
    weights = {key: values for key, values in encoder.items() if key not in _NOT_WEIGHTS}
    network = RaDepth(
        load(Encoder, weights, "the published RA-Depth encoder"),
        load(Decoder, decoder, "the published RA-Depth decoder"),
    )
    return network.eval()
