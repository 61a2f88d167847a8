"""Weights that ship with the package, and weights files that users name."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from cddnet.errors import ModelError
from cddnet.models._cards import Card, read_card

if TYPE_CHECKING:
    from torch import nn

DEFAULT = "fast"


def shipped() -> dict[str, Path]:
    """Weights in the package: versioned name ("fast@1") -> file."""
    folder = Path(str(files("cddnet") / "weights"))
    return {path.stem: path for path in sorted(folder.glob("*.safetensors"))}


def find(model: str | Path) -> Path:
    """Weights of a name ("default", "fast", "fast@1") or of a .safetensors file.

    A name without a version means the newest.  Raises: ModelError listing the known names.
    """
    if Path(model).suffix == ".safetensors":
        if not Path(model).is_file():
            raise ModelError(f"{model}: there is no such weights file; check the name.")
        return Path(model)
    if Path(model).suffix in (".pth", ".pt", ".ckpt", ".tar"):
        raise ModelError(
            f"{model}: is a checkpoint, not weights with a card; make them of it with "
            "cddnet models import."
        )
    wanted = DEFAULT if model == "default" else str(model)
    known = shipped()
    versions = [name for name in known if name == wanted or name.split("@")[0] == wanted]
    if not versions:
        raise ModelError(
            f"there are no weights '{model}'; give a .safetensors file or one of: "
            f"default, {', '.join(known) or 'none shipped'}."
        )
    return known[max(versions, key=lambda name: int(name.split("@")[1]))]


def cards() -> tuple[Card, ...]:
    """Cards of the shipped weights."""
    return tuple(read_card(path) for path in shipped().values())


def load(model: str | Path) -> tuple[nn.Module, Card]:
    """Network in evaluation mode and its card, weights checked against the card's SHA-256."""
    from cddnet.models._weights import load as load_weights

    return load_weights(find(model))
