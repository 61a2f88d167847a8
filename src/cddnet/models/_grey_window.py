"""A network of three equal grey channels over a HU window, as any other denoiser sees it."""

# Shapes: B batch, H row, W column.

from __future__ import annotations

from torch import Tensor, nn

from cddnet.models._output import Output
from cddnet.models._published import UnitRange


class GreyWindow(nn.Module):
    """(B, 1, H, W) network range in, `Output` out, around a network (B, 3, H, W) in [0, 1].

    The channels come back as their mean. What lies outside the window is no part of the network's
    image, so its change is added to the source instead of replacing it.
    """

    def __init__(self, network: nn.Module, window: UnitRange) -> None:
        super().__init__()
        self.network, self.window = network, window

    def forward(self, image: Tensor) -> Output:
        seen = self.window.to_unit(image).clamp(0.0, 1.0)
        restored = self.network(seen.expand(-1, 3, -1, -1)).mean(dim=1, keepdim=True).clamp(0, 1)
        return Output(image=image + self.window.difference_from_unit(restored - seen))
