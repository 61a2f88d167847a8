"""Train: recipe -> slices -> network -> training.engine -> weights with their card.

The run's folder holds recipe.yaml (what is in effect), log.jsonl, checkpoints/, best.safetensors
(highest validation) and, at the end, weights.safetensors; both averaged, each with its card.

Above 300 lines: one verb, with what it may go on from.
"""

# Shapes: H row, W column.

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from torch import nn

from cddnet import __version__, models
from cddnet.config import ConfigError, PatientSplit, TrainConfig, load_config
from cddnet.errors import FormatError, ModelError, UnfitError
from cddnet.formats import read_all_series
from cddnet.intensity.window import hu_to_window
from cddnet.metrics.fidelity import psnr
from cddnet.models import _weights
from cddnet.models._grey_window import GreyWindow
from cddnet.runtime import store
from cddnet.training import engine, methods
from cddnet.training.engine import Job
from cddnet.training.pairs import (
    Learnable,
    MeasuredPair,
    calibrated_low_dose,
    in_memory,
    own_low_dose,
)
from cddnet.training.processes import joined
from cddnet.training.splits import load_slices, prepared_slices
from cddnet.training.store import PreparedSet, is_prepared
from cddnet.volume import CTVolume
from cddnet.workflows._appearing import appearing, remove_partial, resumable, write_whole
from cddnet.workflows._matching import own_noise
from cddnet.workflows._published_recipe import load_recipe
from cddnet.workflows.denoise import denoise_slice
from cddnet.workflows.fitness import why_not_hu

RECIPE, WEIGHTS, BEST = "recipe.yaml", "weights.safetensors", "best.safetensors"
_ABOUT = "run.json"
_VALIDATION_WINDOW_HU = (-160.0, 240.0)
_VALIDATION_DOSE = 0.25

Progress = Callable[[str, int, int], None]
Slices = Mapping[str, Sequence[Learnable]]


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """overrides: KEY=VALUE in place of what the recipe says.  start: weights to fine-tune, a
    shipped name or a file, in place of the recipe's.  progress: (what, done, in all).
    """

    overrides: Sequence[str] = ()
    start: str | None = None
    progress: Progress = lambda what, done, total: None
    tell: Callable[[str], None] = lambda sentence: None


class Validation(NamedTuple):
    """PSNR in dB, mean over patients: input (calibrated quarter or real low dose) and output."""

    low_dose_db: float
    denoised_db: float


class TrainResult(NamedTuple):
    """weights: of the averaged network after the last step.  resumed_from: a step, 0 if new.
    best_db: of best.safetensors.
    """

    weights: Path
    resumed_from: int
    steps: int
    skipped: int
    validation: Validation
    best_db: float


class _Data(NamedTuple):
    """Slices of each patient. source: for the card."""

    learned: Slices
    checked: Slices
    source: Mapping[str, object]


def train_from_config(
    recipe: Path, data: Path, out: Path, options: TrainOptions | None = None
) -> TrainResult | None:
    """Train by a recipe into the folder out, or go on with the unfinished run in it.

    data: a prepared set, whose own split rules, or the folder that the recipe's split names.
    Returns: None in the processes, of those that torchrun started, that write nothing.
    Raises: ConfigError, FormatError (out holds something else, a finished run, or one of another
    recipe or data; data missing), LeakError, ModelError, TrainingError.
    """
    options = options or TrainOptions()
    config, told = load_recipe(recipe, data, options.overrides)
    if options.start is not None:
        config = config.model_copy(update={"start": options.start})
    with joined(config.device) as processes, ExitStack() as held, resumable(out):
        torch.manual_seed(config.seed)
        torch.set_num_threads(config.threads)
        denoiser, config, about = _denoiser(config)
        method = methods.build(config, denoiser.to(processes.device, engine.number_type(config)))
        if processes.is_first:
            for sentence in told:
                options.tell(sentence)
            _require_free_or_unfinished(out, config)
        found = _data(recipe, config, data)
        if processes.is_first:
            out.mkdir(parents=True, exist_ok=True)
            held.enter_context(_held_alone(out))
            _begin(out, config, about | {"data": _digest(found)})
        processes.wait()
        label = getattr(method, "label", config.method)
        writer = _Writer(config, {"method": label, **about, **_described(found)})
        job = Job(
            config=config,
            method=method,
            slices=[item for group in found.learned.values() for item in group],
            folder=out,
            processes=processes,
            validate=partial(
                _validated, patients=_checked_on(found.checked, config), dose=config.validation_dose
            ),
            keep_best=partial(writer.write, out / BEST),
            progress=options.progress if processes.is_first else TrainOptions().progress,
        )
        trained = engine.train(job)
        if not processes.is_first:
            return None
        state = trained.state
        writer.write(out / WEIGHTS, trained.denoiser, state.step, state.validation)
        return TrainResult(
            weights=out / WEIGHTS,
            resumed_from=trained.resumed_from,
            steps=state.step,
            skipped=state.skipped,
            validation=Validation(**state.validation),
            best_db=math.nan if state.best is None else state.best,
        )


def _require_free_or_unfinished(out: Path, config: TrainConfig) -> None:
    """Raises FormatError or ConfigError where a run may neither begin nor go on."""
    if not out.exists():
        return
    names = [path.name for path in out.iterdir()] if out.is_dir() else [out.name]
    # What a run that was killed at its very beginning left.
    if all(name == _ABOUT or name.startswith(".part.") for name in names):
        return
    if not (out / RECIPE).is_file():
        raise FormatError(
            f"{out} exists and is no training run; give a new folder, nothing is overwritten."
        )
    if (out / WEIGHTS).with_suffix(".json").is_file():
        raise FormatError(
            f"{out} holds a finished run; give a new folder, runs are never overwritten."
        )
    before, now = load_config(out / RECIPE, TrainConfig).decisive(), config.decisive()
    differing = [f"{key} {before[key]} (now {now[key]})" for key in now if before[key] != now[key]]
    if differing:
        raise ConfigError(
            f"{out} holds an unfinished run of another recipe: {'; '.join(differing)}. Give that "
            "recipe to go on, or a new folder."
        )


@contextmanager
def _held_alone(out: Path) -> Iterator[None]:
    """Keep other programs from training in this folder; a killed one holds it no longer. Windows
    has no such locks.

    Raises: FormatError if another one does.
    """
    if os.name == "nt":
        yield
        return
    import fcntl

    folder = os.open(out, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise FormatError(
            f"{out}: another program trains in this folder; wait for it, or give a new folder."
        ) from error
    finally:
        os.close(folder)


def _begin(out: Path, config: TrainConfig, about: Mapping[str, object]) -> None:
    """Write what the run is, or check that it was begun with the same data and weights."""
    remove_partial(out)
    path = out / _ABOUT
    text = json.dumps(about, indent=1)
    if (out / RECIPE).is_file() and path.read_text(encoding="utf-8") != text:
        raise FormatError(
            f"{out} holds an unfinished run on other data or from other weights; give those to go "
            "on, or a new folder."
        )
    write_whole(path, text.encode())
    effective = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    write_whole(out / RECIPE, effective.encode())


def _denoiser(config: TrainConfig) -> tuple[nn.Module, TrainConfig, dict[str, object]]:
    """The network to train, the recipe with its options, and what it starts from.

    Raises: ModelError if the weights to start from are of another network.
    """
    if config.start is None:
        fresh = models.build(config.model, **config.options)
        if next(fresh.parameters(), None) is None:
            raise ModelError(
                f"'{config.model}' has no parameters to train; choose another network, or tune it "
                "with benchmarks/tune_classical.py."
            )
        return models.in_network_range(config.model, fresh), config, {}
    network, card = store.load(config.start)
    if card.model != config.model or (
        models.all_options(card.model, **card.options)
        != models.all_options(card.model, **(card.options | config.options))
    ):
        raise ModelError(
            f"{config.start}: holds network '{card.model}' with {card.options}, the recipe says "
            f"'{config.model}' with {config.options}; name the model and options of the weights."
        )
    config = config.model_copy(update={"options": card.options})
    return network, config, {"start": {"name": card.name, "sha256": card.sha256}}


def _digest(data: _Data) -> str:
    """SHA-256 of what is learned from and checked on, by series and slice."""
    sides = [
        [[patient, item.series_uid, item.slice_index] for patient in side for item in side[patient]]
        for side in (data.learned, data.checked)
    ]
    return hashlib.sha256(json.dumps(sides).encode()).hexdigest()


def _data(recipe: Path, config: TrainConfig, data: Path) -> _Data:
    wants_own = config.noise.own_share > 0 or config.validation_dose == "own"
    own = own_noise if wants_own else None
    if not data.is_dir():
        raise FormatError(f"{data}: no such folder; give a prepared set, or that of the split.")
    if is_prepared(data):
        prepared = PreparedSet.open(data)
        learned, checked = (
            prepared_slices(prepared, side, own=own) for side in ("train", "validation")
        )
        if not learned or not checked:
            raise FormatError(
                f"{data}: has {len(learned)} patients for training and {len(checked)} for "
                "validation; prepare it with more of them."
            )
        small = [item for item in prepared.manifest.series if min(item.shape[1:]) < config.crop]
        if small:
            raise FormatError(
                f"{data}: {len(small)} series are smaller than the crop of {config.crop} pixels; "
                "set a smaller crop in the recipe."
            )
        manifest = {"collections": prepared.manifest.collections, "manifest": prepared.sha256}
        return _Data(learned, checked, manifest)
    if config.split is None:
        raise ConfigError(
            f"{recipe}: names no split, and {data} is no prepared set; name one, or run "
            "cddnet prepare first."
        )
    split = load_config(recipe.parent / config.split, PatientSplit)
    _require_folders(data, split, config.split)
    whole_alone = methods.needs_depth(config) or not config.cut_bodies
    train, validation = (
        {
            name: folders
            for name, folders in side.items()
            if not whole_alone or name not in split.cut
        }
        for side in (split.train, split.validation)
    )
    return _Data(
        load_slices(train, data, _series_in_hu, own=own, cut=split.cut),
        load_slices(validation, data, _series_in_hu, own=own, cut=split.cut),
        {"collections": split.collections},
    )


def _require_folders(data: Path, split: PatientSplit, name: str) -> None:
    """Refuse data that are neither prepared nor those of the split."""
    sides = (split.train, split.validation)
    folders = [one for side in sides for named in side.values() for one in named]
    missing = [one for one in folders if not (data / one).is_dir()]
    if missing:
        raise FormatError(
            f"{data}: is no prepared set, and lacks {len(missing)} of the {len(folders)} series "
            f"folders of {name}: {', '.join(missing[:3])}. For your own data run "
            f"'cddnet prepare {data} PREPARED' and give PREPARED as --data; for those of the "
            "split fetch what is missing."
        )


def _series_in_hu(folder: Path) -> tuple[CTVolume, ...]:
    """Every series of a folder.  Raises: UnfitError for values that are no HU."""
    volumes = read_all_series(folder)
    for volume in volumes:
        reason = why_not_hu(volume)
        if reason:
            raise UnfitError(f"{folder}: {reason}; or take it out of the split.")
    return volumes


class _Writer(NamedTuple):
    """Writes weights and their card, in place of those before. training: for the card."""

    config: TrainConfig
    training: Mapping[str, object]

    def write(
        self, path: Path, network: nn.Module, step: int, validation: Mapping[str, float]
    ) -> None:
        """The card appears last: a run is finished when its card is there."""
        measured = {
            "window_hu": _VALIDATION_WINDOW_HU,
            "dose": _VALIDATION_DOSE,
            "dose_of": self.config.validation_dose,
        }
        recipe = self.config.model_dump(mode="json", exclude={"start"})
        with appearing(path.with_suffix(".json")), appearing(path) as part:
            _weights.save(
                _plain(_in_float32(network)),
                part,
                name=f"{self.config.model}@own",
                model=self.config.model,
                options=models.all_options(self.config.model, **self.config.options),
                version=__version__,
                training={
                    "recipe": recipe,
                    **self.training,
                    "step": step,
                    "validation": {**validation, **measured},
                },
            )


def _described(data: _Data) -> dict[str, object]:
    return {
        **data.source,
        "patients": sorted(data.learned),
        "slices": sum(len(group) for group in data.learned.values()),
    }


def _in_float32(network: nn.Module) -> nn.Module:
    """As it is used; a run in float64 averages in float64."""
    exact = any(parameter.dtype == torch.float64 for parameter in network.parameters())
    return deepcopy(network).float() if exact else network


def _plain(network: nn.Module) -> nn.Module:
    """What a network's weights are kept of: a published one, without the common forward around."""
    return network.network if isinstance(network, GreyWindow) else network


def _validated(network: nn.Module, patients: Slices, dose: str = "calibrated") -> engine.Validation:
    usable = _in_float32(network)
    found = validate(usable, patients, dose)
    first = next(iter(patients.values()))[0]
    draw = partial(_picture, usable, first, dose)
    return engine.Validation(found.denoised_db, found._asdict(), draw)


def _picture(network: nn.Module, source: Learnable, dose: str) -> NDArray[np.float32]:
    """Low dose, denoised and full dose side by side (H, 3 W), black at 0 and white at 1."""
    item = in_memory(source)
    low_dose = _low_dose(source, dose)
    panels = (low_dose, _denoised(low_dose, network), item.hu)
    return hu_to_window(np.concatenate(panels, axis=1), _VALIDATION_WINDOW_HU)


def _checked_on(patients: Slices, config: TrainConfig) -> Slices:
    """At most so many slices of each patient as the recipe says, evenly chosen."""
    most = config.validation_slices
    return {name: group[:: math.ceil(len(group) / most)] for name, group in patients.items()}


def validate(network: nn.Module, patients: Slices, dose: str = "calibrated") -> Validation:
    """Whole slices at a quarter of the calibrated or the series' own dose, as `dose` says, or the
    real low dose where there is one.
    """
    network.eval()
    before, after = [], []
    for group in patients.values():
        scores = [_score(network, item, dose) for item in group]
        before.append(np.mean([low for low, _ in scores]))
        after.append(np.mean([high for _, high in scores]))
    return Validation(float(np.mean(before)), float(np.mean(after)))


def _score(network: nn.Module, source: Learnable, dose: str) -> tuple[float, float]:
    full_dose, low_dose = source.hu, _low_dose(source, dose)
    return (
        psnr(full_dose, low_dose, window_hu=_VALIDATION_WINDOW_HU),
        psnr(full_dose, _denoised(low_dose, network), window_hu=_VALIDATION_WINDOW_HU),
    )


def _low_dose(source: Learnable, dose: str) -> NDArray[np.float32]:
    if isinstance(source, MeasuredPair):
        return source.read_low_dose()
    if dose == "own":
        return own_low_dose(in_memory(source), _VALIDATION_DOSE)
    return calibrated_low_dose(in_memory(source), _VALIDATION_DOSE)


def _denoised(low_dose: NDArray[np.float32], network: nn.Module) -> NDArray[np.float32]:
    nowhere = np.zeros(low_dose.shape, np.bool_)
    return denoise_slice(low_dose, nowhere, network, strength=1.0)
