"""RA-Depth from two files that the user names: nothing is downloaded, tensors alone are read."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from cddnet.errors import ModelError
from cddnet.models._ra_depth import RaDepth, from_published


def read_teacher(encoder: Path, decoder: Path) -> RaDepth:
    """The teacher in evaluation mode.

    Raises: ModelError for a file that is missing, holds more than plain values, or does not fit.
    """
    return from_published(_table(encoder), _table(decoder))


def _table(path: Path) -> Mapping[str, Tensor]:
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ModelError(
            f"{path}: weights of RA-Depth cannot be read: {error.strerror}; name your own "
            "encoder.pth and depth.pth in teacher_encoder and teacher_decoder, or take both out "
            "for the depth of the recipe."
        ) from error
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise ModelError(
            f"{path}: is no file of weights of RA-Depth: {type(error).__name__}; save a state_dict."
        ) from error
    if not isinstance(loaded, Mapping):
        raise ModelError(f"{path}: is no table of weights by key; save a state_dict.")
    return loaded
