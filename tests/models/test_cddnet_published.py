"""The published CDD-Net against outputs of the authors' code; see tests/golden/README.md.

Above 300 lines: one network, from its parts to the weights it refuses.
"""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch

from cddnet import models
from cddnet.errors import ModelError
from cddnet.models import cddnet_published

GOLDEN = Path(__file__).parents[1] / "golden"
FILL = runpy.run_path(str(GOLDEN / "fill.py"))
PUBLISHED_SHAPES = json.loads((GOLDEN / "state_dict_keys.json").read_text())["cddnet"]

# float32 carries 6e-8 per operation; a wrong attention branch would still pass 1e-4.
TOLERANCE_OF_RANGE = 1e-5
INPUT_SHAPES = {
    "rgb": (2, 3, 64, 96),
    "gray": (1, 1, 48, 56),
    "odd": (1, 3, 45, 51),
    "clamp": (1, 3, 24, 40),
    "legm_small": (2, 32, 3, 3),
}
GRAY_MODULES = (
    "conv_layer1",
    "drdb_featx1",
    "depth_net",
    "drdb_depth",
    "drdb_imgfeat",
    "feature_fusion",
    "legm",
    "spatial_mixing1",
    "SCAB",
)


@pytest.fixture(scope="module")
def expected():
    with np.load(GOLDEN / "cddnet_parity.npz") as archive:
        return {name: archive[name] for name in archive.files}


def golden_weights():
    laplacian = np.full((8, 1, 3, 3), -1.0, np.float32)
    laplacian[:, :, 1, 1] = 8.0
    return {
        key: torch.from_numpy(
            laplacian.copy() if key.endswith("filt") else np.asarray(FILL["parameter"](key, shape))
        )
        for key, shape in PUBLISHED_SHAPES.items()
    }


def golden_network(**added_to_weights):
    weights = golden_weights()
    for key, added in added_to_weights.items():
        weights[key] = weights[key] + added
    return cddnet_published.from_published(weights)


def golden_input(case):
    values = FILL["uniform"](f"input.{case}", INPUT_SHAPES[case]).astype(np.float32)
    image = torch.from_numpy(values)
    return image.expand(-1, 3, -1, -1) if case == "gray" else image


def parts_of(network, image):
    with torch.no_grad():
        return {name: part.numpy() for name, part in network.parts(image)._asdict().items()}


def module_outputs(network, image):
    """Output of every direct module of the estimator that the golden file knows."""
    seen = {}

    def keep(name):
        return lambda module, inputs, output: seen.update({name: output.numpy()})

    handles = [
        network.cddnet.get_submodule(name).register_forward_hook(keep(name))
        for name in GRAY_MODULES
    ]
    with torch.no_grad():
        network(image)
    for handle in handles:
        handle.remove()
    return seen


def legm_small(network):
    with torch.no_grad():
        return network.cddnet.legm(4 * golden_input("legm_small") - 2).numpy()


def deviation_of_range(actual, golden):
    assert actual.shape == golden.shape
    return np.abs(actual - golden).max() / np.ptp(golden)


def gray_deviations(network, expected):
    """Largest deviation, of range, of each module's output and of the end of the network."""
    image = golden_input("gray")
    actual = module_outputs(network, image) | parts_of(network, image)
    del actual["contrast"]  # its range is rounding only
    assert {f"gray.{name}" for name in actual} == {
        name for name in expected if name.startswith("gray.") and name != "gray.contrast"
    }
    return {
        name: deviation_of_range(values, expected[f"gray.{name}"])
        for name, values in actual.items()
    }


@pytest.mark.parametrize(
    ("case", "part"),
    [
        ("rgb", "contrast"),
        ("rgb", "estimation"),
        ("rgb", "output"),
        ("odd", "estimation"),
        ("odd", "output"),
    ],
)
def test_whole_network_has_parity(case, part, expected):
    actual = parts_of(golden_network(), golden_input(case))[part]
    assert deviation_of_range(actual, expected[f"{case}.{part}"]) < TOLERANCE_OF_RANGE


def test_every_module_has_parity(expected):
    deviations = gray_deviations(golden_network(), expected)
    assert {name: d for name, d in deviations.items() if d >= TOLERANCE_OF_RANGE} == {}


def test_contrast_of_equal_channels_has_parity(expected):
    contrast = parts_of(golden_network(), golden_input("gray"))["contrast"]
    assert np.abs(contrast - expected["gray.contrast"]).max() < 1e-6


def test_legm_has_parity_where_its_attention_counts(expected):
    actual = legm_small(golden_network())
    assert deviation_of_range(actual, expected["legm_small.output"]) < TOLERANCE_OF_RANGE


def test_legm_parity_sees_the_attention(expected):
    network = golden_network()
    network.state_dict()["cddnet.legm.softmax_conv.weight"].zero_()  # attention becomes uniform
    deviation = deviation_of_range(legm_small(network), expected["legm_small.output"])
    assert deviation > 100 * TOLERANCE_OF_RANGE


CLAMP_KEY = "cddnet.conv_layer6.bias"


def test_clamped_estimation_has_parity(expected):
    estimation = parts_of(golden_network(**{CLAMP_KEY: 0.9}), golden_input("clamp"))["estimation"]
    assert deviation_of_range(estimation, expected["clamp.estimation"]) < TOLERANCE_OF_RANGE


@pytest.mark.parametrize("side", ["below", "above"])
def test_restoration_has_parity_on_both_sides_of_the_clamp(side, expected):
    image = golden_input("clamp")
    output = parts_of(golden_network(**{CLAMP_KEY: 0.9}), image)["output"]
    estimation = expected["clamp.estimation"].astype(np.float64)
    chosen = estimation < 0.89 if side == "below" else estimation > 0.9001
    assert chosen.mean() > 0.3
    # What the tolerance of E becomes by the derivative of (image - E) / max(1 - E / 0.9, 1e-6).
    transmission = np.maximum(1 - estimation / 0.9, 1e-6)
    slope = 1 / transmission
    if side == "below":
        slope = slope + np.abs(image.numpy() - estimation) / (0.9 * transmission**2)
    allowed = TOLERANCE_OF_RANGE * np.ptp(estimation) * slope
    deviation = np.abs(output - expected["clamp.output"])
    assert (deviation[chosen] <= allowed[chosen]).all()


def has_parity(network, expected):
    """Cheapest comparison first: most wrong weights show in the first two."""
    odd = parts_of(network, golden_input("odd"))["estimation"]
    return (
        deviation_of_range(odd, expected["odd.estimation"]) < TOLERANCE_OF_RANGE
        and deviation_of_range(legm_small(network), expected["legm_small.output"])
        < TOLERANCE_OF_RANGE
        and max(gray_deviations(network, expected).values()) < TOLERANCE_OF_RANGE
    )


def test_parity_is_lost_when_any_weight_moves_by_a_hundredth(expected):
    network = golden_network()
    assert has_parity(network, expected)
    unnoticed = []
    for key, values in network.state_dict().items():
        original = values.clone()
        values.add_(0.01 if values.is_floating_point() else 1)
        if has_parity(network, expected):
            unnoticed.append(key)
        values.copy_(original)
    # The softmax takes no notice of a constant; the batch counter serves training only.
    without_effect = {"cddnet.legm.softmax_conv.bias", "cddnet.legm.norm.num_batches_tracked"}
    assert set(unnoticed) == without_effect | set(cddnet_published.DEAD_PARAMETERS)


def test_keys_and_shapes_are_the_published_ones_in_their_order():
    state = models.build("cddnet_published").state_dict()
    assert [(key, list(values.shape)) for key, values in state.items()] == list(
        PUBLISHED_SHAPES.items()
    )


def test_the_laplacian_is_the_published_one():
    state = models.build("cddnet_published").state_dict()
    for key in (key for key in PUBLISHED_SHAPES if key.endswith("filt")):
        assert torch.equal(state[key], golden_weights()[key])


def test_gradient_reaches_all_but_the_dead_parameters():
    network = golden_network().train()
    network(golden_input("odd")).square().mean().backward()
    unreached = [name for name, p in network.named_parameters() if p.grad is None]
    assert tuple(unreached) == cddnet_published.DEAD_PARAMETERS
    zero = [n for n, p in network.named_parameters() if p.grad is not None and not p.grad.any()]
    assert zero == []


def test_dead_parameters_change_nothing():
    image = golden_input("odd")
    changed = golden_network(**dict.fromkeys(cddnet_published.DEAD_PARAMETERS, 1.0))
    with torch.no_grad():
        assert torch.equal(changed(image), golden_network()(image))


@pytest.mark.parametrize("size", [(2, 2), (2, 9), (33, 47), (250, 255)])
def test_output_has_the_size_of_the_image(size):
    image = torch.from_numpy(FILL["uniform"]("size", (1, 3, *size)).astype(np.float32))
    with torch.no_grad():
        output = golden_network()(image)
    assert output.shape == image.shape
    assert output.isfinite().all()


@pytest.mark.parametrize("shape", [(1, 1, 8, 8), (3, 8, 8), (1, 3, 1, 8), (1, 4, 8, 8)])
def test_refuses_other_shapes(shape):
    with pytest.raises(ModelError, match="three equal channels"):
        golden_network()(torch.zeros(shape))


def test_forward_is_the_output_part():
    network, image = golden_network(), golden_input("odd")
    with torch.no_grad():
        assert torch.equal(network(image), network.parts(image).output)


def test_loads_weights_of_a_wrapped_network():
    wrapped = {f"module.{key}": values for key, values in golden_weights().items()}
    network = models.from_published("cddnet_published", wrapped)
    loaded = network.state_dict()
    assert all(torch.equal(loaded[key], values) for key, values in golden_weights().items())


def test_loaded_network_is_in_evaluation_mode_and_owns_its_weights():
    weights = golden_weights()
    network = cddnet_published.from_published(weights)
    weights["cddnet.gate2.bias"].add_(1.0)
    assert not any(module.training for module in network.modules())
    assert torch.equal(
        network.state_dict()["cddnet.gate2.bias"], golden_weights()["cddnet.gate2.bias"]
    )


def without(weights):
    del weights["cddnet.gate2.bias"]


def with_a_stranger(weights):
    weights["cddnet.gate3.bias"] = torch.zeros(32)


def with_another_shape(weights):
    weights["cddnet.gate2.bias"] = torch.zeros(31)


def with_a_number(weights):
    weights["cddnet.gate2.bias"] = 0.5


def half_wrapped(weights):
    weights["module.ae"] = weights.pop("ae")


def whole_checkpoint(weights):
    inner = dict(weights)
    weights.clear()
    weights.update({"epoch": 3, "state_dict": inner})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without, r"1 missing \(cddnet\.gate2\.bias\)"),
        (with_a_stranger, r"1 unexpected \(cddnet\.gate3\.bias\)"),
        (
            with_another_shape,
            r"1 of another shape \(cddnet\.gate2\.bias \(31,\) instead of \(32,\)",
        ),
        (with_a_number, r"cddnet\.gate2\.bias float instead of \(32,\)"),
        (half_wrapped, r"1 missing \(ae\); 1 unexpected \(module\.ae\)"),
        (whole_checkpoint, r"186 missing .* and 183 more\); 2 unexpected \(epoch, state_dict\)"),
        (dict.clear, r"186 missing"),
    ],
)
def test_refuses_weights_that_do_not_fit(damage, message):
    weights = golden_weights()
    damage(weights)
    with pytest.raises(ModelError, match=message) as refusal:
        cddnet_published.from_published(weights)
    assert "Pass the state dict of its denoiser" in str(refusal.value)
