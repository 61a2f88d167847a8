"""ENGINES: one way to run a network; one file is one engine.

An engine is one file with `refusal(job) -> str` ("" where it can run the job, else why not, told
without importing anything heavy) and `open_engine(job) -> Engine`. All agree with torch in float32
within 0.5 HU mean absolute and 3 HU at most over tissue.
"""

# Shapes: B batch, H row, W column.

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from cddnet import plugins
from cddnet.errors import ModelError
from cddnet.models._cards import Card
from cddnet.runtime import processor

Images = NDArray[np.float32]

# Fastest first as measured, see docs/runtime.md; before all of them goes a GPU, by torch.
ORDER = ("openvino", "onnx", "torch_eager")
DEVICES = ("auto", "cpu", "cuda", "mps")


class Job(NamedTuple):
    """What is to be run.  device: cpu, cuda or mps.  threads: at most so many on a processor."""

    weights: Path
    card: Card
    device: str
    threads: int


class Described(NamedTuple):
    """What decides the last bit of a result.  engine: library, version and vector units."""

    engine: str
    device: str
    precision: str


class Engine(Protocol):
    """A network ready to run.  name: of its file.  batch: images it takes best at a time."""

    name: str
    batch: int
    threads: int

    @property
    def described(self) -> Described: ...

    def run(self, image: Images) -> Images:
        """(B, 1, H, W) float32 network range to the same; any B, H and W."""
        ...


def names() -> tuple[str, ...]:
    """Every engine, the ones of `ORDER` first."""
    known = plugins.names("runtime.engines")
    return (*(name for name in ORDER if name in known), *(n for n in known if n not in ORDER))


def refusals(job: Job) -> dict[str, str]:
    """Why each engine cannot run the job, "" where it can, in the order of `names`."""
    return {name: _refusal(name, job) for name in names()}


def _refusal(name: str, job: Job) -> str:
    return str(plugins.load("runtime.engines", name).refusal(job))


def open_engine(
    weights: Path,
    card: Card,
    *,
    name: str = "auto",
    device: str = "auto",
    threads: int | None = None,
) -> Engine:
    """The network of a weights file, ready to run; auto takes the fastest engine that can run it.

    threads: None for the cores this process may use, at most 8.
    Raises: ModelError for an unknown engine or device, or one that cannot run here, and for weights
    that are damaged or of another network range.
    """
    if name not in ("auto", *names()):
        raise ModelError(f"there is no engine '{name}'; choose one of: auto, {', '.join(names())}.")
    job = Job(weights, card, device_for(device, name), processor.chosen_threads(threads))
    chosen = _first(job) if name == "auto" else name
    if not chosen:
        told = "; ".join(f"{engine}: {reason}" for engine, reason in refusals(job).items())
        raise ModelError(
            f"no engine can run {card.name} here ({told}); mend one of these, or choose another "
            "model."
        )
    module = plugins.load("runtime.engines", chosen)
    if name != "auto" and (reason := module.refusal(job)):
        raise ModelError(
            f"engine {name} cannot run {card.name} ({reason}); choose another, or auto."
        )
    engine: Engine = module.open_engine(job)
    return engine


def _first(job: Job) -> str:
    """The first engine that can run the job, "" for none; those behind it are not imported."""
    return next((name for name in names() if not _refusal(name, job)), "")


def device_for(device: str, engine: str = "auto") -> str:
    """cpu, cuda or mps for a name or auto.  Raises ModelError for one this machine lacks."""
    if device == "cpu":
        return "cpu"
    if device not in DEVICES:
        raise ModelError(f"there is no device '{device}'; choose one of: {', '.join(DEVICES)}.")
    if device == "auto" and (engine in ("onnx", "openvino") or not processor.may_have_gpu()):
        return "cpu"
    from cddnet.runtime.engines import torch_eager

    return torch_eager.choose_device(device)
