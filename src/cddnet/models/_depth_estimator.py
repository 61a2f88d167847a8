"""DE: the depth network that trains beside the published CDD-Net and is not part of it.

Nothing denoises with it; its file starts with an underscore so that it is not among the denoisers.
Source: DCMPNet (Zhang et al., CVPR 2024), as CDD-Net's code has it. Held to outputs of that code
(tests/golden), whose names of layers are kept, because they are the keys of its weights.

Differs from that code: a side that is no multiple of 16 is padded by its border and cropped at the
end; the published network gives another size for it, and its losses then fail.
"""

# Shapes: B batch, H row, W column. Images are grey levels in [0, 1], not network range.

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor, nn

from cddnet.models._published import check_channels, load, pad_to_multiple
from cddnet.models.cddnet_published import dense_block

_WIDTHS = (3, 24, 48, 96, 128)
_STRIDE = 16


@dataclass(frozen=True, kw_only=True)
class Config:
    """The published network has no options."""


class DepthEstimator(nn.Module):
    """Depth (B, 1, H, W), of no unit, of an image (B, 3, H, W) in [0, 1]; any size."""

    def __init__(self) -> None:
        super().__init__()
        for number, (before, after) in enumerate(pairwise(_WIDTHS), start=1):
            self.add_module(f"DRDB_layer{number}", dense_block(before))
            self.add_module(f"conv{number}", nn.Conv2d(before, after, 3, stride=2, padding=1))
        self.DRDB_layer5 = dense_block(_WIDTHS[-1])
        for number, (before, after) in enumerate(pairwise(reversed(_WIDTHS)), start=1):
            enlarge = nn.ConvTranspose2d(before, after, 4, stride=2, padding=1)
            self.add_module(f"up{number}", enlarge)
            if number < 4:
                self.add_module(f"DRDB_layer{number + 5}", dense_block(after))
        self.final_conv = nn.Conv2d(3, 1, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Raises: ModelError if the image has another shape."""
        check_channels(image, 3, "The depth estimator")
        height, width = image.shape[-2:]
        features = pad_to_multiple(image, _STRIDE)
        for layer in self.children():
            features = layer(features)
        return features[..., :height, :width]


def build(config: Config) -> DepthEstimator:
    """The network with fresh weights; `config` leaves nothing to choose."""
    return DepthEstimator()


def from_published(state_dict: Mapping[str, Tensor]) -> DepthEstimator:
    """The network in evaluation mode, with weights saved by CDD-Net's or DCMPNet's code.

    Raises: ModelError if a key is missing, unexpected, or holds something of another shape.
    """
    return load(DepthEstimator, state_dict, "the depth estimator DE")
