"""Checkpoints: whole or not there at all, and back bit for bit."""

import errno
import json

import pytest
import torch
from torch import nn

from cddnet.errors import FormatError
from cddnet.training import checkpoint
from cddnet.training.checkpoint import Checkpoint


def of_step(step):
    """A checkpoint that tells its step, with numbers that text could spoil."""
    values = torch.tensor([step, 1e-45, -0.0, torch.pi])
    return Checkpoint({"network.a.weight": values}, {"step": step, "usual": 0.1 + step / 3})


def same(found, expected):
    return found.record == expected.record and all(
        torch.equal(found.tensors[name].view(torch.int32), values.view(torch.int32))
        for name, values in expected.tensors.items()
    )


def test_a_checkpoint_comes_back_and_the_one_before_goes(tmp_path):
    folder = tmp_path / "run" / "checkpoints"
    assert checkpoint.read_latest(folder) is None
    for step in (9, 10, 1000):
        checkpoint.write(folder, step, of_step(step))
        assert same(checkpoint.read_latest(folder), of_step(step))
        assert len(list(folder.iterdir())) == 1
    assert not same(checkpoint.read_latest(folder), of_step(10))


class Killed(BaseException):
    """Nothing tidies up after it, as after kill -9."""


OPERATIONS = (("os", "fsync"), ("os", "replace"), ("shutil", "rmtree"), ("", "save_file"))


def kill_at(monkeypatch, moment):
    """Raise before file operation number `moment`; tells whether there were as many."""
    calls = []

    def killing(operation):
        def run(*arguments, **options):
            calls.append(operation.__name__)
            if len(calls) == moment:
                raise Killed
            return operation(*arguments, **options)

        return run

    for module, name in OPERATIONS:
        owner = getattr(checkpoint, module) if module else checkpoint
        monkeypatch.setattr(owner, name, killing(getattr(owner, name)))
    return calls


@pytest.mark.parametrize("torn", [False, True])
def test_whenever_writing_is_killed_a_whole_checkpoint_is_left(torn, tmp_path, monkeypatch):
    """Killed before each operation on files, and the file being written cut short."""
    found_steps = []
    for moment in range(1, 20):
        folder = tmp_path / str(moment)
        checkpoint.write(folder, 1, of_step(1))
        with monkeypatch.context() as patch:
            calls = kill_at(patch, moment)
            try:
                checkpoint.write(folder, 2, of_step(2))
            except Killed:
                pass
            else:
                assert len(calls) == moment - 1
                break
        if torn:
            for file in folder.glob(".part.*/*"):
                file.write_bytes(file.read_bytes()[:40])
        found = checkpoint.read_latest(folder)
        found_steps.append(found.record["step"])
        assert same(found, of_step(found_steps[-1]))
        checkpoint.write(folder, 3, of_step(3))
        assert [path.name for path in folder.iterdir()] == ["000000003"]
    assert found_steps == sorted(found_steps)
    assert set(found_steps) == {1, 2}
    assert len(found_steps) >= 6


def test_a_full_disk_keeps_the_checkpoint_before(tmp_path, monkeypatch):
    checkpoint.write(tmp_path, 1, of_step(1))

    def full(path, *_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.os, "fsync", full)
        with pytest.raises(FormatError, match="No space left"):
            checkpoint.write(tmp_path, 2, of_step(2))
    assert same(checkpoint.read_latest(tmp_path), of_step(1))
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json"])
def test_a_damaged_checkpoint_is_refused(name, tmp_path):
    checkpoint.write(tmp_path, 1, of_step(1))
    path = tmp_path / "000000001" / name
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(FormatError, match="damaged"):
        checkpoint.read_latest(tmp_path)
    path.unlink()
    with pytest.raises(FormatError, match="damaged"):
        checkpoint.read_latest(tmp_path)


def test_nothing_is_pickled(tmp_path):
    checkpoint.write(tmp_path, 1, of_step(1))
    files = sorted(path.name for path in tmp_path.rglob("*") if path.is_file())
    assert files == ["state.json", "tensors.safetensors"]
    assert json.loads((tmp_path / "000000001" / "state.json").read_text())["step"] == 1


def trained(network, optimiser, steps):
    for step in range(steps):
        image = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(step))
        optimiser.zero_grad()
        network(image).square().sum().backward()
        optimiser.step()


def network_of(seed):
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))
    return network.to(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    "kind",
    [
        lambda p: torch.optim.AdamW(p, lr=0.1),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        lambda p: torch.optim.RMSprop(p, lr=0.01),
    ],
)
def test_an_optimiser_goes_on_as_if_nothing_had_been(kind):
    network = network_of(0)
    optimiser = kind(network.parameters())
    trained(network, optimiser, 3)
    tensors = checkpoint.tensors_of_module(network, "a")
    tensors |= checkpoint.tensors_of_optimiser(optimiser, "a.b")
    other = network_of(1)
    resumed = kind(other.parameters())
    checkpoint.load_module(other, {k: v for k, v in tensors.items() if "a.b" not in k}, "a")
    checkpoint.load_optimiser(resumed, tensors, "a.b")
    for mine, theirs in zip(optimiser.state.values(), resumed.state.values(), strict=True):
        for name, value in mine.items():
            if isinstance(value, torch.Tensor):
                assert value.stride() == theirs[name].stride()
    trained(network, optimiser, 2)
    trained(other, resumed, 2)
    for mine, theirs in zip(
        network.state_dict().values(), other.state_dict().values(), strict=True
    ):
        assert torch.equal(mine, theirs)
    trained(other, kind(other.parameters()), 1)
    trained(network, optimiser, 1)
    assert not torch.equal(network[0].weight, other[0].weight)


def test_another_network_is_refused():
    tensors = checkpoint.tensors_of_module(network_of(0), "network.a")
    with pytest.raises(FormatError, match="does not fit"):
        checkpoint.load_module(nn.Conv2d(1, 1, 1), tensors, "network.a")


def test_copies_do_not_follow_the_weights():
    network = network_of(0)
    tensors = checkpoint.tensors_of_module(network, "a")
    nn.init.zeros_(network[0].weight)
    assert tensors["a.0.weight"].abs().sum() > 0
