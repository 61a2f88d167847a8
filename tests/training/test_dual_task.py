"""Two tasks in turns: each step reaches its own network, and ablations differ in one thing.

Above 300 lines: one method, each term of its loss by itself.
"""

import hashlib
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from cddnet.config import ConfigError
from cddnet.errors import ModelError
from cddnet.losses.interaction import Perception, difference_weights, relative_error
from cddnet.models import cddnet
from cddnet.training import checkpoint, engine, methods
from cddnet.training.methods.dual_task import DualTask, Options
from cddnet.training.pairs import Pair
from tiny_training import Stop, Tiny, config, job, stopping_at, train_shared

EVERYTHING_OFF = {"interaction": "none", "contrastive": "none", "partner_depth": 0.0}
PLAYERS = ("image_player", "depth_player")


def small(seed=0):
    torch.manual_seed(seed)
    return cddnet.build(cddnet.Config(width=4, depth_width=2))


def recipe(method="dual_task", options=None, **values):
    chosen = {"estimator_width": 2, "refresh_every": 1} if options is None else options
    if method == "dual_task":
        chosen = {"estimator_width": 2, "refresh_every": 1} | chosen
    return config(method=method, method_options=chosen, ema=0.0, **values)


def run(folder, chosen):
    """A run of the engine on a small CDD-Net, one picture of which is worth nothing."""

    def validate(network):
        score = float(sum(p.detach().double().sum() for p in network.parameters()))
        return engine.Validation(score, {"score": score}, lambda: np.zeros((4, 12), np.float32))

    whole = replace(job(folder, chosen, method="adversarial"), validate=validate)
    return replace(whole, method=methods.build(chosen, small()))


def pair(seed=0, size=37, kind=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    full_dose = 0.1 * torch.randn(2, 1, size, size, generator=generator, dtype=kind)
    noise = 0.05 * torch.randn(2, 1, size, size, generator=generator, dtype=kind)
    depth = torch.rand(2, 1, size, size, generator=generator, dtype=kind)
    return Pair(full_dose + noise, full_dose, depth)


class Watched:
    """An engine that remembers which networks each update gave a gradient."""

    def __init__(self, method, step=1):
        self._method, self.step, self.reached = method, step, []

    def network(self, name):
        return self._method.networks[name]

    def autocast(self):
        return nullcontext()

    def minimise(self, name, loss):
        for network in self._method.networks.values():
            network.zero_grad(set_to_none=True)
        loss.backward()
        with_gradient = {
            other
            for other, network in self._method.networks.items()
            if any(p.grad is not None for p in network.parameters())
        }
        self.reached.append((name, with_gradient))
        self._method.optimisers[name].step()
        return True

    def uniform(self, *shape):
        raise AssertionError


@pytest.mark.parametrize("interaction", ["none", "fixed", "max_player"])
def test_each_update_reaches_its_own_network_alone(interaction):
    """The other gradients are None, not zero; DE is there first, with a large depth term."""
    method = methods.build(
        recipe(options={"interaction": interaction, "partner_depth": 1.0}), small()
    )
    updates = Watched(method)
    terms = method.step(pair(), updates)
    assert all(reached == {name} for name, reached in updates.reached)
    learned = [name for name, _ in updates.reached]
    assert learned.index("estimator") < learned.index("denoiser")
    assert set(learned) == set(method.optimisers)
    assert (interaction == "max_player") == set(PLAYERS).issubset(learned)
    assert terms["contrast"] > 0
    assert all(torch.isfinite(term) for term in terms.values())


def test_the_partner_depth_reaches_the_image_through_an_estimator_that_stays():
    """Through its own depth alone the image would have no gradient: the two are apart."""
    gradients = []
    for weight in (0.0, 1.0):
        chosen = recipe(
            options=EVERYTHING_OFF | {"partner_depth": weight},
            loss={"image": 0, "local_mean": 0, "depth": 0},
        )
        method = methods.build(chosen, small())
        method.step(pair(), Watched(method))
        gradients.append(method.denoiser.body.leave.weight.grad.abs().max().item())
        assert all(p.requires_grad for p in method.networks["estimator"].parameters())
    assert gradients[0] == 0 < gradients[1]


def test_each_error_weights_the_other_task():
    """By hand, with DE as it is before and after its update."""
    method = methods.build(recipe(learning_rate=1e-2), small())
    one, estimator = pair(), method.networks["estimator"]
    perception = Perception()
    with torch.no_grad():
        restored = method.denoiser(one.low_dose).image
        before = estimator(restored)
    terms = method.step(one, Watched(method))
    with torch.no_grad():
        after = estimator(restored)
    assert not torch.equal(before, after)
    by_image = difference_weights(restored, one.full_dose, perception)
    by_depth = difference_weights(after, one.depth, perception)
    noise = (one.low_dose - one.full_dose).abs().mean((1, 2, 3), keepdim=True)
    relative = 50 / 1024 / (noise + 30 / 1024) * (restored - one.full_dose).abs()
    expected = {
        "estimator": (before - one.depth).abs().mean(),
        "weighted_depth": (by_image * (before - one.depth).abs()).mean(),
        "partner_depth": (after - one.depth).abs().mean(),
        "weighted_image": (by_depth * relative).mean(),
    }
    for name, value in expected.items():
        assert terms[name].item() == pytest.approx(value.item(), rel=1e-5), name
    assert terms["total"].item() == pytest.approx(
        (
            terms["image"]
            + 0.5 * terms["local_mean"]
            + 0.01 * terms["depth"]
            + terms["weighted_image"]
            + 0.01 * terms["partner_depth"]
            + 0.01 * terms["contrast"]
        ).item(),
        rel=1e-5,
    )


def test_players_climb_towards_the_errors():
    """What each weighs stays above the plain mean error, from which it starts."""
    chosen = recipe(options={"interaction": "max_player"}, learning_rate=1e-2)
    method = methods.build(chosen, small())
    one = pair()
    terms = [method.step(one, Watched(method, step)) for step in range(1, 31)]
    with torch.no_grad():
        restored = method.denoiser(one.low_dose).image
        errors = {
            "image_player": relative_error(restored, one.full_dose),
            "depth_player": relative_error(method.networks["estimator"](restored), one.depth),
        }
        for name, relative in errors.items():
            assert (method.networks[name](relative) * relative).mean() > 1.1, name
    assert terms[0]["weighted_depth"].item() == pytest.approx(terms[0]["estimator"].item())


@pytest.mark.parametrize("interaction", ["fixed", "max_player"])
def test_three_steps_change_every_network_and_repeat_to_the_bit(interaction, tmp_path):
    chosen = recipe(options={"interaction": interaction}, steps=3, learning_rate=1e-2)
    runs = [run(tmp_path / name, chosen) for name in ("one", "two")]
    before = {
        name: {key: value.clone() for key, value in network.state_dict().items()}
        for name, network in runs[0].method.networks.items()
    }
    for one in runs:
        engine.train(one)
    for name, network in runs[0].method.networks.items():
        now, again = network.state_dict(), runs[1].method.networks[name].state_dict()
        assert all(torch.equal(now[key], again[key]) for key in now)
        same = {key for key in now if torch.equal(now[key], before[name][key])}
        # A softmax does not see a constant.
        assert same <= {"score.bias"}, name


def test_with_everything_off_the_denoiser_is_that_of_supervised_to_the_bit(tmp_path):
    final = []
    for method, options in (
        ("supervised", {}),
        ("dual_task", EVERYTHING_OFF),
        ("dual_task", EVERYTHING_OFF | {"partner_depth": 0.5}),
        ("dual_task", EVERYTHING_OFF | {"interaction": "fixed"}),
        ("dual_task", EVERYTHING_OFF | {"contrastive": "own"}),
    ):
        chosen = recipe(method, options, steps=3, clip=0, learning_rate=1e-2)
        whole = run(tmp_path / str(len(final)), chosen)
        engine.train(whole)
        final.append(torch.cat([p.detach().flatten() for p in whole.method.denoiser.parameters()]))
    same = [torch.equal(final[0], other) for other in final[1:]]
    assert same == [True, False, False, False]


@pytest.mark.parametrize("interaction", ["fixed", "max_player"])
def test_an_interrupted_run_ends_with_the_same_bits(interaction, tmp_path):
    """Stopped where the copied encoder is older than the denoiser."""
    chosen = recipe(
        options={"interaction": interaction, "refresh_every": 3},
        steps=6,
        checkpoint_every=1,
        validate_every=6,
    )
    engine.train(run(tmp_path / "whole", chosen))
    with pytest.raises(Stop):
        engine.train(stopping_at(4, run(tmp_path / "broken", chosen)))
    engine.train(run(tmp_path / "broken", chosen))
    whole, broken = (
        checkpoint.read_latest(tmp_path / name / engine.CHECKPOINTS).tensors
        for name in ("whole", "broken")
    )
    assert whole.keys() == broken.keys()
    assert any(key.startswith("network.encoder.") for key in whole)
    assert all(torch.equal(whole[key], broken[key]) for key in whole)


def test_the_encoder_is_copied_on_time_and_the_term_begins_with_it():
    method = methods.build(recipe(options={"refresh_every": 2}, learning_rate=1e-2), small())
    copied = method.networks["encoder"].network
    contrasts, ages = [], []
    for step in range(1, 5):
        before = [p.detach().clone() for p in method.denoiser.parameters()]
        contrasts.append(method.step(pair(), Watched(method, step))["contrast"].item())
        ages.append(all(map(torch.equal, copied.parameters(), before)))
    assert ages == [True, True, False, True]
    assert contrasts[0] == 0
    assert min(contrasts[1:]) > 0


def test_both_tasks_learn():
    """On one batch of smooth images: the depth and the image both come nearer."""
    method = methods.build(recipe(learning_rate=1e-2), small())
    one = pair(size=48)
    full_dose, depth = (nn.functional.avg_pool2d(maps, 15, 1, 7) for maps in one[1:3])
    one = Pair(full_dose + one.low_dose - one.full_dose, full_dose, depth)
    terms = [method.step(one, Watched(method, step)) for step in range(1, 31)]
    for name in ("estimator", "partner_depth", "image", "contrast"):
        assert terms[-1][name] < 0.8 * terms[0][name], name


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"cap": 1.0}, "cap"),
        ({"temperature": 0}, "temperature"),
        ({"smoothing": 4}, "odd"),
        ({"contrastive": "vgg19"}, "needs vgg19_file"),
        ({"vgg19_file": "vgg19.pth"}, "nothing else does"),
        ({"interaction": "fix"}, "max_player"),
        ({"temprature": 1}, "did you mean 'temperature'"),
    ],
)
def test_what_is_wrong_with_the_options_is_named(options, named):
    with pytest.raises(ConfigError, match=named):
        methods.build(recipe(options=options), small())


def test_a_denoiser_without_that_encoder_is_refused_and_trains_without_it():
    with pytest.raises(ConfigError, match="Tiny"):
        methods.build(recipe(), Tiny())
    method = methods.build(recipe(options={"contrastive": "none"}), Tiny())
    terms = method.step(pair(), Watched(method))
    assert "contrast" not in terms
    assert isinstance(method, DualTask)


@pytest.fixture
def vgg19(tmp_path):
    """A file of random weights under torchvision's keys."""
    generator = torch.Generator().manual_seed(0)
    state, number, before = {}, 0, 3
    for width, depth in ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4)):
        for _ in range(depth):
            drawn = torch.randn(width, before, 3, 3, generator=generator)
            state[f"features.{number}.weight"] = drawn * (2 / (9 * before)) ** 0.5
            state[f"features.{number}.bias"] = torch.zeros(width)
            before, number = width, number + 2
        number += 1
    path = tmp_path / "mine.pth"
    torch.save(state, path)
    return path


@pytest.mark.slow
def test_vgg19_comes_from_the_file_that_was_meant(vgg19):
    """It is shown the window from -700 to 300 HU as 0 to 1 in three colours."""
    options = {"contrastive": "vgg19", "vgg19_file": str(vgg19)}
    options["vgg19_sha256"] = hashlib.sha256(vgg19.read_bytes()).hexdigest()
    method = methods.build(recipe(options=options), Tiny())
    terms = method.step(pair(), Watched(method))
    assert "encoder" not in method.networks
    assert 0 < terms["contrast"] <= Options().largest_ratio
    found = method._features(torch.tensor([-700.0, 300.0] * 512).reshape(1, 1, 32, 32) / 1024)
    mean = torch.tensor([0.485, 0.456, 0.406]).reshape(1, 3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).reshape(1, 3, 1, 1)
    grey = torch.tensor([0.0, 1.0] * 512).reshape(1, 1, 32, 32)
    first = torch.load(vgg19)["features.0.weight"]
    expected = nn.functional.conv2d((grey - mean) / std, first, padding=1).relu()
    assert len(found) == 5
    assert torch.allclose(found[0], expected, rtol=1e-4, atol=1e-4)


def test_files_that_are_not_vgg19_are_refused(tmp_path):
    path = tmp_path / "vgg19.pth"

    def refused(said, **options):
        given = {"contrastive": "vgg19", "vgg19_file": str(path)} | options
        with pytest.raises(ModelError, match=said):
            methods.build(recipe(options=given), small())

    refused("cannot be read")
    torch.save({"features.0.weight": torch.zeros(1)}, path)
    refused(f"expected {Options().vgg19_sha256}")
    refused("do not fit", vgg19_sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    path.write_bytes(b"no weights at all")
    refused("no file of weights", vgg19_sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    torch.save([1], path)
    refused("no table", vgg19_sha256=hashlib.sha256(path.read_bytes()).hexdigest())


@pytest.mark.slow
@pytest.mark.parametrize("interaction", ["fixed", "max_player"])
def test_two_processes_learn_what_one_does(interaction, tmp_path):
    """Every term is a mean over images, each weighted by itself; float64 hides the sums' order."""
    values = {
        "method": "dual_task",
        "method_options": {
            "interaction": interaction,
            "contrastive": "none",
            "estimator_width": 2,
        },
        "precision": "float64",
        "steps": 20,
    }
    engine.train(job(tmp_path / "one", config(**values)))
    train_shared(2, tmp_path / "two", values, "dual_task")
    one, two = (
        checkpoint.read_latest(tmp_path / name / engine.CHECKPOINTS).tensors
        for name in ("one", "two")
    )
    assert one.keys() == two.keys()
    for key, value in one.items():
        assert torch.allclose(value.double(), two[key].double(), rtol=0, atol=1e-6), key
