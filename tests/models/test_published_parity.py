"""Networks of other authors against outputs of their code; see tests/golden/README.md.

Above 300 lines: the networks share the golden outputs and their filling.
"""

import json
import runpy
from dataclasses import asdict
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from cddnet import __version__, models
from cddnet.errors import ModelError
from cddnet.models import _depth_estimator, _ra_depth, _weights, cncl, red_cnn, wgan_vgg
from cddnet.workflows._complexity import count_flops

GOLDEN = Path(__file__).parents[1] / "golden"
FILL = runpy.run_path(str(GOLDEN / "fill.py"))
PUBLISHED_SHAPES = json.loads((GOLDEN / "state_dict_keys.json").read_text())
HU_PER_UNIT = 1024

SHAPES = {
    "dn": (1, 3, 64, 64),
    "ra_depth": (1, 3, 64, 96),
    "red_cnn": (1, 1, 40, 48),
    "wgan_vgg.generator": (1, 1, 40, 48),
    "wgan_vgg.critic": (2, 1, 64, 64),
    "cncl.generator": (1, 1, 48, 64),
    "cncl.discriminator": (1, 2, 64, 64),
    "cncl.discriminator.1": (1, 1, 64, 64),
}
LOADERS = {
    "depth_estimator": _depth_estimator.from_published,
    "ra_depth.encoder": lambda state: (
        _ra_depth.from_published(state, golden_weights("ra_depth.decoder")).encoder
    ),
    "ra_depth.decoder": lambda state: (
        _ra_depth.from_published(golden_weights("ra_depth.encoder"), state).decoder
    ),
    "red_cnn": red_cnn.from_published,
    "wgan_vgg.generator": wgan_vgg.from_published,
    "wgan_vgg.critic(patch=64)": lambda state: wgan_vgg.critic_from_published(state, 64),
    "cncl.generator": cncl.from_published,
    "cncl.discriminator": cncl.discriminator_from_published,
}
# Those of CNCL's generator take seconds to fill: what it shares with the others is tested there.
QUICK = [name for name in LOADERS if name != "cncl.generator"]


@pytest.fixture(scope="module")
def expected():
    with np.load(GOLDEN / "published_parity.npz") as archive:
        return {name.removesuffix(".output"): archive[name] for name in archive.files}


@cache
def filled(name):
    return {
        key: torch.from_numpy(np.asarray(FILL["parameter"](key, shape)))
        for key, shape in PUBLISHED_SHAPES[name].items()
    }


def golden_weights(name):
    return {key: values.clone() for key, values in filled(name).items()}


def golden_input(case):
    values = FILL["uniform"](f"input.{case}", SHAPES[case]).astype(np.float32)
    return torch.from_numpy(values)


def golden_network(case):
    if case == "ra_depth":
        parts = (golden_weights(f"ra_depth.{part}") for part in ("encoder", "decoder"))
        return _ra_depth.from_published(*parts)
    name = {"dn": "depth_estimator", "wgan_vgg.critic": "wgan_vgg.critic(patch=64)"}.get(case, case)
    # Uncached where 175 MB would stay in memory.
    weights = filled.__wrapped__(name) if case == "cncl.generator" else filled(name)
    return LOADERS[name](weights)


def output_of(network, case):
    inputs = [golden_input(case)]
    if case == "cncl.discriminator":
        inputs.append(golden_input("cncl.discriminator.1"))
    with torch.no_grad():
        return getattr(network, "published_forward", network)(*inputs).numpy()


def share_of_tolerance(actual, golden):
    """Largest deviation, in units of the larger of 1e-4 of range and 1e-5 of magnitude."""
    assert actual.shape == golden.shape
    tolerance = max(1e-4 * np.ptp(golden), 1e-5 * np.abs(golden).max())
    return np.abs(actual - golden).max() / tolerance


@pytest.mark.parametrize("case", [case for case in SHAPES if case != "cncl.discriminator.1"])
def test_published_output_has_parity(case, expected):
    assert share_of_tolerance(output_of(golden_network(case), case), expected[case]) < 1


def moved_unnoticed(network, case, golden, keys):
    """Keys whose weights, moved by a twentieth, leave the output within tolerance."""
    assert share_of_tolerance(output_of(network, case), golden) < 1
    unnoticed, state = set(), network.state_dict()
    for key in keys:
        original = state[key].clone()
        state[key].add_(0.05 if original.is_floating_point() else 1)
        if share_of_tolerance(output_of(network, case), golden) < 1:
            unnoticed.add(key)
        state[key].copy_(original)
    return unnoticed


@pytest.mark.parametrize(
    ("case", "without_effect"),
    [
        ("red_cnn", set()),
        ("wgan_vgg.generator", set()),
        ("wgan_vgg.critic", set()),
        # What an instance normalisation takes off again.
        ("cncl.discriminator", {"model.2.bias", "model.5.bias", "model.8.bias"}),
    ],
)
def test_parity_is_lost_when_any_weight_moves(case, without_effect, expected):
    network = golden_network(case)
    keys = list(network.state_dict())
    assert moved_unnoticed(network, case, expected[case], keys) == without_effect


@pytest.mark.parametrize("case", ["dn", "ra_depth"])
def test_parity_is_lost_when_one_weight_in_many_moves(case, expected):
    network = golden_network(case)
    keys = [key for key, values in network.state_dict().items() if values.ndim == 4]
    assert moved_unnoticed(network, case, expected[case], keys[:: len(keys) // 16]) == set()


@pytest.mark.parametrize("name", QUICK)
def test_keys_and_shapes_are_the_published_ones_in_their_order(name):
    state = LOADERS[name](golden_weights(name)).state_dict()
    shapes = [(key, list(values.shape)) for key, values in state.items()]
    assert shapes == list(PUBLISHED_SHAPES[name].items())


def test_keys_of_cncl_are_the_published_ones_in_their_order():
    with torch.device("meta"):
        state = models.build("cncl").state_dict()
    shapes = [(key, list(values.shape)) for key, values in state.items()]
    assert shapes == list(PUBLISHED_SHAPES["cncl.generator"].items())


@pytest.mark.parametrize("name", QUICK)
def test_loaded_weights_are_a_copy_and_may_be_of_a_wrapped_network(name):
    weights = golden_weights(name)
    network = LOADERS[name]({f"module.{key}": values for key, values in weights.items()})
    assert not any(module.training for module in network.modules())
    for values in weights.values():
        values.add_(1)
    state, original = network.state_dict(), golden_weights(name)
    assert all(torch.equal(state[key], values) for key, values in original.items())


@pytest.mark.parametrize("name", list(LOADERS))
def test_refuses_weights_of_another_network(name):
    other = "cncl.discriminator" if name == "red_cnn" else "red_cnn"
    with pytest.raises(ModelError, match=r"not weights of .*missing .*unexpected") as refusal:
        LOADERS[name](golden_weights(other))
    assert "not a whole checkpoint" in str(refusal.value)


def without_first(weights, key):
    del weights[key]


def with_another_shape(weights, key):
    weights[key] = weights[key][..., None]


def with_a_number(weights, key):
    weights[key] = 0.5


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without_first, r"1 missing \({key}\)\. Pass"),
        (with_another_shape, r"1 of another shape \({key} \(.*, 1\) instead of \(.*\)\. Pass"),
        (with_a_number, r"1 of another shape \({key} float instead of \(.*\)\. Pass"),
    ],
)
@pytest.mark.parametrize("name", ["depth_estimator", "ra_depth.encoder", "wgan_vgg.generator"])
def test_refuses_damaged_weights_by_key(name, damage, message):
    weights = golden_weights(name)
    key = next(iter(weights))
    damage(weights, key)
    with pytest.raises(ModelError, match=message.replace("{key}", key.replace(".", r"\."))):
        LOADERS[name](weights)


def test_the_size_of_training_pictures_in_an_encoder_file_is_no_weight():
    encoder = {**golden_weights("ra_depth.encoder"), "height": 192, "width": 640}
    network = _ra_depth.from_published(encoder, golden_weights("ra_depth.decoder"))
    assert set(network.encoder.state_dict()) == set(PUBLISHED_SHAPES["ra_depth.encoder"])


# Costs, on tensors that hold nothing.


def on_meta(build, *arguments):
    with torch.device("meta"):
        return build(*arguments).eval()


def count_parameters(network):
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(
    ("name", "channels", "giga_macs"),
    [
        ("cddnet_published", 3, 102.30),
        ("red_cnn", 1, 458.40),
        ("wgan_vgg", 1, 14.65),
        ("cncl", 1, 290.36),
    ],
)
def test_multiply_accumulates_of_a_slice_are_the_known_ones(name, channels, giga_macs):
    network = on_meta(models.build, name)
    macs = count_flops(network, torch.empty(1, channels, 512, 512, device="meta")) / 2
    if name == "cddnet_published":
        # The known figure leaves out the two fixed Laplacians of 8 channels.
        macs -= 2 * 8 * 9 * 512**2
    assert round(macs / 1e9, 2) == giga_macs


def test_training_only_networks_cost_what_is_known():
    depth = on_meta(_depth_estimator.build, _depth_estimator.Config())
    discriminator = on_meta(cncl.build_discriminator, cncl.Config())
    teacher = on_meta(_ra_depth.build, _ra_depth.Config())
    assert count_parameters(depth) == 1_980_283
    assert count_parameters(discriminator) == 2_764_736
    assert count_parameters(teacher) == 9_978_849
    picture = torch.empty(1, 3, 512, 512, device="meta")
    assert round(count_flops(depth, picture) / 2e9, 1) == 52.0
    assert round(count_flops(teacher, picture) / 2e9, 1) == 22.5


@pytest.mark.parametrize(
    ("patch", "parameters"), [(64, 7_699_905), (77, 13_991_361), (84, 13_991_361)]
)
def test_critic_has_the_size_of_its_patch(patch, parameters):
    critic = on_meta(wgan_vgg.build_critic, wgan_vgg.Config(), patch)
    assert count_parameters(critic) == parameters
    assert critic(torch.empty(2, 1, patch, patch, device="meta")).shape == (2, 1)


def test_smallest_patch_of_the_critic_is_the_smallest_that_works():
    critic = wgan_vgg.build_critic(wgan_vgg.Config(), 29)
    with torch.no_grad():
        assert critic(torch.zeros(1, 1, 29, 29)).isfinite().all()
    with pytest.raises(ModelError, match="at least 29"):
        wgan_vgg.build_critic(wgan_vgg.Config(), 28)
    with pytest.raises(RuntimeError):
        critic.net(torch.zeros(1, 1, 28, 28))
    with pytest.raises(ModelError, match="build it for that size"):
        critic(torch.zeros(1, 1, 30, 30))


# Range: network range outside, the published one inside.


def ct_like(*size, seed=5):
    """Air and tissue with noise, in network range, with values below -1024 HU."""
    generator = torch.Generator().manual_seed(seed)
    body = torch.zeros(size)
    body[..., : size[-1] // 3] = -1.0
    return body + 0.05 * torch.randn(size, generator=generator)


@pytest.mark.parametrize(
    ("model", "case"), [(red_cnn, "red_cnn"), (wgan_vgg, "wgan_vgg.generator")]
)
@pytest.mark.parametrize("range_hu", [(-1024, 3072), (-160, 240)])
def test_the_network_sees_the_range_it_was_trained_in(model, case, range_hu):
    lowest_hu, highest_hu = range_hu
    config = model.Config(lowest_hu=lowest_hu, highest_hu=highest_hu)
    network, image = model.from_published(golden_weights(case), config), ct_like(1, 1, 33, 47)
    grey = (image.double() * HU_PER_UNIT - lowest_hu) / (highest_hu - lowest_hu)
    with torch.no_grad():
        inside = network.double().published_forward(grey)
        found = network(image.double()).image * HU_PER_UNIT
    known = inside * (highest_hu - lowest_hu) + lowest_hu
    assert (found - known).abs().max() < 1e-9 * known.abs().max()


@pytest.mark.parametrize("final_relu", [False, True])
def test_red_cnn_without_a_change_gives_the_image_but_for_its_relu(final_relu):
    network = red_cnn.build(red_cnn.Config(channels=8, final_relu=final_relu))
    image = ct_like(1, 1, 33, 47)
    with torch.no_grad():
        for values in network.tconv5.parameters():
            values.zero_()
        denoised = network(image).image
    known = image.clamp(min=-1.0) if final_relu else image
    assert (image < -1.0).any()
    assert (denoised - known).abs().max() < 1e-6


def test_published_relu_of_wgan_ends_at_the_lowest_hu():
    weights = golden_weights("wgan_vgg.generator")
    weights["net.14.bias"] -= 10
    image = ct_like(1, 1, 33, 47)
    with torch.no_grad():
        floored = wgan_vgg.from_published(weights)(image).image
        free = wgan_vgg.from_published(weights, wgan_vgg.Config())(image).image
    assert torch.equal(floored, torch.full_like(image, -1.0))
    assert (free < -2.0).all()


def narrow_cncl(**options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        network = cncl.build(cncl.Config(width=4, **options)).double().eval()
        for parameter in network.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    return network


@pytest.mark.parametrize(("normalisation", "scales"), [("deviation", True), ("variance", False)])
def test_cncl_follows_brightness_and_with_the_deviation_contrast(normalisation, scales):
    network, image = narrow_cncl(normalisation=normalisation), ct_like(2, 1, 33, 47).double()
    with torch.no_grad():
        plain, brighter, steeper = network(image), network(image + 0.3), network(2 * image)
    assert (brighter.image - plain.image - 0.3).abs().max() < 1e-9
    assert (brighter.estimation - plain.estimation).abs().max() < 1e-9
    same_image = (steeper.image - 2 * plain.image).abs().max() < 1e-9
    same_noise = (steeper.estimation - 2 * plain.estimation).abs().max() < 1e-9
    assert bool(same_image) == bool(same_noise) == scales


@pytest.mark.parametrize("normalisation", cncl.NORMALISATIONS)
def test_cncl_sees_what_its_normalisation_says(normalisation):
    network, image = narrow_cncl(normalisation=normalisation), ct_like(1, 1, 32, 48).double()
    hu = image.numpy() * HU_PER_UNIT
    divisor = hu.std() if normalisation == "deviation" else hu.var()
    with torch.no_grad():
        inside = network.published_forward(torch.from_numpy((hu - hu.mean()) / divisor)).numpy()
        found = network(image)
    content_hu, noise_hu = inside[:, :1] * divisor + hu.mean(), inside[:, 1:] * divisor
    assert np.abs(found.image.numpy() * HU_PER_UNIT - content_hu).max() < 1e-6
    assert np.abs(found.estimation.numpy() * HU_PER_UNIT - noise_hu).max() < 1e-6


def test_cncl_content_is_the_fusion_of_content_and_what_noise_leaves():
    network, normalised = narrow_cncl(), ct_like(1, 1, 32, 48).double()
    with torch.no_grad():
        network.final_conv.weight.copy_(torch.tensor([0.0, 1.0]).view(1, 2, 1, 1))
        network.final_conv.bias.zero_()
        content, noise = network.published_forward(normalised).chunk(2, dim=1)
    assert noise.abs().max() > 1e-3
    assert (content + noise - normalised).abs().max() < 1e-12


def test_cncl_discriminator_sees_what_the_generator_gave():
    config = cncl.Config(width=4)
    generator, noisy = narrow_cncl(), ct_like(1, 1, 64, 64).double()
    discriminator = cncl.build_discriminator(config).double().eval()
    statistics = generator.normaliser.statistics(noisy)
    with torch.no_grad():
        normalised = generator.normaliser.normalise(noisy, statistics)
        pair, output = generator.published_forward(normalised), generator(noisy)
        inside = discriminator.published_forward(pair, normalised)
        outside = discriminator(output.image, output.estimation, noisy)
    assert inside.shape == (1, 1, 4, 4)
    assert (inside - outside).abs().max() < 1e-9 * inside.abs().max()


def test_impossible_options_are_refused():
    with pytest.raises(ModelError, match="choose one of: deviation, variance"):
        models.build("cncl", normalisation="median")
    with pytest.raises(ModelError, match="lowest_hu must be below"):
        models.build("red_cnn", lowest_hu=240.0, highest_hu=-160.0)


@pytest.mark.parametrize("name", ["red_cnn", "wgan_vgg", "cncl"])
@pytest.mark.parametrize("shape", [(1, 3, 24, 24), (1, 24, 24), (1, 1, 0, 24)])
def test_refuses_images_of_another_form(name, shape):
    network = on_meta(models.build, name)
    with pytest.raises(ModelError, match=r"give it \(B, 1, H, W\)"):
        network(torch.empty(shape, device="meta"))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("red_cnn", {"channels": 4, "final_relu": True, "lowest_hu": -160.0, "highest_hu": 240.0}),
        ("wgan_vgg", {"channels": 4, "lowest_hu": -300.0, "highest_hu": 300.0}),
        ("cncl", {"width": 4, "normalisation": "variance"}),
    ],
)
def test_the_card_keeps_the_range(name, options, tmp_path):
    network, image = models.build(name, **options).eval(), ct_like(1, 1, 33, 47)
    weights = tmp_path / f"{name}.safetensors"
    card = {"name": f"{name}@1", "model": name, "version": __version__}
    _weights.save(network, weights, **card, options=asdict(network.config))
    loaded, found = _weights.load(weights)
    assert options.items() <= found.options.items()
    with torch.no_grad():
        assert torch.equal(loaded(image).image, network(image).image)


# Training only.


def test_training_only_networks_are_not_among_the_denoisers():
    assert {"red_cnn", "wgan_vgg", "cncl"} <= set(models.names())
    for name in ("depth_estimator", "_depth_estimator", "ra_depth", "_ra_depth"):
        assert name not in models.names()
        with pytest.raises(ModelError, match="choose one of"):
            models.build(name)


@pytest.mark.parametrize("case", ["dn", "ra_depth"])
def test_depth_of_any_size_is_that_of_the_padded_image(case):
    network = golden_network(case)
    image = golden_input(case)[..., :45, :51]
    padded = functional.pad(image, (0, 13, 0, 19), mode="replicate")
    with torch.no_grad():
        depth, of_padded = network(image), network(padded)
    assert depth.shape == (1, 1, 45, 51)
    if case == "ra_depth":
        assert torch.equal(depth, of_padded[..., :45, :51])
        assert (depth > 0).all()
        assert (depth < 1).all()
    with torch.no_grad():
        assert network(image[..., :1, :1]).shape == (1, 1, 1, 1)
    with pytest.raises(ModelError, match=r"give it \(B, 3, H, W\)"):
        network(image[:, :1])
