"""What a denoiser does to texture, HU, lesions, clean images and plain water.

    python benchmarks/trust.py --data FOLDER [--model NAME ...] [--strength S ...]
        [--side test] [--slices 3] [--markdown FILE] [--json FILE]

FOLDER holds the open CT collection named in configs/split_open_ct.yaml. Low dose is the calibrated
quarter dose unless a line says otherwise.
"""

from __future__ import annotations

import argparse
import json
import math
from functools import partial
from pathlib import Path

import numpy as np
import torch

import _trust_noise
import _trust_residual
import _trust_tissue
from _trust import FULL_DOSE, LOW_DOSE, Image, Line, Method, Methods
from cddnet.config import PatientSplit, load_config
from cddnet.formats import read_all_series
from cddnet.runtime import store
from cddnet.training.splits import load_slices
from cddnet.workflows.denoise import denoise_slice

ROOT = Path(__file__).resolve().parent.parent
SPLIT = ROOT / "configs/split_open_ct.yaml"
_SLABS = "lidc_idri/LIDC-IDRI-0314"


def methods_of(model: str, strengths: list[float]) -> dict[str, Method]:
    """A network at strengths, the card's own if none is given; it runs once for all of them."""
    network, card = store.load(model)
    kept: dict[str, Image] = {}

    def at(strength: float, hu: Image) -> Image:
        if kept.get("of") is not hu:
            full = denoise_slice(hu, np.zeros(hu.shape, bool), network, strength=1.0)
            kept.update(of=hu, full=full)
        return hu + np.float32(strength) * (kept["full"] - hu)

    return {f"{card.name} {s:.0%}": partial(at, s) for s in strengths or [card.strength]}


def measured(chosen: argparse.Namespace, methods: Methods) -> list[Line]:
    """Every line of the page, printed as it comes."""
    side = getattr(load_config(SPLIT, PatientSplit), chosen.side)
    patients = {
        patient: group[:: math.ceil(len(group) / chosen.slices)]
        for patient, group in load_slices(side, chosen.data, read_all_series).items()
    }
    slabs = list(read_all_series(chosen.data / _SLABS))
    parts = [
        lambda: _trust_noise.texture(patients, methods),
        lambda: _trust_noise.texture_in_water(methods),
        lambda: _trust_tissue.bias(patients, methods),
        lambda: _trust_tissue.contrast(patients, methods),
        lambda: _trust_tissue.detectability(patients, methods),
        lambda: _trust_tissue.doses(patients, methods),
        lambda: _trust_noise.full_dose_phantoms(methods),
        lambda: _trust_noise.full_dose_slabs(slabs, methods),
        lambda: _trust_noise.false_structures(methods),
        lambda: _trust_residual.structure(patients, methods),
        lambda: _trust_residual.consistency(patients, methods),
        lambda: _trust_residual.between_slices(patients, methods),
    ]
    lines = []
    for part in parts:
        for line in part():
            lines.append(line)
            print("  ".join(row(line, [LOW_DOSE, *methods, FULL_DOSE])), flush=True)
    return lines


def row(line: Line, names: list[str]) -> list[str]:
    """Cells of a table: measure, figures, what it was measured on."""
    unit = f" ({line.unit})" if line.unit else ""
    cells = [f"{line.values[name]:.3f}" if name in line.values else "" for name in names]
    return [f"{line.measure}{unit}", *cells, line.over]


def markdown(lines: list[Line], names: list[str]) -> str:
    """The table of the page."""
    head = ["", *names, "measured on"]
    rows = [head, ["---"] * len(head), *(row(line, names) for line in lines)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in rows) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--side", choices=["train", "validation", "test"], default="test")
    parser.add_argument("--model", action="append", help="a shipped name or a weights file")
    parser.add_argument("--strength", type=float, action="append", default=[])
    parser.add_argument("--slices", type=int, default=3, help="per patient, evenly chosen")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    methods: dict[str, Method] = {}
    for model in chosen.model or ["default"]:
        methods |= methods_of(model, chosen.strength)
    names = [LOW_DOSE, *methods, FULL_DOSE]
    print(f"{chosen.side} patients; " + "  ".join(names))
    lines = measured(chosen, methods)
    if chosen.markdown:
        chosen.markdown.write_text(markdown(lines, names), encoding="utf-8")
    if chosen.json:
        chosen.json.write_text(json.dumps([line._asdict() for line in lines], indent=1))


if __name__ == "__main__":
    main()
