"""RED-CNN: five convolutions, five transposed ones, three shortcuts, no padding in between.

Source: Chen et al., "Low-Dose CT With a Residual Encoder-Decoder Convolutional Neural Network",
IEEE TMI 36(12), 2017. Held to outputs of a public implementation of it (tests/golden), whose names
of layers are kept, because they are the keys of its weights.

Differs from the published form, unless built with `PUBLISHED`:
- No ReLU at the end. It makes everything below `lowest_hu` equal to it, and leaves no gradient
  there; keep it off for data that may be negative, such as air with its noise.
- An image with a side below 21 pixels is padded by its border; the published network refuses it.
"""

# Shapes: B batch, H row, W column. Images are in network range; `grey` is 0..1 of `Config`'s range.

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional

from cddnet.models._output import Output
from cddnet.models._published import UnitRange, check_channels, load, pad_to_multiple

# Five convolutions take 4 pixels each; one pixel must be left.
_SMALLEST_SIDE = 21


@dataclass(frozen=True, kw_only=True)
class Config:
    """channels: of every hidden layer.
    final_relu: a ReLU at the end, as published.
    lowest_hu, highest_hu: HU that are 0 and 1 inside; public training uses -1024 and 3072.
    """

    channels: int = 96
    final_relu: bool = False
    lowest_hu: float = -1024.0
    highest_hu: float = 3072.0


PUBLISHED = Config(final_relu=True)


class RedCnn(nn.Module):
    """(B, 1, H, W) network range in, `Output` with the image out; any size."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.range = UnitRange(lowest_hu=config.lowest_hu, highest_hu=config.highest_hu)
        widths = (1, *(config.channels,) * 5)
        for number, (before, after) in enumerate(pairwise(widths), start=1):
            self.add_module(f"conv{number}", nn.Conv2d(before, after, 5))
        for number, (before, after) in enumerate(pairwise(reversed(widths)), start=1):
            self.add_module(f"tconv{number}", nn.ConvTranspose2d(before, after, 5))

    def published_forward(self, grey: Tensor) -> Tensor:
        """Denoised grey levels of grey levels, both (B, 1, H, W)."""
        height, width = grey.shape[-2:]
        levels = [pad_to_multiple(grey, 1, _SMALLEST_SIDE)]
        for number in range(1, 6):
            levels.append(functional.relu(self.get_submodule(f"conv{number}")(levels[-1])))
        features = levels[5]
        for number in range(1, 6):
            features = self.get_submodule(f"tconv{number}")(features)
            if number % 2:
                features = features + levels[5 - number]
            if number < 5 or self.config.final_relu:
                features = functional.relu(features)
        return features[..., :height, :width]

    def forward(self, image: Tensor) -> Output:
        check_channels(image, 1, "RED-CNN")
        return Output(self.range.from_unit(self.published_forward(self.range.to_unit(image))))


def build(config: Config) -> RedCnn:
    return RedCnn(config)


def from_published(state_dict: Mapping[str, Tensor], config: Config = PUBLISHED) -> RedCnn:
    """The network in evaluation mode, with weights that have the published keys.

    Raises: ModelError if a key is missing, unexpected, or holds something of another shape.
    """
    return load(lambda: RedCnn(config), state_dict, "the published RED-CNN")
