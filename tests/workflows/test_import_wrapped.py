"""Checkpoints as training code wraps them: the same weights come out, nothing is run."""

import argparse
import datetime
import os
import pathlib
import subprocess
import sys
from collections import OrderedDict

import numpy as np
import pytest
import torch

from cddnet import models
from cddnet.cli import main
from cddnet.errors import ModelError
from cddnet.runtime import store
from cddnet.workflows.import_weights import NOT_READ, OTHER_TENSORS, import_weights


@pytest.fixture(scope="module")
def state():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return models.build("wgan_vgg").state_dict()


def under(prefix, tensors):
    return OrderedDict((prefix + key, value) for key, value in tensors.items())


def imported(content, tmp_path, network=None, *, legacy=False):
    """(weights by key, card) of a checkpoint with this content."""
    file = tmp_path / "theirs.ckpt"
    torch.save(content, file, _use_new_zipfile_serialization=not legacy)
    card = import_weights(file, "theirs", tmp_path / "out", network)
    made, _ = store.load(tmp_path / "out" / "theirs.safetensors")
    found = made.state_dict()
    return {key.removeprefix("network."): value for key, value in found.items()}, card


def equal(found, expected):
    return found.keys() == expected.keys() and all(
        torch.equal(value, expected[key]) for key, value in found.items()
    )


PREFIXES = [
    "model.",
    "net.",
    "module.",
    "_orig_mod.",
    "network.",
    "generator.",
    "_orig_mod.module.",
    "module._orig_mod.",
    "model._orig_mod.",
    "_orig_mod.model.net.",
    "model.module.generator.",
]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_every_wrapper_comes_off(prefix, state, tmp_path):
    found, card = imported({"state_dict": under(prefix, state), "epoch": 7}, tmp_path)
    assert equal(found, state)
    assert card.model == "wgan_vgg"
    assert OTHER_TENSORS not in card.training


@pytest.mark.parametrize("name", ["red_cnn", "cddnet_published"])
def test_wrappers_come_off_every_published_network(name, tmp_path):
    theirs = models.build(name).state_dict()
    found, card = imported(under("model._orig_mod.", theirs), tmp_path)
    assert card.model == name
    assert equal(found, theirs)


def test_marks_of_compiled_parts_come_off_inside_a_key(state, tmp_path):
    marked = {key.replace("net.", "net._orig_mod.", 1): value for key, value in state.items()}
    assert marked.keys() != state.keys()
    assert equal(imported(marked, tmp_path)[0], state)


def test_a_parallel_network_of_this_torch_is_imported(state, tmp_path):
    network = models.build("wgan_vgg")
    network.load_state_dict(state)
    parallel = torch.nn.DataParallel(network).state_dict()
    assert next(iter(parallel)).startswith("module.")
    assert equal(imported(parallel, tmp_path)[0], state)


@pytest.mark.parametrize("network", [None, "wgan_vgg"])
@pytest.mark.parametrize("prefix", ["generator.", "model.generator."])
def test_the_generator_is_found_beside_other_networks(prefix, network, state, tmp_path):
    around = prefix.removesuffix("generator.")
    critic = {f"{around}discriminator.0.weight": torch.ones(3, 3), "loss.scale": torch.ones(1)}
    content = {"state_dict": under(prefix, state) | critic, "hyper_parameters": {"lr": 1e-4}}
    found, card = imported(content, tmp_path, network)
    assert equal(found, state)
    assert card.training[OTHER_TENSORS] == 2


@pytest.mark.parametrize("entry", ["state_dict", "model_state_dict", "model", "net", "params"])
def test_tables_in_tables_are_opened(entry, state, tmp_path):
    deeper = "model" if entry == "state_dict" else "state_dict"
    content = {"epoch": 3, entry: {deeper: state, "step": 1}}
    assert equal(imported(content, tmp_path)[0], state)


def test_a_table_that_holds_itself_ends(tmp_path):
    circle = {}
    circle["model"] = circle
    torch.save(circle, tmp_path / "a.pth")
    with pytest.raises(ModelError, match="no state dict"):
        import_weights(tmp_path / "a.pth", "x", tmp_path / "out")


BESIDE = {
    "float64": np.float64(30.5),
    "float32": np.float32(1),
    "int64": np.int64(7),
    "bool": np.bool_(True),
    "array": np.arange(5.0),
    "namespace": argparse.Namespace(lr=1e-4, device="cuda"),
    "path": pathlib.PurePosixPath("runs/1"),
    "date": datetime.datetime(2024, 5, 6),
}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("what", BESIDE)
@pytest.mark.parametrize("where", ["beside", "among"])
def test_what_lies_beside_the_tensors_is_left_unread(where, what, legacy, state, tmp_path):
    value = BESIDE[what]
    content = {"state_dict": state, what: value} if where == "beside" else {**state, what: value}
    found, card = imported(content, tmp_path, legacy=legacy)
    assert equal(found, state)
    kinds = card.training[NOT_READ].split(", ")
    expected = {"namespace": "argparse", "path": "pathlib", "date": "datetime"}.get(what, "numpy")
    assert all(kind.startswith(expected) for kind in kinds)
    assert kinds


def test_wrapped_and_beside_a_number_at_once(state, tmp_path):
    content = {"state_dict": under("_orig_mod.module.", state), "best_psnr_db": np.float64(30.5)}
    assert equal(imported(content, tmp_path)[0], state)


def test_nothing_stays_allowed_for_other_readers(state, tmp_path):
    before = set(torch.serialization.get_safe_globals())
    imported({"state_dict": state, "best": np.float64(1)}, tmp_path)
    assert set(torch.serialization.get_safe_globals()) == before
    torch.save(np.float64(1), tmp_path / "number.pth")
    with pytest.raises(Exception, match="numpy"):
        torch.load(tmp_path / "number.pth", weights_only=True)


def test_weights_that_are_arrays_are_named_for_what_they_are(state, tmp_path):
    arrays = {key: value.numpy() for key, value in state.items()}
    with pytest.raises(ModelError, match=r"no state dict of tensors \(found: numpy"):
        imported(arrays, tmp_path)


class Runs:
    """Unpickled, it calls something with one argument."""

    def __init__(self, function, argument):
        self.call = function, (argument,)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("function", [os.mkdir, os.system, subprocess.call, eval, np.load, exec])
def test_no_function_is_called_and_each_is_named(function, legacy, state, tmp_path):
    mark = tmp_path / "made"
    argument = {
        os.mkdir: str(mark),
        os.system: f"mkdir {mark}",
        subprocess.call: ["mkdir", str(mark)],
        np.load: str(mark),
    }.get(function, f"__import__('os').mkdir({str(mark)!r})")
    content = {"state_dict": state, "best": np.float64(1), "more": Runs(function, argument)}
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=not legacy)
    if function is np.load:
        # A name in NumPy like any other: it is not called either.
        import_weights(tmp_path / "a.pth", "x", tmp_path / "out")
    else:
        with pytest.raises(ModelError, match=rf"{function.__name__}.*never read"):
            import_weights(tmp_path / "a.pth", "x", tmp_path / "out")
        assert not (tmp_path / "out").exists()
    assert not mark.exists()


def test_objects_of_other_packages_are_named(tmp_path):
    torch.save({"model": torch.nn.Linear(2, 2)}, tmp_path / "whole.pth")
    with pytest.raises(ModelError, match=r"torch\.nn\.modules\.linear\.Linear.*state_dict\(\)"):
        import_weights(tmp_path / "whole.pth", "x", tmp_path / "out")


def test_what_does_not_fit_is_still_refused(state, tmp_path):
    last = list(state)[-1]
    less = {key: value for key, value in under("model.", state).items() if key != f"model.{last}"}
    with pytest.raises(ModelError, match="fits none"):
        imported(less, tmp_path)
    with pytest.raises(ModelError, match="1 missing"):
        imported(less, tmp_path, "wgan_vgg")
    other = {**under("model.", state), f"model.{last}": torch.zeros(2, 2)}
    with pytest.raises(ModelError, match="another shape"):
        imported(other, tmp_path, "wgan_vgg")


def test_a_path_without_end_takes_no_time(state, tmp_path):
    deep = under("model." * 20_000, {"weight": torch.ones(1)})
    with pytest.raises(ModelError, match="fits none"):
        imported(deep, tmp_path)


def test_the_command_says_what_it_left_aside(state, tmp_path, monkeypatch, capsys):
    content = {"state_dict": under("model.", state) | {"a.b": torch.ones(1)}, "n": np.int64(1)}
    torch.save(content, tmp_path / "w.ckpt")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["cddnet", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        return end.value.code or 0, *capsys.readouterr()

    code, out, _ = run("models", "import", tmp_path / "w.ckpt", tmp_path / "out", "--as", "x")
    assert code == 0
    assert "left aside: 1 other tensors" in out
    assert "numpy" in out
    code, _, err = run("denoise", tmp_path, tmp_path / "o", "--model", tmp_path / "w.ckpt")
    assert code == 1
    assert "cddnet models import" in err or "no DICOM" in err
    with pytest.raises(ModelError, match="cddnet models import"):
        store.find(tmp_path / "w.ckpt")
