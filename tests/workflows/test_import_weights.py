"""Published checkpoints become weights that denoise; anything else is refused."""

import sys

import numpy as np
import pytest
import torch

from cddnet import models
from cddnet.cli import main
from cddnet.errors import FormatError, ModelError
from cddnet.runtime import store
from cddnet.workflows.denoise import denoise_hu
from cddnet.workflows.import_weights import import_weights

SMALL = ["red_cnn", "wgan_vgg", "cddnet_published"]


def published(name):
    torch.manual_seed(0)
    return models.build(name).state_dict()


@pytest.fixture
def slices(rng):
    return rng.normal(0, 100, (2, 33, 47)).astype(np.float32)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": s, "epoch": 3}])
def test_a_checkpoint_is_recognised_and_its_weights_denoise(name, wrap, tmp_path, slices):
    state = published(name)
    torch.save(wrap(state), tmp_path / "latest.pth")
    card = import_weights(tmp_path / "latest.pth", "theirs", tmp_path / "out")
    assert card.model == name
    weights = tmp_path / "out" / "theirs.safetensors"
    network, _ = store.load(weights)
    for key, value in network.state_dict().items():
        assert torch.equal(value, state[key.removeprefix("network.")])
    out = denoise_hu(slices, (3.0, 0.7, 0.7), model=weights)
    assert out.shape == slices.shape
    assert np.isfinite(out).all()
    assert not np.array_equal(out, slices)


def test_the_published_network_changes_nothing_outside_its_window_but_by_its_change(tmp_path):
    """An identity in its grey window returns every HU, also those that it cannot see."""
    from cddnet.models._grey_window import GreyWindow
    from cddnet.models._published import UnitRange

    class Identity(torch.nn.Module):
        def forward(self, image):
            assert image.shape[1] == 3
            assert image.min() >= 0
            assert image.max() <= 1
            return image

    image = torch.linspace(-1100, 3000, 64).reshape(1, 1, 8, 8) / 1024
    out = GreyWindow(Identity(), UnitRange(lowest_hu=-700, highest_hu=300))(image).image
    # The mean of three equal float32 channels, in units of the window.
    assert (out - image).abs().max() <= 4 * 1000 / 1024 * torch.finfo(torch.float32).eps


def test_what_is_no_state_dict_is_refused(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "whole.pth")
    with pytest.raises(ModelError, match=r"state_dict\(\)"):
        import_weights(tmp_path / "whole.pth", "x", tmp_path / "out")
    (tmp_path / "text.pth").write_text("no checkpoint")
    with pytest.raises(ModelError, match="tensors alone"):
        import_weights(tmp_path / "text.pth", "x", tmp_path / "out")
    torch.save({"epoch": 3}, tmp_path / "none.pth")
    with pytest.raises(ModelError, match="no state dict"):
        import_weights(tmp_path / "none.pth", "x", tmp_path / "out")
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(ModelError, match="fits none"):
        import_weights(tmp_path / "other.pth", "x", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_weights_that_are_not_finite_are_refused(value, tmp_path):
    state = published("wgan_vgg")
    key = list(state)[-1]
    state[key] = state[key].clone()
    state[key].view(-1)[-1] = value
    torch.save(state, tmp_path / "spoilt.pth")
    with pytest.raises(ModelError, match="not finite"):
        import_weights(tmp_path / "spoilt.pth", "x", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", [KeyError, IndexError, AttributeError, AssertionError, TypeError])
def test_whatever_the_reader_raises_is_a_refusal(kind, tmp_path, monkeypatch):
    torch.save(published("wgan_vgg"), tmp_path / "w.pth")

    def broken(*_, **__):
        raise kind("x")

    monkeypatch.setattr(torch, "load", broken)
    with pytest.raises(ModelError, match=rf"tensors alone \({kind.__name__}\)"):
        import_weights(tmp_path / "w.pth", "x", tmp_path / "out")


def test_nothing_is_overwritten_and_names_stay_in_the_folder(tmp_path):
    torch.save(published("wgan_vgg"), tmp_path / "w.pth")
    with pytest.raises(FormatError, match="no name"):
        import_weights(tmp_path / "w.pth", "../x", tmp_path / "out")
    import_weights(tmp_path / "w.pth", "x", tmp_path / "out", "wgan_vgg")
    with pytest.raises(FormatError, match="exist"):
        import_weights(tmp_path / "w.pth", "x", tmp_path / "out")


def test_the_command_says_what_it_found(tmp_path, monkeypatch, capsys):
    torch.save(published("wgan_vgg"), tmp_path / "w.pth")
    arguments = ["models", "import", str(tmp_path / "w.pth"), str(tmp_path / "out"), "--as", "x"]
    monkeypatch.setattr(sys, "argv", ["cddnet", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code
    assert "network wgan_vgg" in capsys.readouterr().out
