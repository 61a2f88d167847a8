"""Weights, cards and checkpoints made to harm: refused in a sentence, and in little memory."""

import json
import os
import pickle
import shutil
import struct
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from cddnet import models
from cddnet.errors import ModelError
from cddnet.models import _weights
from cddnet.models._cards import file_hash
from cddnet.workflows.import_weights import import_weights

MB = 1 << 20
# The network of these tests takes kilobytes; what the libraries load when first used is more.
MOST_MEMORY_BYTES = 256 * MB


@pytest.fixture
def weights(tiny_weights, tmp_path):
    """A copy of the small network that a test may damage."""
    for path in (tiny_weights, tiny_weights.with_suffix(".json")):
        shutil.copy(path, tmp_path)
    return tmp_path / tiny_weights.name


def peak_bytes():
    told = Path("/proc/self/status").read_text()
    return 1024 * int(told.split("VmHWM:")[1].split()[0])


@pytest.fixture
def little_memory():
    """The test may not take much more than there was."""
    if not sys.platform.startswith("linux"):
        yield
        return
    reset = Path("/proc/self/clear_refs")
    try:
        reset.write_text("5")
    except OSError:
        pytest.skip("the peak of memory cannot be reset here")
    before = peak_bytes()
    yield
    assert peak_bytes() - before < MOST_MEMORY_BYTES


def with_hash(weights):
    """A card that vouches for the file, as a hostile sender would write it."""
    path = weights.with_suffix(".json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"sha256": file_hash(weights)}))


def raw(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def tensor(shape, start, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


DATA = bytes(64)
HOSTILE = {
    "nothing": b"",
    "a length alone": struct.pack("<Q", 10),
    "a header beyond all memory": struct.pack("<Q", 2**63) + DATA,
    "a header longer than the file": struct.pack("<Q", 10**6) + b"{}",
    "no JSON": raw(b"{'a': 1"),
    "a list": raw([1, 2]),
    "deep JSON": raw(b"[" * 200_000),
    "no text": raw(b"\xff\xfe" * 40),
    "huge tensor": raw({"a": tensor([2**31, 2**31], 0, 64)}, DATA),
    "huge and honest of its place": raw({"a": tensor([2**30], 0, 2**32)}, DATA),
    "product beyond 64 bits": raw({"a": tensor([2**33, 2**33, 2**33], 0, 64)}, DATA),
    "negative length": raw({"a": tensor([-4], 0, 16)}, DATA),
    "overlapping": raw({"a": tensor([8], 0, 32), "b": tensor([8], 16, 48)}, DATA[:48]),
    "backwards": raw({"a": tensor([4], 32, 16)}, DATA),
    "a hole": raw({"a": tensor([4], 0, 16), "b": tensor([4], 32, 48)}, DATA[:48]),
    "more than is described": raw({"a": tensor([4], 0, 16)}, DATA),
    "another size than its shape": raw({"a": tensor([4], 0, 12)}, DATA[:12]),
    "unknown type": raw({"a": tensor([4], 0, 16, "F31")}, DATA[:16]),
    "a type that nothing is trained in": raw({"a": tensor([16], 0, 16, "F8_E4M3")}, DATA[:16]),
    "a pickle": pickle.dumps({"a": 1}),
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_a_file_that_lies_about_itself(content, weights, little_memory):
    weights.write_bytes(content)
    with_hash(weights)
    with pytest.raises(ModelError, match=r"tiny\.safetensors: weights do not fit cddnet: "):
        _weights.load(weights)


def changed(weights, change):
    tensors = load_file(weights)
    change(tensors)
    save_file(tensors, weights)
    with_hash(weights)


def first_of(tensors):
    return next(key for key, value in sorted(tensors.items()) if value.ndim == 4)


def spoil(value):
    def change(tensors):
        tensors[first_of(tensors)].view(-1)[-1] = value

    return change


def put(make):
    def change(tensors):
        key = first_of(tensors)
        tensors[key] = make(tensors[key])

    return change


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda tensors: tensors.pop(first_of(tensors)), "missing, expected"),
        (lambda tensors: tensors.update(more=torch.zeros(2)), "'more' is 2 numbers, expected none"),
        (put(lambda value: value.flatten()), "numbers, expected"),
        (put(lambda value: value[:, :0]), "x 0 x"),
        (put(lambda value: value.long()), "whole numbers, expected"),
        (spoil(float("nan")), "not finite"),
        (spoil(float("-inf")), "not finite"),
        (put(lambda value: torch.full_like(value, float("inf"), dtype=torch.bfloat16)), "finite"),
        (put(lambda value: torch.full_like(value, float("nan"), dtype=torch.float16)), "finite"),
        (put(lambda value: value > 0), "type BOOL"),
    ],
)
def test_tensors_that_are_not_those_of_the_network(change, told, weights, little_memory):
    changed(weights, change)
    with pytest.raises(ModelError, match=told):
        _weights.load(weights)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_finite_weights_of_another_precision_are_no_harm(dtype, weights):
    _weights.load(weights)
    changed(weights, put(lambda value: value.to(dtype)))
    network, _ = _weights.load(weights)
    assert all(value.dtype == torch.float32 for value in network.parameters())


CARDS = {
    "another network": {"model": "red_cnn", "options": {}},
    "no network": {"model": "../../os"},
    "a module that is none": {"model": "_cards"},
    "no name": {"model": None},
    "options of another": {"options": {"channels": 3}},
    "a network beyond all memory": {"options": {"width": 10**12, "depth_width": 4}},
    "a network beyond this memory": {"options": {"width": 9_999, "depth_width": 9_999}},
    "no width": {"options": {"width": 0, "depth_width": 4}},
    "a width below nothing": {"options": {"width": -4, "depth_width": 4}},
    "a width in words": {"options": {"width": "wide", "depth_width": 4}},
    "a width of parts": {"options": {"width": 4.5, "depth_width": 4}},
    "options in a list": {"options": [4, 4]},
    "options of options": {"options": {"width": {"a": 1}}},
    "a hash of nothing": {"sha256": None},
    "a number for a hash": {"sha256": 5},
    "a range in words": {"hu_per_unit": "many"},
    "no range": {"hu_per_unit": None},
    "a strength beyond all": {"strength": 1e300},
    "a strength that is none": {"strength": "strong"},
    "a strength that is no number": {"strength": float("nan")},
    "a name that is none": {"name": ["cddnet@1"]},
    "more than a card has": {"__class__": "x"},
}


@pytest.mark.parametrize("values", CARDS.values(), ids=CARDS)
def test_a_card_that_is_none(values, weights, little_memory):
    path = weights.with_suffix(".json")
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    with pytest.raises(ModelError):
        _weights.load(weights)


@pytest.mark.parametrize("text", [b"[" * 100_000, b"\xff\xfe", b'{"a":' * 50_000, b"1" * 5000])
def test_a_card_that_cannot_be_read(text, weights, little_memory):
    weights.with_suffix(".json").write_bytes(text)
    with pytest.raises(ModelError, match="not a model card"):
        _weights.load(weights)


def test_a_file_too_large_is_not_read(weights, little_memory):
    """It has a size, and no content on the disk."""
    with weights.open("r+b") as file:
        file.truncate(1 << 32)
    with pytest.raises(ModelError, match="4294967296 bytes"):
        _weights.load(weights)


@pytest.mark.parametrize("name", models.names())
def test_every_network_is_measured_before_it_is_built(name):
    """Without this, the guard above would let the memory of such a network be taken."""
    with torch.device("meta"):
        planned = models.build(name).state_dict()
    assert all(value.is_meta for value in planned.values())


class Runs:
    """Unpickled, it makes a folder."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def published():
    return models.build("wgan_vgg").state_dict()


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("wrap", [lambda code: code, lambda code: published() | {"more": code}])
def test_code_in_a_checkpoint_is_not_run(wrap, legacy, tmp_path):
    made, file = tmp_path / "made", tmp_path / "a.pth"
    torch.save(wrap(Runs(made)), file, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ModelError, match="never read"):
        import_weights(file, "x", tmp_path / "out")
    assert not made.exists()
    assert not (tmp_path / "out").exists()
    torch.load(file, weights_only=False)
    assert made.exists()


def test_a_checkpoint_whose_tensors_are_views_of_nothing(tmp_path, little_memory):
    """A gigabyte of tensor over one stored number."""
    state = published()
    key = next(iter(state))
    state[key] = torch.zeros(1).expand(1 << 14, 1 << 14)
    torch.save(state, tmp_path / "a.pth")
    assert (tmp_path / "a.pth").stat().st_size < 20 * MB
    with pytest.raises(ModelError, match="fits none"):
        import_weights(tmp_path / "a.pth", "x", tmp_path / "out")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("legacy", [False, True])
def test_a_checkpoint_cut_short(share, legacy, tmp_path):
    file = tmp_path / "a.pth"
    torch.save({"w": torch.ones(1000)}, file, _use_new_zipfile_serialization=not legacy)
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    with pytest.raises(ModelError):
        import_weights(file, "x", tmp_path / "out")


def test_a_checkpoint_that_is_another_archive(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", np.zeros(1000).tobytes())
        archive.writestr("archive/version", b"3\n")
    with pytest.raises(ModelError):
        import_weights(tmp_path / "a.pth", "x", tmp_path / "out")
