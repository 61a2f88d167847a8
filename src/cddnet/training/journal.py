"""What a training run records: a line of JSON each time, and curves in TensorBoard if asked for."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from math import isfinite
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cddnet.errors import CddnetError

LOG = "log.jsonl"
# A picture (H, W), black at 0 and white at 1, computed where it is wanted.
Draw = Callable[[], NDArray[np.float32]]


class Journal(Protocol):
    """Takes figures and pictures of a step."""

    def figures(self, step: int, values: dict[str, float]) -> None: ...
    def picture(self, step: int, draw: Draw) -> None: ...


class Silent:
    """Of the processes that write nothing."""

    def figures(self, step: int, values: dict[str, float]) -> None: ...
    def picture(self, step: int, draw: Draw) -> None: ...


class JsonLines:
    """log.jsonl in the run's folder; lines after `last_step`, which a killed run left, go."""

    def __init__(self, folder: Path, *, last_step: int) -> None:
        self._path, self.last_step = folder / LOG, last_step
        if self._path.is_file():
            lines = self._path.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = "".join(line for line in lines if _step(line) <= last_step)
            part = folder / f".part.{LOG}"
            part.write_text(kept, encoding="utf-8")
            os.replace(part, self._path)

    def figures(self, step: int, values: dict[str, float]) -> None:
        rounded = {key: float(f"{v:.9g}") if isfinite(v) else None for key, v in values.items()}
        line = json.dumps({"step": step} | rounded)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def picture(self, step: int, draw: Draw) -> None: ...


class TensorBoard:
    """Curves and pictures in RUN/tensorboard, besides the lines; what they dropped is hidden.

    Raises: CddnetError where TensorBoard is not installed.
    """

    def __init__(self, folder: Path, lines: JsonLines) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise CddnetError(
                "tensorboard is not installed; run pip install 'cddnet[tensorboard]', or set "
                "tensorboard to false."
            ) from error
        resumed = {"purge_step": lines.last_step + 1} if lines.last_step else {}
        self._lines, self._writer = lines, SummaryWriter(str(folder / "tensorboard"), **resumed)

    def figures(self, step: int, values: dict[str, float]) -> None:
        self._lines.figures(step, values)
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def picture(self, step: int, draw: Draw) -> None:
        name = "low dose, denoised, full dose"
        self._writer.add_image(name, draw(), step, dataformats="HW")
        # Nobody closes the journal, and a killed run must not lose it.
        self._writer.flush()


def _step(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        # Cut short by a kill.
        return float("inf")
