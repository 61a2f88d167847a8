"""VGG19 from a file that the user names: nothing is downloaded, and its digest is checked first."""

# Shapes: B batch, H row, W column.

from __future__ import annotations

import hashlib
from pathlib import Path

from torch import Tensor

from cddnet.errors import ModelError
from cddnet.models._features import parsed

# Of torchvision's vgg19-dcbb9e9d.pth.
VGG19_SHA256 = "dcbb9e9dad569fff7a846263a77324fc34978fea2bfb039c012d710e1776ae44"

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def as_imagenet(grey: Tensor) -> Tensor:
    """Grey levels (B, 1, H, W), 0 to 1, as the three colours that torchvision's weights expect."""
    mean, std = (grey.new_tensor(values).view(1, 3, 1, 1) for values in (_MEAN, _STD))
    return (grey - mean) / std


def read_weights(path: Path, sha256: str, *, otherwise: str) -> dict[str, Tensor]:
    """Weights by key, parsed from the bytes whose digest was checked.

    otherwise: what to set instead, for the refusal.  Raises: ModelError for a file that is missing,
    another one than stated, or no table of weights.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelError(
            f"{path}: weights of VGG19 cannot be read: {error.strerror}; name the file that "
            f"torchvision publishes, vgg19-dcbb9e9d.pth, in vgg19_file, or {otherwise}."
        ) from error
    digest = hashlib.sha256(content).hexdigest()
    if digest != sha256:
        raise ModelError(
            f"{path}: SHA-256 is {digest}, expected {sha256}; fetch the file again, or state it in "
            "vgg19_sha256 if the file is yours and meant."
        )
    return parsed(content, path)
