"""A trained network on disk: weights in safetensors, with a JSON card beside them."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import nn

from cddnet import models
from cddnet.errors import ModelError
from cddnet.models._cards import Card, file_hash, read_card, read_checked


def save(network: nn.Module, weights: Path, *, half: bool = False, **card: object) -> Card:
    """Write `weights` (.safetensors) and its card beside it (.json), with the hash filled in.

    half: learned values in float16, half as large; they are run in float32 all the same.
    """
    state = {key: value.contiguous() for key, value in network.state_dict().items()}
    if half:
        state = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    # Where nothing was learned, the hash would be the same for all; the options are what it is of.
    metadata = None if state else {"options": json.dumps([card["model"], card["options"]])}
    # Its own writer makes files that nobody else may read.
    weights.write_bytes(safetensors.torch.save(state, metadata))
    written = Card(sha256=file_hash(weights), **card)  # type: ignore[arg-type]
    weights.with_suffix(".json").write_text(
        json.dumps(asdict(written), indent=2) + "\n", encoding="utf-8"
    )
    return written


def load(weights: Path) -> tuple[nn.Module, Card]:
    """Network in evaluation mode and its card.

    Raises: ModelError where the file is not safetensors, is damaged (hash), or does not fit.
    """
    card = read_card(weights)
    content = read_checked(weights, card)
    network = models.build(card.model, **card.options)
    try:
        network.load_state_dict(load_tensors(content))
    except (SafetensorError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0]
        raise ModelError(f"{weights.name}: weights do not fit {card.model}: {first}") from error
    return models.in_network_range(card.model, network).eval(), card
