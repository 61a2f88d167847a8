"""The ablations: what each part of a recipe does, over patients and seeds.

    python benchmarks/ablate.py --data FOLDER --runs DIR [--recipes configs/ablation]
        [--crops 16000] [--seeds 3] [--only ROW ...] [--minutes 60] [--markdown FILE] [--json FILE]

One recipe of the folder is one row, by file name; the first is the baseline. A recipe is held
against the row that its comment `# against: STEM` names, else against the baseline. FOLDER, the
rate search and resuming are those of compare.py.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np

import _session
from _comparison import (
    CONVERGENCE_RULE,
    about,
    against,
    over_patients_and_seeds,
    shown,
    table,
    verdict,
)
from _runs import Row
from _scores import DOSE_FRACTION, WINDOW_HU, Cost, Test
from _session import ROOT, Result
from cddnet.errors import CddnetError

_DECIMALS = {"PSNR": 2, "SSIM": 4, "RMSE": 2}
_UNITS = {"PSNR": "PSNR (dB)", "RMSE": "RMSE (HU)"}


def rows_of(folder: Path) -> list[Row]:
    """Raises CddnetError for a folder without recipes, or a row against one that there is not."""
    recipes = sorted(folder.glob("*.yaml"))
    if not recipes:
        raise CddnetError(f"{folder} holds no recipes (*.yaml); give the folder of the ablations.")
    stems = [path.stem for path in recipes]
    rows = []
    for path in recipes:
        text = path.read_text(encoding="utf-8")
        other = against(text) or stems[0]
        if other not in stems:
            raise CddnetError(f"{path}: is against '{other}'; there are {', '.join(stems)}.")
        held = None if other == path.stem else other
        rows.append(Row(path.stem, recipe=path, about=about(text), against=held))
    return rows


def tables(results: list[Result], test: Test, costs: dict[str, Cost]) -> list[str]:
    """Markdown lines: each row, and its effect against the row it is held against."""
    low_dose = results[0].measured[0].low_dose
    patients, metrics = list(low_dose), list(next(iter(low_dose.values())))
    seeds = len(results[0].measured)
    lines = [
        f"{_session.protocol_text(test)}; {seeds} trainings of each row. Means over slices, "
        "patients and trainings. An effect is the mean paired difference; its 95 % interval is "
        "over patients and trainings, both random and crossed (Student's t, Satterthwaite). The "
        "verdict is on PSNR; one of twenty such intervals leaves out the truth.",
        "",
    ]
    head = ["", *(_UNITS.get(name, name) for name in metrics), "gain (dB)", "seeds' gains", "rate"]
    head.append(_session.FROM_TENTH)
    before = np.array([low_dose[patient]["PSNR"] for patient in patients])
    grid = [["low dose", *_means(np.array(_of(low_dose, metrics)), metrics), "0", "", "", ""]]
    for item in results:
        values = np.array([item.values(name, patients).mean(axis=0) for name in metrics]).T
        gains = item.values("PSNR", patients) - before
        each = ", ".join(f"{gain:.2f}" for gain in gains.mean(axis=1))
        gain = shown(over_patients_and_seeds(gains), 2)
        ends = (_session.rate_text(item), _session.from_tenth_text(item))
        grid.append([_name(item), *_means(values, metrics), gain, each, *ends])
    lines += table(head, grid)
    head = ["", "against", *(_UNITS.get(name, name) for name in metrics), "verdict (PSNR)"]
    lines += table(head, _effects(results, patients, metrics))
    lines += [_session.cost_text(), ""]
    grid = [[item.row.name, *_session.cost_cells(costs[item.row.name])] for item in results]
    lines += table(["", *_session.COST_HEAD], grid)
    return [*lines, f"{CONVERGENCE_RULE[0].upper()}{CONVERGENCE_RULE[1:]}", ""]


def _effects(results: list[Result], patients: list[str], metrics: list[str]) -> list[list[str]]:
    by_name = {item.row.name: item for item in results}
    grid = []
    for item in results:
        other = by_name.get(item.row.against or "")
        if other is None:
            continue
        effects = {
            name: over_patients_and_seeds(
                item.values(name, patients) - other.values(name, patients)
            )
            for name in metrics
        }
        said = verdict(effects["PSNR"], converged=item.converged and other.converged)
        rises = [f"{one.row.name} {one.rise:+.2f} dB" for one in (item, other) if not one.converged]
        cells = [shown(effects[name], _DECIMALS.get(name, 4)) for name in metrics]
        told = f"{said} ({', '.join(rises)})" if rises else said
        grid.append([item.row.name, other.row.name, *cells, told])
    return grid


def _name(item: Result) -> str:
    return f"{item.row.name}: {item.row.about}" if item.row.about else item.row.name


def _of(scores: dict[str, dict[str, float]], metrics: list[str]) -> list[list[float]]:
    return [[one[name] for name in metrics] for one in scores.values()]


def _means(values: np.ndarray, metrics: list[str]) -> list[str]:
    """values: (patients, metrics)."""
    return [
        f"{mean:.{_DECIMALS.get(name, 4)}f}"
        for name, mean in zip(metrics, values.mean(axis=0), strict=True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    _session.arguments(parser, seeds=3, crops=16_000)
    parser.add_argument("--recipes", type=Path, default=ROOT / "configs" / "ablation")
    chosen = parser.parse_args()
    session = _session.begin(rows_of(chosen.recipes), chosen)
    is_done = _session.train(session)
    if chosen.train_only or not (is_done or math.isinf(chosen.minutes)):
        return
    test = _session.read_test(session)
    results = _session.measure(session, test)
    if not results:
        print("nothing is trained to the end")
        return
    text = "\n".join(tables(results, test, _session.cost_of(results, chosen.threads)))
    print(text)
    if chosen.markdown:
        chosen.markdown.write_text(text, encoding="utf-8")
    if chosen.json:
        about_it = {"window_hu": WINDOW_HU, "mask": "body", "dose": DOSE_FRACTION, "n": test.count}
        _session.write_json(chosen.json, results, about_it)
    _session.draw(results, test, session)


if __name__ == "__main__":
    main()
