"""The comparison: every method trained with the same crops and measured on the same test slices.

    python benchmarks/compare.py --data FOLDER --runs DIR [--plan benchmarks/comparison.yaml]
        [--dose own] [--crops 16000] [--only ROW ...] [--minutes 60] [--markdown FILE]
        [--json FILE] [--curves PNG] [--panel PNG]

FOLDER holds what the plan's split names, or without a plan configs/split_open_ct.yaml. The same
command goes on with what was stopped or killed. Rates are searched by validation: the recipe's own
and those that span a factor of ten around it, and further as long as the best lies at an edge. A
plan decides the budget of each row and the optimiser of all; without one a row has so many crops,
the optimiser of its recipe, and a tenth of the crops for each rate.
"""

from __future__ import annotations

import argparse
import math

import numpy as np

import _session
from _comparison import CONVERGENCE_RULE, over_patients, shown, table
from _runs import Row
from _scores import DOSE_FRACTION, METRICS, WINDOW_HU, Cost, Scores, Test
from _session import ROOT, Result
from cddnet.errors import CddnetError
from cddnet.runtime import store

CONFIGS = ROOT / "configs"
_NATIVE = "cddnet"
# The recipe's own interval is longer than a short budget: the contrastive loss would never begin.
_OVERRIDES = {"cddnet_dual_task": ("method_options.refresh_every=50",)}
_DECIMALS = {"PSNR": 2, "SSIM": 4, "RMSE": 2}
_UNITS = {"PSNR": "PSNR (dB)", "RMSE": "RMSE (HU)"}


def default_rows() -> list[Row]:
    """What the zoo and the recipes hold today."""
    as_they_are = ["non_local_means", "total_variation", "bilateral"]
    recipes = {
        "wgan_vgg": "train_wgan_vgg",
        "red_cnn": "train_red_cnn",
        "cncl": "train_cncl",
        "cddnet_published": "train_cddnet_literal",
        _NATIVE: "train_cddnet",
        "cddnet_dual_task": "train_cddnet_dual_task",
    }
    rows = [Row(name, weights=name) for name in as_they_are if _is_known(name)]
    rows += [
        Row(name, recipe=CONFIGS / f"{stem}.yaml", overrides=_OVERRIDES.get(name, ()))
        for name, stem in recipes.items()
        if (CONFIGS / f"{stem}.yaml").is_file()
    ]
    shipped = ("cddnet@1", "fast@1", "quality@1")
    return [*rows, *(Row(name, weights=name) for name in shipped)]


def tables(results: list[Result], test: Test, costs: dict[str, Cost], against: str) -> list[str]:
    """Markdown lines: quality, then cost and training."""
    low_dose = results[0].measured[0].low_dose
    metrics = list(next(iter(low_dose.values())))
    reference = next((item for item in results if item.row.name == against), None)
    lines = [
        f"{_session.protocol_text(test)}, means over the slices of a patient, then over patients; "
        "95 % bootstrap intervals over patients. One training of a row and the next differ too; "
        "these intervals do not know it.",
        "",
    ]
    versus = [] if reference is None else [f"minus {reference.label} (dB)"]
    head = ["", *(_UNITS.get(name, name) for name in metrics), "gain (dB)", *versus, "remarks"]
    grid = [["low dose", *_means(low_dose, metrics), "0", *("" for _ in versus), ""]]
    for item in results:
        grid.append(_quality_line(item, metrics, low_dose, reference))
    lines += table(head, grid)
    lines += [
        _session.cost_text(),
        "",
    ]
    head = ["", *_session.COST_HEAD, "trained with", "rate", _session.FROM_TENTH]
    grid = [
        [
            item.label,
            *_session.cost_cells(costs[item.row.name]),
            _trained_with(item),
            _session.rate_text(item),
            _session.from_tenth_text(item),
        ]
        for item in results
    ]
    lines += table(head, grid)
    return [*lines, f"{CONVERGENCE_RULE[0].upper()}{CONVERGENCE_RULE[1:]}", ""]


def _quality_line(
    item: Result, metrics: list[str], low_dose: Scores, reference: Result | None
) -> list[str]:
    patients = list(low_dose)
    scores: Scores = {
        patient: {
            name: float(np.mean([one.scores[patient][name] for one in item.measured]))
            for name in metrics
        }
        for patient in patients
    }
    before = np.array([low_dose[patient]["PSNR"] for patient in patients])
    own = item.values("PSNR", patients).mean(axis=0)
    versus = []
    if reference is not None:
        other = reference.values("PSNR", patients).mean(axis=0)
        versus = ["" if item is reference else shown(over_patients(own - other), 2)]
    gain = shown(over_patients(own - before), 2)
    return [item.label, *_means(scores, metrics), gain, *versus, _remarks(item, scores, low_dose)]


def _remarks(item: Result, scores: Scores, low_dose: Scores) -> str:
    said, worse = [], []
    if not item.curves and item.training.get("recipe"):
        said.append("trained with a budget of its own")
    for name in METRICS:
        change = np.mean([scores[patient][name] - low_dose[patient][name] for patient in low_dose])
        if change * (-1 if name == "RMSE" else 1) < 0:
            worse.append(name)
    if worse:
        said.append(f"worse than the low dose in {', '.join(worse)}")
    if not item.converged:
        said.append(f"not converged ({item.rise:+.2f} dB)")
    return "; ".join(said)


def _trained_with(item: Result) -> str:
    recipe = item.training.get("recipe")
    if not isinstance(recipe, dict):
        return "-"
    earlier = item.training.get("earlier", [])
    recipes = [*(e["recipe"] for e in earlier), recipe] if isinstance(earlier, list) else [recipe]
    crops = sum(
        int(one["steps"]) * int(one.get("slices_per_step", 0)) * int(one.get("crops_per_slice", 0))
        for one in recipes
    )
    if not crops:
        return "its own training"
    side, whose = recipe["crop"], "" if item.curves else ", its own training"
    return f"{crops:,} crops of {side} x {side}{whose}"


def _means(scores: Scores, metrics: list[str]) -> list[str]:
    return [
        f"{np.mean([one[name] for one in scores.values()]):.{_DECIMALS.get(name, 4)}f}"
        for name in metrics
    ]


def _is_known(name: str) -> bool:
    try:
        store.load(name)
    except CddnetError:
        return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    _session.arguments(parser, seeds=1, crops=16_000)
    parser.add_argument("--against", default=_NATIVE, help="row that the others are held against")
    chosen = parser.parse_args()
    session = _session.begin(default_rows(), chosen)
    is_done = _session.train(session)
    if chosen.train_only or not (is_done or math.isinf(chosen.minutes)):
        return
    test = _session.read_test(session)
    results = _session.measure(session, test)
    if not results:
        print("nothing is trained to the end")
        return
    costs = _session.cost_of(results, chosen.threads)
    text = "\n".join(tables(results, test, costs, chosen.against))
    print(text)
    if chosen.markdown:
        chosen.markdown.write_text(text, encoding="utf-8")
    if chosen.json:
        about = {"window_hu": WINDOW_HU, "mask": "body", "dose": DOSE_FRACTION, "n": test.count}
        about |= {"costs": {name: cost._asdict() for name, cost in costs.items()}}
        _session.write_json(chosen.json, results, about)
    _session.draw(results, test, session)


if __name__ == "__main__":
    main()
