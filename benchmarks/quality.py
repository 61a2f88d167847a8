"""Quality on patients of one side of the split, at the calibrated quarter dose.

    python benchmarks/quality.py --data FOLDER [--side test] [--model default] [--json FILE]

FOLDER holds the open CT collection named in configs/split_open_ct.yaml. Full dose is the reference
and is itself noisy: R is inserted over reference noise variance, and an output without any noise
gains 10 log10 R decibels.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import ndimage
from torch import nn

from cddnet.config import PatientSplit, load_config
from cddnet.formats import read_all_series
from cddnet.metrics._body import body_mask
from cddnet.metrics.fidelity import psnr, rmse_hu, ssim
from cddnet.metrics.noise import inserted_noise
from cddnet.runtime import store
from cddnet.training.pairs import FullDoseSlice, calibrated_low_dose
from cddnet.training.splits import load_slices
from cddnet.workflows.denoise import denoise_slice

WINDOW_HU = (-160.0, 240.0)
DOSE_FRACTION = 0.25
TISSUES_HU = {"fat": (-130.0, -70.0), "soft": (30.0, 75.0), "bone": (300.0, 1500.0)}


class Row(NamedTuple):
    patient: str
    slices: int
    ratio: float
    low_dose: tuple[float, float, float]
    denoised: tuple[float, float, float]
    bias_hu: dict[str, float]

    @property
    def gain_db(self) -> float:
        return self.denoised[0] - self.low_dose[0]

    @property
    def allowed_db(self) -> float:
        return 10 * math.log10(self.ratio)


def measure(patient: str, slices: list[FullDoseSlice], network: nn.Module, strength: float) -> Row:
    pairs, low_scores, high_scores, bias = [], [], [], {name: [] for name in TISSUES_HU}
    for item in slices:
        low = calibrated_low_dose(item, DOSE_FRACTION)
        padding = np.zeros(low.shape, bool)
        high = denoise_slice(low, padding, network, strength=strength)
        mask = body_mask(item.hu)
        pairs.append((item.hu, low))
        for scores, image in ((low_scores, low), (high_scores, high)):
            scores.append(
                [m(item.hu, image, window_hu=WINDOW_HU, mask=mask) for m in (psnr, ssim, rmse_hu)]
            )
        # Tissue by the smoothed full dose, so that noise does not choose the pixels.
        smooth = ndimage.gaussian_filter(item.hu, 2)
        for name, (lowest, highest) in TISSUES_HU.items():
            inside = (smooth > lowest) & (smooth < highest) & mask
            tissue = ndimage.binary_erosion(inside, np.ones((5, 5)))
            bias[name].append((float((high - low)[tissue].sum()), int(tissue.sum())))
    return Row(
        patient,
        len(slices),
        inserted_noise(pairs).ratio,
        tuple(np.mean(low_scores, axis=0)),
        tuple(np.mean(high_scores, axis=0)),
        {n: sum(s for s, _ in v) / max(1, sum(c for _, c in v)) for n, v in bias.items()},
    )


def share(row: Row) -> str:
    """Gain over what R allows; below 1 dB the reference is as noisy as what was inserted."""
    return f"{row.gain_db / row.allowed_db:.0%}" if row.allowed_db >= 1 else "-"


def interval(values: list[float]) -> tuple[float, float]:
    """95 % bootstrap interval of the mean over patients."""
    rng = np.random.default_rng(0)
    means = rng.choice(values, (10_000, len(values))).mean(axis=1)
    return tuple(np.percentile(means, [2.5, 97.5]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--split", type=Path, default=Path("configs/split_open_ct.yaml"))
    parser.add_argument("--side", choices=["train", "validation", "test"], default="test")
    parser.add_argument("--model", default="default")
    parser.add_argument("--strength", type=float)
    parser.add_argument("--slices", type=int, default=12, help="per patient, evenly chosen")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    network, card = store.load(chosen.model)
    strength = card.strength if chosen.strength is None else chosen.strength
    patients = load_slices(
        getattr(load_config(chosen.split, PatientSplit), chosen.side), chosen.data, read_all_series
    )
    low, high = WINDOW_HU
    print(
        f"{card.name}, strength {strength:.0%}, {chosen.side} patients, {DOSE_FRACTION:.0%} of the "
        f"calibrated dose; window [{low:.0f}, {high:.0f}] HU, range {high - low:.0f} HU, body mask"
    )
    header = f"{'patient':22}{'n':>3}{'R':>7}{'low dose dB':>12}{'SSIM':>7}{'RMSE':>7}"
    print(
        header
        + f"{'denoised dB':>13}{'SSIM':>7}{'RMSE':>7}{'gain':>7}{'10lgR':>7}{'share':>7}  bias HU"
    )
    rows = []
    for patient, slices in patients.items():
        step = math.ceil(len(slices) / chosen.slices)
        try:
            row = measure(patient, slices[::step], network, strength)
        except ValueError as error:
            print(f"{patient:22} left out: {error}")
            continue
        rows.append(row)
        bias = " ".join(f"{name} {value:+.2f}" for name, value in row.bias_hu.items())
        print(
            f"{row.patient:22}{row.slices:3}{row.ratio:7.1f}"
            f"{row.low_dose[0]:12.2f}{row.low_dose[1]:7.3f}{row.low_dose[2]:7.2f}"
            f"{row.denoised[0]:13.2f}{row.denoised[1]:7.3f}{row.denoised[2]:7.2f}"
            f"{row.gain_db:7.2f}{row.allowed_db:7.2f}{share(row):>7}  {bias}",
            flush=True,
        )
    means = [
        np.mean([getattr(row, side) for row in rows], axis=0) for side in ("low_dose", "denoised")
    ]
    gains, allowed = [row.gain_db for row in rows], [row.allowed_db for row in rows]
    for name, values in zip(("low dose", "denoised"), means, strict=True):
        print(
            f"mean {name:9} PSNR {values[0]:.2f} dB  SSIM {values[1]:.4f}  RMSE {values[2]:.2f} HU"
        )
    print(
        f"gain {np.mean(gains):.2f} dB [{interval(gains)[0]:.2f}, {interval(gains)[1]:.2f}] over "
        f"{len(rows)} patients, allowed {np.mean(allowed):.2f} dB: "
        f"{np.sum(gains) / np.sum(allowed):.0%}; least gain {min(gains):.2f} dB"
    )
    if chosen.json:
        record = {"card": card.name, "sha256": card.sha256, "window_hu": WINDOW_HU, "mask": "body"}
        chosen.json.write_text(json.dumps(record | {"rows": [r._asdict() for r in rows]}, indent=1))


if __name__ == "__main__":
    main()
