"""What `compare.py` and `ablate.py` share: options, training and measuring of all rows, files.

Above 300 lines: training and measuring share the rows and their files.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import yaml
from numpy.typing import NDArray

import _plan
from _comparison import is_converged, rise_db
from _pictures import Curves, draw_curves, draw_panel
from _plan import Plan
from _runs import (
    Budget,
    OutOfTimeError,
    Row,
    Trainer,
    curve,
    is_finished,
    label_of,
    low_dose_db,
    rate_of,
    searched,
    validated,
)
from _scores import DOSE_FRACTION, WINDOW_HU, Cost, Measured, Test, costs, denoised
from cddnet.config import PatientSplit, load_config
from cddnet.errors import CddnetError
from cddnet.runtime import store
from cddnet.workflows._complexity import SIDE, machine
from cddnet.workflows._tables import counted
from cddnet.workflows.train import WEIGHTS

ROOT = Path(__file__).resolve().parents[1]
SPLIT = ROOT / "configs" / "split_open_ct.yaml"


@dataclass(frozen=True, kw_only=True)
class Result:
    """A measured row.  label: as shown.  measured, curves: of each training; one, and none, of
    weights that were taken as they are.  rates: that were searched.  from_tenth_db: how much higher
    the validation ends than after a tenth of the crops, NaN without training.
    """

    row: Row
    label: str
    weights: tuple[Path | str, ...]
    measured: tuple[Measured, ...]
    curves: tuple[list[tuple[int, float]], ...]
    from_tenth_db: float
    rate: float | None
    rates: tuple[float, ...]
    training: Mapping[str, object]

    def values(self, metric: str, patients: Sequence[str]) -> NDArray[np.float64]:
        """(trainings, patients)."""
        return np.array(
            [[one.scores[patient][metric] for patient in patients] for one in self.measured]
        )

    @property
    def converged(self) -> bool:
        return is_converged(self.curves)

    @property
    def rise(self) -> float:
        return float(np.mean([rise_db(one) for one in self.curves]))


class Session(NamedTuple):
    """The options of one command, read.  split: whose test patients are measured."""

    trainer: Trainer
    rows: list[Row]
    split: Path
    chosen: argparse.Namespace


def arguments(parser: argparse.ArgumentParser, *, seeds: int, crops: int) -> None:
    parser.add_argument("--data", type=Path, required=True, help="the open CT of the split")
    parser.add_argument("--runs", type=Path, required=True, help="folder of all trainings")
    parser.add_argument("--plan", type=Path, help="split, budget and order of the rows (YAML)")
    parser.add_argument("--crops", type=int, default=crops, help="that each row is trained with")
    parser.add_argument("--crop", type=int, default=64, help="pixels per side")
    parser.add_argument("--seeds", type=int, default=seeds, help="trainings of each row")
    parser.add_argument("--only", nargs="+", metavar="ROW", help="rows, by their folder's name")
    parser.add_argument("--evaluate-only", action="store_true", help="of what is trained")
    parser.add_argument("--train-only", action="store_true")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop after that; resumes")
    parser.add_argument("--jobs", type=int, default=1, help="rows trained at the same time")
    parser.add_argument("--threads", type=int, default=1, help="of each training, and of the times")
    parser.add_argument("--workers", type=int, default=1, help="of each training, making noise")
    parser.add_argument(
        "--precision", help="of every training in place of its recipe's, such as bfloat16"
    )
    parser.add_argument("--validation-patients", type=int, default=4, help="first of the split")
    parser.add_argument("--validation-slices", type=int, default=1, help="of each of them")
    parser.add_argument(
        "--dose", choices=("calibrated", "own"), default="calibrated", help="a quarter of which"
    )
    parser.add_argument("--slices", type=int, default=4, help="per test patient, evenly chosen")
    parser.add_argument("--lpips-weights", type=Path, help="folder of weight files")
    parser.add_argument("--markdown", type=Path, help="write the tables there")
    parser.add_argument("--json", type=Path, help="write every patient's scores there")
    parser.add_argument("--curves", type=Path, help="draw the validation curves there (PNG)")
    parser.add_argument("--panel", type=Path, help="draw one test slice there (PNG)")


def begin(rows: list[Row], chosen: argparse.Namespace) -> Session:
    """Raises CddnetError for rows that there are not."""
    split, plan = SPLIT, None
    if chosen.plan:
        plan = _plan.read(chosen.plan)
        split, rows = chosen.plan.parent / plan.split, planned(rows, plan)
    if chosen.only:
        unknown = set(chosen.only) - {row.name for row in rows}
        if unknown:
            raise CddnetError(
                f"no rows {', '.join(sorted(unknown))}; there are {', '.join(r.name for r in rows)}"
            )
        rows = [row for row in rows if row.name in chosen.only]
    smaller = _smaller_split(split, chosen.runs, chosen.validation_patients)
    extra = (
        f"threads={chosen.threads}",
        f"workers={chosen.workers}",
        f"split={smaller}",
        f"validation_slices={chosen.validation_slices}",
    )
    if plan is None:
        # Rows see the same noise: the first to need it makes it. A long training fills the disk.
        extra += (f"noise_folder={(chosen.runs.parent / 'noise').resolve()}",)
    if chosen.precision:
        extra += (f"precision={chosen.precision}",)
    trainer = Trainer(
        runs=chosen.runs,
        data=chosen.data,
        budget=Budget(crops=chosen.crops, crop=chosen.crop),
        extra=extra,
        deadline=time.monotonic() + 60 * chosen.minutes,
    )
    return Session(trainer, rows, split, chosen)


def planned(rows: Sequence[Row], plan: Plan) -> list[Row]:
    """Rows with the budget of the plan, in its order; those that are not trained come first.

    Raises: CddnetError where one has the other does not.
    """
    trained = {row.name: row for row in rows if row.recipe is not None}
    unknown = sorted(plan.rows.keys() ^ trained.keys())
    if unknown:
        raise CddnetError(f"rows and plan differ in {', '.join(unknown)}; give both the same rows.")
    own = [
        trained[name]._replace(
            overrides=(*trained[name].overrides, *plan.overrides),
            budget=Budget(
                crops=row.crops,
                crop=row.crop,
                slices_per_step=row.slices_per_step,
                crops_per_slice=row.crops_per_slice,
                searched_crops=row.searched_crops,
            ),
        )
        for name, row in plan.rows.items()
    ]
    return [*(row for row in rows if row.recipe is None), *own]


def train(session: Session) -> bool:
    """Train what is not.  Returns: whether all is; what failed is printed and does not stop."""
    chosen = session.chosen
    if chosen.evaluate_only:
        return True

    def complete(row: Row) -> bool:
        try:
            session.trainer.complete(row, range(chosen.seeds))
        except OutOfTimeError:
            return False
        except CddnetError as error:
            print(f"{row.name} failed: {error}", flush=True)
            return False
        return True

    with ThreadPoolExecutor(chosen.jobs) as pool:
        try:
            done = list(pool.map(complete, session.rows))
        except KeyboardInterrupt:
            pool.shutdown(cancel_futures=True)
            raise
    late = [row.name for row, is_done in zip(session.rows, done, strict=True) if not is_done]
    if late:
        print(f"not finished: {', '.join(late)}; the same command goes on")
    return not late


def measure(session: Session, test: Test) -> list[Result]:
    """Every row that has weights; the others are named."""
    results = []
    for row in session.rows:
        try:
            found = _weights_of(row, session)
            if not found:
                print(f"{row.name} left out: not trained to the end")
                continue
            card = store.load(found[0])[1]
        except CddnetError as error:
            print(f"{row.name} left out: {error}")
            continue
        trained = row.recipe is not None
        folders = [Path(weights).parent for weights in found] if trained else []
        kept = folders or [session.trainer.runs / row.name]
        results.append(
            Result(
                row=row,
                label=label_of(row, card.training) if trained else row.name,
                weights=found,
                measured=tuple(
                    test.measure(weights, folder / test.kept)
                    for weights, folder in zip(found, kept, strict=True)
                ),
                curves=tuple(curve(folder) for folder in folders),
                from_tenth_db=_from_tenth_db(folders),
                rate=rate_of(folders[0]) if folders else None,
                rates=session.trainer.rates(row) if trained else (),
                training=card.training,
            )
        )
    return results


def cost_of(results: Sequence[Result], threads: int) -> dict[str, Cost]:
    return costs({result.row.name: result.weights[0] for result in results}, threads=threads)


def from_tenth_text(item: Result) -> str:
    return "-" if math.isnan(item.from_tenth_db) else f"{item.from_tenth_db:+.2f}"


def rate_text(item: Result) -> str:
    """The rate that the search chose."""
    if item.rate is None:
        return "-"
    at_edge = item.rate in (min(item.rates), max(item.rates))
    return f"{item.rate:.1e}{' (edge of the search)' if at_edge else ''}"


def read_test(session: Session) -> Test:
    """What every row is measured on."""
    chosen = session.chosen
    return Test.read(
        session.split,
        chosen.data,
        per_patient=chosen.slices,
        lpips_weights=chosen.lpips_weights,
        dose_of=chosen.dose,
    )


def protocol_text(test: Test) -> str:
    """Under which every figure stands."""
    low, high = WINDOW_HU
    ratios = list(test.ratios().values())
    said = "not measured"
    if ratios:
        allowed = np.mean([10 * math.log10(ratio) for ratio in ratios])
        said = (
            f"R = {np.mean(ratios):.1f} ({len(ratios)} patients), so that an output without any "
            f"noise gains {allowed:.2f} dB"
        )
    whose = "each series' own" if test.dose_of == "own" else "the calibrated"
    return (
        f"Simulated {DOSE_FRACTION:.0%} of {whose} dose; window [{low:.0f}, {high:.0f}] HU, "
        f"range {high - low:.0f} HU, body mask; n = {test.count}. The full dose is noisy itself: "
        f"inserted over its own variance {said}. Networks at strength 100 %, after their last step"
    )


FROM_TENTH = "over a tenth of the crops (dB)"
COST_HEAD = ("GMAC", "parameters", "weights (MB)", "s per slice")


def cost_cells(cost: Cost) -> list[str]:
    return [
        f"{cost.macs / 1e9:.2f}" if cost.macs else "-",
        f"{cost.parameters:,}",
        f"{cost.weights_bytes / 1e6:.2f}" if cost.weights_bytes else "-",
        f"{cost.seconds:.2f}",
    ]


def cost_text() -> str:
    return (
        f"Cost of one slice of {SIDE} x {SIDE} pixels, the inference graph alone, batch 1; time: "
        f"median, the methods in turns, {counted(torch.get_num_threads(), 'thread')}, {machine()}."
    )


def draw(results: Sequence[Result], test: Test, session: Session) -> None:
    chosen = session.chosen
    trained = [result for result in results if result.curves]
    if chosen.curves and trained:
        curves = Curves(
            {result.label: _over_crops(result, session) for result in trained},
            low_dose_db(Path(trained[0].weights[0]).parent),
        )
        draw_curves(curves, chosen.curves)
    if chosen.panel:
        full_dose, low_dose = test.shown()
        images = {"full dose": full_dose.hu, "low dose": low_dose}
        images |= {result.label: denoised(result.weights[0], low_dose) for result in results}
        draw_panel(images, chosen.panel)


def _over_crops(result: Result, session: Session) -> list[list[tuple[int, float]]]:
    """The curves of a row over the crops seen, which differ by row in size and number."""
    crops = (result.row.budget or session.trainer.budget).crops_per_step
    return [[(step * crops, value) for step, value in one] for one in result.curves]


def write_json(path: Path, results: Sequence[Result], about: Mapping[str, object]) -> None:
    """Scores of every patient and training."""
    rows = [
        {
            "name": result.row.name,
            "label": result.label,
            "sha256": [one.sha256 for one in result.measured],
            "rate": result.rate,
            "converged": result.converged,
            "scores": [one.scores for one in result.measured],
            "curves": result.curves,
        }
        for result in results
    ]
    low_dose = results[0].measured[0].low_dose if results else {}
    path.write_text(json.dumps({**about, "low dose": low_dose, "rows": rows}, indent=1))


def _weights_of(row: Row, session: Session) -> tuple[Path | str, ...]:
    if row.weights is not None:
        return (row.weights,)
    folders = [session.trainer.folder(row, seed) for seed in range(session.chosen.seeds)]
    if not all(is_finished(folder) for folder in folders):
        return ()
    return tuple(folder / WEIGHTS for folder in folders)


def _from_tenth_db(folders: Sequence[Path]) -> float:
    """Of the trainings, over the run of the search at the same rate."""
    if not folders:
        return math.nan
    tenth = searched(folders[0].parent, rate_of(folders[0]))
    return float(np.mean([validated(folder) for folder in folders])) - validated(tenth)


def _smaller_split(whole: Path, runs: Path, patients: int) -> Path:
    """The split with its first validation patients alone: validation costs whole slices."""
    split = load_config(whole, PatientSplit).model_dump(mode="json")
    split["validation"] = dict(list(split["validation"].items())[:patients])
    known = split["train"] | split["validation"] | split["test"]
    split["cut"] = [patient for patient in split["cut"] if patient in known]
    path = (runs / f"split-{patients}.yaml").resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(split, sort_keys=False), encoding="utf-8")
    return path
