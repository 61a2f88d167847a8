"""The training loop: the same weights whether or not it is interrupted, with one process or many.

Whatever is random is a function of the recipe's seed and the number of the step, so a checkpoint
holds no generator: networks, optimisers, the average, and a few numbers.

Above 300 lines: one loop, read from top to bottom.
"""

# Shapes: B batch, H row, W column; crops (B, 1, crop, crop) in network range.

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cddnet.config import TrainConfig
from cddnet.errors import CddnetError
from cddnet.training import checkpoint
from cddnet.training.checkpoint import Checkpoint
from cddnet.training.journal import Journal, JsonLines, Silent, TensorBoard
from cddnet.training.methods import Method
from cddnet.training.pairs import Learnable, Pair
from cddnet.training.processes import Processes
from cddnet.training.sampling import StepBatches, batches

CHECKPOINTS = "checkpoints"
_WARM_UP, _LOWEST_RATE = 0.01, 0.01


class TrainingError(CddnetError):
    """Training that cannot go on."""


class Validation(NamedTuple):
    """score: higher is better.  figures: for the log.  draw: (H, W), black 0 to white 1."""

    score: float
    figures: dict[str, float]
    draw: Callable[[], NDArray[np.float32]]


@dataclass(frozen=True, kw_only=True)
class Job:
    """One training run.

    method: its networks on the device of `processes`.  validate: of the averaged denoiser.
    keep_best: writes it, with its step and figures.  progress: (what, done, in all).
    """

    config: TrainConfig
    method: Method
    slices: Sequence[Learnable]
    folder: Path
    processes: Processes
    validate: Callable[[nn.Module], Validation]
    keep_best: Callable[[nn.Module, int, Mapping[str, float]], None]
    progress: Callable[[str, int, int], None]


@dataclass(kw_only=True)
class State:
    """What a run knows besides its tensors. usual: gradient norm of each optimiser.
    skipped: steps with a gradient that was not finite. best, validation: of the averaged denoiser.
    """

    step: int = 0
    skipped: int = 0
    skipped_in_row: int = 0
    usual: dict[str, float] = field(default_factory=dict)
    best: float | None = None
    validation: dict[str, float] = field(default_factory=dict)

    def count(self, step: int, *, finite: bool, give_up_after: int) -> None:
        """A step was taken, or skipped.  Raises TrainingError after too many skipped in a row."""
        self.step = step
        self.skipped += not finite
        self.skipped_in_row = 0 if finite else self.skipped_in_row + 1
        if self.skipped_in_row >= give_up_after:
            raise TrainingError(
                f"step {step}: the gradient was not finite {give_up_after} times in a row; train "
                "again in a new folder with a lower learning_rate, or with precision float32."
            )


class Trained(NamedTuple):
    """The averaged denoiser and the last state. resumed_from: a step, 0 if it began here."""

    denoiser: nn.Module
    state: State
    resumed_from: int


def train(job: Job) -> Trained:
    """Train to the last step, from the newest checkpoint of the run's folder if it has one.

    Raises: TrainingError if gradients stay not finite, ConfigError if the processes cannot share a
    step, FormatError if a checkpoint cannot be written or read.
    """
    config, method, processes = job.config, job.method, job.processes
    averaged = deepcopy(method.denoiser)
    state = _restored(job, averaged)
    shared = {name: processes.share(network) for name, network in method.networks.items()}
    dataset = StepBatches(job.slices, config, rank=processes.rank, size=processes.size)
    steps = range(state.step + 1, config.steps + 1)
    pinned = processes.device.type == "cuda"
    journal, interval = _journal(job, state.step), _Interval()
    saved = time.monotonic()
    with closing(batches(dataset, steps, workers=config.workers, pinned=pinned)) as loaded:
        for step in steps:
            pair = interval.waited_for(loaded, counted=step > steps.start)
            updates = EngineUpdates(job, shared, state, step)
            terms = method.step(_placed(pair, processes.device, config), updates)
            if updates.all_finite:
                _average(averaged, method.denoiser, min(config.ema, step / (step + 10)))
            state.count(step, finite=updates.all_finite, give_up_after=config.give_up_after)
            interval.add(terms, updates.norms)
            if step % config.log_every == 0:
                journal.figures(step, interval.figures(job, state))
                interval = _Interval()
            if step % config.validate_every == 0 or step == config.steps:
                _validate(job, averaged, state, journal)
            late = time.monotonic() - saved > 60 * config.checkpoint_minutes
            if late or step % config.checkpoint_every == 0 or step == config.steps:
                _save(job, averaged, state)
                saved = time.monotonic()
            job.progress("training", step, config.steps)
    return Trained(averaged, state, steps.start - 1)


class EngineUpdates:
    """What the engine does for a method within one step; see `methods.Updates`."""

    def __init__(self, job: Job, shared: Mapping[str, nn.Module], state: State, step: int) -> None:
        self.step, self.all_finite = step, True
        self.norms: dict[str, float] = {}
        self._job, self._shared, self._state = job, shared, state
        config, processes = job.config, job.processes
        self._samples = torch.Generator().manual_seed(_seed(config.seed, step))
        # What a network draws itself, for dropout: apart in each process, equal after a resume.
        torch.manual_seed(_seed(config.seed, step, 1 + processes.rank))
        factor = rate(config, step)
        for optimiser in job.method.optimisers.values():
            for group in optimiser.param_groups:
                group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor

    def network(self, name: str) -> nn.Module:
        return self._shared[name].train()

    def autocast(self) -> AbstractContextManager[object]:
        kind = self._job.processes.device.type
        fast = self._job.config.precision == "bfloat16" or (
            self._job.config.precision == "auto" and _has_bfloat16(kind)
        )
        return torch.autocast(kind, dtype=torch.bfloat16, enabled=fast)

    def minimise(self, name: str, loss: Tensor) -> bool:
        optimiser, usual = self._job.method.optimisers[name], self._state.usual
        parameters = [p for group in optimiser.param_groups for p in group["params"]]
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        # A starved slice may give a gradient many times the usual one, enough to ruin the weights.
        clip = self._job.config.clip or math.inf
        limit = clip * usual.setdefault(name, 1.0)
        norm = self.norms[name] = float(nn.utils.clip_grad_norm_(parameters, limit))
        if not math.isfinite(norm):
            self.all_finite = False
            return False
        usual[name] += 0.02 * (min(norm, limit) - usual[name])
        optimiser.step()
        return True

    def uniform(self, *shape: int) -> Tensor:
        own, processes = shape[0], self._job.processes
        every = torch.rand(own * processes.size, *shape[1:], generator=self._samples)
        mine = every[processes.rank * own : (processes.rank + 1) * own]
        return mine.to(processes.device, number_type(self._job.config))


def rate(config: TrainConfig, step: int) -> float:
    """Learning rate of a step, from 1, over the recipe's."""
    if config.schedule == "constant":
        return 1.0
    progress = (step - 1) / config.steps
    cosine = 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    return min(1.0, progress / _WARM_UP) * (_LOWEST_RATE + (1 - _LOWEST_RATE) * cosine)


def number_type(config: TrainConfig) -> torch.dtype:
    """Of weights and images; autocast may use shorter ones within the networks."""
    return torch.float64 if config.precision == "float64" else torch.float32


class _Interval:
    """What is measured between two lines of the log."""

    def __init__(self) -> None:
        self._began = self._seconds = self._waited = 0.0
        self._steps = 0
        self._terms: dict[str, list[Tensor]] = {}
        self._norms: dict[str, list[float]] = {}

    def waited_for(self, loaded: Iterator[Pair], *, counted: bool) -> Pair:
        """The next batch; the first one of a process waits for its workers to start."""
        self._began = time.perf_counter()
        pair = next(loaded)
        if counted:
            self._waited += time.perf_counter() - self._began
        else:
            self._began = time.perf_counter()
        return pair

    def add(self, terms: Mapping[str, Tensor], norms: Mapping[str, float]) -> None:
        self._seconds += time.perf_counter() - self._began
        self._steps += 1
        for name, term in terms.items():
            self._terms.setdefault(name, []).append(term.detach())
        for name, norm in norms.items():
            self._norms.setdefault(name, []).append(norm)

    def figures(self, job: Job, state: State) -> dict[str, float]:
        """Means over the interval and the processes; `waiting` is the share of the time."""
        means = [torch.stack(terms).double().mean() for terms in self._terms.values()]
        own = torch.tensor([self._waited / self._seconds], dtype=torch.float64)
        every = torch.stack([*means, own[0].to(means[0].device)])
        *losses, waiting = job.processes.mean(every).tolist()
        rates = {
            f"rate.{name}": float(optimiser.param_groups[0]["lr"])
            for name, optimiser in job.method.optimisers.items()
        }
        norms = {f"norm.{name}": float(np.mean(values)) for name, values in self._norms.items()}
        return {
            **dict(zip(self._terms, losses, strict=True)),
            **rates,
            **norms,
            "skipped": state.skipped,
            "steps_per_s": self._steps / self._seconds,
            "waiting": waiting,
        }


def _restored(job: Job, averaged: nn.Module) -> State:
    """The state of the newest checkpoint, with everything else put back; a fresh one without."""
    found = checkpoint.read_latest(job.folder / CHECKPOINTS)
    # Before any process writes, each has read the same one.
    job.processes.wait()
    if found is None:
        return State()
    for name, network in job.method.networks.items():
        checkpoint.load_module(network, found.tensors, f"network.{name}")
    for name, optimiser in job.method.optimisers.items():
        checkpoint.load_optimiser(optimiser, found.tensors, f"optimiser.{name}")
    checkpoint.load_module(averaged, found.tensors, "averaged")
    return State(**found.record)  # type: ignore[arg-type]


def _save(job: Job, averaged: nn.Module, state: State) -> None:
    if not job.processes.is_first:
        return
    tensors = checkpoint.tensors_of_module(averaged, "averaged")
    for name, network in job.method.networks.items():
        tensors |= checkpoint.tensors_of_module(network, f"network.{name}")
    for name, optimiser in job.method.optimisers.items():
        tensors |= checkpoint.tensors_of_optimiser(optimiser, f"optimiser.{name}")
    checkpoint.write(job.folder / CHECKPOINTS, state.step, Checkpoint(tensors, asdict(state)))


def _validate(job: Job, averaged: nn.Module, state: State, journal: Journal) -> None:
    if not job.processes.is_first:
        return
    found = job.validate(averaged)
    state.validation = found.figures
    journal.figures(state.step, found.figures)
    journal.picture(state.step, found.draw)
    if found.score > (-math.inf if state.best is None else state.best):
        state.best = found.score
        job.keep_best(averaged, state.step, found.figures)


def _journal(job: Job, last_step: int) -> Journal:
    if not job.processes.is_first:
        return Silent()
    lines = JsonLines(job.folder, last_step=last_step)
    return TensorBoard(job.folder, lines) if job.config.tensorboard else lines


@torch.no_grad()
def _average(averaged: nn.Module, network: nn.Module, decay: float) -> None:
    for mean, value in zip(averaged.parameters(), network.parameters(), strict=True):
        mean.lerp_(value, 1 - decay)
    for kept, counted in zip(averaged.buffers(), network.buffers(), strict=True):
        kept.copy_(counted)


def _placed(pair: Pair, device: torch.device, config: TrainConfig) -> Pair:
    kind = number_type(config)
    return Pair(*(maps.to(device, kind, non_blocking=True) for maps in pair))


def _seed(*numbers: int) -> int:
    return int(np.random.default_rng(numbers).integers(2**62))


def _has_bfloat16(kind: str) -> bool:
    """Whether the hardware multiplies bfloat16 itself; other is slower with it."""
    if kind == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(supported and supported())
