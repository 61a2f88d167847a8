"""What a network costs, against counts made by hand."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from cddnet.errors import ModelError
from cddnet.models._weights import load
from cddnet.workflows._complexity import count_flops, measure, used_parameters


class Denoiser(nn.Module):
    """A convolution that makes the image, and a head that only training needs."""

    def __init__(self):
        super().__init__()
        self.body = nn.Conv2d(1, 1, 3, padding=1)
        self.head = nn.Conv2d(1, 7, 5)

    def forward(self, image):
        return SimpleNamespace(image=self.body(image), depth=self.head(image))


def test_a_convolution_costs_what_is_written_in_books():
    network = nn.Conv2d(3, 5, 3, padding=1)
    image = torch.zeros(1, 3, 11, 17)
    assert count_flops(network, image) == 2 * 11 * 17 * 5 * 3 * 9


def test_parameters_without_part_in_the_image_are_not_counted():
    network = Denoiser().requires_grad_(False)
    assert used_parameters(network) == 9 + 1
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_cost_of_a_weights_file(tiny_weights):
    cost = measure(tiny_weights, side=48)
    network, card = load(tiny_weights)
    total = sum(parameter.numel() for parameter in network.parameters())
    assert cost.name == card.name
    assert cost.parameters + cost.unused_parameters == total
    assert cost.parameters > total / 2
    assert cost.weights_bytes == tiny_weights.stat().st_size >= 4 * total
    assert cost.flops == 2 * cost.macs > 0
    assert (cost.dtype, cost.threads) == ("float32", torch.get_num_threads())
    assert 0 < cost.seconds_per_slice < 60
    # Convolutions alone: four times the pixels, four times the operations.
    assert measure(tiny_weights, side=96).flops == 4 * cost.flops


def test_an_unknown_network_is_refused():
    with pytest.raises(ModelError, match="no weights"):
        measure("unheard")
