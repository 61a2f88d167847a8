"""The schemes that train two networks against each other, and the recipes of the rivals.

Above 300 lines: the schemes share their networks and recipes.
"""

import hashlib
from pathlib import Path

import pytest
import safetensors.torch
import torch

from cddnet import models
from cddnet.config import ConfigError, PatientSplit, TrainConfig, load_config
from cddnet.errors import ModelError
from cddnet.models import cncl as cncl_network
from cddnet.models import wgan_vgg as wgan_network
from cddnet.models._features import FeatureNetwork
from cddnet.training import checkpoint, engine, methods
from cddnet.training.engine import EngineUpdates, Job, State
from cddnet.training.methods import cncl, wgan_vgg
from cddnet.training.pairs import Pair
from tiny_training import ALONE, Tiny, config, slices

CONFIGS = Path(__file__).parents[2] / "configs"
SMALL = {"wgan_vgg": {"channels": 3}, "cncl": {"width": 2}}
OPPONENT = {"wgan_vgg": "critic", "cncl": "discriminator"}
PLAIN = {"weight_decay": 0.0, "clip": 0.0, "schedule": "constant", "ema": 0.0, "crop": 32}
every_method = pytest.mark.parametrize("name", ["wgan_vgg", "cncl"])


def chosen(name, **values):
    known = {"model": name, "options": SMALL[name], "method": name}
    return config(**(PLAIN | {"learning_rate": 1e-3, "steps": 3} | known | values))


def built(recipe):
    torch.manual_seed(0)
    denoiser = models.build(recipe.model, **recipe.options)
    return methods.build(recipe, denoiser.to(engine.number_type(recipe)))


def job_of(folder, recipe, method=None):
    folder.mkdir(exist_ok=True)
    return Job(
        config=recipe,
        method=method or built(recipe),
        slices=slices(size=40),
        folder=folder,
        processes=ALONE,
        validate=lambda network: engine.Validation(0.0, {}, lambda: None),
        keep_best=lambda *best: None,
        progress=lambda what, done, total: None,
    )


def pair(kind=torch.float32, count=2):
    """Noise of 50 HU on levels of 40 HU."""
    generator = torch.Generator().manual_seed(1)
    full, noise = torch.randn(2, count, 1, 32, 32, generator=generator).to(kind)
    full = 0.04 * full
    return Pair(full + 0.05 * noise, full, torch.zeros_like(full))


class Watched(EngineUpdates):
    """Updates of one step, with what each began and ended with."""

    def __init__(self, recipe, method, step=1):
        super().__init__(job_of(Path(), recipe, method), dict(method.networks), State(), step)
        self.method, self.taken = method, []

    def minimise(self, name, loss):
        before = {key: weights(network) for key, network in self.method.networks.items()}
        for network in self.method.networks.values():
            network.zero_grad()
        finite = super().minimise(name, loss)
        changed = {
            key
            for key, network in self.method.networks.items()
            if any(not torch.equal(before[key][k], v) for k, v in weights(network).items())
        }
        reached = {
            key
            for key, network in self.method.networks.items()
            if any(p.grad is not None for p in network.parameters())
        }
        self.taken.append((name, reached, changed))
        return finite


def weights(network):
    return {key: value.detach().clone() for key, value in network.named_parameters()}


@every_method
def test_each_update_reaches_its_own_network_alone(name):
    recipe = chosen(name)
    method = built(recipe)
    updates = Watched(recipe, method)
    terms = method.step(pair(), updates)
    opponent = OPPONENT[name]
    inner = 4 if name == "wgan_vgg" else 1
    assert updates.taken == [
        *[(opponent, {opponent}, {opponent})] * inner,
        ("denoiser", {"denoiser"}, {"denoiser"}),
    ]
    assert all(torch.isfinite(term) for term in terms.values())


@pytest.mark.parametrize("count", [1, 3])
def test_the_critic_learns_as_often_as_the_recipe_says(count):
    recipe = chosen("wgan_vgg", method_options={"critic_updates": count})
    method = built(recipe)
    updates = Watched(recipe, method)
    method.step(pair(), updates)
    assert [name for name, *_ in updates.taken] == ["critic"] * count + ["denoiser"]


def test_gradients_of_the_critic_do_not_add_up():
    """With steps of almost nothing, the last gradient of several equals that of the only one."""
    found = []
    for count in (1, 3):
        options = {"critic_updates": count, "penalty": 0.0, "features": "none"}
        recipe = chosen("wgan_vgg", learning_rate=1e-12, method_options=options)
        method = built(recipe)
        method.step(
            pair(), EngineUpdates(job_of(Path(), recipe, method), method.networks, State(), 1)
        )
        found.append(torch.cat([p.grad.flatten() for p in method.critic.parameters()]))
    assert found[0].abs().max() > 0
    assert torch.allclose(*found, rtol=1e-4, atol=1e-4 * found[0].abs().max().item())


@every_method
def test_the_opponent_learns_to_tell_apart_what_can_be(name):
    """By its loss, against a denoiser that stays: noise of 50 HU is to be seen."""
    alone = {"critic_updates": 1, "features": "none"} if name == "wgan_vgg" else {}
    rate = {"wgan_vgg": 3e-4, "cncl": 1e-3}[name]
    recipe = chosen(name, learning_rate=rate, method_options=alone)
    method = built(recipe)
    for group in method.optimisers["denoiser"].param_groups:
        group["lr"] = 0.0
    batch, losses = pair(), []
    shown = job_of(Path(), recipe, method)
    for step in range(1, 21):
        terms = method.step(batch, EngineUpdates(shown, method.networks, State(), step))
        losses.append(terms[OPPONENT[name]].item())
    assert losses[-1] < 0.5 * losses[0]


def ended(folder, recipe):
    engine.train(job_of(folder, recipe))
    return checkpoint.read_latest(folder / engine.CHECKPOINTS).tensors


@every_method
def test_three_steps_change_every_network_and_are_the_same_twice(name, tmp_path):
    recipe = chosen(name)
    before = built(recipe)
    first, second = (ended(tmp_path / run, recipe) for run in ("first", "second"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    # Losses are of differences of scores, and by instance normalisation, of features.
    dead = {"cncl": cncl_network.DEAD_PARAMETERS, "wgan_vgg": ("fc2.bias",)}[name]
    for key, network in before.networks.items():
        for weight, value in network.named_parameters():
            same = torch.equal(first[f"network.{key}.{weight}"], value)
            still = weight in dead or (key == "discriminator" and weight.endswith("bias"))
            assert still or not same, weight


def test_the_generator_of_wgan_warms_up_by_the_mean_absolute_error_alone():
    """Of four steps the first two; then the critic learns, and the denoiser by it."""
    recipe = chosen("wgan_vgg", steps=4, method_options={"warm_up": 0.5})
    method = built(recipe)
    for step in (1, 2, 3):
        updates = Watched(recipe, method, step)
        before = method.denoiser(pair().low_dose).image
        terms = method.step(pair(), updates)
        names = [name for name, *_ in updates.taken]
        if step < 3:
            assert names == ["denoiser"]
            expected = (before - pair().full_dose).abs().mean()
            torch.testing.assert_close(terms["total"], expected)
        else:
            assert names == ["critic"] * 4 + ["denoiser"]


def gradients(network):
    """Those that the last update left; of a norm that nothing depends on, none."""
    found = [p.grad if p.grad is not None else torch.zeros_like(p) for p in network.parameters()]
    return torch.cat([gradient.flatten() for gradient in found])


def expected_gradients(loss, network):
    found = torch.autograd.grad(
        loss, list(network.parameters()), allow_unused=True, materialize_grads=True
    )
    return torch.cat([gradient.flatten() for gradient in found])


def agree(found, expected):
    scale = expected.abs().max().item()
    assert scale > 0
    assert torch.allclose(found, expected, rtol=1e-6, atol=1e-9 * scale)


def after_a_step_of_almost_nothing(name, batch, **options):
    """A method in float64 that took one; its gradients are those of its first weights."""
    recipe = chosen(name, learning_rate=1e-14, precision="float64", method_options=options)
    method = built(recipe)
    shown = job_of(Path(), recipe, method)
    method.step(batch, EngineUpdates(shown, method.networks, State(), 1))
    drawn = EngineUpdates(shown, method.networks, State(), 1).uniform(2, 1, 1, 1)
    return method, drawn


def test_wgan_vgg_learns_by_the_published_losses():
    """Written out here; one grey level is 4096 HU, which is 4 in network range."""
    batch = pair(torch.float64)
    method, share = after_a_step_of_almost_nothing("wgan_vgg", batch, critic_updates=1)
    critic, denoised, real = method.critic, method.denoiser(batch.low_dose).image, batch.full_dose
    own = wgan_vgg.OwnFeatures().double()
    distance = (own(denoised) - own(real)).square().mean()
    loss = -critic(denoised).mean() + 0.1 * distance
    agree(gradients(method.denoiser), expected_gradients(loss, method.denoiser))

    fake = denoised.detach()
    between = (share * real + (1 - share) * fake).requires_grad_()
    (slope,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    penalty = ((4 * slope).square().sum((1, 2, 3)).sqrt() - 1).square().mean()
    loss = critic(fake).mean() - critic(real).mean() + 10 * penalty
    agree(gradients(critic), expected_gradients(loss, critic))


def test_cncl_learns_by_the_published_losses():
    """Written out here; both parts divided by the deviation of the noisy image."""
    batch = pair(torch.float64)
    method, _ = after_a_step_of_almost_nothing("cncl", batch)
    low, full = batch.low_dose, batch.full_dose
    output, judge = method.denoiser(low), method.discriminator
    deviation = low.std(dim=(1, 2, 3), keepdim=True, correction=0)
    content = ((output.image - full) / deviation).abs().mean()
    noise = ((output.estimation - (low - full)) / deviation).abs().mean()
    fooled = (judge(output.image, output.estimation, low) - 1).square().mean()
    loss = fooled + 100 * (content + noise) / 2
    agree(gradients(method.denoiser), expected_gradients(loss, method.denoiser))

    fake = judge(output.image.detach(), output.estimation.detach(), low)
    loss = ((judge(full, low - full, low) - 1).square().mean() + fake.square().mean()) / 2
    agree(gradients(judge), expected_gradients(loss, judge))


def test_what_ran_is_named_for_its_features():
    for features, label in {"own": "WGAN + own features", "none": "WGAN without features"}.items():
        method = built(chosen("wgan_vgg", method_options={"features": features}))
        assert method.label == label
        assert list(method.networks) == ["denoiser", "critic"]
    assert wgan_vgg.Options(features="vgg19", vgg19_file=Path("a")).label == "WGAN-VGG"


def test_own_features_are_those_before_the_decoder_and_pass_gradients_on():
    features = wgan_vgg.OwnFeatures()
    image = pair().low_dose.requires_grad_()
    found = features(image)
    # Padded to 64 pixels; an eighth of them.
    assert found.shape == (2, 96, 8, 8)
    found.sum().backward()
    assert image.grad.abs().max() > 0
    assert all(parameter.grad is None for parameter in features.parameters())
    bottom = features.network.get_submodule("body.bottom")
    decoder = features.network.get_submodule("body.decode2")
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.zero_()
        assert torch.equal(features(image), found)
        next(bottom.parameters()).zero_()
        assert not torch.equal(features(image), found)


@pytest.mark.parametrize(
    ("name", "values", "said"),
    [
        ("wgan_vgg", {"method_options": {"critic_update": 1}}, "did you mean 'critic_updates'"),
        ("wgan_vgg", {"method_options": {"features": "vgg19"}}, "needs vgg19_file"),
        ("wgan_vgg", {"method_options": {"vgg19_file": "a.pth"}}, "nothing else does"),
        ("wgan_vgg", {"loss": {"error": "mse"}}, "losses of its own"),
        ("cncl", {"crop": 24}, "at least 32"),
        ("cncl", {"model": "wgan_vgg", "options": {}}, "set model to cncl"),
    ],
)
def test_recipes_that_do_not_fit_are_refused(name, values, said):
    with pytest.raises(ConfigError, match=said):
        built(chosen(name, **values))


def test_files_that_are_not_vgg19_are_refused(tmp_path):
    path = tmp_path / "vgg19.safetensors"

    def refused(said, **options):
        options = {"features": "vgg19", "vgg19_file": str(path), **options}
        with pytest.raises(ModelError, match=said):
            built(chosen("wgan_vgg", method_options=options))

    refused("cannot be read")
    safetensors.torch.save_file({"features.0.weight": torch.zeros(1)}, path)
    refused("expected dcbb9e9d")
    refused("do not fit", vgg19_sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    path.write_bytes(b"no weights at all")
    refused("no file of weights", vgg19_sha256=hashlib.sha256(path.read_bytes()).hexdigest())


@pytest.mark.slow
def test_features_of_vgg19_are_those_after_its_last_convolution(tmp_path):
    """With weights drawn here: against the layers by hand, on three equal normalised colours."""
    torch.manual_seed(0)
    state, number, before = {}, 0, 3
    for width, depth in ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4)):
        for _ in range(depth):
            state[f"features.{number}.weight"] = (
                torch.randn(width, before, 3, 3) * (2 / (9 * before)) ** 0.5
            )
            state[f"features.{number}.bias"] = torch.zeros(width)
            before, number = width, number + 2
        number += 1
    path = tmp_path / "drawn.safetensors"
    safetensors.torch.save_file(state, path)
    options = {
        "features": "vgg19",
        "vgg19_file": str(path),
        "vgg19_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    method = built(chosen("wgan_vgg", method_options=options))
    image = pair().low_dose
    grey = (image * 1024 + 1024) / 4096
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    features = torch.cat([(grey - m) / s for m, s in zip(mean, std, strict=True)], dim=1)
    last = 0
    for key in (key for key in state if key.endswith("weight")):
        number = int(key.split(".")[1])
        if number == last + 3:
            features = torch.nn.functional.max_pool2d(features, 2)
        features = torch.nn.functional.conv2d(features, state[key], padding=1).relu()
        last = number
    found = method._features(image)
    assert found.shape == (2, 512, 2, 2)
    assert torch.allclose(found, features, rtol=1e-4, atol=1e-5)
    assert isinstance(method._features.network, FeatureNetwork)
    updates = EngineUpdates(
        job_of(tmp_path, chosen("wgan_vgg"), method), method.networks, State(), 1
    )
    assert method.step(pair(), updates)["perceptual"] > 0
    assert method.label == "WGAN-VGG"


@pytest.mark.parametrize("name", ["red_cnn", "wgan_vgg", "cncl"])
def test_the_rivals_have_recipes(name):
    """With the optimisers of their papers, on the patients of the native network."""
    recipe = load_config(CONFIGS / f"train_{name}.yaml", TrainConfig)
    assert recipe.model == name
    load_config(CONFIGS / recipe.split, PatientSplit)
    assert (recipe.learning_rate, recipe.betas) == {
        "red_cnn": (1e-4, (0.9, 0.999)),
        "wgan_vgg": (1e-5, (0.5, 0.9)),
        "cncl": (2e-5, (0.5, 0.999)),
    }[name]
    assert (recipe.weight_decay, recipe.clip, recipe.ema) == (0, 0, 0)
    small = {"red_cnn": {"channels": 2}, "wgan_vgg": {"channels": 2}, "cncl": {"width": 2}}[name]
    method = built(recipe.model_copy(update={"options": {**recipe.options, **small}}))
    assert method.denoiser is method.networks["denoiser"]
    if name == "cncl":
        assert isinstance(method, cncl.ContentNoise)
    if name == "wgan_vgg":
        assert isinstance(method.denoiser, wgan_network.Generator)
        assert method.critic.patch == recipe.crop


def test_a_critic_trains_any_denoiser():
    recipe = chosen("wgan_vgg", model="red_cnn", options={"channels": 2})
    method = methods.build(recipe, Tiny())
    updates = EngineUpdates(job_of(Path(), recipe, method), method.networks, State(), 1)
    assert torch.isfinite(method.step(pair(), updates)["total"])
