"""The training loop: exact after an interruption, equal in one process and several.

Above 300 lines: one loop, and what can stop it on its way.
"""

import json
import math
import sys
import types
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from torch import nn

from cddnet import models
from cddnet.config import ConfigError
from cddnet.errors import CddnetError
from cddnet.training import checkpoint, engine, methods
from cddnet.training.journal import JsonLines
from cddnet.training.methods import frozen
from cddnet.training.processes import Processes, joined
from cddnet.training.sampling import StepBatches, batches
from tiny_training import (
    ALONE,
    Stop,
    Tiny,
    config,
    job,
    slices,
    stopping_at,
    train_shared,
)


def curve(folder):
    """The log without what time decides."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [
        {k: v for k, v in line.items() if k not in ("steps_per_s", "waiting")} for line in lines
    ]


def last(folder):
    return checkpoint.read_latest(folder / engine.CHECKPOINTS)


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def furthest(first, second):
    assert first.keys() == second.keys()
    return max((first[k].double() - second[k].double()).abs().max().item() for k in first)


@pytest.mark.parametrize(
    ("method", "values"),
    [
        ("supervised", {}),
        ("supervised", {"precision": "bfloat16", "clip": 0.01}),
        ("adversarial", {"ema": 0.0}),
    ],
)
def test_an_interrupted_run_ends_with_the_same_bits(method, values, tmp_path):
    """Stopped twice, once between checkpoints: networks, optimisers, average, best, log."""
    chosen = config(checkpoint_every=3, validate_every=2, **values)
    whole = engine.train(job(tmp_path / "whole", chosen, method=method, dropout=0.3))
    broken = tmp_path / "broken"
    for step in (5, 9):
        with pytest.raises(Stop):
            engine.train(stopping_at(step, job(broken, chosen, method=method, dropout=0.3)))
    resumed = engine.train(job(broken, chosen, method=method, dropout=0.3))
    assert (whole.resumed_from, resumed.resumed_from) == (0, 9)
    assert last(tmp_path / "whole").record == last(broken).record == asdict(whole.state)
    assert equal(last(tmp_path / "whole").tensors, last(broken).tensors)
    assert curve(tmp_path / "whole") == curve(broken)
    assert (tmp_path / "whole" / "best.pt").read_bytes() == (broken / "best.pt").read_bytes()
    other = job(tmp_path / "other", chosen.model_copy(update={"seed": 1}), method=method)
    engine.train(other)
    assert not equal(last(tmp_path / "other").tensors, last(broken).tensors)


def test_a_checkpoint_is_written_in_time_however_slow_the_steps_are(tmp_path):
    chosen = config(checkpoint_every=1000, checkpoint_minutes=1e-9)
    with pytest.raises(Stop):
        engine.train(stopping_at(5, job(tmp_path / "run", chosen)))
    assert engine.train(job(tmp_path / "run", chosen)).resumed_from == 5
    rare = config(checkpoint_every=1000)
    with pytest.raises(Stop):
        engine.train(stopping_at(5, job(tmp_path / "other", rare)))
    assert engine.train(job(tmp_path / "other", rare)).resumed_from == 0


def near(first, second):
    """Within 1e-6: at each step of the log, and in the last checkpoint."""
    for ours, theirs in zip(curve(first), curve(second), strict=True):
        assert ours.keys() == theirs.keys()
        assert list(ours.values()) == pytest.approx(list(theirs.values()), rel=1e-7, abs=1e-7)
    return furthest(last(first).tensors, last(second).tensors) < 1e-6


EXACT = {"precision": "float64", "steps": 50, "checkpoint_every": 10, "validate_every": 50}


def test_two_processes_learn_what_one_does_and_one_goes_on_for_them(tmp_path):
    """Float64 keeps the order of the sums from showing."""
    engine.train(job(tmp_path / "one", config(**EXACT), method="adversarial"))
    train_shared(2, tmp_path / "two", EXACT | {"stop_at": 40}, "adversarial")
    engine.train(job(tmp_path / "two", config(**EXACT), method="adversarial"))
    assert near(tmp_path / "one", tmp_path / "two")
    # The curve is not flat, or any would do.
    losses = [line["denoiser"] for line in curve(tmp_path / "one")[:50]]
    assert np.std(losses) > 0.01 * np.mean(np.abs(losses))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["supervised", "adversarial"])
@pytest.mark.parametrize("before", [0, 20])
def test_two_processes_go_on_for_one(method, before, tmp_path):
    engine.train(job(tmp_path / "one", config(**EXACT), method=method))
    if before:
        with pytest.raises(Stop):
            engine.train(stopping_at(before, job(tmp_path / "two", config(**EXACT), method=method)))
    train_shared(2, tmp_path / "two", EXACT, method)
    assert near(tmp_path / "one", tmp_path / "two")


def test_processes_share_the_draws_of_a_step():
    chosen = config(slices_per_step=4, crops_per_slice=3)
    whole = StepBatches(slices(), chosen)
    for step in (1, 2):
        for size in (2, 4):
            parts = [
                StepBatches(slices(), chosen, rank=rank, size=size)[step] for rank in range(size)
            ]
            for maps, whole_map in zip(zip(*parts, strict=True), whole[step], strict=True):
                assert torch.equal(torch.cat(maps), whole_map)
    assert whole[1].low_dose.shape == (12, 1, 16, 16)
    assert not torch.equal(whole[1].low_dose, whole[2].low_dose)
    with pytest.raises(ConfigError, match="multiple"):
        StepBatches(slices(), chosen, rank=0, size=3)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [1, 2])
def test_batches_do_not_depend_on_the_workers(workers):
    dataset = StepBatches(slices(), config())
    for number, pair in enumerate(batches(dataset, range(4, 9), workers=workers, pinned=False), 4):
        assert all(torch.equal(a, b) for a, b in zip(pair, dataset[number], strict=True))


def test_random_numbers_of_samples_do_not_depend_on_the_processes(tmp_path):
    def drawn(rank, size, step=3):
        processes = Processes(device=torch.device("cpu"), rank=rank, size=size)
        wanted = job(tmp_path / "run", config(), processes=processes)
        updates = engine.EngineUpdates(wanted, {}, engine.State(), step)
        return torch.cat([updates.uniform(4 // size, 1, 1, 2) for _ in range(1)])

    whole = drawn(0, 1)
    assert torch.equal(torch.cat([drawn(0, 2), drawn(1, 2)]), whole)
    assert not torch.equal(drawn(0, 1, step=4), whole)
    assert 0 <= whole.min() < whole.max() < 1


def updates_of(wanted, state=None):
    return engine.EngineUpdates(wanted, wanted.method.networks, state or engine.State(), 5)


def test_gradients_are_clipped_to_their_usual_norm(tmp_path):
    """The gradient of a linear loss is its factor; SGD moves by the rate times what is left."""
    wanted = job(tmp_path / "run", config(schedule="constant"))
    weight = nn.Parameter(torch.zeros(4, dtype=torch.float64))
    wanted.method.optimisers = {"denoiser": torch.optim.SGD([weight], lr=1.0)}
    state = engine.State()
    direction = torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    usual = 1.0
    for norm in (0.3, 100.0, 1.2, 40.0):
        before = weight.detach().clone()
        assert updates_of(wanted, state).minimise("denoiser", norm * (weight * direction).sum())
        kept = min(norm, 1.5 * usual)
        assert (before - weight).norm().item() == pytest.approx(kept, rel=1e-4)
        usual += 0.02 * (kept - usual)
        assert state.usual["denoiser"] == pytest.approx(usual, rel=1e-12)


def test_a_gradient_that_is_not_finite_changes_nothing(tmp_path):
    wanted = job(tmp_path / "run", config(schedule="constant"))
    before = {k: v.clone() for k, v in wanted.method.denoiser.state_dict().items()}
    image = torch.ones(1, 1, 16, 16)
    updates = updates_of(wanted)
    output = updates.network("denoiser")(image)
    assert not updates.minimise("denoiser", output.image.sum() * math.nan)
    assert not updates.all_finite
    assert equal(wanted.method.denoiser.state_dict(), before)
    updates = updates_of(wanted)
    assert updates.minimise("denoiser", updates.network("denoiser")(image).image.sum())
    assert updates.all_finite
    assert not equal(wanted.method.denoiser.state_dict(), before)


class SometimesInfinite:
    """A method whose loss is not finite at given steps."""

    def __init__(self, method, steps):
        self._method, self._steps = method, steps
        self.networks, self.optimisers = method.networks, method.optimisers
        self.denoiser = method.denoiser

    def step(self, pair, updates):
        factor = math.inf if updates.step in self._steps else 1.0
        loss = factor * updates.network("denoiser")(pair.low_dose).image.square().mean()
        updates.minimise("denoiser", loss)
        return {"loss": loss}


def test_steps_that_are_not_finite_are_counted_and_at_last_fatal(tmp_path):
    def run(name, bad):
        wanted = job(tmp_path / name, config(give_up_after=3, checkpoint_every=100))
        return engine.train(replace(wanted, method=SometimesInfinite(wanted.method, bad)))

    found = run("some", {2, 3, 6, 7, 9})
    assert (found.state.skipped, found.state.skipped_in_row) == (5, 0)
    assert all(torch.isfinite(value).all() for value in found.denoiser.state_dict().values())
    assert curve(tmp_path / "some")[1]["loss"] is None
    with pytest.raises(engine.TrainingError, match=r"step 8: .* 3 times in a row"):
        run("many", {2, 6, 7, 8})
    assert issubclass(engine.TrainingError, CddnetError)


def test_the_average_follows_the_weights(tmp_path):
    """Recomputed from the weights after each step."""
    wanted = job(tmp_path / "run", config(steps=5, ema=0.5))
    seen = [wanted.method.denoiser.body[0].weight.detach().clone()]

    def watch(what, done, total):
        seen.append(wanted.method.denoiser.body[0].weight.detach().clone())

    averaged = engine.train(replace(wanted, progress=watch)).denoiser.body[0].weight
    expected = seen[0].double()
    for step, weight in enumerate(seen[1:], 1):
        decay = min(0.5, step / (step + 10))
        expected = decay * expected + (1 - decay) * weight
    assert (averaged - expected).abs().max() < 1e-6
    assert (averaged - seen[-1]).abs().max() > 1e-6


def test_counts_of_normalisation_are_kept_with_the_average(tmp_path):
    wanted = job(tmp_path / "run", config(steps=3))
    network = wanted.method.denoiser
    network.body.append(nn.BatchNorm2d(1))
    averaged = engine.train(wanted).denoiser
    assert torch.equal(averaged.body[-1].running_mean, network.body[-1].running_mean)
    assert averaged.body[-1].num_batches_tracked == 3


def test_the_best_is_the_highest_score_so_far(tmp_path):
    scores, kept = [1.0, 3.0, 2.0, 3.0, 5.0, 4.0], []
    given = iter(scores)

    def validation(network):
        score = next(given)
        return engine.Validation(score, {"score": score}, lambda: np.zeros((2, 6), np.float32))

    def keep(network, step, figures):
        kept.append((step, figures["score"]))

    wanted = job(tmp_path / "run", config(steps=11, validate_every=2))
    state = engine.train(replace(wanted, validate=validation, keep_best=keep)).state
    assert kept == [(2, 1.0), (4, 3.0), (10, 5.0)]
    assert (state.best, state.validation) == (5.0, {"score": 4.0})


def test_the_rate_warms_up_and_falls_to_a_hundredth():
    chosen = config(steps=1000)
    rates = [engine.rate(chosen, step) for step in range(1, 1001)]
    assert rates[0] == 0.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert max(rates) == pytest.approx(1.0, rel=1e-3)
    assert rates[-1] == pytest.approx(0.01, abs=1e-4)
    assert engine.rate(config(schedule="constant"), 1) == 1.0


def test_partners_that_are_frozen_pass_gradients_on_and_get_none():
    partner, image = Tiny(), torch.ones(1, 1, 8, 8, requires_grad=True)
    partner.dead.requires_grad_(False)
    with frozen(partner):
        loss = partner(image).image.sum()
    loss.backward()
    assert image.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in partner.parameters())
    assert [p.requires_grad for p in partner.parameters()] == [False] + [True] * 4


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"method": "supervized"}, "did you mean 'supervised'"),
        ({"method_options": {"a": 1}}, "has no options"),
    ],
)
def test_methods_that_do_not_fit_are_refused(values, said):
    with pytest.raises(ConfigError, match=said):
        methods.build(config(**values), Tiny())


@pytest.mark.parametrize("name", methods.names())
def test_every_method_trains_its_denoiser_in_the_way_of_the_engine(name, tmp_path):
    """Its optimisers hold its networks' parameters, its losses are named and finite."""
    chosen = config(method=name, crop=64, steps=2, schedule="constant", seed=3)
    torch.manual_seed(0)
    denoiser = models.build("cddnet", width=4, depth_width=4)
    try:
        method = methods.build(chosen, denoiser)
    except ConfigError as error:
        pytest.skip(f"trains another network, in tests of its own: {error}")
    assert method.denoiser is denoiser
    assert any(denoiser is network for network in method.networks.values())
    known = {id(p) for network in method.networks.values() for p in network.parameters()}
    held = {id(p) for o in method.optimisers.values() for g in o.param_groups for p in g["params"]}
    assert held <= known
    before = {k: v.clone() for k, v in denoiser.state_dict().items()}
    wanted = replace(job(tmp_path / "run", chosen), method=method, slices=slices(2, 72))
    nowhere = engine.Validation(0.0, {}, lambda: np.zeros((2, 6), np.float32))
    state = engine.train(replace(wanted, validate=lambda network: nowhere)).state
    assert state.skipped == 0
    first = {k: v for k, v in curve(tmp_path / "run")[0].items() if "." not in k}
    assert len(first) > 2
    assert all(math.isfinite(value) for value in first.values())
    assert not equal(denoiser.state_dict(), before)


def test_lines_after_a_kill_are_whole(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    lines = JsonLines(tmp_path, last_step=2)
    lines.figures(3, {"loss": 0.1234567891, "bad": math.nan})
    assert [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()] == [
        {"step": 1},
        {"step": 2},
        {"step": 3, "loss": 0.123456789, "bad": None},
    ]


def test_tensorboard_is_asked_for_where_it_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(CddnetError, match=r"cddnet\[tensorboard\]"):
        engine.train(job(tmp_path / "run", config(tensorboard=True)))


def test_curves_and_pictures_reach_tensorboard(tmp_path, monkeypatch):
    """By a writer in its place; the package itself is optional."""
    scalars, images = {}, []

    class Writer:
        def __init__(self, folder):
            assert folder == str(tmp_path / "run" / "tensorboard")

        def add_scalar(self, name, value, step):
            scalars.setdefault(name, []).append((step, value))

        def add_image(self, name, image, step, dataformats):
            images.append((image.shape, step, dataformats))

        def flush(self):
            pass

    module = types.SimpleNamespace(SummaryWriter=Writer)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    engine.train(job(tmp_path / "run", config(steps=4, validate_every=2, tensorboard=True)))
    written = [line for line in curve(tmp_path / "run") if "total" in line]
    assert [step for step, _ in scalars["total"]] == [1, 2, 3, 4]
    assert [value for _, value in scalars["total"]] == pytest.approx(
        [line["total"] for line in written], rel=1e-8
    )
    assert images == [((4, 12), 2, "HW"), ((4, 12), 4, "HW")]


@pytest.mark.parametrize("scores", [[math.nan, math.nan], [math.nan, 1.0], [math.inf, 2.0]])
def test_scores_that_are_no_numbers_end_no_run(scores, tmp_path):
    def run(name, stop_at):
        given = iter(scores if stop_at else scores[1:])

        def validation(network):
            score = next(given)
            return engine.Validation(score, {"score": score}, lambda: np.zeros((2, 6), np.float32))

        wanted = job(tmp_path / name, config(steps=4, validate_every=2, checkpoint_every=2))
        return engine.train(stopping_at(stop_at, replace(wanted, validate=validation)))

    with pytest.raises(Stop):
        run("run", 2)
    best = run("run", None).state.best
    expected = {math.inf: math.inf}.get(scores[0], None if math.isnan(scores[1]) else scores[1])
    assert best == expected


def test_an_accelerator_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="has none"), joined("cuda"):
        pass
    with joined("auto") as found:
        assert (found, found.is_first) == (ALONE, True)
