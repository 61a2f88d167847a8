"""Names of weights: versions, the default, and what is unknown."""

import pytest
import torch

from cddnet.errors import ModelError
from cddnet.models._cards import file_hash
from cddnet.runtime import store
from cddnet.workflows._complexity import count_flops


@pytest.fixture
def shelf(monkeypatch, tmp_path):
    names = ("cddnet@1", "cddnet@9", "cddnet@10", "fast@3", "other@2")
    files = {name: tmp_path / f"{name}.safetensors" for name in names}
    monkeypatch.setattr(store, "shipped", lambda: files)
    return files


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("default", "fast@3"),
        ("cddnet", "cddnet@10"),
        ("cddnet@9", "cddnet@9"),
        ("other", "other@2"),
    ],
)
def test_the_newest_unless_a_version_is_named(shelf, asked, found):
    assert store.find(asked) == shelf[found]


@pytest.mark.parametrize("asked", ["cddnet@2", "cdd", "", "@"])
def test_unknown_names_are_refused_with_the_known(shelf, asked):
    with pytest.raises(ModelError, match="cddnet@10, fast@3, other@2"):
        store.find(asked)


def test_a_file_is_found_by_its_path(shelf, tiny_weights, tmp_path):
    assert store.find(tiny_weights) == store.find(str(tiny_weights)) == tiny_weights
    with pytest.raises(ModelError, match="no such weights file"):
        store.find(tmp_path / "nowhere.safetensors")


def test_what_ships_is_what_its_cards_say():
    for name, path in store.shipped().items():
        network, card = store.load(name)
        assert card.name == name
        assert card.sha256 == file_hash(path)
        assert 0 <= card.strength <= 1
        assert not network.training
    assert [card.name for card in store.cards()] == list(store.shipped())


@pytest.mark.parametrize(("name", "most_gmac"), [("fast@1", 6), ("quality@1", 25)])
def test_what_a_slice_may_cost(name, most_gmac):
    network, _ = store.load(name)
    macs = count_flops(network, torch.zeros(1, 1, 512, 512)) / 2
    assert 0.5 * most_gmac < macs / 1e9 <= most_gmac


def test_all_weights_together_are_small():
    assert sum(path.stat().st_size for path in store.shipped().values()) < 12e6
