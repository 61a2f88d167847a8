"""Weights of feature networks: only named files, only known digests, never a download."""

import hashlib
import importlib.util
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from cddnet.errors import ModelError
from cddnet.metrics.perceptual import Lpips
from cddnet.models._features import FeatureNetwork
from cddnet.workflows._perceptual import (
    LPIPS_NETWORKS,
    Unavailable,
    load_features,
    load_lpips,
)

WINDOW_HU = (-160.0, 240.0)
PUBLISHED_HEADS = Path(importlib.util.find_spec("torchmetrics").submodule_search_locations[0]) / (
    "functional/image/lpips_models"
)
ALEXNET = {0: (64, 3, 11), 3: (192, 64, 5), 6: (384, 192, 3), 8: (256, 384, 3), 10: (256, 256, 3)}


def state_of(shapes=ALEXNET):
    generator, state = torch.Generator().manual_seed(7), {}
    for number, (width, before, side) in shapes.items():
        weight = torch.randn((width, before, side, side), generator=generator)
        state[f"features.{number}.weight"] = weight * (2 / (before * side * side)) ** 0.5
        state[f"features.{number}.bias"] = 0.1 * torch.randn(width, generator=generator)
    return state


def state_digest(folder, *names):
    with (folder / "SHA256SUMS").open("a") as sums:
        for name in names:
            sums.write(f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n")


@pytest.fixture
def folder(tmp_path):
    """The published heads beside a backbone of random weights whose digest is stated."""
    torch.save(state_of(), tmp_path / "alexnet-owt-7be5be79.pth")
    shutil.copy(PUBLISHED_HEADS / "alex.pth", tmp_path / "alex.pth")
    state_digest(tmp_path, "alexnet-owt-7be5be79.pth")
    return tmp_path


def test_lpips_of_a_folder_measures(folder, rng):
    metric = load_lpips(folder)
    assert isinstance(metric, Lpips)
    image = rng.normal(40, 50, (40, 47)).astype(np.float32)
    noisy = image + rng.normal(0, 30, image.shape).astype(np.float32)
    assert (
        metric(image, noisy, window_hu=WINDOW_HU) > metric(image, image, window_hu=WINDOW_HU) == 0
    )
    digest = hashlib.sha256((folder / "alexnet-owt-7be5be79.pth").read_bytes()).hexdigest()
    assert f"alexnet-owt-7be5be79.pth, SHA-256 {digest} stated in SHA256SUMS" in metric.weights
    assert "alex.pth, SHA-256 df73285e" in metric.weights
    assert "as published by lpips" in metric.weights


def test_safetensors_give_the_same_distance(folder, tmp_path, rng):
    other = tmp_path / "other"
    other.mkdir()
    save_file(state_of(), other / "alexnet.safetensors")
    heads = torch.load(folder / "alex.pth", weights_only=True, map_location="cpu")
    save_file(heads, other / "alex.safetensors")
    state_digest(other, "alexnet.safetensors", "alex.safetensors")
    pair = rng.normal(40, 50, (2, 40, 47)).astype(np.float32)
    one, two = (load_lpips(place)(*pair, window_hu=WINDOW_HU) for place in (folder, other))
    assert one == two > 0


@pytest.mark.parametrize("network", LPIPS_NETWORKS)
def test_without_weights_it_says_what_to_do(network, tmp_path):
    absent = load_lpips(None, network)
    assert isinstance(absent, Unavailable)
    assert absent.reason.startswith("unavailable: needs ")
    assert "give --lpips-weights FOLDER" in absent.reason
    shutil.copy(PUBLISHED_HEADS / "alex.pth", tmp_path / "alex.pth")
    shutil.copy(PUBLISHED_HEADS / "vgg.pth", tmp_path / "vgg.pth")
    half = load_lpips(tmp_path, network)
    assert isinstance(half, Unavailable)
    assert f"put it into {tmp_path}" in half.reason
    assert {"alexnet": "alexnet-owt-7be5be79.pth", "vgg16": "vgg16-397923af.pth"}[network] in (
        half.reason
    )
    assert "lpips 0.1" not in half.reason


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ModelError, match="no such folder of weights"):
        load_lpips(tmp_path / "nowhere")


def test_an_unexpected_digest_is_refused_unless_stated(folder):
    sums = (folder / "SHA256SUMS").read_text()
    (folder / "SHA256SUMS").unlink()
    with pytest.raises(ModelError, match="as published has 7be5be79") as refused:
        load_lpips(folder)
    assert "sha256sum alexnet-owt-7be5be79.pth >> SHA256SUMS" in str(refused.value)
    (folder / "SHA256SUMS").write_text(sums)
    assert isinstance(load_lpips(folder), Lpips)
    head = folder / "alex.pth"
    head.write_bytes(head.read_bytes()[:-1] + b"x")
    with pytest.raises(ModelError, match="as published has df73285e"):
        load_lpips(folder)
    (folder / "SHA256SUMS").write_text("0" * 64 + " *alexnet-owt-7be5be79.pth\n")
    with pytest.raises(ModelError, match="SHA256SUMS beside it states 0000"):
        load_lpips(folder)


def test_a_pickle_is_never_run(folder):
    """A stated digest does not make a file safe: it is parsed as weights alone."""
    torch.save({"features.0.weight": Path("x")}, folder / "alexnet-owt-7be5be79.pth")
    state_digest(folder, "alexnet-owt-7be5be79.pth")
    with pytest.raises(ModelError, match=r"is no file of weights \(UnpicklingError\)"):
        load_lpips(folder)
    for content in (b"", b"not weights"):
        (folder / "alexnet-owt-7be5be79.pth").write_bytes(content)
        state_digest(folder, "alexnet-owt-7be5be79.pth")
        with pytest.raises(ModelError, match="is no file of weights"):
            load_lpips(folder)
    torch.save([1, 2], folder / "alexnet-owt-7be5be79.pth")
    state_digest(folder, "alexnet-owt-7be5be79.pth")
    with pytest.raises(ModelError, match="no table of weights"):
        load_lpips(folder)


def test_heads_of_another_network_or_below_zero_are_refused(folder):
    shutil.copy(PUBLISHED_HEADS / "vgg.pth", folder / "alex.pth")
    state_digest(folder, "alex.pth")
    with pytest.raises(ModelError, match=r"expected \(1, 192, 1, 1\)"):
        load_lpips(folder)
    heads = torch.load(PUBLISHED_HEADS / "alex.pth", weights_only=True, map_location="cpu")
    heads["lin3.model.1.weight"][0, 5] = -0.1
    torch.save(heads, folder / "alex.pth")
    state_digest(folder, "alex.pth")
    with pytest.raises(ModelError, match="is negative"):
        load_lpips(folder)


def test_two_files_for_one_network_are_refused(folder):
    (folder / "alexnet.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match="are one network; keep one"):
        load_lpips(folder)


def test_features_alone_for_a_loss(folder):
    assert isinstance(load_features(folder, "alexnet", "--features"), FeatureNetwork)
    absent = load_features(None, "vgg19", "--features")
    assert isinstance(absent, Unavailable)
    assert "vgg19-dcbb9e9d.pth (torchvision); give --features FOLDER" in absent.reason
