"""What every image denoiser that shares one forward returns."""

# Shapes: B batch, H row, W column.

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Output(NamedTuple):
    """A network's answer to an image (B, 1, H, W) in network range.

    image: (B, 1, H, W) denoised, network range.
    depth: (B, 1, H, W) the network's depth map, None if it has none.
    estimation: (B, 1, H, W) the network's estimate of what to remove, None if it has none.
    """

    image: Tensor
    depth: Tensor | None = None
    estimation: Tensor | None = None
