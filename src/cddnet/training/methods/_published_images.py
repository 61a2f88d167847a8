"""Training images as the published ones are: a window of grey levels, 8 bits, coded as JPEG."""

# Shapes: B batch, H row, W column; grey levels (B, 1, H, W) in [0, 1].

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor

_LEVELS = 255
_QUALITY = 75


def truncated(grey: Tensor) -> Tensor:
    """The next of 256 levels below: on average half a level, 2 HU of 1000, too dark."""
    return (grey * _LEVELS).floor() / _LEVELS


def as_jpeg(grey: Tensor) -> Tensor:
    """Coded and decoded at quality 75 as images of their own; what is not on a level is rounded."""
    levels = (grey.detach() * _LEVELS).round().to("cpu", torch.uint8).numpy()
    decoded = np.stack([_decoded(image[0])[None] for image in levels])
    return torch.from_numpy(decoded).to(grey.device, grey.dtype) / _LEVELS


def _decoded(levels: np.ndarray) -> np.ndarray:
    coded = io.BytesIO()
    Image.fromarray(levels).save(coded, "JPEG", quality=_QUALITY)
    return np.asarray(Image.open(coded))
