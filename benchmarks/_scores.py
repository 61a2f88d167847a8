"""Scores of denoisers on the test patients, the same slices for all, and what a slice costs them.

Scores are kept beside the run, with what decided them, and measured again where that is another.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from cddnet.config import PatientSplit, load_config
from cddnet.errors import CddnetError
from cddnet.formats import read_all_series
from cddnet.metrics.noise import inserted_noise
from cddnet.runtime import store
from cddnet.training.pairs import FullDoseSlice, calibrated_low_dose, own_low_dose
from cddnet.training.splits import load_slices
from cddnet.volume import CTVolume
from cddnet.workflows._cases import Case
from cddnet.workflows._complexity import SIDE, count_flops, used_parameters
from cddnet.workflows._evaluation import Protocol
from cddnet.workflows._matching import own_noise
from cddnet.workflows.denoise import choose_device, denoise_slice
from cddnet.workflows.evaluate import LOW_DOSE, EvaluateOptions, evaluate_cases

WINDOW_HU = (-160.0, 240.0)
DOSE_FRACTION = 0.25
METRICS = ("PSNR", "SSIM", "RMSE")
_METHOD = "method"
# Of every network, whatever blend with its input the card proposes for use.
_STRENGTH = 1.0
_ROUNDS = 5

Scores = dict[str, dict[str, float]]  # patient -> metric -> mean over the slices


class Measured(NamedTuple):
    """One input or weights on the test patients.  sha256: of the weights, "" for the low dose."""

    scores: Scores
    low_dose: Scores
    sha256: str


class Cost(NamedTuple):
    """Of the inference graph alone, one slice of SIDE x SIDE pixels."""

    macs: float
    parameters: int
    weights_bytes: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Test:
    """slices: patient -> full dose.  low_doses: as slices.  dose_of: whose quarter they are at,
    "calibrated" or the series' "own".  decided: what decides any score.
    """

    slices: Mapping[str, Sequence[FullDoseSlice]]
    low_doses: Mapping[str, Sequence[NDArray[np.float32]]]
    lpips_weights: Path | None
    dose_of: str
    decided: dict[str, object]

    @classmethod
    def read(
        cls,
        split: Path,
        data: Path,
        *,
        per_patient: int,
        lpips_weights: Path | None,
        dose_of: str = "calibrated",
    ) -> Test:
        """per_patient: slices, evenly chosen."""
        side = load_config(split, PatientSplit).test
        is_own = dose_of == "own"
        simulate = own_low_dose if is_own else calibrated_low_dose
        found = load_slices(side, data, read_all_series, own=own_noise if is_own else None)
        slices = {
            patient: group[:: math.ceil(len(group) / per_patient)]
            for patient, group in found.items()
        }
        low_doses = {
            patient: [simulate(item, DOSE_FRACTION) for item in group]
            for patient, group in slices.items()
        }
        chosen = [[i.series_uid, i.slice_index] for group in slices.values() for i in group]
        lpips = "none" if lpips_weights is None else str(lpips_weights)
        return cls(
            slices=slices,
            low_doses=low_doses,
            lpips_weights=lpips_weights,
            dose_of=dose_of,
            decided={
                "slices": chosen,
                "dose": DOSE_FRACTION,
                **({"dose_of": "own"} if is_own else {}),
                "strength": _STRENGTH,
                "lpips": lpips,
            },
        )

    @property
    def kept(self) -> str:
        """Name of the file beside a run that keeps its scores."""
        return "scores.json" if self.dose_of == "calibrated" else f"scores_{self.dose_of}.json"

    @property
    def count(self) -> str:
        return f"{len(self.slices)} patients, {sum(map(len, self.slices.values()))} slices"

    def ratios(self) -> dict[str, float]:
        """Patient -> inserted over reference noise variance, of those with flat regions."""
        found = {}
        for patient, group in self.slices.items():
            lows = self.low_doses[patient]
            pairs = [(item.hu, low) for item, low in zip(group, lows, strict=True)]
            try:
                found[patient] = inserted_noise(pairs).ratio
            except ValueError as error:
                print(f"{patient}: no R: {error}")
        return found

    def measure(self, weights: str | Path, kept: Path) -> Measured:
        """Scores of a store's name or a weights file, kept in the file `kept`."""
        network, card = store.load(weights)
        own = {"model": card.model, "options": card.options, "sha256": card.sha256}
        key = json.loads(json.dumps(self.decided | own))
        if kept.is_file():
            before = json.loads(kept.read_text(encoding="utf-8"))
            if before["key"] == key:
                return Measured(before["scores"], before["low_dose"], card.sha256)
        print(f"{time.strftime('%H:%M:%S')} evaluating {weights}", flush=True)
        scores, low_dose = self._evaluated(network)
        kept.parent.mkdir(parents=True, exist_ok=True)
        part = kept.with_name(f".part.{kept.name}")
        part.write_text(json.dumps({"key": key, "scores": scores, "low_dose": low_dose}))
        part.replace(kept)
        return Measured(scores, low_dose, card.sha256)

    def _evaluated(self, network: nn.Module) -> tuple[Scores, Scores]:
        network.to(choose_device("auto"))
        low, high = WINDOW_HU
        protocol = Protocol(name=f"[{low:g}, {high:g}]", window_hu=WINDOW_HU, metrics=METRICS)
        cases = [
            _case(patient, item.hu, low_dose, partial(_denoised, network))
            for patient, group in self.slices.items()
            for item, low_dose in zip(group, self.low_doses[patient], strict=True)
        ]
        options = EvaluateOptions(lpips_weights=self.lpips_weights, with_physics=False)
        found = evaluate_cases(cases, protocol, mask="body", options=options)
        rows = {row.name: row.per_patient for row in found.rows}
        return rows[_METHOD], rows[LOW_DOSE]

    def shown(self) -> tuple[FullDoseSlice, NDArray[np.float32]]:
        """A slice to draw and its low dose: the middle one of the first patient."""
        patient = next(iter(self.slices))
        index = len(self.slices[patient]) // 2
        return self.slices[patient][index], self.low_doses[patient][index]


def denoised(weights: str | Path, low_dose: NDArray[np.float32]) -> NDArray[np.float32]:
    """A slice (H, W) in HU."""
    network, _ = store.load(weights)
    return _denoised(network.to(choose_device("auto")), low_dose)


def costs(weights: Mapping[str, str | Path], *, threads: int) -> dict[str, Cost]:
    """Of each network; the times are medians of rounds in which every one has its turn."""
    torch.set_num_threads(threads)
    found = {name: store.load(where)[0].cpu().eval() for name, where in weights.items()}
    image = torch.zeros(1, 1, SIDE, SIDE)
    seconds: dict[str, list[float]] = {name: [] for name in found}
    with torch.inference_mode():
        for turn in range(_ROUNDS + 1):
            for name, network in found.items():
                start = time.perf_counter()
                network(image)
                if turn:
                    seconds[name].append(time.perf_counter() - start)
    return {
        name: Cost(
            macs=count_flops(network, image) / 2,
            parameters=used_parameters(network) if any(True for _ in network.parameters()) else 0,
            weights_bytes=_bytes_of(weights[name]),
            seconds=statistics.median(seconds[name]),
        )
        for name, network in found.items()
    }


def _bytes_of(weights: str | Path) -> int:
    try:
        return store.find(weights).stat().st_size
    except (CddnetError, OSError):
        return 0  # a method without weights


def _denoised(network: nn.Module, low_dose: NDArray[np.float32]) -> NDArray[np.float32]:
    nowhere = np.zeros(low_dose.shape, np.bool_)
    return denoise_slice(low_dose, nowhere, network, strength=_STRENGTH)


def _case(
    patient: str,
    full_dose: NDArray[np.float32],
    low_dose: NDArray[np.float32],
    denoise: partial[NDArray[np.float32]],
) -> Case:
    """One slice; it is denoised when it is read."""
    low = CTVolume.from_hu(low_dose, (1.0, 1.0, 1.0))
    high = replace(low, read_slice=lambda index: denoise(low_dose))
    return Case(
        patient=patient,
        series="",
        reference=CTVolume.from_hu(full_dose, (1.0, 1.0, 1.0)),
        rows={LOW_DOSE: low, _METHOD: high},
        slices={LOW_DOSE: (0,), _METHOD: (0,)},
    )
