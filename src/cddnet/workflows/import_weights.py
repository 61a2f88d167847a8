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
from cddnet.models._checkpoint import Checkpoint, parts, read_checkpoint

# Entries of the card on what else was in the checkpoint.
OTHER_TENSORS, NOT_READ = "other tensors of the checkpoint", "objects that were not read"


def import_weights(checkpoint: Path, name: str, folder: Path, network: str | None = None) -> Card:
    """Write folder/NAME.safetensors and its card; `folder` must not exist.

    checkpoint: a file of torch.save, of which tensors alone are read, never code; the network may
    be wrapped by torch.compile, DataParallel or a Lightning module.
    network: a published network; None for the one whose keys and shapes the checkpoint has.
    Raises: ModelError for what is no such checkpoint or not finite, FormatError where the folder
    exists.
    """
    read = read_checkpoint(checkpoint)
    chosen, module = _fitting(read.tensors, checkpoint, network)
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
                **_left_aside(read, module),
            },
        )
    return card


def _safe(name: str) -> str:
    if not name or name != Path(name).name or name.startswith("."):
        raise FormatError(f"'{name}' is no name for a file; give letters, digits and hyphens.")
    return name


def _left_aside(read: Checkpoint, module: nn.Module) -> dict[str, object]:
    """For the card: what else was in the checkpoint."""
    others = len(read.tensors) - len(module.state_dict())
    counts: dict[str, object] = {OTHER_TENSORS: others} if others > 0 else {}
    return counts | ({NOT_READ: ", ".join(read.not_read)} if read.not_read else {})


def _require_finite(module: nn.Module, checkpoint: Path) -> None:
    """Asked of the network, since only what fits it has its size."""
    for key, value in module.state_dict().items():
        if not torch.isfinite(value).all():
            raise ModelError(
                f"{checkpoint}: '{key}' holds values that are not finite; its training went wrong. "
                "Fetch it again, or choose an earlier checkpoint."
            )


def _fitting(
    state: Mapping[str, Tensor], checkpoint: Path, network: str | None
) -> tuple[str, nn.Module]:
    """The network that was asked for, or else the first that the weights fit, with the weights.

    All tensors are tried first, then those of a network within them.
    """
    names = models.published_names() if network is None else (network,)
    reasons: dict[str, str] = {}
    for part in parts(state):
        for name in names:
            try:
                return name, models.from_published(name, part)
            except ModelError as error:
                reasons.setdefault(name, str(error))
    if network is not None:
        raise ModelError(reasons[network])
    listed = "; ".join(f"{name}: {reason[:120]}" for name, reason in list(reasons.items())[:5])
    raise ModelError(
        f"{checkpoint}: fits none of the published networks ({listed}); name the network with "
        "--network, and give its generator's state dict alone."
    )
