"""Parameters of the filters that need no training, by their PSNR on the validation patients.

    python benchmarks/tune_classical.py --data FOLDER [--model NAME ...] [--out FOLDER]

FOLDER holds the open CT collection named in configs/split_open_ct.yaml. Every point of each grid is
scored on the calibrated low dose; the best belongs into the defaults of that model's Config. With
--out it is written as weights without tensors, a card beside them.
"""

from __future__ import annotations

import argparse
import itertools
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import nn

from cddnet import __version__, models
from cddnet.config import PatientSplit, load_config
from cddnet.formats import read_all_series
from cddnet.metrics._body import body_mask
from cddnet.metrics.fidelity import psnr
from cddnet.models import _weights
from cddnet.runtime import store
from cddnet.training.pairs import calibrated_low_dose
from cddnet.training.splits import load_slices
from cddnet.workflows.denoise import denoise_slice

WINDOW_HU = (-160.0, 240.0)
DOSE_FRACTION = 0.25
GRIDS = {
    "non_local_means": {
        "patch_pixels": (3, 5, 7),
        "search_pixels": (3, 5, 7),
        "cutoff_per_noise": (0.9, 1.1, 1.3),
    },
    "total_variation": {"weight_per_noise": (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2)},
    "bilateral": {
        "near_pixels": (1.5, 2.0, 2.5, 3.0),
        "near_per_noise": (1.5, 2.0, 2.5),
    },
}


class Pair(NamedTuple):
    """full_dose, low_dose: (H, W) HU.  mask: (H, W) body."""

    full_dose: np.ndarray
    low_dose: np.ndarray
    mask: np.ndarray

    def psnr_db(self, hu: np.ndarray) -> float:
        return psnr(self.full_dose, hu, window_hu=WINDOW_HU, mask=self.mask)

    def denoised(self, network: nn.Module, strength: float) -> np.ndarray:
        padding = np.zeros(self.mask.shape, bool)
        return denoise_slice(self.low_dose, padding, network, strength=strength)


Patients = dict[str, list[Pair]]


def validation_pairs(split: PatientSplit, data: Path, most: int) -> Patients:
    """Evenly chosen slices, at most that many per patient."""
    return {
        patient: [
            Pair(item.hu, calibrated_low_dose(item, DOSE_FRACTION), body_mask(item.hu))
            for item in slices[:: math.ceil(len(slices) / most)]
        ]
        for patient, slices in load_slices(split.validation, data, read_all_series).items()
    }


def scores_db(patients: Patients, network: nn.Module, strength: float) -> np.ndarray:
    """PSNR of each patient, mean over the slices."""
    scores = [
        [pair.psnr_db(pair.denoised(network, strength)) for pair in pairs]
        for pairs in patients.values()
    ]
    return np.array([np.mean(values) for values in scores])


def tuned(patients: Patients, model: str) -> tuple[dict[str, float], np.ndarray]:
    """The best options and their PSNR of each patient; prints the grid."""
    grid = GRIDS[model]
    tried = []
    print(f"{model}: {', '.join(grid)}, mean PSNR dB")
    for values in itertools.product(*grid.values()):
        options = dict(zip(grid, values, strict=True))
        scores = scores_db(patients, models.build(model, **options), 1.0)
        tried.append((options, scores))
        print(
            "  " + "".join(f"{value:<7g}" for value in values) + f"{scores.mean():.3f}", flush=True
        )
    best, scores = max(tried, key=lambda row: row[1].mean())
    at_end = [n for n, v in best.items() if v in (min(grid[n]), max(grid[n]))]
    print(f"  best {best}" + (f", at an end of the grid: {', '.join(at_end)}" if at_end else ""))
    return best, scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--split", type=Path, default=Path("configs/split_open_ct.yaml"))
    parser.add_argument("--slices", type=int, default=3, help="per patient, at most")
    parser.add_argument("--model", choices=GRIDS, action="append", help="default: all of them")
    parser.add_argument("--beside", default="default", help="weights shown in the table")
    parser.add_argument("--out", type=Path, help="existing folder for the weights files")
    chosen = parser.parse_args()
    split = load_config(chosen.split, PatientSplit)
    patients = validation_pairs(split, chosen.data, chosen.slices)
    low, high = WINDOW_HU
    about = (
        f"validation patients, {DOSE_FRACTION:.0%} of the calibrated dose, PSNR in the window "
        f"[{low:.0f}, {high:.0f}] HU, range {high - low:.0f} HU, body mask"
    )
    print(about)
    table = {
        "low dose": np.array(
            [
                np.mean([pair.psnr_db(pair.low_dose) for pair in pairs])
                for pairs in patients.values()
            ]
        )
    }
    for model in chosen.model or GRIDS:
        options, table[model] = tuned(patients, model)
        if chosen.out:
            _weights.save(
                models.build(model, **options),
                chosen.out / f"{model}@1.safetensors",
                name=f"{model}@1",
                model=model,
                options=options,
                version=__version__,
                training={
                    "note": "nothing is learned; the options are the best of a grid",
                    "command": "python benchmarks/tune_classical.py",
                    "grid": GRIDS[model],
                    "collections": split.collections,
                    "patients": sorted(patients),
                    "slices": sum(map(len, patients.values())),
                    "validation": {
                        "low_dose_db": table["low dose"].mean(),
                        "denoised_db": table[model].mean(),
                        "window_hu": WINDOW_HU,
                        "dose": DOSE_FRACTION,
                    },
                },
            )
    network, card = store.load(chosen.beside)
    for strength in sorted({card.strength, 1.0}):
        table[f"{card.name} {strength:.0%}"] = scores_db(patients, network, strength)
    print(f"\n{'PSNR dB':22}{'n':>3}" + "".join(f"{name:>18}" for name in table))
    for number, (patient, pairs) in enumerate(patients.items()):
        row = "".join(f"{scores[number]:18.2f}" for scores in table.values())
        print(f"{patient:22}{len(pairs):3}{row}")
    row = "".join(f"{scores.mean():18.2f}" for scores in table.values())
    print(f"{f'mean of {len(patients)} patients':22}{sum(map(len, patients.values())):3}{row}")


if __name__ == "__main__":
    main()
