"""Laws that every network keeps. A new file in cddnet/models is tested here without a change."""

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from cddnet import models, plugins
from cddnet.errors import ModelError

COUNTS = Path(__file__).with_name("parameter_counts.json")
# Laws of form do not need the full width: 43 million parameters would take minutes.
NARROW = {"cncl": {"width": 8}, "red_cnn": {"channels": 8}}
NAMES = models.names()
SHARED_FORWARD = [
    name for name in NAMES if not getattr(plugins.load("models", name), "PUBLISHED_FORWARD", False)
]


def learns(name):
    """Whether a network has parameters; filters that learn nothing have no gradient either."""
    with torch.device("meta"):
        return any(True for _ in models.build(name).parameters())


LEARNED = [name for name in SHARED_FORWARD if learns(name)]
every_network = pytest.mark.parametrize("name", NAMES)
every_shared = pytest.mark.parametrize("name", SHARED_FORWARD)
every_learned = pytest.mark.parametrize("name", LEARNED)


def seeded(name, **options):
    """Network with fresh weights, the same on each call, and the global generator untouched."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        return models.build(name, **options)


def stirred(name):
    """Fresh network with every parameter moved a little, away from zeros set on purpose."""
    network = seeded(name, **NARROW.get(name, {}))
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    return network


def noise_image(*shape, seed=3):
    """Soft tissue with noise of about 50 HU, in network range."""
    return 0.05 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def extreme_image():
    """From -1024 HU to 30000 HU between neighbours, plus noise, in network range."""
    rows, columns = torch.meshgrid(torch.arange(40), torch.arange(56), indexing="ij")
    checker = ((rows // 5 + columns // 7) % 2).float()
    return (-1024 + checker * 31024)[None, None] / 1024 + noise_image(1, 1, 40, 56)


def present(output):
    return [field for field in output if field is not None]


@every_shared
@pytest.mark.parametrize("size", [(1, 1), (1, 37), (2, 3), (33, 47), (64, 64), (250, 255)])
def test_any_size_comes_back_in_that_size(name, size):
    image = noise_image(1, 1, *size)
    with torch.no_grad():
        output = stirred(name).eval()(image)
    for field in present(output):
        assert field.shape == image.shape
        assert field.isfinite().all()


@every_learned
def test_every_parameter_gets_a_gradient(name):
    network = stirred(name).train()
    network(noise_image(2, 1, 33, 47)).image.square().mean().backward()
    dead = getattr(plugins.load("models", name), "DEAD_PARAMETERS", ())
    without = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert tuple(without) == tuple(dead)


@pytest.mark.parametrize("name", [name for name in SHARED_FORWARD if name not in LEARNED])
def test_what_learns_nothing_refuses_a_gradient(name):
    with pytest.raises(ModelError, match="has no gradient"):
        seeded(name)(noise_image(1, 1, 9, 11).requires_grad_())


@every_shared
def test_evaluation_is_deterministic(name):
    image = noise_image(1, 1, 33, 47)
    network = stirred(name).eval()
    with torch.no_grad():
        first, second = network(image), network(image)
    for once, again in zip(present(first), present(second), strict=True):
        assert torch.equal(once, again)


@every_shared
def test_one_slice_does_not_change_another(name):
    pair = torch.cat((noise_image(1, 1, 33, 47), 0.5 + noise_image(1, 1, 33, 47, seed=4)))
    network = stirred(name).eval()
    with torch.no_grad():
        together, alone = network(pair), network(pair[:1])
    for both, single in zip(present(together), present(alone), strict=True):
        scale = single.abs().max().clamp(min=1.0)
        assert ((both[:1] - single).abs() < 1e-5 * scale).all()


@every_shared
def test_the_input_decides_the_output(name):
    network = stirred(name).eval()
    with torch.no_grad():
        one = network(noise_image(1, 1, 33, 47)).image
        other = network(noise_image(1, 1, 33, 47, seed=4)).image
    assert not torch.equal(one, other)


every_extreme = pytest.mark.parametrize(
    "image", [extreme_image(), torch.full((1, 1, 40, 56), -1.0)]
)


@every_shared
@every_extreme
def test_extreme_input_gives_finite_output(name, image):
    output = stirred(name).train()(image)
    assert all(field.isfinite().all() for field in present(output))


@every_learned
@every_extreme
def test_extreme_input_gives_finite_gradient(name, image):
    network = stirred(name).train()
    network(image).image.square().mean().backward()
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    assert all(gradient.isfinite().all() for gradient in gradients)


@every_network
def test_config_survives_a_checkpoint_card(name):
    config = plugins.load("models", name).Config
    default = config()
    assert asdict(config(**json.loads(json.dumps(asdict(default))))) == asdict(default)
    chosen = asdict(config(**NARROW.get(name, {})))
    options = json.loads(json.dumps(chosen))
    original, again = seeded(name, **chosen).state_dict(), seeded(name, **options).state_dict()
    assert list(original) == list(again)
    assert all(torch.equal(original[key], again[key]) for key in original)


@every_network
def test_config_cannot_be_changed(name):
    config = plugins.load("models", name).Config()
    with pytest.raises(AttributeError):
        config.anything = 1


@every_network
def test_parameter_count_is_the_recorded_one(name):
    recorded = json.loads(COUNTS.read_text())
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in models.build(name).parameters())
    assert name in recorded, f'add "{name}": {count} to {COUNTS.name}'
    assert count == recorded[name], f"{name} has {count} parameters; see {COUNTS.name}"


def test_recorded_parameter_counts_are_of_networks_that_exist():
    assert set(json.loads(COUNTS.read_text())) <= set(NAMES)


def test_unknown_network_names_the_nearest_and_all():
    with pytest.raises(ModelError, match="did you mean 'cddnet_published'") as refusal:
        models.build("cddnet_publisched")
    assert all(name in str(refusal.value) for name in NAMES)


@pytest.mark.parametrize("name", ["", "_output", "__init__", "../errors", "xyz"])
def test_names_of_no_network_are_refused(name):
    with pytest.raises(ModelError, match="choose one of: "):
        models.build(name)


@every_network
def test_unknown_option_is_refused(name):
    with pytest.raises(ModelError, match="has no option 'widht'"):
        models.build(name, widht=3)


@every_network
def test_published_weights_are_loaded_or_refused_by_name(name):
    if hasattr(plugins.load("models", name), "from_published"):
        state = seeded(name).state_dict()
        loaded = models.from_published(name, state).state_dict()
        assert all(torch.equal(loaded[key], state[key]) for key in state)
    else:
        with pytest.raises(ModelError, match=r"these can: .*cddnet_published"):
            models.from_published(name, {})


def test_listing_the_networks_does_not_import_torch():
    script = (
        "import sys; from cddnet import models; models.names(); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
