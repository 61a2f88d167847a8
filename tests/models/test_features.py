"""Feature networks: torchvision's keys and counts, and the layers that are named."""

import pytest
import torch
from torch.nn import functional

from cddnet.errors import ModelError
from cddnet.models import names as networks
from cddnet.models._features import FeatureNetwork, names

# Weights of the convolutions alone, as published: of 61.1, 138.4 and 143.7 million in all.
COUNTS = {"alexnet": 2_469_696, "vgg16": 14_714_688, "vgg19": 20_024_384}


def shapes_of(name):
    """Key number -> shape, from the tables of the papers."""
    if name == "alexnet":
        return {
            0: (64, 3, 11, 11),
            3: (192, 64, 5, 5),
            6: (384, 192, 3, 3),
            8: (256, 384, 3, 3),
            10: (256, 256, 3, 3),
        }
    depths = {"vgg16": (2, 2, 3, 3, 3), "vgg19": (2, 2, 4, 4, 4)}[name]
    shapes, number, before = {}, 0, 3
    for depth, width in zip(depths, (64, 128, 256, 512, 512), strict=True):
        for _ in range(depth):
            shapes[number] = (width, before, 3, 3)
            number, before = number + 2, width
        number += 1
    return shapes


def random_state(name, seed=3):
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for number, shape in shapes_of(name).items():
        fan_in = shape[1] * shape[2] * shape[3]
        scale = (2 / fan_in) ** 0.5
        state[f"features.{number}.weight"] = scale * torch.randn(shape, generator=generator)
        state[f"features.{number}.bias"] = 0.1 * torch.randn(shape[0], generator=generator)
    return state


@pytest.mark.parametrize("name", names())
def test_keys_and_counts_are_those_of_the_published_files(name):
    state = random_state(name)
    classifier = {"classifier.1.weight": torch.zeros(2, 2)}
    network = FeatureNetwork(name, state | classifier)
    assert set(network.state_dict()) == set(state)
    assert sum(value.numel() for value in network.parameters()) == COUNTS[name]
    assert not any(value.requires_grad for value in network.parameters())
    assert not network.training


def test_alexnet_is_its_formula():
    state = random_state("alexnet")
    image = torch.randn(2, 3, 45, 67, generator=torch.Generator().manual_seed(4))
    expected = []

    def convolved(values, number, **options):
        weight, bias = (state[f"features.{number}.{part}"] for part in ("weight", "bias"))
        expected.append(functional.conv2d(values, weight, bias, **options).clamp(min=0))
        return expected[-1]

    x = convolved(image, 0, stride=4, padding=2)
    x = convolved(functional.max_pool2d(x, 3, 2), 3, padding=2)
    x = convolved(functional.max_pool2d(x, 3, 2), 6, padding=1)
    x = convolved(x, 8, padding=1)
    convolved(x, 10, padding=1)
    found = FeatureNetwork("alexnet", state)(image)
    assert [value.shape[1] for value in found] == [64, 192, 384, 256, 256]
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("name", "convolutions"), [("vgg16", (2, 4, 7, 10, 13)), ("vgg19", (1, 3, 5, 9, 13))]
)
def test_vgg_gives_the_named_layers(name, convolutions):
    """VGG16 the last ReLU of each resolution, VGG19 the first; counted in convolutions."""
    state = random_state(name)
    image = torch.randn(1, 3, 17, 33, generator=torch.Generator().manual_seed(4))
    numbers, before, relus = sorted(shapes_of(name)), -2, []
    x = image
    for number in numbers:
        if number - before == 3:
            x = functional.max_pool2d(x, 2, 2)
        weight, bias = (state[f"features.{number}.{part}"] for part in ("weight", "bias"))
        x = functional.relu(functional.conv2d(x, weight, bias, padding=1))
        relus.append(x)
        before = number
    found = FeatureNetwork(name, state)(image)
    for value, count in zip(found, convolutions, strict=True):
        assert torch.equal(value, relus[count - 1])


def test_the_gradient_reaches_the_image():
    image = torch.randn(1, 3, 31, 31, requires_grad=True)
    FeatureNetwork("alexnet", random_state("alexnet"))(image)[-1].square().sum().backward()
    assert float(image.grad.abs().max()) > 0


def test_what_does_not_fit_is_refused():
    state = random_state("alexnet")
    for wrong in ({}, random_state("vgg16"), {k: v for k, v in state.items() if "10" not in k}):
        with pytest.raises(ModelError, match="do not fit alexnet"):
            FeatureNetwork("alexnet", wrong)
    network = FeatureNetwork("alexnet", state)
    with pytest.raises(ModelError, match="30 x 99 pixels is too small"):
        network(torch.zeros(1, 3, 30, 99))
    assert network(torch.zeros(1, 3, 31, 31))[-1].shape == (1, 256, 1, 1)


def test_features_are_no_denoiser():
    assert not set(names()) & set(networks())
