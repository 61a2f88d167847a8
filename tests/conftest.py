"""What several folders of tests need."""

import sys

import numpy as np
import pytest
from hypothesis import settings

# The same examples on each run; no deadline, because machines that test are often busy.
settings.register_profile("cddnet", derandomize=True, deadline=None)
settings.load_profile("cddnet")


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """Tests compute on one thread; torch is not imported for those that do without it."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


@pytest.fixture
def rng():
    return np.random.default_rng(20_240_229)


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory):
    """Weights file of a small untrained network, its card beside it; read only."""
    import torch

    from cddnet import models
    from cddnet.models import _weights

    options = {"width": 4, "depth_width": 4}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        network = models.build("cddnet", **options)
        # Fresh weights are nearly the identity; these are not.
        torch.nn.init.normal_(network.body.leave.weight, std=0.3)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    _weights.save(network, path, name="tiny@1", model="cddnet", options=options, version="0")
    return path
