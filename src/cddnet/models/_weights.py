"""A trained network on disk: weights in safetensors, with a JSON card beside them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import safetensors.torch
import torch
from safetensors.torch import load as load_tensors
from torch import Tensor, nn

from cddnet import models
from cddnet.errors import ModelError
from cddnet.models._cards import FETCH_AGAIN, Card, file_hash, read_card, read_checked


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
    try:
        tensors = load_tensors(content)
        _require_fit(card, tensors)
        network = models.build(card.model, **card.options)
        network.load_state_dict(tensors)
    except ModelError:
        raise
    except Exception as error:
        # Options that a card makes up fail anywhere in the building of a network.
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"{weights.name}: weights do not fit {card.model}: {first.rstrip('.')}. {FETCH_AGAIN}"
        ) from error
    return models.in_network_range(card.model, network).eval(), card


def _require_fit(card: Card, tensors: Mapping[str, Tensor]) -> None:
    """Refuse a network that is not the file's before any memory is taken for it."""
    try:
        with torch.device("meta"):
            wanted = models.build(card.model, **card.options).state_dict()
    except (NotImplementedError, RuntimeError):
        # A network that cannot be built without numbers is built with them, and says what fails.
        return
    found = {key: _told(value) for key, value in tensors.items()}
    expected = {key: _told(value) for key, value in wanted.items()}
    for key in sorted(found.keys() | expected.keys()):
        if found.get(key) != expected.get(key):
            raise ModelError(
                f"weights do not fit {card.model}: '{key}' is {found.get(key, 'missing')}, "
                f"expected {expected.get(key, 'none')}; give the options it was trained with."
            )


def _told(tensor: Tensor) -> str:
    kind = "numbers" if tensor.is_floating_point() else "whole numbers"
    return f"{' x '.join(map(str, tensor.shape)) or 'one'} {kind}"
