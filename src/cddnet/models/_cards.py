"""Model cards: what a weights file is, in JSON beside it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, deserialize

from cddnet.errors import ModelError
from cddnet.intensity.normalise import HU_PER_UNIT

# Far above every network here; what is larger is not read.
LARGEST_WEIGHTS_BYTES, LARGEST_CARD_BYTES, LARGEST_OPTION = 1 << 30, 1 << 20, 10_000
# Types of safetensors as NumPy reads them; BF16 is the upper half of F32.
DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4"}
_KINDS: dict[str, type | UnionType] = {
    "name": str,
    "model": str,
    "options": dict,
    "version": str,
    "sha256": str,
    "strength": int | float,
    "hu_per_unit": int | float,
    "training": dict,
}


FETCH_AGAIN = "Fetch or train both files, the weights and their card, again."


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
        with path.open("rb") as file:
            text = file.read(LARGEST_CARD_BYTES)
        card = Card(**json.loads(text))
        _require_kinds(card)
    except OSError as error:
        raise ModelError(
            f"{weights.name}: no model card {path.name} beside it; keep both files together."
        ) from error
    except (ValueError, TypeError, RecursionError) as error:
        raise ModelError(
            f"{path.name} is not a model card of this version: {error}. {FETCH_AGAIN}"
        ) from error
    return card


def _require_kinds(card: Card) -> None:
    """Raises ValueError for a value that is not of its kind."""
    for key, kind in _KINDS.items():
        value = getattr(card, key)
        if not isinstance(value, kind):
            raise ValueError(f"{key} is {value!r:.40}")
    for option, value in card.options.items():
        if not isinstance(value, bool | int | float | str):
            raise ValueError(f"option {option} is {value!r:.40}")
        if not isinstance(value, str) and not abs(value) <= LARGEST_OPTION:
            raise ValueError(f"option {option} is {value!r:.40}, beyond {LARGEST_OPTION}")
    if not 0 <= card.strength <= 1:
        raise ValueError(f"strength is {card.strength}, expected 0 to 1")


def file_hash(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read_checked(weights: Path, card: Card) -> bytes:
    """The bytes of a weights file that are what its card says, and hold finite numbers alone.

    Raises: ModelError where the file is missing, damaged, exchanged, too large, no safetensors, or
    of another range.
    """
    try:
        size = weights.stat().st_size
        if size > LARGEST_WEIGHTS_BYTES:
            raise ModelError(
                f"{weights.name}: has {size} bytes, weights of at most {LARGEST_WEIGHTS_BYTES} are "
                "read; this is no network of this package."
            )
        content = weights.read_bytes()
    except OSError as error:
        raise ModelError(
            f"{weights}: weights cannot be read ({error.strerror}); change the permissions, or "
            "copy both files to a folder of yours."
        ) from error
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
    _require_numbers(content, weights.name, card.model)
    return content


def _require_numbers(content: bytes, name: str, model: str) -> None:
    try:
        tensors = deserialize(content)  # type: ignore[no-untyped-call]
    except SafetensorError as error:
        raise ModelError(f"{name}: weights do not fit {model}: {error}. {FETCH_AGAIN}") from error
    for key, tensor in tensors:
        if tensor["dtype"] not in DTYPES:
            raise ModelError(
                f"{name}: weights do not fit {model}: '{key}' is of type {tensor['dtype']}, "
                f"expected one of {', '.join(DTYPES)}. {FETCH_AGAIN}"
            )
        values: NDArray[np.generic] = np.frombuffer(tensor["data"], DTYPES[tensor["dtype"]])
        if tensor["dtype"] == "BF16":
            values = (values.astype("<u4") << 16).view("<f4")
        if not np.isfinite(values).all():
            raise ModelError(
                f"{name}: '{key}' holds values that are not finite; its training went wrong. "
                "Fetch or train it again."
            )
