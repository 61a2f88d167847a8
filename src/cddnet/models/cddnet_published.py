"""CDD-Net exactly as its authors' code has it, so that weights trained there can be loaded and run.

Source: Huang, "Contrast Depth Dual Network for Low-Dose CT Image Denoising", arXiv, code at
github.com/71-count/CDDNet. Written from a description of that code and held to outputs of it
(tests/golden). Of its parts, the formula and the light blocks come from FSB-Dehazing (Wang et al.,
ICASSP 2025), the dilated dense blocks and the depth network from DCMPNet (Zhang et al., CVPR 2024).
Only attribute names are the authors', because they are the keys of the weights.

Where the code, and so this file, differs from the paper:
- The gate joins the stem's features, not the LEGM's output that the figure draws into it.
- Branches meet in a concatenation and a 1x1 convolution that the figure does not have.
- A dilated dense block has five 3x3 layers (a light one three) and a 1x1; the figure says six.
- LEGM is not DCMPNet's: one softmax over all pixels, so that its attention fades as 1 / (H W).
- The depth comes from a light network inside the denoiser, which no depth ever supervised.
- `DEAD_PARAMETERS` take part in nothing; the code has 427,914 parameters, the paper says 0.4177 M.

What to know before using it: contrast is rounding noise where the three channels are equal, and 1
where they are 0; nothing bounds the estimation, and the output explodes where it reaches 0.9; the
attention in SCAB has no sigmoid and may flip signs. The network `cddnet` has none of this.

Above 300 lines: a model file is the whole model.
"""

# Shapes: B batch, C channel, H row, W column. Images are grey levels in [0, 1], not network range.

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from cddnet.errors import ModelError
from cddnet.models._published import UnitRange, load

PUBLISHED_FORWARD = True
WINDOW = UnitRange(lowest_hu=-700.0, highest_hu=300.0)

DEAD_PARAMETERS: tuple[str, ...] = (
    "ae",
    "conv1.weight",
    "conv1.bias",
    "conv2.weight",
    "conv2.bias",
    "conv3.weight",
    "conv3.bias",
)

NOISE_BASELINE = 0.9
SMALLEST_TRANSMISSION = 1e-6
FEATURES = 32
GROWTH = 32
LIGHT_GROWTH = 16


@dataclass(frozen=True, kw_only=True)
class Config:
    """The published network has no options."""


class Parts(NamedTuple):
    """What one forward pass computes. contrast (B, 1, H, W); estimation and output (B, 3, H, W)."""

    contrast: Tensor
    estimation: Tensor
    output: Tensor


class DenseBlock(nn.Module):
    """DRDB: each layer sees all maps before it; the input plus ReLU of a 1x1 over all maps."""

    def __init__(
        self, channels: int, growth: int, layers: int, convolution: Callable[[int, int], nn.Module]
    ) -> None:
        super().__init__()
        self.layer_names = tuple(f"Dcov{number}" for number in range(1, layers + 1))
        for index, name in enumerate(self.layer_names):
            self.add_module(name, convolution(channels + index * growth, growth))
        self.conv = nn.Conv2d(channels + layers * growth, channels, 1)

    def forward(self, features: Tensor) -> Tensor:
        maps = features
        for name in self.layer_names:
            new_maps = functional.relu(self.get_submodule(name)(maps))
            maps = torch.cat((maps, new_maps), dim=1)
        return features + functional.relu(self.conv(maps))


class SeparableConv(nn.Module):
    """3x3 depthwise without bias, then 1x1 with bias."""

    def __init__(self, inputs: int, outputs: int, *, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(
            inputs,
            inputs,
            3,
            stride=stride,
            padding=dilation,
            dilation=dilation,
            groups=inputs,
            bias=False,
        )
        self.pointwise = nn.Conv2d(inputs, outputs, 1)

    def forward(self, features: Tensor) -> Tensor:
        pointwise: Tensor = self.pointwise(self.depthwise(features))
        return pointwise


def dense_block(channels: int) -> DenseBlock:
    """Five dilated layers."""
    return DenseBlock(
        channels,
        GROWTH,
        5,
        lambda inputs, outputs: nn.Conv2d(inputs, outputs, 3, padding=2, dilation=2),
    )


def light_dense_block(channels: int) -> DenseBlock:
    """Three dilated separable layers."""
    return DenseBlock(
        channels,
        LIGHT_GROWTH,
        3,
        lambda inputs, outputs: SeparableConv(inputs, outputs, dilation=2),
    )


def halve(inputs: int, outputs: int) -> nn.Sequential:
    """Half the rows and columns, rounded up."""
    return nn.Sequential(SeparableConv(inputs, outputs, stride=2), nn.ReLU())


def double(inputs: int, outputs: int) -> nn.Sequential:
    """Twice the rows and columns."""
    enlarge = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
    return nn.Sequential(enlarge, SeparableConv(inputs, outputs))


class LightDepthNetwork(nn.Module):
    """Depth (B, 1, H', W') of an image (B, 3, H, W); H' and W' are rounded up to multiples of 8."""

    def __init__(self) -> None:
        super().__init__()
        self.DRDB_layer1 = light_dense_block(3)
        self.down1 = halve(3, 16)
        self.DRDB_layer2 = light_dense_block(16)
        self.down2 = halve(16, 32)
        self.DRDB_layer3 = light_dense_block(32)
        self.down3 = halve(32, 64)
        self.DRDB_layer4 = light_dense_block(64)
        self.up1 = double(64, 32)
        self.DRDB_layer5 = light_dense_block(32)
        self.up2 = double(32, 16)
        self.DRDB_layer6 = light_dense_block(16)
        self.up3 = double(16, 3)
        self.final_conv = nn.Conv2d(3, 1, 1)

    def forward(self, image: Tensor) -> Tensor:
        half = self.down1(self.DRDB_layer1(image))
        quarter = self.down2(self.DRDB_layer2(half))
        eighth = self.DRDB_layer4(self.down3(self.DRDB_layer3(quarter)))
        quarter = self.DRDB_layer5(self.up1(eighth))
        half = self.DRDB_layer6(self.up2(quarter))
        depth: Tensor = self.final_conv(self.up3(half))
        return depth


class GlobalEnhancement(nn.Module):
    """LEGM: attention over all positions of each channel, added to convolutions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(channels)
        self.linear_path1 = nn.Conv2d(channels, channels, 1)
        self.linear_path2 = nn.Conv2d(channels, channels, 1)
        self.linear_path3 = nn.Conv2d(channels, channels, 1)
        self.softmax_conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.fusion_conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.fusion_conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.mlp = nn.Sequential(nn.Conv2d(channels, channels, 1), nn.ReLU())

    def forward(self, features: Tensor) -> Tensor:
        normalised = self.norm(self.conv_in(features))
        query, key = self.linear_path1(normalised), self.linear_path2(normalised)
        value = self.linear_path3(normalised)
        similarity = self.softmax_conv(query * key)
        attention = functional.softmax(similarity.flatten(2), dim=2).view_as(similarity)
        attended = self.fusion_conv1(attention * value + query)
        enhanced: Tensor = self.mlp(self.fusion_conv2(attended + value))
        return features + enhanced


class Laplacian(nn.Module):
    """Fixed second difference of each channel: 8 in the middle, -1 around, reflected borders."""

    filt: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        kernel = torch.full((channels, 1, 3, 3), -1.0)
        kernel[..., 1, 1] = 8.0
        self.register_buffer("filt", kernel)

    def forward(self, features: Tensor) -> Tensor:
        padded = functional.pad(features, (1, 1, 1, 1), mode="reflect")
        return functional.conv2d(padded, self.filt, groups=features.shape[1])


class PartialMixing(nn.Module):
    """FEPC: convolves a quarter of the channels, sharpens another quarter, passes on the rest."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        quarter = channels // 4
        self.split_sizes = [quarter, quarter, channels - 2 * quarter]
        self.param = nn.Parameter(torch.rand(1))
        self.partial_conv3 = nn.Conv2d(quarter, quarter, 3, padding=1, bias=False)
        self.la_conv = Laplacian(quarter)

    def forward(self, features: Tensor) -> Tensor:
        to_convolve, to_sharpen, untouched = torch.split(features, self.split_sizes, dim=1)
        sharpened = to_sharpen + self.param * self.la_conv(to_sharpen)
        return torch.cat((self.partial_conv3(to_convolve), sharpened, untouched), dim=1)


class CrossAttention(nn.Module):
    """SCAB: each half of the channels is weighted by attention computed from the other half."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.prelu = nn.PReLU()
        self.conv1 = nn.Conv2d(half, half, 1)
        self.conv2 = nn.Conv2d(half, half, 1)
        self.ca = nn.Sequential(
            nn.Conv2d(half, half // 4, 1), nn.PReLU(), nn.Conv2d(half // 4, half, 1), nn.PReLU()
        )
        self.pa = nn.Sequential(
            nn.Conv2d(half, half // 4, 1), nn.PReLU(), nn.Conv2d(half // 4, 1, 1), nn.PReLU()
        )

    def forward(self, features: Tensor) -> Tensor:
        first, second = features.chunk(2, dim=1)
        per_channel = self.ca(second.mean(dim=(2, 3), keepdim=True))  # (B, C / 2, 1, 1)
        per_pixel = self.pa(first)  # (B, 1, H, W)
        weighted_first = self.prelu(self.conv1(first)) * per_channel
        weighted_second = self.prelu(self.conv2(second)) * per_pixel
        return torch.cat((weighted_first, weighted_second), dim=1)


class NoiseEstimator(nn.Module):
    """Estimation (B, 3, H, W) of the noise in an image (B, 3, H, W), from it and its contrast."""

    def __init__(self) -> None:
        super().__init__()
        self.prelu = nn.PReLU()  # shared by the whole main path
        self.conv_layer1 = nn.Conv2d(4, FEATURES, 3, padding=1)
        self.depth_net = LightDepthNetwork()
        self.drdb_featx1 = dense_block(FEATURES)
        self.drdb_imgfeat = dense_block(3)
        self.drdb_depth = dense_block(1)
        self.feature_fusion = nn.Conv2d(FEATURES + 1 + 3, FEATURES, 1)
        self.legm = GlobalEnhancement(FEATURES)
        self.conv_layer6 = nn.Conv2d(FEATURES, 3, 1)
        self.SCAB = CrossAttention(FEATURES)
        self.spatial_mixing1 = PartialMixing(FEATURES)
        self.PointConv1 = nn.Conv2d(FEATURES, FEATURES, 1)
        self.spatial_mixing2 = PartialMixing(FEATURES)
        self.PointConv2 = nn.Conv2d(FEATURES, FEATURES, 1)
        self.gate2 = nn.Conv2d(3 * FEATURES, FEATURES, 1)

    def forward(self, image: Tensor, contrast: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        stem = self.drdb_featx1(self.prelu(self.conv_layer1(torch.cat((image, contrast), dim=1))))
        depth = self.drdb_depth(self.depth_net(image)[..., :height, :width])
        branches = torch.cat((stem, depth, self.drdb_imgfeat(image)), dim=1)
        enhanced = self.legm(self.feature_fusion(branches))
        mixed_once = self.prelu(self.PointConv1(self.spatial_mixing1(enhanced)))
        mixed_twice = self.prelu(self.PointConv2(self.spatial_mixing2(mixed_once)))
        gated = self.prelu(self.gate2(torch.cat((stem, mixed_once, mixed_twice), dim=1)))
        estimation: Tensor = self.conv_layer6(self.SCAB(gated))
        return estimation


class PublishedCddNet(nn.Module):
    """Image (B, 3, H, W) in [0, 1] -> denoised image, same shape, not clipped; H and W at least 2.

    A grey image is three equal channels, which come out different. `parts` has what lies between.
    """

    def __init__(self) -> None:
        super().__init__()
        self.ae = nn.Parameter(torch.ones(1))
        self.cddnet = NoiseEstimator()
        self.conv1 = nn.Conv2d(3, 3, 3, padding=1)
        self.conv2 = nn.Conv2d(3, 3, 3, padding=1)
        self.conv3 = nn.Conv2d(3, 3, 1)

    def parts(self, image: Tensor) -> Parts:
        """Contrast, estimation of the noise, and output, for an image (B, 3, H, W) in [0, 1].

        Raises: ModelError if the image has another shape.
        Source: haze model I = J t + A (1 - t), solved for J with the estimation E = A (1 - t).
        """
        _check_shape(image)
        intensity = image.mean(dim=1, keepdim=True)
        darkest = image.amin(dim=1, keepdim=True)
        contrast = 1 - darkest / (intensity + torch.finfo(torch.float32).eps)
        estimation: Tensor = self.cddnet(image, contrast)
        transmission = torch.clamp(1 - estimation / NOISE_BASELINE, min=SMALLEST_TRANSMISSION)
        return Parts(contrast, estimation, (image - estimation) / transmission)

    def forward(self, image: Tensor) -> Tensor:
        return self.parts(image).output


def build(config: Config) -> PublishedCddNet:
    """The network with fresh weights; `config` leaves nothing to choose."""
    return PublishedCddNet()


def from_published(state_dict: Mapping[str, Tensor]) -> PublishedCddNet:
    """The network in evaluation mode, with weights saved by the authors' code.

    Parameters: state_dict has the published keys, all bare or all prefixed with `module.`.
    Raises: ModelError if a key is missing, unexpected, or holds something of another shape.
    """
    return load(
        PublishedCddNet,
        state_dict,
        "the published CDD-Net",
        remedy=(
            "Pass the state dict of its denoiser, complete and alone, not a whole checkpoint "
            "(often it is one entry of it) and not the depth network's."
        ),
    )


def _check_shape(image: Tensor) -> None:
    if image.ndim != 4 or image.shape[1] != 3 or min(image.shape[-2:]) < 2:
        raise ModelError(
            f"The published CDD-Net cannot take an image of shape {tuple(image.shape)}; "
            "give it (B, 3, H, W), at least 2 by 2 pixels, a grey image as three equal channels."
        )
