"""Checkpoints of a training run: a folder each, tensors in safetensors and the rest in JSON.

A checkpoint is written under a hidden name, flushed to the disk and renamed, and only then is the
one before it removed: whenever a run is killed, the newest folder is whole.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from cddnet.errors import FormatError

_TENSORS, _RECORD, _PART = "tensors.safetensors", "state.json", ".part."


class Checkpoint(NamedTuple):
    """tensors: by name.  record: what JSON holds exactly: whole numbers, floats, text."""

    tensors: dict[str, Tensor]
    record: dict[str, object]


def write(folder: Path, step: int, checkpoint: Checkpoint) -> None:
    """Add the checkpoint of a step to a folder, and remove those before it.

    Raises: FormatError if the disk is full or forbids it; the one before is kept then.
    """
    part, whole = folder / f"{_PART}{step:09d}", folder / f"{step:09d}"
    try:
        remove_partial(folder)
        part.mkdir(parents=True)
        save_file(checkpoint.tensors, part / _TENSORS)
        text = json.dumps(checkpoint.record, indent=1)
        (part / _RECORD).write_text(text, encoding="utf-8")
        for path in (part / _TENSORS, part / _RECORD, part):
            _flush(path)
        os.replace(part, whole)
        _flush(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(part, ignore_errors=True)
        raise FormatError(
            f"{whole}: the checkpoint cannot be written ({error}); make room and run the same "
            "command again."
        ) from error
    for older in _all(folder)[:-1]:
        shutil.rmtree(older)


def read_latest(folder: Path) -> Checkpoint | None:
    """The newest checkpoint of a folder, on the processor; None if there is none.

    Raises: FormatError if it was damaged since.
    """
    found = _all(folder)
    if not found:
        return None
    try:
        record = json.loads((found[-1] / _RECORD).read_text(encoding="utf-8"))
        return Checkpoint(load_file(found[-1] / _TENSORS), record)
    except (OSError, ValueError, SafetensorError) as error:
        raise FormatError(
            f"{found[-1]}: this checkpoint was damaged after it was written ({error}); remove the "
            "run's folder and train again."
        ) from error


def remove_partial(folder: Path) -> None:
    """Remove what a killed run left under hidden names."""
    for part in folder.glob(f"{_PART}*"):
        shutil.rmtree(part)


def tensors_of_module(module: nn.Module, prefix: str) -> dict[str, Tensor]:
    """Copies of a network's parameters and buffers."""
    return {f"{prefix}.{key}": _copy(value) for key, value in module.state_dict().items()}


def load_module(module: nn.Module, tensors: Mapping[str, Tensor], prefix: str) -> None:
    """Put them back.  Raises FormatError if they are another network's."""
    try:
        module.load_state_dict(_below(tensors, prefix))
    except RuntimeError as error:
        first = str(error).strip().splitlines()[0]
        raise FormatError(
            f"the checkpoint's {prefix} does not fit: {first}. Go on with the recipe that the run "
            "was started with, or train in a new folder."
        ) from error


def tensors_of_optimiser(optimiser: Optimizer, prefix: str) -> dict[str, Tensor]:
    """Copies of what an optimiser remembers of each parameter; its settings are the recipe's."""
    return {
        f"{prefix}.{index}.{key}": _copy(torch.as_tensor(value))
        for index, values in optimiser.state_dict()["state"].items()
        for key, value in values.items()
    }


def load_optimiser(optimiser: Optimizer, tensors: Mapping[str, Tensor], prefix: str) -> None:
    """Put them back."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in _below(tensors, prefix).items():
        index, key = name.split(".")
        state.setdefault(int(index), {})[key] = value
    groups = optimiser.state_dict()["param_groups"]
    optimiser.load_state_dict({"state": state, "param_groups": groups})
    for parameter, values in optimiser.state.items():
        for key, value in values.items():
            if value.shape == parameter.shape:
                # Laid out as the parameter, or the last bit of an update may differ.
                values[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    start = f"{prefix}."
    return {name[len(start) :]: value for name, value in tensors.items() if name.startswith(start)}


def _copy(value: Tensor) -> Tensor:
    return value.detach().to("cpu", copy=True).contiguous()


def _all(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("[0-9]*") if path.is_dir())


def _flush(path: Path) -> None:
    if path.is_dir() and os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
