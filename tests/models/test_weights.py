"""A trained network on disk: it comes back, or it is refused."""

import json
import shutil

import pytest
import torch

from cddnet import models
from cddnet.errors import ModelError
from cddnet.models import _weights
from cddnet.models._cards import file_hash, read_card


@pytest.fixture
def weights(tiny_weights, tmp_path):
    """A copy of the small network that a test may damage."""
    for path in (tiny_weights, tiny_weights.with_suffix(".json")):
        shutil.copy(path, tmp_path)
    return tmp_path / tiny_weights.name


def change_card(weights, **values):
    path = weights.with_suffix(".json")
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def image():
    return 0.1 * torch.randn(1, 1, 33, 47, generator=torch.Generator().manual_seed(1))


def test_a_network_comes_back_with_its_answers(tmp_path):
    network = models.build("cddnet", width=4, depth_width=4).eval()
    path = tmp_path / "w.safetensors"
    card = _weights.save(
        network,
        path,
        name="w@3",
        model="cddnet",
        options={"width": 4, "depth_width": 4},
        version="0.0",
        training={"patients": ["A"]},
    )
    loaded, read = _weights.load(path)
    other = models.build("cddnet", width=4, depth_width=4).eval()
    assert read == card == read_card(path)
    assert card.sha256 == file_hash(path)
    assert not loaded.training
    with torch.inference_mode():
        assert torch.equal(loaded(image()).image, network(image()).image)
        assert not torch.equal(other(image()).image, network(image()).image)


def test_without_tensors_the_hash_is_of_the_options(tmp_path):
    hashes = []
    for reach in (1.0, 2.0):
        options = {"near_pixels": reach, "near_per_noise": 1.0}
        path = tmp_path / f"{reach}.safetensors"
        network = models.build("bilateral", **options)
        _weights.save(network, path, name="b@1", model="bilateral", options=options, version="0")
        loaded, card = _weights.load(path)
        hashes.append(card.sha256)
        assert torch.equal(loaded(image()).image, network(image()).image)
        assert card.options == options
    assert hashes[0] != hashes[1]


def test_a_changed_byte_is_refused_by_the_hash(weights):
    content = bytearray(weights.read_bytes())
    content[-3] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ModelError, match="damaged or was exchanged"):
        _weights.load(weights)


def test_a_cut_file_is_refused_by_the_hash(weights):
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ModelError, match="SHA-256"):
        _weights.load(weights)


def test_a_missing_card_is_named(weights):
    weights.with_suffix(".json").unlink()
    with pytest.raises(ModelError, match=r"no model card tiny\.json"):
        _weights.load(weights)


def test_missing_weights_are_named(weights):
    weights.unlink()
    with pytest.raises(ModelError, match=r"tiny\.safetensors: weights cannot be read"):
        _weights.load(weights)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"name": "a"}', '{"unknown": 1}'])
def test_what_is_no_card_is_refused(weights, text):
    weights.with_suffix(".json").write_text(text)
    with pytest.raises(ModelError, match="not a model card"):
        _weights.load(weights)


def test_weights_of_another_network_are_refused(weights):
    change_card(weights, options={"width": 8, "depth_width": 4})
    with pytest.raises(ModelError, match="weights do not fit cddnet"):
        _weights.load(weights)


def test_an_unknown_network_or_option_is_refused(weights):
    change_card(weights, options={"widht": 8})
    with pytest.raises(ModelError, match="did you mean 'width'"):
        _weights.load(weights)
    change_card(weights, options={}, model="cddnett")
    with pytest.raises(ModelError, match="there is no network 'cddnett'"):
        _weights.load(weights)


def test_another_network_range_is_refused(weights):
    change_card(weights, hu_per_unit=1000.0)
    with pytest.raises(ModelError, match=r"1000\.0 HU per unit"):
        _weights.load(weights)


def test_a_file_that_is_not_safetensors_is_refused(weights):
    weights.write_bytes(b"\x80\x04 this is a pickle")
    change_card(weights, sha256=file_hash(weights))
    with pytest.raises(ModelError, match="do not fit"):
        _weights.load(weights)
