"""Recipes of the ablation table: rows that can be compared, and that train."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cddnet import models
from cddnet.config import TrainConfig, load_config
from cddnet.training import engine, methods
from tiny_training import job

CONFIGS = Path(__file__).parents[2] / "configs"
ROWS = {path.stem: path for path in sorted((CONFIGS / "ablation").glob("*.yaml"))}
BASELINE = "00_baseline"
STUDIED = {"options", "method", "method_options", "loss", "depth_target"}
every_row = pytest.mark.parametrize("stem", ROWS)


def recipe(stem):
    return load_config(ROWS[stem], TrainConfig)


def head(stem):
    """Name of the row and the row it is compared with, empty for the baseline."""
    name, second = ROWS[stem].read_text(encoding="utf-8").splitlines()[:2]
    against = second.removeprefix("# against: ") if second.startswith("# against: ") else ""
    return name.removeprefix("# "), against


def differing(one, other):
    left, right = recipe(one).decisive(), recipe(other).decisive()
    return {key for key in left if left[key] != right[key]}


@every_row
def test_a_row_is_compared_with_another_at_the_same_budget(stem):
    """What differs is what is studied; the data, the steps and the seed are the same."""
    name, against = head(stem)
    assert name
    if stem == BASELINE:
        assert against == ""
        return
    assert against in ROWS
    assert against < stem
    assert differing(stem, against)
    assert differing(stem, against) <= STUDIED
    assert differing(stem, BASELINE) <= STUDIED


def test_no_row_is_there_twice():
    assert len({head(stem)[0] for stem in ROWS}) == len(ROWS)
    assert all(differing(one, other) for one in ROWS for other in ROWS if one < other)


@pytest.mark.parametrize(
    ("stem", "shipped"),
    [("08_depth_radiological", "train_cddnet"), ("14_cddnet", "train_cddnet_dual_task")],
)
def test_rows_of_the_table_that_are_the_recipes_of_the_project(stem, shipped):
    row, own = recipe(stem), load_config(CONFIGS / f"{shipped}.yaml", TrainConfig)
    assert (ROWS[stem].parent / row.split).resolve() == (CONFIGS / own.split).resolve()
    assert (CONFIGS / own.split).is_file()
    assert _in_full(row) == _in_full(own)


def _in_full(config):
    """With the defaults of the method filled in, without the path of the split and the step at
    which a term of the table begins.
    """
    full = config.decisive()
    if config.method == "dual_task":
        from cddnet.training.methods.dual_task import Options

        full["method_options"] = Options(**config.method_options).model_dump(
            exclude={"refresh_every"}
        )
    return {key: value for key, value in full.items() if key != "split"}


@every_row
def test_a_row_takes_steps_and_learns_what_it_names(stem, tmp_path):
    """In small: two steps of the engine move every network of the method; the depth counts where
    there is one.
    """
    row = recipe(stem)
    small = {"estimator_width": 2, "refresh_every": 1, "player_width": 2}
    chosen = row.model_copy(
        update={
            "options": row.options | {"width": 4, "depth_width": 2},
            "method_options": row.method_options | (small if row.method == "dual_task" else {}),
            "steps": 2,
            "crop": 16,
            "workers": 0,
            "device": "cpu",
            "precision": "float32",
            "log_every": 1,
        }
    )
    torch.manual_seed(0)
    denoiser = models.build(chosen.model, **chosen.options)
    method = methods.build(chosen, denoiser)
    before = {name: _values(network) for name, network in method.networks.items()}
    terms = []

    def step(pair, updates):
        terms.append(type(method).step(method, pair, updates))
        return terms[-1]

    method.step = step
    whole = replace(job(tmp_path / "run", chosen), method=method, validate=_validation)
    engine.train(whole)
    for name, network in method.networks.items():
        after = _values(network)
        assert after.isfinite().all()
        assert name == "encoder" or not torch.equal(before[name], after)
    assert len(terms) == 2
    for term in terms:
        assert all(torch.isfinite(value) for value in term.values())
        assert ("depth" in term) == bool(chosen.options.get("depth_input", True))
        assert ("partner_depth" in term) == (chosen.method == "dual_task")
        asked = chosen.method_options.get("interaction", "none")
        assert ("weighted_image" in term) == (asked != "none")
        assert ("contrast" in term) == (chosen.method_options.get("contrastive", "none") != "none")


def _values(network):
    return torch.cat([parameter.detach().flatten().clone() for parameter in network.parameters()])


def _validation(network):
    return engine.Validation(0.0, {"score": 0.0}, lambda: np.zeros((4, 12), np.float32))
