"""HU <-> network range: exact, and the same for arrays and tensors."""

import numpy as np
import pytest
import torch

from cddnet.intensity.normalise import HU_PER_UNIT, to_hu, to_network

EVERY_HU = np.arange(-32768, 65536)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("fraction", [0.0, 0.375, 1 / 3])
def test_the_round_trip_of_arrays_is_exact(dtype, fraction):
    hu = (EVERY_HU + fraction).astype(dtype)
    network = to_network(hu)
    assert network.dtype == dtype
    assert np.array_equal(to_hu(network), hu)
    assert not np.array_equal(network[hu != 0], hu[hu != 0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_round_trip_of_tensors_is_exact(dtype):
    hu = torch.from_numpy(EVERY_HU + 1 / 3).to(dtype)
    network = to_network(hu)
    assert network.dtype == dtype
    assert torch.equal(to_hu(network), hu)


def test_arrays_and_tensors_agree():
    hu = (EVERY_HU + 0.1).astype(np.float32)
    assert np.array_equal(to_network(torch.from_numpy(hu)).numpy(), to_network(hu))


def test_water_is_zero_and_the_scale_is_that_of_the_cards():
    points = to_network(np.array([0.0, HU_PER_UNIT, -HU_PER_UNIT]))
    assert HU_PER_UNIT == 1024.0
    assert np.array_equal(points, [0.0, 1.0, -1.0])
