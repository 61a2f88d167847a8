"""What filters without training share: HU of one slice, the noise of that slice, scikit-image."""

# Shapes: B batch, H row, W column.

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from types import ModuleType

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor, nn

from cddnet.errors import ModelError
from cddnet.intensity.normalise import to_hu, to_network
from cddnet.models._output import Output
from cddnet.models._published import check_channels

# Double precision: fast non-local means takes differences of sums of squares over the whole slice.
Slice = NDArray[np.float64]

_BODY_HU = -300.0
_SMOOTH_PIXELS = 3.0
_FLAT_SHARE = 0.3
# Median of |x| to standard deviation, normal distribution.
_STD_PER_MAD = 1.4826
# Stored values are whole HU; below this there is rounding, and filters would divide by it.
_LEAST_NOISE_HU = 0.01


class Classical(nn.Module):
    """(B, 1, H, W) network range in, `Output` with the image out; any size, no parameter.

    restore: (slice in HU, its noise in HU) to the denoised slice in HU, called per slice.
    Raises: ModelError for an image whose gradient is wanted.
    """

    def __init__(self, name: str, restore: Callable[[Slice, float], Slice]) -> None:
        super().__init__()
        self.name, self._restore = name, restore

    def forward(self, image: Tensor) -> Output:
        check_channels(image, 1, self.name)
        if image.requires_grad and torch.is_grad_enabled():
            raise ModelError(
                f"{self.name} has no gradient, and this is computed from one; choose a network."
            )
        slices = to_hu(image.detach().cpu().double())[:, 0].numpy()
        restored = torch.from_numpy(np.stack([self._one(hu) for hu in slices]))[:, None]
        return Output(to_network(restored).to(image))

    def _one(self, hu: Slice) -> Slice:
        noise = noise_hu(hu)
        return self._restore(hu, noise) if noise > _LEAST_NOISE_HU else hu


def restoration() -> ModuleType:
    """scikit-image's filters.  Raises: ModelError that names the extra which brings them."""
    try:
        return import_module("skimage.restoration")
    except ImportError as error:
        raise ModelError(
            "this method needs scikit-image, which is not installed: pip install cddnet[classical]"
        ) from error


def noise_hu(hu: Slice) -> float:
    """Standard deviation of the noise in flat tissue of a slice (H, W) in HU, robust.

    Of the difference to a Gaussian mean (3 pixels), the median absolute deviation over the flattest
    0.3 of the body (above -300 HU; the whole slice if nothing is) by the gradient of that mean. CT
    noise has little power at the pixel's own frequency, where estimators for white noise look: on
    simulated scans of `physics.phantom` they find 0.1 to 0.6 of it, this 0.9 to 1.2.
    """
    body = hu > _BODY_HU
    if not body.any():
        body = np.ones_like(body)
    fine = hu - ndimage.gaussian_filter(hu, _SMOOTH_PIXELS)
    gradient = ndimage.gaussian_gradient_magnitude(hu, _SMOOTH_PIXELS)
    flat = fine[body & (gradient <= np.quantile(gradient[body], _FLAT_SHARE))]
    return float(_STD_PER_MAD * np.median(np.abs(flat - np.median(flat))))


def require_positive(**options: float) -> None:
    """Raises: ModelError naming the first option that is not above 0."""
    for name, value in options.items():
        if not value > 0:
            raise ModelError(f"{name} is {value}, expected a number above 0; correct the option.")
