"""Checkpoints of other people's training code: tensors by key, and nothing in the file is run."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from cddnet.errors import ModelError
from cddnet.models._published import DEEPEST_WRAPPER, WRAPPERS, inside, without_compiled

# Entries that hold the network among optimisers and counters.
_ENTRIES = ("state_dict", "model_state_dict", "model", "generator", "net", "params")
# Packages whose objects tell of a training and hold no weights. Nothing of them is imported.
_RECORDS = re.compile(
    r"(numpy|argparse|pathlib|datetime|omegaconf|lightning|pytorch_lightning|lightning_fabric)\."
)
_REFUSED = re.compile(r"GLOBAL (\S+)")
_MOST_KINDS = 32


class Checkpoint(NamedTuple):
    """tensors: by key.  not_read: kinds of objects beside them."""

    tensors: dict[str, Tensor]
    not_read: tuple[str, ...]


def read_checkpoint(path: Path) -> Checkpoint:
    """The state dict in a file of torch.save.

    Numbers of NumPy and the like beside the tensors are left aside unread.
    Raises: ModelError for a file that holds no such table, or code.
    """
    loaded, not_read = _loaded(path)
    table = loaded
    for _ in range(DEEPEST_WRAPPER):
        entries = table if isinstance(table, Mapping) else {}
        table = next((entries[name] for name in _ENTRIES if _is_table(entries.get(name))), table)
    found = table if isinstance(table, Mapping) else {}
    tensors = {
        key: value
        for key, value in found.items()
        if isinstance(key, str) and isinstance(value, Tensor)
    }
    if not tensors:
        kinds = f" (found: {', '.join(not_read)})" if not_read else ""
        raise ModelError(
            f"{path}: holds no state dict of tensors{kinds}; save one with state_dict()."
        )
    return Checkpoint(dict(without_compiled(tensors)), not_read)


def parts(
    tensors: Mapping[str, Tensor], deepest: int = DEEPEST_WRAPPER
) -> Iterator[Mapping[str, Tensor]]:
    """All tensors, then those of the networks within them, as a training module keeps several."""
    yield tensors
    for wrapper in WRAPPERS if deepest else ():
        if part := inside(tensors, wrapper):
            yield from parts(part, deepest - 1)


def _is_table(value: object) -> bool:
    return isinstance(value, Mapping)


def _loaded(path: Path) -> tuple[object, tuple[str, ...]]:
    """What torch's reader of plain values makes of a file, and the kinds of objects it left out."""
    left_out: dict[str, type] = {}
    while True:
        try:
            with torch.serialization.safe_globals(list(left_out.values())):
                return torch.load(path, map_location="cpu", weights_only=True), tuple(left_out)
        except FileNotFoundError as error:
            raise ModelError(f"{path}: there is no such file; check the name.") from error
        except Exception as error:
            # A hostile file makes the reader fail anywhere.
            refused = _REFUSED.search(str(error))
            kind = refused[1] if refused else ""
            if _RECORDS.match(kind) and kind not in left_out and len(left_out) < _MOST_KINDS:
                left_out[kind] = _stand_in(kind)
                continue
            found = ", ".join(filter(None, (*left_out, kind))) or type(error).__name__
            raise ModelError(
                f"{path}: is no checkpoint of tensors alone ({found}); whole pickled networks and "
                "other objects run code when they are opened and are never read. Save its "
                "state_dict() instead."
            ) from error


class _LeftOut:
    """Stands where an object of another package was, takes its arguments and does nothing."""

    def __new__(cls, *_: object, **__: object) -> _LeftOut:
        return super().__new__(cls)

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


def _stand_in(kind: str) -> type:
    """A class under the name of another, which torch's reader then takes for it."""
    module, _, name = kind.rpartition(".")
    return type(name, (_LeftOut,), {"__module__": module, "__qualname__": name})
