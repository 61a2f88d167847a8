"""Does the uncertainty map cover?  Fits it on validation patients, measures it on test patients.

    python benchmarks/uncertainty.py --data FOLDER --side validation --fit FILE
    python benchmarks/uncertainty.py --data FOLDER [--side test] [--model fast@1 ...]
    python benchmarks/uncertainty.py --side phantoms

FOLDER holds the open CT collection named in configs/split_open_ct.yaml; low dose is the calibrated
quarter dose unless --dose says otherwise. The error is (full dose - denoised), and the full dose is
itself noisy. On phantoms the truth is known too.
"""

# Shapes: B slice, H row, W column, F feature.

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

from cddnet.config import PatientSplit, load_config
from cddnet.formats import read_all_series
from cddnet.intensity.normalise import to_hu, to_network
from cddnet.metrics._body import body_mask
from cddnet.metrics.coverage import (
    INTERVALS,
    TISSUES_HU,
    Blocks,
    blocks,
    coverage,
    rank_correlation,
    tissues,
)
from cddnet.models._cards import Card, read_card
from cddnet.physics import phantom
from cddnet.physics.beam import SliceGeometry
from cddnet.physics.dose import add_noise, rng_for
from cddnet.runtime import store
from cddnet.runtime.engines import Engine, open_engine
from cddnet.training.pairs import calibrated_low_dose
from cddnet.training.splits import load_slices
from cddnet.volume import CTVolume
from cddnet.workflows import uncertainty
from cddnet.workflows._matching import match_source
from cddnet.workflows.uncertainty import Evidence

MODELS = ("fast@1", "quality@1", "cddnet@1")
DOSE_FRACTION = 0.25
_FEWEST_PIXELS = 200
# Pixels of a tissue in a slice that the fit looks at, so that air does not outweigh bone.
_SAMPLE = 3000
_RIDGE = 1e-3
_PHANTOMS = ("thorax", "abdomen", "shoulder", "inserts")
_PHANTOM_SIDE, _PHANTOM_SLICES = 512, 3
COMMAND = "python benchmarks/uncertainty.py --data FOLDER --side validation --fit FILE"


class Case(NamedTuple):
    """A slice and its references, each (H, W) HU, by what they are called.

    noise_hu: of its low-dose series in flat tissue, None where that is missing.
    """

    patient: str
    evidence: Evidence
    noise_hu: float | None
    references: dict[str, NDArray[np.float32]]


def patient_cases(chosen: argparse.Namespace, engine: Engine) -> Iterator[Case]:
    """Low-dose slices of a side with their full dose; noise is matched series by series."""
    side = getattr(load_config(chosen.split, PatientSplit), chosen.side)
    for patient, slices in load_slices(side, chosen.data, read_all_series).items():
        some = slices[:: math.ceil(len(slices) / chosen.slices)]
        for _, series in groupby(some, key=lambda item: item.series_uid):
            group = list(series)
            lows = np.stack([calibrated_low_dose(item, chosen.dose) for item in group])
            evidence, noise_hu = of_series(lows, group[0].geometry, engine)
            yield from (
                Case(patient, found, noise_hu, {"full dose": item.hu})
                for found, item in zip(evidence, group, strict=True)
            )


def phantom_cases(chosen: argparse.Namespace, engine: Engine) -> Iterator[Case]:
    """Phantoms measured once at the low and once at the full dose, and their truth."""
    for name in _PHANTOMS:
        built = phantom.build(name)
        geometry = SliceGeometry(built.field_mm / _PHANTOM_SIDE)
        truth = phantom.render(built, _PHANTOM_SIDE, geometry.pixel_mm)
        low, full = (
            [
                add_noise(truth, geometry, rng_for(name, index, seed), dose_fraction=dose).hu
                for index in range(_PHANTOM_SLICES)
            ]
            for seed, dose in enumerate((chosen.dose, 1.0))
        )
        evidence, noise_hu = of_series(np.stack(low), geometry, engine)
        for found, full_dose in zip(evidence, full, strict=True):
            yield Case(name, found, noise_hu, {"full dose": full_dose, "truth": truth})


def of_series(
    lows: NDArray[np.float32], geometry: SliceGeometry, engine: Engine
) -> tuple[list[Evidence], float | None]:
    """Evidence of the low-dose slices (B, H, W) of one series, and its noise in flat tissue."""
    pixel_mm = geometry.pixel_mm
    volume = CTVolume.from_hu(lows, (5.0, pixel_mm, pixel_mm))

    def network(images: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.stack([to_hu(engine.run(to_network(one[None, None])))[0, 0] for one in images])

    matched = match_source(volume)
    noise_hu = matched.measured.noise_hu if matched.measured else None
    return uncertainty.gathered(lows, pixel_mm, matched, network), noise_hu


def fitted(cases: list[Case]) -> NDArray[np.float64]:
    """Coefficients (F,) of least negative log likelihood of a normal error at strength 1.

    Every patient counts the same, and of a slice every tissue the same, and the whole body.
    """
    rng = np.random.default_rng(0)
    known, squares, weights = [], [], []
    patients = [case.patient for case in cases]
    for case in cases:
        reference = case.references["full dose"]
        masks = [*tissues(reference).values(), body_mask(reference)]
        seen = [np.flatnonzero(mask) for mask in masks]
        pixels = np.concatenate(
            [rng.choice(some, min(len(some), _SAMPLE), replace=False) for some in seen if len(some)]
        )
        error = (reference - case.evidence.restored).reshape(-1)[pixels]
        known.append(uncertainty.features(case.evidence).reshape(reference.size, -1)[pixels])
        squares.append(error.astype(np.float64) ** 2)
        share = 1 / (len(set(patients)) * patients.count(case.patient) * len(pixels))
        weights.append(np.full(len(pixels), share))
    x, e2, w = (np.concatenate(parts) for parts in (known, squares, weights))

    def likelihood(c: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        log_variance = np.clip(x @ c, -10, 20)
        relative = e2 * np.exp(-log_variance)
        slopes = c * _EVIDENCE
        value = w @ (log_variance + relative) + _RIDGE * slopes @ slopes
        return float(value), x.T @ (w * (1 - relative)) + 2 * _RIDGE * slopes

    start = np.where(_EVIDENCE, 0.0, np.log(100.0))
    return optimize.minimize(likelihood, start, jac=True, method="L-BFGS-B").x


_EVIDENCE = np.isin(uncertainty.FEATURES, uncertainty.EVIDENCE).astype(np.float64)


class Share(NamedTuple):
    """Pixels of a tissue in a slice, and the share of them in each interval."""

    patient: str
    pixels: int
    covered: tuple[float, ...]


def report(cases: Iterable[Case], calibration: uncertainty.Calibration, strength: float) -> None:
    """Prints coverage by tissue and the rank correlation by block, for each reference."""
    shares: dict[str, dict[str, list[Share]]] = {}
    found: dict[str, dict[str, list[Blocks]]] = {}
    for case in cases:
        evidence = case.evidence
        nowhere = np.zeros(evidence.restored.shape, bool)
        sigma = uncertainty.expected_error_hu(
            evidence, calibration, strength=strength, padding=nowhere
        )
        denoised = evidence.low_dose + strength * (evidence.restored - evidence.low_dose)
        for name, reference in case.references.items():
            error, body = reference - denoised, body_mask(reference)
            for tissue, mask in (tissues(reference) | {"body, edges too": body}).items():
                if mask.sum() >= _FEWEST_PIXELS:
                    inside = [coverage(error[mask], sigma[mask], k) for k in INTERVALS.values()]
                    share = Share(case.patient, int(mask.sum()), tuple(inside))
                    shares.setdefault(name, {}).setdefault(tissue, []).append(share)
            found.setdefault(name, {}).setdefault(case.patient, []).append(
                blocks(error, sigma, body)
            )
    for name in shares:
        print(f"coverage of the {name}:")
        for tissue in (*TISSUES_HU, "body, edges too"):
            if tissue in shares[name]:
                print(line(tissue, shares[name][tissue]))
        ranks = [rank_correlation(joined(group)) for group in found[name].values()]
        everything = joined([one for group in found[name].values() for one in group])
        print(
            f"Spearman over {len(everything.error_hu)} blocks of 16 x 16 in the body: "
            f"{rank_correlation(everything):.3f} pooled; by patient mean {np.mean(ranks):.3f}, "
            f"least {min(ranks):.3f}"
        )


def line(tissue: str, found: list[Share]) -> str:
    """Shares over all pixels; and of the 95 % interval the least and the largest of a patient."""
    pixels = np.array([share.pixels for share in found], np.float64)
    covered = np.array([share.covered for share in found])
    patients = np.array([share.patient for share in found])
    own = [
        np.average(covered[patients == one, -1], weights=pixels[patients == one])
        for one in np.unique(patients)
    ]
    values = "".join(
        f"  {name} {share:6.1%}"
        for name, share in zip(INTERVALS, np.average(covered, axis=0, weights=pixels), strict=True)
    )
    return (
        f"  {tissue:16}{values}  patients {min(own):.1%} to {max(own):.1%}"
        f"  n = {pixels.sum():,.0f} pixels, {len(found)} slices, {len(own)} patients"
    )


def joined(group: list[Blocks]) -> Blocks:
    return Blocks(*(np.concatenate(values) for values in zip(*group, strict=True)))


def entry(card: Card, cases: list[Case]) -> dict[str, object]:
    """What the record keeps of a fit."""
    noise_hu = [case.noise_hu for case in cases if case.noise_hu]
    return {
        "sha256": card.sha256,
        "coefficients": [round(value, 6) for value in fitted(cases).tolist()],
        "noise_hu": [round(min(noise_hu), 1), round(max(noise_hu), 1)],
        "patients": len({case.patient for case in cases}),
        "slices": len(cases),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--split", type=Path, default=Path("configs/split_open_ct.yaml"))
    parser.add_argument("--side", choices=["validation", "test", "phantoms"], default="test")
    parser.add_argument("--model", action="append")
    parser.add_argument("--strength", type=float)
    parser.add_argument("--dose", type=float, default=DOSE_FRACTION)
    parser.add_argument("--slices", type=int, default=6, help="per patient, evenly chosen")
    parser.add_argument("--fit", type=Path, help="a new JSON file; validation patients alone")
    chosen = parser.parse_args()
    if chosen.fit and (chosen.side != "validation" or chosen.dose != DOSE_FRACTION):
        parser.error("--fit takes validation patients at the dose of the record")
    if chosen.data is None and chosen.side != "phantoms":
        parser.error("--data is missing")
    make = phantom_cases if chosen.side == "phantoms" else patient_cases
    record: dict[str, object] = {}
    for model in chosen.model or MODELS:
        weights = store.find(model)
        card = read_card(weights)
        cases = list(make(chosen, open_engine(weights, card, threads=1)))
        strength = card.strength if chosen.strength is None else chosen.strength
        if chosen.fit:
            record[card.name] = entry(card, cases)
            coefficients = np.array(record[card.name]["coefficients"])
            calibration = uncertainty.Calibration(
                coefficients, tuple(record[card.name]["noise_hu"]), DOSE_FRACTION, card.name
            )
        else:
            calibration = uncertainty.calibration_of(card)
        print(
            f"{card.name}, strength {strength:.0%}, {chosen.side}, {chosen.dose:.0%} of the "
            f"calibrated dose, {len(cases)} slices"
        )
        if chosen.side != "phantoms":
            report(cases, calibration, strength)
            continue
        # Their noise differs tenfold, so what they have in common says nothing.
        for name in _PHANTOMS:
            own = [case for case in cases if case.patient == name]
            level = f"{own[0].noise_hu:.1f} HU" if own[0].noise_hu else "unknown"
            print(f"phantom {name}, noise in flat tissue {level}")
            report(own, calibration, strength)
    if chosen.fit:
        told = {
            "command": COMMAND,
            "dose_fraction": DOSE_FRACTION,
            "features": uncertainty.FEATURES,
            "weights": record,
        }
        chosen.fit.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
