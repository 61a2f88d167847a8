"""Model cards: what a weights file is, in JSON beside it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

from cddnet.errors import ModelError
from cddnet.intensity.normalise import HU_PER_UNIT


@dataclass(frozen=True, kw_only=True)
class Card:
    """model: a file in models/.  options: of its Config.  name: as shown, "cddnet@1".
    hu_per_unit: of the network range.  strength: default blend.  sha256: of the weights file.
    training: data, licences, recipe and figures, for people.
    """

    name: str
    model: str
    options: dict[str, bool | int | float | str]
    version: str
    sha256: str
    strength: float = 1.0
    hu_per_unit: float = HU_PER_UNIT
    training: dict[str, object] = field(default_factory=dict)


def read_card(weights: Path) -> Card:
    """The card beside a weights file.  Raises ModelError if it is missing or not a card."""
    path = weights.with_suffix(".json")
    try:
        return Card(**json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise ModelError(
            f"{weights.name}: no model card {path.name} beside it; keep both files together."
        ) from error
    except (ValueError, TypeError) as error:
        raise ModelError(f"{path.name} is not a model card of this version: {error}") from error


def file_hash(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read_checked(weights: Path, card: Card) -> bytes:
    """The bytes of a weights file that are what its card says.

    Raises: ModelError where the file is missing, damaged, exchanged, or of another range.
    """
    try:
        content = weights.read_bytes()
    except OSError as error:
        raise ModelError(f"{weights}: weights cannot be read: {error.strerror}.") from error
    found = hashlib.sha256(content).hexdigest()
    if found != card.sha256:
        raise ModelError(
            f"{weights.name}: SHA-256 is {found[:12]}..., its card says {card.sha256[:12]}...; "
            "the file is damaged or was exchanged. Fetch both files again."
        )
    if card.hu_per_unit != HU_PER_UNIT:
        raise ModelError(
            f"{weights.name}: trained with {card.hu_per_unit} HU per unit of network range, "
            f"this version uses {HU_PER_UNIT}; use the version named in its card, {card.version}."
        )
    return content
