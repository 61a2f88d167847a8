"""Train a network from full-dose series, with low dose simulated on the way."""

# Shapes: B batch, H row, W column; images (B, 1, H, W) in network range.

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from cddnet import __version__, models
from cddnet.config import ConfigError, LossWeights, PatientSplit, TrainConfig, load_config
from cddnet.errors import FormatError
from cddnet.formats import read_all_series
from cddnet.losses.pixel import absolute, charbonnier, local_mean
from cddnet.metrics.fidelity import psnr
from cddnet.models import _weights
from cddnet.models._cards import Card
from cddnet.models._output import Output
from cddnet.training.pairs import (
    Learnable,
    MeasuredPair,
    NoisyPairs,
    Pair,
    calibrated_low_dose,
    in_memory,
)
from cddnet.training.splits import load_slices, prepared_slices
from cddnet.training.store import PreparedSet, is_prepared
from cddnet.workflows.denoise import denoise_slice

# A starved slice may give a gradient many times the usual one, enough to ruin the weights.
_CLIP_TO_USUAL = 1.5
# 50 and 30 HU: an error after 20 HU of mean absolute noise counts once.
_NOISE_UNIT, _NOISE_FLOOR = 50 / 1024, 30 / 1024
_VALIDATION_WINDOW_HU = (-160.0, 240.0)
_VALIDATION_DOSE = 0.25
_VALIDATION_SLICES = 4


class Validation(NamedTuple):
    """PSNR in dB, mean over patients: input (calibrated quarter or real low dose) and output."""

    low_dose_db: float
    denoised_db: float


class _Data(NamedTuple):
    """Slices of each patient. source: for the card."""

    learned: Mapping[str, Sequence[Learnable]]
    checked: Mapping[str, Sequence[Learnable]]
    source: Mapping[str, object]


def train_from_config(recipe: Path, data: Path, out: Path) -> None:
    """Train by a recipe; writes weights, card and log into the new folder out.

    data: a prepared set, whose own split rules, or the folder that the recipe's split names.
    Raises: ConfigError, FormatError (out exists, data missing), LeakError, ModelError.
    """
    config = load_config(recipe, TrainConfig)
    if out.exists():
        raise FormatError(f"{out} exists; give a new folder, runs are never overwritten.")
    learned, checked, source = _data(recipe, config, data)
    out.mkdir(parents=True)
    torch.manual_seed(config.seed)
    torch.set_num_threads(config.threads)
    network = models.build(config.model, **config.options)
    averaged = _optimise(
        network, [s for group in learned.values() for s in group], config, checked, out
    )
    final = validate(averaged, checked)
    training = {
        "recipe": config.model_dump(mode="json"),
        **source,
        "patients": sorted(learned),
        "slices": sum(len(group) for group in learned.values()),
        "validation": {
            **final._asdict(),
            "window_hu": _VALIDATION_WINDOW_HU,
            "dose": _VALIDATION_DOSE,
        },
    }
    card = _save(averaged, out / "weights.safetensors", config, training)
    _log(out, step=config.steps, sha256=card.sha256, **final._asdict())


def _data(recipe: Path, config: TrainConfig, data: Path) -> _Data:
    if is_prepared(data):
        prepared = PreparedSet.open(data)
        learned, checked = (prepared_slices(prepared, side) for side in ("train", "validation"))
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
    return _Data(
        load_slices(split.train, data, read_all_series),
        load_slices(split.validation, data, read_all_series),
        {"collections": split.collections},
    )


def _optimise(
    network: nn.Module,
    slices: Sequence[Learnable],
    config: TrainConfig,
    checked: Mapping[str, Sequence[Learnable]],
    out: Path,
) -> nn.Module:
    optimiser = torch.optim.AdamW(
        network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _rate(step / config.steps))
    averaged = deepcopy(network)
    fast = torch.bfloat16 if _has_bfloat16() else torch.float32
    started, skipped, usual = time.monotonic(), 0, 1.0
    for step, pair in zip(range(1, config.steps + 1), _batches(slices, config), strict=False):
        network.train()
        with torch.autocast("cpu", dtype=fast, enabled=fast is torch.bfloat16):
            output = network(pair.low_dose)
        terms = _losses(output, pair, config.loss)
        optimiser.zero_grad(set_to_none=True)
        terms["total"].backward()  # type: ignore[no-untyped-call]
        limit = _CLIP_TO_USUAL * usual
        norm = float(nn.utils.clip_grad_norm_(network.parameters(), limit))
        if math.isfinite(norm):
            usual += 0.02 * (min(norm, limit) - usual)
            optimiser.step()
            _average(averaged, network, min(config.ema, step / (step + 10)))
        else:
            skipped += 1
        schedule.step()
        if step % 100 == 0:
            losses = {name: round(value.item(), 6) for name, value in terms.items()}
            seconds = round(time.monotonic() - started, 1)
            _log(out, step=step, seconds=seconds, skipped=skipped, norm=usual, **losses)
        if step % config.validate_every == 0:
            _log(out, step=step, **validate(averaged, checked)._asdict())
            _save(averaged, out / "latest.safetensors", config, {"steps": step})
    return averaged


def _save(network: nn.Module, path: Path, config: TrainConfig, training: dict[str, object]) -> Card:
    return _weights.save(
        network,
        path,
        name=f"{config.model}@1",
        model=config.model,
        options=models.all_options(config.model, **config.options),
        version=__version__,
        training=training,
    )


@torch.no_grad()
def _average(averaged: nn.Module, network: nn.Module, decay: float) -> None:
    for mean, value in zip(averaged.parameters(), network.parameters(), strict=True):
        mean.lerp_(value, 1 - decay)


def _losses(output: Output, pair: Pair, weights: LossWeights) -> dict[str, Tensor]:
    # Errors count relative to the inserted noise, so that quiet slices matter beside starved ones.
    noise = (pair.low_dose - pair.full_dose).abs().mean(dim=(1, 2, 3), keepdim=True)
    scale = _NOISE_UNIT / (noise + _NOISE_FLOOR)
    prediction = pair.full_dose + scale * (output.image.float() - pair.full_dose)
    image = charbonnier(prediction, pair.full_dose)
    mean = local_mean(prediction, pair.full_dose)
    total = weights.image * image + weights.local_mean * mean
    if output.depth is None:
        return {"image": image, "local_mean": mean, "total": total}
    depth = absolute(output.depth.float(), pair.depth)
    return {
        "image": image,
        "local_mean": mean,
        "depth": depth,
        "total": total + weights.depth * depth,
    }


def _batches(slices: Sequence[Learnable], config: TrainConfig) -> Iterator[Pair]:
    loader = DataLoader(
        NoisyPairs(slices, config, first_draw=0),
        batch_size=config.slices_per_step * config.crops_per_slice,
        num_workers=1,
        multiprocessing_context="spawn",
        prefetch_factor=8,
    )
    yield from loader


def validate(network: nn.Module, patients: Mapping[str, Sequence[Learnable]]) -> Validation:
    """Whole slices at the calibrated quarter dose, or the real low dose where there is one; at most
    four evenly chosen ones per patient.
    """
    network.eval()
    before, after = [], []
    for group in patients.values():
        chosen = group[:: math.ceil(len(group) / _VALIDATION_SLICES)]
        scores = [_score(network, item) for item in chosen]
        before.append(np.mean([low for low, _ in scores]))
        after.append(np.mean([high for _, high in scores]))
    return Validation(float(np.mean(before)), float(np.mean(after)))


def _score(network: nn.Module, source: Learnable) -> tuple[float, float]:
    item = in_memory(source)
    if isinstance(source, MeasuredPair):
        low_dose = source.read_low_dose()
    else:
        low_dose = calibrated_low_dose(item, _VALIDATION_DOSE)
    nowhere = np.zeros(low_dose.shape, np.bool_)
    denoised = denoise_slice(low_dose, nowhere, network, strength=1.0)
    return (
        psnr(item.hu, low_dose, window_hu=_VALIDATION_WINDOW_HU),
        psnr(item.hu, denoised, window_hu=_VALIDATION_WINDOW_HU),
    )


def _rate(progress: float) -> float:
    warm = min(1.0, progress / 0.01)
    return warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0))))


def _has_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 itself; others are slower with it."""
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(supported and supported())


def _log(out: Path, **values: object) -> None:
    with (out / "log.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(values) + "\n")
