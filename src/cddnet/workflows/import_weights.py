"""Import: a checkpoint of the authors' code becomes safetensors with a card."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

from cddnet import __version__, models
from cddnet.errors import FormatError, ModelError
from cddnet.formats._atomic import new_folder
from cddnet.models import _weights
from cddnet.models._cards import Card, file_hash

# Entries of a checkpoint that hold the network among optimisers and counters.
_ENTRIES = ("state_dict", "model_state_dict", "model", "generator", "net", "params")


def import_weights(checkpoint: Path, name: str, folder: Path, network: str | None = None) -> Card:
    """Write folder/NAME.safetensors and its card; `folder` must not exist.

    checkpoint: a file of torch.save, of which tensors alone are read, never code.
    network: a published network; None for the one whose keys and shapes the checkpoint has.
    Raises: ModelError for what is no such checkpoint or not finite, FormatError where the folder
    exists.
    """
    state = _tensors(checkpoint)
    chosen = _fitting(state, checkpoint) if network is None else network
    module = models.from_published(chosen, state)
    _require_finite(module, checkpoint)
    config = getattr(module, "config", None)
    with new_folder(folder) as made:
        card = _weights.save(
            module,
            made / f"{_safe(name)}.safetensors",
            name=name,
            model=chosen,
            options={} if config is None else asdict(config),
            version=__version__,
            training={
                "imported from": checkpoint.name,
                "sha256 of the checkpoint": file_hash(checkpoint),
                "note": "trained by others; nothing is known here of data and figures",
            },
        )
    return card


def _safe(name: str) -> str:
    if not name or name != Path(name).name or name.startswith("."):
        raise FormatError(f"'{name}' is no name for a file; give letters, digits and hyphens.")
    return name


def _tensors(checkpoint: Path) -> Mapping[str, Tensor]:
    try:
        loaded = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise ModelError(f"{checkpoint}: there is no such file; check the name.") from error
    except Exception as error:
        # A hostile file makes the reader fail anywhere.
        raise ModelError(
            f"{checkpoint}: is no checkpoint of tensors alone ({type(error).__name__}); whole "
            "pickled networks run code when they are opened and are never read. Save its "
            "state_dict() instead."
        ) from error
    for entry in _ENTRIES:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(entry), Mapping):
            loaded = loaded[entry]
    tensors = loaded if isinstance(loaded, Mapping) else {}
    if not tensors or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise ModelError(f"{checkpoint}: holds no state dict; save one with state_dict().")
    return tensors


def _require_finite(module: nn.Module, checkpoint: Path) -> None:
    """Asked of the network, since only what fits it has its size."""
    for key, value in module.state_dict().items():
        if not torch.isfinite(value).all():
            raise ModelError(
                f"{checkpoint}: '{key}' holds values that are not finite; its training went wrong. "
                "Fetch it again, or choose an earlier checkpoint."
            )


def _fitting(state: Mapping[str, Tensor], checkpoint: Path) -> str:
    reasons = []
    for name in models.published_names():
        try:
            models.from_published(name, state)
        except ModelError as error:
            reasons.append(f"{name}: {str(error)[:120]}")
            continue
        return name
    raise ModelError(
        f"{checkpoint}: fits none of the published networks ({'; '.join(reasons[:5])}); name the "
        "network with --network, and give its generator's state dict alone."
    )
