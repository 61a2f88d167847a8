"""LPIPS against its formula, against torchmetrics, and its laws."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from cddnet.metrics.perceptual import Lpips

WINDOW_HU = (-160.0, 240.0)
HEADS = Path(importlib.util.find_spec("torchmetrics").submodule_search_locations[0]) / (
    "functional/image/lpips_models"
)


def alexnet():
    """As published, with random weights: numbers of layers are torchvision's."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        return nn.Sequential(
            *(nn.Conv2d(3, 64, 11, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2)),
            *(nn.Conv2d(64, 192, 5, 1, 2), nn.ReLU(), nn.MaxPool2d(3, 2)),
            *(nn.Conv2d(192, 384, 3, 1, 1), nn.ReLU()),
            *(nn.Conv2d(384, 256, 3, 1, 1), nn.ReLU()),
            *(nn.Conv2d(256, 256, 3, 1, 1), nn.ReLU()),
        ).requires_grad_(False)


def taps(network):
    def features(image):
        found = []
        for number, layer in enumerate(network):
            image = layer(image)
            if number in (1, 4, 7, 9, 11):
                found.append(image)
        return found

    return features


def published_heads():
    state = torch.load(HEADS / "alex.pth", weights_only=True, map_location="cpu")
    return tuple(state[f"lin{number}.model.1.weight"].reshape(-1) for number in range(5))


@pytest.fixture(scope="module")
def network():
    return alexnet()


@pytest.fixture
def metric(network):
    return Lpips(
        network="alexnet", features=taps(network), heads=published_heads(), weights="made up"
    )


@pytest.fixture
def images(rng):
    full_dose = rng.normal(40, 60, (63, 75)).astype(np.float32)
    return full_dose, full_dose + rng.normal(0, 20, full_dose.shape).astype(np.float32)


def as_published(image_hu):
    """Grey of the window in [-1, 1], three times."""
    low, high = WINDOW_HU
    grey = np.clip((image_hu - low) / (high - low), 0, 1).astype(np.float32)
    return torch.from_numpy(np.stack([2 * grey - 1] * 3)[None])


def test_it_is_the_formula(metric, network, images):
    """Equation 1 of the paper, channel by channel in NumPy and float64."""
    shift, scale = np.array([-0.030, -0.088, -0.188]), np.array([0.458, 0.448, 0.450])
    layers = []
    for image in images:
        scaled = (as_published(image).double() - torch.tensor(shift)[:, None, None]) / torch.tensor(
            scale
        )[:, None, None]
        x = scaled.float()
        found = []
        for number, (pool, options) in enumerate(
            [(0, {"stride": 4, "padding": 2}), (1, {"padding": 2}), (1, {"padding": 1})]
            + [(0, {"padding": 1})] * 2
        ):
            layer = network[(0, 3, 6, 8, 10)[number]]
            x = functional.max_pool2d(x, 3, 2) if pool else x
            x = functional.conv2d(x, layer.weight, layer.bias, **options).clamp(min=0)
            found.append(x[0].double().numpy())
        layers.append(found)
    expected = 0.0
    for one, other, head in zip(*layers, published_heads(), strict=True):
        unit_one, unit_other = (
            v / np.sqrt((v**2).sum(axis=0, keepdims=True)) for v in (one, other)
        )
        weighted = head.double().numpy()[:, None, None] * (unit_one - unit_other) ** 2
        expected += weighted.sum(axis=0).mean()
    assert metric(*images, window_hu=WINDOW_HU) == pytest.approx(expected, rel=1e-4)
    assert expected > 1e-3


def test_torchmetrics_agrees(metric, network, images, monkeypatch):
    """Its module, with our features where it would ask torchvision."""
    lpips = pytest.importorskip("torchmetrics.functional.image.lpips")
    monkeypatch.setattr(lpips, "_get_tv_model_features", lambda net, pretrained=False: network)
    peer = lpips._LPIPS(net="alex", pnet_rand=True, model_path=str(HEADS / "alex.pth"))
    with torch.no_grad():
        expected = float(peer(*(as_published(image) for image in images)))
    assert metric(*images, window_hu=WINDOW_HU) == pytest.approx(expected, rel=1e-4)


def test_it_is_a_distance_that_grows_with_noise(metric, images, rng):
    full_dose, test = images
    there, back = (
        metric(full_dose, test, window_hu=WINDOW_HU),
        metric(*images[::-1], window_hu=WINDOW_HU),
    )
    assert there == pytest.approx(back, rel=1e-6)
    assert metric(full_dose, full_dose, window_hu=WINDOW_HU) == 0
    noise = rng.normal(0, 1, full_dose.shape).astype(np.float32)
    found = [metric(full_dose, full_dose + s * noise, window_hu=WINDOW_HU) for s in (5, 10, 20, 40)]
    assert found == sorted(found)
    assert found[0] > 0


def test_only_the_window_counts(metric, images):
    full_dose, test = images
    clipped = [np.clip(image, *WINDOW_HU) for image in images]
    assert metric(*clipped, window_hu=WINDOW_HU) == metric(full_dose, test, window_hu=WINDOW_HU)
    wider = metric(full_dose, test, window_hu=(-1000.0, 1000.0))
    assert wider != metric(full_dose, test, window_hu=WINDOW_HU)
    # Twice the HU in twice the window are the same grey.
    doubled = metric(2 * full_dose, 2 * test, window_hu=(-320.0, 480.0))
    assert doubled == pytest.approx(metric(full_dose, test, window_hu=WINDOW_HU), rel=1e-4)


def test_black_is_no_division_by_zero(metric):
    air = np.full((40, 40), -1000, np.float32)
    assert metric(air, air, window_hu=WINDOW_HU) == 0
    zero = Lpips(network="none", features=lambda x: [0 * x], heads=(torch.ones(3),), weights="")
    assert zero(air, air + 2000, window_hu=WINDOW_HU) == 0


def test_it_says_what_it_is(metric):
    assert metric.name == "LPIPS alexnet"
    assert "not validated for CT" in metric.definition
