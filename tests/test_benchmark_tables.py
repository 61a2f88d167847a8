"""The pure parts of `benchmarks/compare.py` and `benchmarks/ablate.py`."""

import json
import math
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from cddnet.config import ConfigError, PatientSplit, TrainConfig, load_config
from cddnet.errors import CddnetError
from cddnet.metrics.statistics import bootstrap_interval
from cddnet.physics.beam import Scanner, SliceGeometry
from cddnet.physics.kernel import SOFT_KERNEL
from cddnet.training.pairs import FullDoseSlice, OwnNoise, calibrated_low_dose, own_low_dose

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.append(str(REPOSITORY / "benchmarks"))

import _comparison as comparison  # noqa: E402
import _plan as plan  # noqa: E402
import _runs as runs  # noqa: E402
import _scores as measuring  # noqa: E402
import _session as session  # noqa: E402
import ablate  # noqa: E402
import compare  # noqa: E402

PATIENTS = ("A", "B", "C", "D")
RECIPE = "model: cddnet\nsplit: split.yaml\nlearning_rate: 3.0e-5\nbetas: [0.5, 0.9]\n"


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return path


def ramp(per_step, count=20):
    return [(step, 30 + per_step * step) for step in range(1, count + 1)]


def test_a_rise_is_that_of_a_straight_line():
    # Of the points at 19 and 20 of 20 the mean is at 19.5, and 80 % is at 16: 3.5 steps.
    assert comparison.rise_db(ramp(0.1)) == pytest.approx(0.35)
    # 80 % lies between two points.
    assert comparison.rise_db(ramp(0.1, 11)) == pytest.approx(0.1 * (10.5 - 8.8))


def test_converged_is_judged_by_the_mean_of_the_trainings():
    flat, rising, falling = ramp(0.0), ramp(0.03), ramp(-0.03)
    assert comparison.is_converged([flat])
    assert not comparison.is_converged([rising])
    assert comparison.is_converged([falling])
    assert comparison.is_converged([rising, falling])


def test_too_few_points_tell_nothing_but_weights_as_they_are_need_none():
    assert not comparison.is_converged([ramp(0.0, 4)])
    assert comparison.is_converged([])


def covering(interval, rng, trials=600):
    """Share of intervals that hold 0, of 3 seeds and 11 patients with as much spread each."""
    held = 0
    for _ in range(trials):
        seeds, patients = rng.normal(size=(3, 1)), rng.normal(size=(1, 11)) * math.sqrt(11 / 3)
        effect = interval(seeds + patients + 0.3 * rng.normal(size=(3, 11)))
        held += effect.low <= 0 <= effect.high
    return held / trials


def test_an_interval_over_patients_and_seeds_holds_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    four_errors = 4 * math.sqrt(0.95 * 0.05 / 600)
    assert covering(comparison.over_patients_and_seeds, rng) > 0.95 - four_errors
    # Over the patients alone it would not.
    alone = covering(lambda d: bootstrap_interval(d.mean(axis=0), rng, resamples=200), rng)
    assert alone < 0.95 - 2 * four_errors


def test_with_one_seed_the_interval_is_that_of_a_paired_t_test():
    from scipy import stats

    differences = np.array([[0.1, 0.4, -0.2, 0.3, 0.25]])
    found = comparison.over_patients_and_seeds(differences)
    expected = stats.ttest_1samp(differences[0], 0).confidence_interval(0.95)
    assert found[1:] == pytest.approx((expected.low, expected.high))


def test_verdicts_follow_the_interval_and_never_a_row_that_still_rises():
    up, down, both = (comparison.Effect(0, *b) for b in ((0.1, 0.2), (-0.2, -0.1), (-0.1, 0.1)))
    assert comparison.verdict(up, converged=True) == "higher"
    assert comparison.verdict(down, converged=True) == "lower"
    assert comparison.verdict(both, converged=True) == "no effect shown"
    assert comparison.verdict(up, converged=False) == "not converged"
    nowhere = comparison.Effect(0.1, math.nan, math.nan)
    assert comparison.verdict(nowhere, converged=True) == "no effect shown"


def test_a_recipe_says_what_it_is_and_what_it_is_against():
    text = "# against: 02_depth\n# With the contrastive loss.\nmodel: cddnet  # against: other\n"
    assert comparison.against(text) == "02_depth"
    assert comparison.about(text) == "With the contrastive loss."
    assert comparison.against("model: cddnet\n") is None
    assert comparison.about("model: cddnet\n") == ""


def test_ablations_are_rows_by_file_name_against_the_first(tmp_path):
    texts = {"b": "", "a": "", "c": "# against: b\n"}
    for stem, text in texts.items():
        (tmp_path / f"{stem}.yaml").write_text(text + RECIPE)
    rows = ablate.rows_of(tmp_path)
    assert [(row.name, row.against) for row in rows] == [("a", None), ("b", "a"), ("c", "b")]
    (tmp_path / "d.yaml").write_text("# against: z\n" + RECIPE)
    with pytest.raises(CddnetError, match="against 'z'; there are a, b, c, d"):
        ablate.rows_of(tmp_path)


@pytest.mark.parametrize("crops", [1, 160, 5000, 16_000])
def test_a_budget_gives_its_crops_and_keeps_the_optimiser(recipe, crops):
    budget = runs.Budget(crops=crops, crop=64)
    whole = load_config(recipe, TrainConfig, budget.overrides(seed=7))
    search = load_config(recipe, TrainConfig, budget.search_overrides())
    per_step = whole.slices_per_step * whole.crops_per_slice
    # Fewer by less than one interval between validations, and at least one step.
    assert per_step * whole.steps <= max(crops, per_step)
    assert per_step * (whole.steps + whole.validate_every) > crops - per_step
    assert whole.steps % whole.validate_every == 0
    assert (whole.crop, whole.seed) == (64, 7)
    assert (whole.learning_rate, whole.betas) == (3.0e-5, (0.5, 0.9))
    assert search.steps == max(1, whole.steps // 10) == search.validate_every
    if whole.steps >= 20:
        assert 20 <= whole.steps // whole.validate_every < 40


def finished(folder, recipe, overrides, denoised_db):
    """A run as the training leaves it."""
    folder.mkdir(parents=True)
    config = load_config(recipe, TrainConfig, overrides)
    (folder / "recipe.yaml").write_text(json.dumps(config.model_dump(mode="json")))
    card = {"name": "cddnet@own", "model": "cddnet", "options": {}, "version": "0", "sha256": ""}
    card["training"] = {"validation": {"denoised_db": denoised_db}}
    (folder / "weights.json").write_text(json.dumps(card))


def searched(runs_folder, recipe, budget, scores):
    """A trainer without time, and the row whose rates had these scores; None diverged."""
    row = runs.Row("net", recipe=recipe)
    trainer = runs.Trainer(runs=runs_folder, data=runs_folder, budget=budget, deadline=0.0)
    for power, score in scores.items():
        rate = trainer.rate(row, power)
        overrides = (*budget.search_overrides(), f"learning_rate={rate:.3e}")
        finished(runs_folder / "net" / f"rate-{rate:.3e}", recipe, overrides, score)
    return trainer, row


def test_the_rate_of_the_best_validation_is_taken_without_training_again(recipe, tmp_path):
    """Of three that span a factor of ten; NaN is no score."""
    budget = runs.Budget(crops=3200)
    trainer, row = searched(tmp_path, recipe, budget, {-1: 30.0, 0: 31.0, 1: math.nan})
    assert trainer.rates(row) == pytest.approx([3e-5 / 10**0.5, 3e-5, 3e-5 * 10**0.5], rel=1e-3)
    assert trainer.searched_rate(row) == trainer.rates(row)[1] == 3e-5
    trainer, row = searched(
        tmp_path / "none", recipe, budget, {-1: math.nan, 0: math.nan, 1: math.nan}
    )
    with pytest.raises(CddnetError, match="not finite at any rate"):
        trainer.searched_rate(row)


@pytest.mark.parametrize("side", [-1, 1])
def test_the_search_goes_on_where_its_best_lies_at_an_edge(side, recipe, tmp_path):
    budget = runs.Budget(crops=3200)
    scores = {-side: 30.0, 0: 31.0, side: 32.0}
    trainer, row = searched(tmp_path / "a", recipe, budget, scores)
    with pytest.raises(runs.OutOfTimeError):
        trainer.searched_rate(row)
    trainer, row = searched(tmp_path / "b", recipe, budget, scores | {2 * side: 31.5})
    assert trainer.searched_rate(row) == trainer.rate(row, side)
    # Not for ever.
    scores |= {power * side: 31.0 + power for power in (2, 3, 4)}
    trainer, row = searched(tmp_path / "c", recipe, budget, scores)
    assert trainer.searched_rate(row) == trainer.rate(row, 4 * side)


def test_a_finished_run_of_another_budget_is_refused(recipe, tmp_path):
    row, small, large = runs.Row("net", recipe=recipe), runs.Budget(crops=320), runs.Budget(crops=9)
    trainer = runs.Trainer(runs=tmp_path / "runs", data=tmp_path, budget=large)
    rate = trainer.rate(row, -1)
    overrides = (*small.search_overrides(), f"learning_rate={rate:.3e}")
    finished(tmp_path / "runs" / "net" / f"rate-{rate:.3e}", recipe, overrides, 30.0)
    with pytest.raises(ConfigError, match="another recipe or budget: steps 2 "):
        trainer.searched_rate(row)


def test_a_run_ends_with_the_minutes(tmp_path):
    start = time.monotonic()
    with pytest.raises(runs.OutOfTimeError):
        runs._in_a_process(("a", "b", "c"), tmp_path / "printed.txt", 0.1)
    assert time.monotonic() - start < 30


@pytest.mark.slow
def test_a_run_that_failed_says_why(tmp_path):
    trainer = runs.Trainer(runs=tmp_path, data=tmp_path, budget=runs.Budget(crops=16))
    (tmp_path / "r.yaml").write_text("model: nonesuch\n")
    with pytest.raises(CddnetError, match="nonesuch"):
        trainer.searched_rate(runs.Row("net", recipe=tmp_path / "r.yaml"))


def test_every_row_of_the_comparison_can_be_trained_with_the_budget():
    rows = compare.default_rows()
    names = [row.name for row in rows]
    assert len(set(names)) == len(names)
    assert {"red_cnn", "wgan_vgg", "cncl", "cddnet", "cddnet@1"} <= set(names)
    overrides = runs.Budget(crops=16_000).overrides()
    trained = [row for row in rows if row.recipe is not None]
    configs = {row.name: load_config(row.recipe, TrainConfig, overrides) for row in trained}
    assert {(config.steps, config.crop) for config in configs.values()} == {(1000, 64)}
    assert configs["wgan_vgg"].betas == (0.5, 0.9) != configs["cddnet"].betas


def test_the_plan_names_every_row_that_is_trained_and_decides_its_budget():
    found = plan.read(REPOSITORY / "benchmarks" / "comparison.yaml")
    rows = session.planned(compare.default_rows(), found)
    assert [row.name for row in rows if row.recipe is not None] == list(found.rows)
    load_config(REPOSITORY / "benchmarks" / found.split, PatientSplit)
    whole = {}
    for row in rows:
        if row.recipe is None:
            continue
        overrides = (*row.overrides, *row.budget.overrides())
        config = whole[row.name] = load_config(row.recipe, TrainConfig, overrides)
        wanted = found.rows[row.name]
        crops = config.steps * config.slices_per_step * config.crops_per_slice
        assert 0.9 * wanted.crops < crops <= wanted.crops
        search = load_config(
            row.recipe, TrainConfig, (*row.overrides, *row.budget.search_overrides())
        )
        assert search.steps == wanted.searched_crops // row.budget.crops_per_step
        assert config.crop == wanted.crop
    shared = ("noise", "schedule", "weight_decay", "clip", "ema", "validation_dose", "cut_bodies")
    assert len({repr([getattr(one, key) for key in shared]) for one in whole.values()}) == 1
    assert whole["red_cnn"].noise.own_share == 1
    # Losses stay the recipe's own.
    assert whole["red_cnn"].loss.error == "mse"
    assert whole["wgan_vgg"].method_options["warm_up"] > 0
    with pytest.raises(CddnetError, match="differ in cncl"):
        session.planned([row for row in rows if row.name != "cncl"], found)


def test_the_documentation_shows_the_plan():
    found = plan.read(REPOSITORY / "benchmarks" / "comparison.yaml")
    text = (REPOSITORY / "docs" / "comparison.md").read_text(encoding="utf-8")
    for cells in plan.table(found):
        assert f"| {' | '.join(cells)} |" in text
    hours = sum(row.core_hours for row in found.rows.values())
    assert f"{hours:.0f} core hours in all" in text


def test_the_table_of_the_plan_counts_training_and_search():
    row = plan.PlannedRow(
        crops=7000,
        searched_crops=1000,
        crop=64,
        slices_per_step=2,
        crops_per_slice=8,
        core_seconds=0.36,
    )
    assert row.core_hours == pytest.approx(1.0)
    assert plan.table(plan.Plan(split="s", rows={"net": row})) == [
        ["net", "7,000", "64", "0.36", "1.0"]
    ]


def test_a_row_is_named_for_what_ran():
    row = runs.Row("wgan_vgg")
    assert runs.label_of(row, {"method": "WGAN + own features"}) == "WGAN + own features"
    assert runs.label_of(row, {"method": "dual_task"}) == "wgan_vgg"
    assert runs.label_of(row, {}) == "wgan_vgg"


def scores(psnr_db):
    return {
        patient: {"PSNR": value, "SSIM": value / 40, "RMSE": 40 - value}
        for patient, value in zip(PATIENTS, psnr_db, strict=True)
    }


COST = session.Cost(macs=5.29e9, parameters=974_397, weights_bytes=3_900_000, seconds=0.25)
LOW_DOSE = scores((30.0, 31.0, 32.0, 33.0))


def result(name, *gains_db, curve=(), against=None):
    trainings = [scores([one["PSNR"] + gain for one in LOW_DOSE.values()]) for gain in gains_db]
    return session.Result(
        row=runs.Row(name, recipe=Path("r.yaml"), against=against),
        label=name,
        weights=("w",) * len(trainings),
        measured=tuple(session.Measured(one, LOW_DOSE, "") for one in trainings),
        curves=tuple(list(curve) for _ in trainings if curve),
        from_tenth_db=0.4,
        rate=3e-5,
        rates=(1e-5, 3e-5, 9e-5),
        training={"recipe": {"steps": 10, "slices_per_step": 4, "crops_per_slice": 4, "crop": 64}},
    )


class Patients:
    count = "4 patients, 8 slices"
    dose_of = "calibrated"

    def ratios(self):
        return {"A": 10.0, "B": 10.0}


def test_the_protocol_says_whose_quarter_dose_was_measured():
    class AtTheirOwn(Patients):
        dose_of = "own"

    assert "25% of the calibrated dose" in session.protocol_text(Patients())
    assert "25% of each series' own dose" in session.protocol_text(AtTheirOwn())


def test_slices_are_measured_at_the_dose_that_was_asked_for(tmp_path, monkeypatch):
    """Each dose has scores of its own, so that two tables do not undo each other."""
    geometry = SliceGeometry(2.5)
    own = OwnNoise(Scanner(photons=1e6), SOFT_KERNEL, geometry)
    hu = np.zeros((32, 32), np.float32)

    def load(side, data, read_all, *, own=None):
        noise = None if own is None else own("volume")
        return {"A": [FullDoseSlice(hu, geometry, "1.2", index, noise) for index in range(4)]}

    (tmp_path / "split.yaml").write_text(
        json.dumps({"collections": [], "train": {}, "validation": {}, "test": {"A": ["a"]}})
    )
    monkeypatch.setattr(measuring, "load_slices", load)
    monkeypatch.setattr(measuring, "own_noise", lambda volume: own)

    def read(dose_of):
        split = tmp_path / "split.yaml"
        return measuring.Test.read(
            split, tmp_path, per_patient=2, lpips_weights=None, dose_of=dose_of
        )

    first, second = read("calibrated"), read("own")
    item = FullDoseSlice(hu, geometry, "1.2", 2, own)
    assert np.array_equal(first.low_doses["A"][1], calibrated_low_dose(item, 0.25))
    assert np.array_equal(second.low_doses["A"][1], own_low_dose(item, 0.25))
    assert second.low_doses["A"][1].std() > 3 * first.low_doses["A"][1].std() > 0
    assert first.kept != second.kept
    assert first.decided != second.decided


def cells(lines, name):
    """Of each table's line that begins with a name."""
    return [[c.strip() for c in x.split("|")[1:-1]] for x in lines if x.startswith(f"| {name}")]


def test_the_comparison_shows_gain_difference_and_what_is_below_the_low_dose():
    rows = [result("cddnet", 2.0, curve=ramp(0)), result("bad", -0.5, curve=ramp(0.1))]
    lines = compare.tables(rows, Patients(), {"cddnet": COST, "bad": COST}, "cddnet")
    text = "\n".join(lines)
    assert "window [-160, 240] HU" in text
    assert "4 patients, 8 slices" in text
    assert "gains 10.00 dB" in text
    assert lines.index(next(x for x in lines if x.startswith("| low dose"))) == 4
    assert cells(lines, "low dose")[0][1:5] == ["31.50", "0.7875", "8.50", "0"]
    good, costs = cells(lines, "cddnet")
    assert good[1:] == ["33.50", "0.8375", "6.50", "+2.00 [+2.00, +2.00]", "", ""]
    assert costs[1:5] == ["5.29", "974,397", "3.90", "0.25"]
    assert costs[5:] == ["160 crops of 64 x 64", "3.0e-05", "+0.40"]
    bad = cells(lines, "bad")[0]
    assert bad[4:6] == ["-0.50 [-0.50, -0.50]", "-2.50 [-2.50, -2.50]"]
    assert bad[6] == "worse than the low dose in PSNR, SSIM, RMSE; not converged (+0.35 dB)"


def test_the_ablation_gives_each_effect_against_its_own_row():
    still = ramp(0)
    rows = [
        result("a", 2.0, 2.1, 2.2, curve=still),
        result("b", 2.5, 2.6, 2.7, curve=still, against="a"),
        result("c", 2.5, 2.6, 2.8, curve=still, against="b"),
        result("d", 1.0, 1.1, 1.2, curve=ramp(0.1), against="a"),
    ]
    lines = ablate.tables(rows, Patients(), dict.fromkeys("abcd", COST))
    assert cells(lines, "a")[0][4].startswith("+2.10 [")
    assert cells(lines, "a")[0][5] == "2.00, 2.10, 2.20"
    # Scores and cost: it is held against nothing.
    assert len(cells(lines, "a")) == 2
    effects = {name: cells(lines, name)[1] for name in "bcd"}
    assert effects["b"][1:3] == ["a", "+0.50 [+0.50, +0.50]"]
    assert effects["b"][-1] == "higher"
    # One training of three differs, by 0.1 dB: t of 2 degrees of freedom at 1/30 is 0.143.
    assert effects["c"][1:3] == ["b", "+0.03 [-0.11, +0.18]"]
    assert effects["c"][-1] == "no effect shown"
    assert effects["d"][-1] == "not converged (d +0.35 dB)"
