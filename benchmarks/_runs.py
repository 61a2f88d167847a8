"""Trainings of a benchmark: its rows, the budget common to all, the rate search, the runs.

DIR/<row>/rate-<learning rate> is a run of the search, DIR/<row>/seed-<seed> one of the table. A
finished run is never repeated, an unfinished one goes on.
"""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from _train_one import DIVERGED
from cddnet.config import ConfigError, TrainConfig, load_config
from cddnet.errors import CddnetError
from cddnet.models._cards import read_card
from cddnet.training.journal import LOG
from cddnet.workflows.train import RECIPE, WEIGHTS

# Times the usual rate: a factor of ten, and one more of the same steps as long as the best of them
# lies at an edge, at most three each way.
_RATE_STEP = math.sqrt(10)
_SEARCHED, _MOST_BEYOND = (-1, 0, 1), 3
_SEARCH_SHARE = 10
_VALIDATIONS, _CHECKPOINTS = 20, 50
_SECONDS_TO_END = 30
_PRINTED, _SEARCH = "train.txt", "rate-"


class OutOfTimeError(Exception):
    """The minutes that were given are over; the same command goes on."""


class Row(NamedTuple):
    """A method: trained by a recipe, or weights as they are, a name of the store or a file.

    name: of its folder.  about: what it is, in words.  against: the row it is held against.
    budget: its own, in place of the one common to all.
    """

    name: str
    recipe: Path | None = None
    weights: str | None = None
    overrides: tuple[str, ...] = ()
    about: str = ""
    against: str | None = None
    budget: Budget | None = None


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What a row is trained with.  crops: in all.  crop: pixels per side.  searched_crops: of each
    run of the rate search, a tenth of all if not said.
    """

    crops: int
    crop: int = 64
    slices_per_step: int = 2
    crops_per_slice: int = 8
    searched_crops: int | None = None

    @property
    def steps(self) -> int:
        """Cut to whole intervals between validations."""
        total = max(1, self.crops // self.crops_per_step)
        return total // self.interval_of(total) * self.interval_of(total)

    @property
    def searched_steps(self) -> int:
        """Of each run of the rate search."""
        if self.searched_crops is not None:
            return max(1, self.searched_crops // self.crops_per_step)
        return max(1, self.steps // _SEARCH_SHARE)

    @property
    def crops_per_step(self) -> int:
        return self.slices_per_step * self.crops_per_slice

    @staticmethod
    def interval_of(steps: int) -> int:
        """Steps between validations."""
        return max(1, steps // _VALIDATIONS)

    def overrides(self, *, seed: int = 0) -> tuple[str, ...]:
        """Of a recipe, for a run of the table."""
        return (*self._common(self.steps, self.interval_of(self.steps)), f"seed={seed}")

    def search_overrides(self) -> tuple[str, ...]:
        """Of a recipe, for a run of the search; validated at its end alone."""
        return (*self._common(self.searched_steps, self.searched_steps), "seed=0")

    def _common(self, steps: int, validate_every: int) -> tuple[str, ...]:
        often = max(1, steps // _CHECKPOINTS)
        return (
            f"steps={steps}",
            f"crop={self.crop}",
            f"slices_per_step={self.slices_per_step}",
            f"crops_per_slice={self.crops_per_slice}",
            f"validate_every={validate_every}",
            f"checkpoint_every={often}",
            f"log_every={often}",
        )


@dataclass(frozen=True, kw_only=True)
class Trainer:
    """Runs trainings one after the other.  extra: overrides of every run.
    deadline: of time.monotonic().
    """

    runs: Path
    data: Path
    budget: Budget
    extra: tuple[str, ...] = ()
    deadline: float = math.inf

    def folder(self, row: Row, seed: int) -> Path:
        return self.runs / row.name / f"seed-{seed}"

    def complete(self, row: Row, seeds: Sequence[int]) -> None:
        """Search the row's rate, then train it with each seed, as far as that is not done.

        Raises: OutOfTimeError, CddnetError if a run failed.
        """
        if row.recipe is None:
            return
        rate, budget = self.searched_rate(row), row.budget or self.budget
        for seed in seeds:
            overrides = (*budget.overrides(seed=seed), _rate_override(rate))
            if not self._trained(row, self.folder(row, seed), overrides):
                raise CddnetError(f"{self.folder(row, seed)}: its gradients stayed not finite.")

    def searched_rate(self, row: Row) -> float:
        """The best rate by PSNR of the validation patients, of steps around the recipe's own."""
        scores = {power: self._searched(row, power) for power in _SEARCHED}
        while True:
            best = max(scores, key=lambda power: scores[power])
            if scores[best] == -math.inf:
                text = f"{row.name}: gradients were not finite at any rate of the search."
                raise CddnetError(text)
            wider = {min(scores): best - 1, max(scores): best + 1}.get(best)
            if wider is None or abs(wider) > 1 + _MOST_BEYOND:
                return self.rate(row, best)
            scores[wider] = self._searched(row, wider)

    def _searched(self, row: Row, power: int) -> float:
        """Validation in dB of the run of the search at a rate, -inf if it diverged."""
        rate = self.rate(row, power)
        folder = searched(self.runs / row.name, rate)
        budget = row.budget or self.budget
        overrides = (*budget.search_overrides(), _rate_override(rate))
        is_finite = self._trained(row, folder, overrides)
        return validated(folder) if is_finite else -math.inf

    def rate(self, row: Row, power: int) -> float:
        """So many steps of the search above the recipe's own rate."""
        usual = load_config(_recipe(row), TrainConfig, row.overrides).learning_rate
        # Rounded as the folder names it.
        return float(f"{usual * _RATE_STEP**power:.3e}")

    def rates(self, row: Row) -> tuple[float, ...]:
        """Of the runs of the search, finished or diverged."""
        folders = (self.runs / row.name).glob(f"{_SEARCH}*")
        return tuple(
            sorted(float(one.name.removeprefix(_SEARCH)) for one in folders if one.is_dir())
        )

    def _trained(self, row: Row, folder: Path, overrides: tuple[str, ...]) -> bool:
        """Train to the end what is not.  Returns: whether gradients stayed finite."""
        overrides = (*row.overrides, *overrides, *self.extra)
        if is_finished(folder):
            _require_same(folder, load_config(_recipe(row), TrainConfig, overrides))
            return True
        remaining = self.deadline - time.monotonic()
        if remaining <= 0:
            raise OutOfTimeError
        print(f"{time.strftime('%H:%M:%S')} training {folder}", flush=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        code = _in_a_process(
            (str(_recipe(row)), str(self.data), str(folder), *overrides),
            folder.with_name(f"{folder.name}.{_PRINTED}"),
            remaining,
        )
        if code not in (0, DIVERGED):
            printed = folder.with_name(f"{folder.name}.{_PRINTED}").read_text(encoding="utf-8")
            last = printed.strip().splitlines()[-3:]
            raise CddnetError(f"{folder}: training ended with {code}: {' '.join(last)}")
        return code == 0


def searched(folder: Path, rate: float) -> Path:
    """The run of the search of a row's folder at a rate."""
    return folder / f"{_SEARCH}{rate:.3e}"


def is_finished(folder: Path) -> bool:
    return (folder / WEIGHTS).with_suffix(".json").is_file()


def validated(folder: Path) -> float:
    """PSNR in dB of the validation patients after the last step of a finished run."""
    found = read_card(folder / WEIGHTS).training["validation"]
    value = float(found["denoised_db"]) if isinstance(found, dict) else math.nan
    return -math.inf if math.isnan(value) else value


def rate_of(folder: Path) -> float:
    return load_config(folder / RECIPE, TrainConfig).learning_rate


def curve(folder: Path) -> list[tuple[int, float]]:
    """(step, PSNR in dB of the validation patients) of a run."""
    lines = [json.loads(line) for line in (folder / LOG).read_text(encoding="utf-8").splitlines()]
    return [(line["step"], line["denoised_db"]) for line in lines if "denoised_db" in line]


def low_dose_db(folder: Path) -> float:
    """PSNR in dB of the input of the validation patients, as a finished run measured it."""
    found = read_card(folder / WEIGHTS).training["validation"]
    return float(found["low_dose_db"]) if isinstance(found, dict) else math.nan


def label_of(row: Row, training: dict[str, object]) -> str:
    """What ran, where the method says more than its file name: "WGAN + own features"."""
    method = str(training.get("method", ""))
    return row.name if re.fullmatch(r"[a-z0-9_]*", method) else method


def _recipe(row: Row) -> Path:
    if row.recipe is None:
        raise ConfigError(f"{row.name} is not trained: it is {row.weights}.")
    return row.recipe


def _rate_override(rate: float) -> str:
    # With a point: YAML takes 1e-05 for text.
    return f"learning_rate={rate:.3e}"


def _require_same(folder: Path, wanted: TrainConfig) -> None:
    """Raises ConfigError where a finished run was of another recipe or budget."""
    before, now = load_config(folder / RECIPE, TrainConfig).decisive(), wanted.decisive()
    if wanted.start is not None:  # the options are those of its weights
        now["options"] = before["options"]
    differing = [f"{key} {before[key]} (now {now[key]})" for key in now if before[key] != now[key]]
    if differing:
        raise ConfigError(
            f"{folder} is a run of another recipe or budget: {'; '.join(differing)}. Give that "
            "one, another --runs folder, or remove the run."
        )


def _in_a_process(arguments: Sequence[str], printed: Path, seconds: float) -> int:
    """Exit code of one run.  Raises OutOfTimeError, the run ended, after so many seconds."""
    command = [sys.executable, str(Path(__file__).with_name("_train_one.py")), *arguments]
    # Else the allocator hands large buffers back after each step, and the kernel clears new ones.
    kept = {
        "MALLOC_MMAP_THRESHOLD_": "4294967296",
        "MALLOC_TRIM_THRESHOLD_": "17179869184",
        "MALLOC_TOP_PAD_": "268435456",
        "OPENBLAS_NUM_THREADS": "1",
    }
    with printed.open("w", encoding="utf-8") as out:
        child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=subprocess.STDOUT,
            env=os.environ | kept,
        )
        try:
            return child.wait(None if math.isinf(seconds) else seconds)
        except subprocess.TimeoutExpired:
            raise OutOfTimeError from None
        finally:
            _end(child)


def _end(child: subprocess.Popen[bytes]) -> None:
    """At once: a run goes on from its last checkpoint as if nothing had happened."""
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(_SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
    if child.stdin is not None:
        child.stdin.close()
