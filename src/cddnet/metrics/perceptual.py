"""Perceptual distance: features of a network of photographs, which say something of texture.

Not validated for CT: a fixed window, three equal channels and weights learned from photographs.
The feature network comes as a callable, because networks live elsewhere.
"""

# Shapes: B batch, C channel, H row, W column.

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cddnet.intensity.window import hu_to_window

if TYPE_CHECKING:
    from torch import Tensor

Window = tuple[float, float]

# Of the published weights, for red, green and blue in [-1, 1]: mean and deviation of photographs.
_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)
_LEAST_NORM = 1e-10


@dataclass(frozen=True, kw_only=True)
class Lpips:
    """Learned perceptual image patch similarity, version 0.1: 0 for equal images, more is worse.

    network: whose features these are.  features: (B, 3, H, W) -> one (B, C, H, W) per layer.
    heads: one weight per channel (C,) of each layer, none below zero.  weights: the files and
    their SHA-256, in words.
    Source: Zhang et al., CVPR 2018, equation 1.
    """

    network: str
    features: Callable[[Tensor], Sequence[Tensor]]
    heads: tuple[Tensor, ...]
    weights: str

    @property
    def name(self) -> str:
        return f"LPIPS {self.network}"

    @property
    def definition(self) -> str:
        return (
            f"version 0.1 with {self.network} (Zhang 2018), window as three equal channels, mean "
            "of the whole image without mask; learned from photographs, not validated for CT"
        )

    def __call__(
        self,
        full_dose: NDArray[np.floating],
        test: NDArray[np.floating],
        *,
        window_hu: Window,
    ) -> float:
        """Distance of two slices (H, W) in HU, clipped to window_hu; no unit.

        Raises: ModelError for slices smaller than the network needs.
        """
        import torch

        grey = np.stack([hu_to_window(image, window_hu) for image in (full_dose, test)])
        with torch.inference_mode():
            image = torch.from_numpy(2 * grey - 1)[:, None].expand(-1, 3, -1, -1)
            shift, scale = (torch.tensor(values)[:, None, None] for values in (_SHIFT, _SCALE))
            layers = self.features((image - shift) / scale)
            distance = 0.0
            for values, head in zip(layers, self.heads, strict=True):
                unit = values / (values.norm(dim=1, keepdim=True) + _LEAST_NORM)
                difference = (unit[0] - unit[1]).square().mean(dim=(1, 2))
                distance += float(difference.double() @ head.double())
        return distance
