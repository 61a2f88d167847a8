"""The options that ablations take away or exchange: each does what it says and nothing else.

Above 300 lines: each option of one network has its laws.
"""

import json

import pytest
import torch
from torch import nn
from torch.nn import functional

from cddnet import models
from cddnet.errors import ModelError
from cddnet.models import _weights, cddnet
from cddnet.models._cdd_blocks import (
    CrossAttention,
    LightBlock,
    LocalGlobal,
    _image,
    _windows,
    drdb,
)
from cddnet.models.cddnet_published import DenseBlock
from cddnet.workflows._complexity import count_flops

# Of the full width; the first is the network as it was before there were options.
COSTS = {
    "": (974_397, 5.29),
    "body_block=drdb": (1_002_351, 5.59),
    "body_block=double_drdb": (1_115_349, 6.79),
    "body_block=cdd": (720_135, 2.90),
    "depth_network=light": (535_549, 5.22),
    "depth_network=small": (497_869, 5.21),
    "contrast_input=": (974_397, 5.29),
    "depth_input=": (495_244, 5.20),
}
BODIES = ("residual", "drdb", "double_drdb", "cdd")
NARROW = {"width": 8, "depth_width": 4}


def options(variant):
    """From "name=value"; an empty value is false."""
    name, _, value = variant.partition("=")
    return {name: value or False} if name else {}


VARIANTS = [options(variant) for variant in COSTS]
every_variant = pytest.mark.parametrize("variant", VARIANTS, ids=list(COSTS))
every_body = pytest.mark.parametrize("body", BODIES)


def seeded(seed=7, **chosen):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return models.build("cddnet", **(NARROW | chosen))


def stirred(**chosen):
    """Every parameter moved a little, away from zeros set on purpose."""
    network = seeded(**chosen)
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    return network.eval()


def noise_image(*shape, seed=3):
    """Soft tissue with noise of about 50 HU, in network range."""
    return 0.05 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def present(output):
    return [field for field in output if field is not None]


@pytest.mark.parametrize(("variant", "cost"), COSTS.items(), ids=list(COSTS))
def test_cost_of_a_slice_is_the_recorded_one_and_small(variant, cost):
    with torch.device("meta"):
        network = models.build("cddnet", **options(variant))
    parameters, billion_macs = cost
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters
    macs = count_flops(network, torch.empty(1, 1, 512, 512, device="meta")) / 2
    assert macs == pytest.approx(billion_macs * 1e9, abs=5e6)
    assert macs < 1.5 * COSTS[""][1] * 1e9 < 8e9


@every_variant
@pytest.mark.parametrize("size", [(1, 1), (2, 37), (65, 47)])
def test_any_size_comes_back_in_that_size(variant, size):
    image = noise_image(1, 1, *size)
    with torch.no_grad():
        output = stirred(**variant)(image)
    for field in present(output):
        assert field.shape == image.shape
        assert field.isfinite().all()


@every_variant
def test_every_parameter_gets_a_gradient(variant):
    """Over images of air, tissue and bone: a leaky unit that sees one sign has no gradient."""
    network = stirred(width=24, **variant).train()
    images = noise_image(4, 1, 33, 47) + torch.tensor([-0.9, 0.0, 0.3, 1.5]).reshape(4, 1, 1, 1)
    network(images).image.square().mean().backward()
    assert [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


@every_variant
@pytest.mark.parametrize("depth_width", [4, 16])
def test_bfloat16_has_the_gradient_of_float32(variant, depth_width):
    """Within five of its steps of 2^-8; kernels of some shapes give NaN instead."""
    image, gradients = noise_image(2, 1, 64, 64), []
    for fast in (False, True):
        network = seeded(width=24, **(variant | {"depth_width": depth_width})).train()
        with torch.autocast("cpu", torch.bfloat16, enabled=fast):
            output = network(image)
        estimate = output.estimation.float()
        (estimate * noise_image(2, 1, 64, 64, seed=5)).sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in network.parameters()]))
    exact, rounded = gradients
    assert (rounded - exact).norm() < 5 / 256 * exact.norm()
    assert not torch.equal(rounded, exact)


@every_variant
def test_one_slice_does_not_change_another(variant):
    pair = torch.cat((noise_image(1, 1, 65, 47), 0.5 + noise_image(1, 1, 65, 47, seed=4)))
    network = stirred(**variant)
    with torch.no_grad():
        together, alone = network(pair), network(pair[:1])
    for both, single in zip(present(together), present(alone), strict=True):
        assert ((both[:1] - single).abs() < 1e-5 * single.abs().max().clamp(min=1.0)).all()


@every_variant
def test_training_starts_near_the_identity(variant):
    """Within 10 HU of noise of 50 HU; moved weights are not."""
    image = noise_image(1, 1, 65, 47)
    with torch.no_grad():
        fresh = seeded(width=24, **variant).eval()(image).image - image
        moved = stirred(width=24, **variant)(image).image - image
    assert 0 < 1024 * fresh.abs().max() < 10
    assert 1024 * moved.abs().max() > 10


@every_body
def test_air_and_metal_stay_finite(body):
    network = stirred(body_block=body).train()
    rows, columns = torch.meshgrid(torch.arange(40), torch.arange(56), indexing="ij")
    checker = ((rows // 5 + columns // 7) % 2).float()[None, None]
    output = network((-1024 + checker * 31024) / 1024)
    output.image.square().mean().backward()
    assert all(field.isfinite().all() for field in present(output))
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())


@pytest.mark.parametrize(
    ("option", "column"), [("contrast_input", 4), ("depth_input", 5)], ids=["contrast", "depth"]
)
def test_without_an_input_it_is_the_network_that_gives_it_no_weight(option, column):
    """Oracle: the whole network with the weights of that map at zero."""
    image = noise_image(1, 1, 65, 47)
    whole, without = stirred(), stirred(**{option: False})
    without.load_state_dict(
        {key: whole.state_dict()[key] for key in without.state_dict()}, strict=True
    )
    with torch.no_grad():
        assert not torch.equal(whole(image).image, without(image).image)
        whole.body.enter.weight[:, column] = 0
        torch.testing.assert_close(whole(image).image, without(image).image, rtol=0, atol=1e-6)


def test_without_contrast_none_is_computed(monkeypatch):
    image = noise_image(1, 1, 65, 47)
    whole, without = stirred(), stirred(contrast_input=False)
    with torch.no_grad():
        before = whole(image).image, without(image).image
        monkeypatch.setattr(cddnet, "local_contrast", lambda maps, window: torch.rand_like(maps))
        after = whole(image).image, without(image).image
    assert not torch.equal(before[0], after[0])
    assert torch.equal(before[1], after[1])


@pytest.mark.parametrize("depth_network", ["unet", "light", "small"])
def test_without_depth_there_is_no_head_and_the_body_starts_the_same(depth_network):
    whole = seeded(depth_network=depth_network)
    without = seeded(depth_network=depth_network, depth_input=False)
    image = noise_image(1, 1, 33, 47)
    assert whole(image).depth.shape == image.shape
    assert without(image).depth is None
    state = without.state_dict()
    assert not any(key.startswith("depth_head") for key in state)
    assert all(torch.equal(value, whole.state_dict()[key]) for key, value in state.items())


@every_body
def test_the_encoder_alone_gives_the_features_of_the_whole_forward(body):
    network, image, found = stirred(body_block=body), noise_image(2, 1, 65, 47), []
    parts = network.body.encode1, network.body.encode2, network.body.bottom
    for part in parts:
        part.register_forward_hook(lambda _part, _inputs, features: found.append(features))
    with torch.no_grad():
        network(image)
        alone = network.encode(image)
    for whole, level, side in zip(found[:3], alone, (64, 32, 16), strict=True):
        assert level.shape[-2] == side
        assert torch.equal(whole, level)


@every_variant
def test_a_variant_comes_back_from_its_file(variant, tmp_path):
    kept = models.all_options("cddnet", **(NARROW | variant))
    network, path = stirred(**variant), tmp_path / "w.safetensors"
    _weights.save(network, path, name="w@1", model="cddnet", options=kept, version="0")
    loaded, card = _weights.load(path)
    assert card.options == kept
    assert isinstance(card.options["depth_input"], bool)
    with torch.no_grad():
        image = noise_image(1, 1, 33, 47)
        assert torch.equal(loaded(image).image, network(image).image)


def test_a_card_from_before_the_options_is_of_the_default_network(tmp_path):
    network, path = stirred(), tmp_path / "w.safetensors"
    _weights.save(network, path, name="w@1", model="cddnet", options=NARROW, version="0")
    loaded, card = _weights.load(path)
    assert models.all_options("cddnet", **card.options) == models.all_options("cddnet", **NARROW)
    with torch.no_grad():
        image = noise_image(1, 1, 33, 47)
        assert torch.equal(loaded(image).image, network(image).image)


def test_options_survive_json_with_their_types():
    kept = models.all_options("cddnet", contrast_input=False)
    again = json.loads(json.dumps(kept))
    assert again == kept
    assert [type(value) for value in again.values()] == [type(value) for value in kept.values()]


@pytest.mark.parametrize("option", ["body_block", "depth_network"])
def test_what_there_is_not_is_refused_with_what_there_is(option):
    known = {"body_block": "residual, drdb, double_drdb, cdd", "depth_network": "unet, light"}
    with pytest.raises(ModelError, match=f"has no {option} 'dense'; .*{known[option]}"):
        models.build("cddnet", **{option: "dense"})


def test_the_dense_block_is_the_published_one_with_dilation_2_and_padding_2():
    torch.manual_seed(0)
    published = DenseBlock(
        12, 3, 5, lambda inputs, outputs: nn.Conv2d(inputs, outputs, 3, padding=2, dilation=2)
    ).double()
    ours = drdb(12).double()
    ours.load_state_dict(published.state_dict())
    features = torch.randn(2, 12, 10, 14, dtype=torch.float64)
    torch.testing.assert_close(ours(features), published(features), rtol=1e-12, atol=1e-12)


def test_windows_come_together_again():
    features = torch.arange(2 * 8 * 16 * 24).reshape(2, 8, 16, 24)
    windows = _windows(features)
    assert windows.shape == (2 * 2 * 3, 4, 64, 2)
    assert torch.equal(windows[1, 3, 10], features[0, 6:8, 1, 8 + 2])
    assert torch.equal(_image(windows, features.shape), features)


def test_window_attention_is_that_of_torch_with_a_bias_by_offset():
    """Oracle for one window: torch's own attention, a bias looked up pair by pair, then the rest
    of the block.
    """
    torch.manual_seed(0)
    block = LocalGlobal(8).double()
    torch.nn.init.normal_(block.bias)
    features = torch.randn(1, 8, 8, 8, dtype=torch.float64)
    normed = functional.layer_norm(
        features.permute(0, 2, 3, 1), (8,), block.norm.weight, block.norm.bias
    ).permute(0, 3, 1, 2)
    query, key, value = block.enter(normed).chunk(3, dim=1)
    places = [(row, column) for row in range(8) for column in range(8)]
    bias = torch.stack(
        [
            block.bias[:, (row - other_row + 7) * 15 + column - other_column + 7]
            for row, column in places
            for other_row, other_column in places
        ],
        dim=-1,
    ).reshape(4, 64, 64)
    heads = [maps.reshape(1, 4, 2, 64).transpose(-1, -2) for maps in (query, key, value)]
    attended = functional.scaled_dot_product_attention(*heads, attn_mask=bias)
    attended = attended.transpose(-1, -2).reshape(1, 8, 8, 8)
    middle = features + block.leave(attended + block.local(value))
    expected = middle + block.mlp(middle)
    torch.testing.assert_close(block(features), expected, rtol=1e-12, atol=1e-12)


def test_attention_reaches_the_whole_window_and_two_pixels_beyond():
    torch.manual_seed(0)
    block = LocalGlobal(8).double()
    features = torch.randn(1, 8, 16, 16, dtype=torch.float64)
    changed = features.clone()
    changed[..., 7, 7] = torch.randn(8, dtype=torch.float64)
    moved = (block(changed) - block(features)).detach().abs().amax(dim=1)[0] > 0
    assert moved[:8, :8].all()
    assert moved[8:10, 5:10].all()
    assert not moved[10:].any()
    assert not moved[:, 10:].any()


def test_light_blocks_keep_signs_and_start_without_sharpening():
    """Sigmoid weights are between 0 and 1: no value grows and none changes its sign."""
    torch.manual_seed(0)
    attention = CrossAttention(16)
    features = 3 * torch.randn(1, 16, 9, 9)
    first, second = features.chunk(2, dim=1)
    plain = torch.cat((attention.first(first), attention.second(second)), dim=1)
    share = attention(features) / plain
    assert ((share > 0) & (share < 1)).all()
    assert all(mixing.param.item() == 0 for mixing in LightBlock(16).mixing)


@pytest.mark.parametrize(
    ("views", "turned"), [(2, [(-1,)]), (4, [(-1,), (-2,), (-2, -1)])], ids=["two", "four"]
)
def test_views_make_the_network_indifferent_to_being_turned_round(views, turned):
    network, plain = stirred(views=views).double(), stirred().double()
    image = torch.randn(2, 1, 128, 64, dtype=torch.float64) * 0.1
    with torch.no_grad():
        output, single = network(image), plain(image)
        for axes in turned:
            again = network(image.flip(axes))
            for name in output._fields:
                back = getattr(again, name).flip(axes)
                torch.testing.assert_close(back, getattr(output, name), rtol=1e-9, atol=1e-9)
            assert not torch.allclose(plain(image.flip(axes)).image.flip(axes), single.image)


def test_views_are_the_mean_over_the_same_weights_and_cost_as_many_networks():
    network, plain = stirred(views=4), stirred()
    plain.load_state_dict(network.state_dict())
    image = torch.randn(1, 1, 64, 128) * 0.1
    assert network(image[..., :51, :70]).image.shape == (1, 1, 51, 70)
    with torch.no_grad():
        seen = [plain(image.flip(a)).image.flip(a) for a in ((), (-1,), (-2,), (-2, -1))]
        torch.testing.assert_close(network(image).image, torch.stack(seen).mean(0))
    assert count_flops(network, image) == 4 * count_flops(plain, image)
    without_depth = stirred(views=2, depth_input=False)
    assert without_depth(image).depth is None


def test_views_that_there_are_not_are_refused():
    with pytest.raises(ModelError, match="views 5; choose 1 to 4"):
        models.build("cddnet", views=5)


def test_compression_is_asinh_from_beyond_air_to_metal():
    hu = torch.cat((torch.linspace(-3024.0, 30_000.0, 9001), torch.arange(-1024.0, 300.0)))
    attenuation = (hu / 1024 + 1).double()
    expected = torch.asinh((attenuation - 1) * 10)
    torch.testing.assert_close(cddnet.compress(attenuation), expected)
    torch.testing.assert_close(cddnet.compress(attenuation.float()), expected.float())


@pytest.mark.parametrize("window", [3, 7])
def test_local_contrast_is_one_minus_smallest_over_mean_of_what_the_window_holds(rng, window):
    image = rng.normal(1.0, 0.3, (13, 18))
    (found,) = cddnet.local_contrast(torch.from_numpy(image)[None, None], window)[0]
    positive, reach = image.clip(0) + 0.1, window // 2
    for row, column in ((0, 0), (0, 9), (6, 8), (12, 17), (5, 0)):
        rows, columns = (slice(max(0, at - reach), at + reach + 1) for at in (row, column))
        seen = positive[rows, columns]
        assert found[row, column].item() == pytest.approx(1 - seen.min() / seen.mean())
