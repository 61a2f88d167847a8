"""The published training of CDD-Net: each name of a defect changes what it says, and no more.

Above 300 lines: each defect has a law of its own.
"""

import hashlib
import io
import re
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

from cddnet import models
from cddnet.config import ConfigError, PatientSplit, TrainConfig, load_config
from cddnet.errors import ModelError
from cddnet.losses.interaction import capped_softmax
from cddnet.models import _ra_depth
from cddnet.models.cddnet_published import PublishedCddNet
from cddnet.runtime import store
from cddnet.training import methods
from cddnet.training.methods import cddnet_literal
from cddnet.training.methods._literal_options import DEFECTS, Options
from cddnet.training.methods._published_losses import PublishedContrast, random_projections
from cddnet.training.pairs import Pair
from cddnet.workflows.train import TrainOptions, train_from_config
from ct_tree import tissue, write_series
from tiny_training import Stop, config

CONFIGS = Path(__file__).parents[2] / "configs"
VGG = {"vgg19_file": "vgg19.pth"}
LEVELS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1.0)


def denoiser(kind=torch.float32):
    torch.manual_seed(0)
    return models.in_network_range(
        "cddnet_published", models.build("cddnet_published").to(dtype=kind)
    )


def but(*removed):
    return {"defects": [name for name in DEFECTS if name not in removed]}


def build(options=None, kind=torch.float32, **values):
    recipe = {"learning_rate": 1e-3, "weight_decay": 1e-8, "steps": 100} | values
    chosen = config(
        model="cddnet_published", method="cddnet_literal", method_options=options or {}, **recipe
    )
    return methods.build(chosen, denoiser(kind))


def pair(size=(33, 47), kind=torch.float32):
    """Within the window, but for some bone and some air."""
    generator = torch.Generator().manual_seed(3)
    maps = [torch.randn(2, 1, *size, generator=generator, dtype=kind) for _ in range(3)]
    full_dose = 0.2 * functional.avg_pool2d(maps[0], 5, 1, 2) - 0.1
    full_dose[..., :4, :4], full_dose[..., -4:, -4:] = 0.5, -1.0
    return Pair(full_dose + 0.05 * maps[1], full_dose, maps[2].abs())


class Watched:
    """An engine that remembers which networks each update gave a gradient."""

    def __init__(self, method, step=1):
        self._method, self.step, self.reached = method, step, {}

    def network(self, name):
        return self._method.networks[name].train()

    def autocast(self):
        return nullcontext()

    def minimise(self, name, loss):
        for network in self._method.networks.values():
            network.zero_grad(set_to_none=True)
        loss.backward()
        self.reached[name] = {
            other
            for other, network in self._method.networks.items()
            if any(p.grad is not None for p in network.parameters())
        }
        self._method.optimisers[name].step()
        return True


class FiveMaps(nn.Module):
    """In place of VGG19, whose weights nobody wants to draw in each test."""

    def __init__(self, name, state):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(9)
            widths = (4, 4, 4, 4, 512)
            self.layers = nn.ModuleList(nn.Conv2d(3, w, 3) for w in widths)
        self.requires_grad_(False)

    def forward(self, image):
        return [layer(image) for layer in self.layers]


@pytest.fixture
def five_maps(monkeypatch):
    monkeypatch.setattr(cddnet_literal, "FeatureNetwork", FiveMaps)
    monkeypatch.setattr(cddnet_literal, "read_weights", lambda path, sha256, *, otherwise: {})


def weights_after(options, one):
    method = build(options, torch.float64, precision="float64")
    method.step(one, Watched(method))
    return [p.detach() for network in method.networks.values() for p in network.parameters()]


def test_what_is_learned_is_what_the_published_code_says():
    """By hand, without the two files; the estimator's losses and the denoiser's are one sum."""
    one, method = pair(), build()
    low, full = (
        (((maps * 1024 + 700) / 1000).clamp(0, 1) * 255).floor() / 255
        for maps in (one.low_dose, one.full_dose)
    )
    low, full = (coded_by_hand(maps).expand(-1, 3, -1, -1) for maps in (low, full))
    with torch.no_grad():
        restored = method.denoiser.train().network(low).clamp(0, 1)
        depth = method.networks["estimator"](restored)
    depth = (depth - depth.min()) / (depth.max() - depth.min())
    wanted = (one.depth - one.depth.min()) / (one.depth.max() - one.depth.min())
    difference = restored - full
    scores = (difference - difference.min()) / (difference.max() - difference.min())
    weights = torch.exp(scores) / torch.exp(scores).sum((1, 2, 3), keepdim=True)
    weights = weights.clamp(min=1e-7).sum(1, keepdim=True)
    plain = (depth - wanted).abs().mean()
    expected = difference.abs().mean() + 0.01 * plain
    expected += plain + (weights * (depth - wanted).abs()).mean()
    terms = method.step(one, Watched(method))
    assert terms["total"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert "contrast" not in terms


def coded_by_hand(grey):
    images = []
    for image in grey:
        file = io.BytesIO()
        levels = np.rint(255 * image[0].numpy()).astype(np.uint8)
        Image.fromarray(levels, mode="L").save(file, format="jpeg", quality=75)
        images.append(torch.from_numpy(np.array(Image.open(file), np.float32))[None] / 255)
    return torch.stack(images)


def test_each_defect_decides_what_is_learned(five_maps):
    """The bounded ratio acts in rare cases alone; it has a test of its own."""
    one = pair((16, 16), torch.float64)
    literal, again = (weights_after(VGG, one) for _ in range(2))
    assert all(map(torch.equal, literal, again))
    for removed in set(DEFECTS) - {"unbounded_ratio"}:
        corrected = weights_after(VGG | but(removed), one)
        assert not all(map(torch.equal, literal, corrected)), removed


def test_a_joint_gradient_reaches_both_and_alternating_ones_their_own_alone():
    method = build()
    updates = Watched(method)
    method.step(pair(), updates)
    assert updates.reached == {"both": {"denoiser", "estimator"}}
    method = build(but("joint_backward"))
    updates = Watched(method)
    method.step(pair(), updates)
    assert updates.reached == {"estimator": {"estimator"}, "denoiser": {"denoiser"}}
    assert all(
        p.requires_grad for network in method.networks.values() for p in network.parameters()
    )


@pytest.mark.parametrize("removed", [(), ("joint_backward",)])
def test_each_network_has_its_published_rate(removed):
    """A first step of Adam is the rate, and half a cosine ends at 1e-6."""
    method = build(but(*removed))
    before = {n: [p.detach().clone() for p in w.parameters()] for n, w in method.networks.items()}
    method.step(pair(), Watched(method))
    for name, expected in (("denoiser", 1e-3), ("estimator", 1e-4)):
        moved = zip(method.networks[name].parameters(), before[name], strict=True)
        largest = max((now.detach() - then).abs().max().item() for now, then in moved)
        assert largest == pytest.approx(expected, rel=0.02)
    for step, share in ((1, 1.0), (51, 0.5), (101, 0.0)):
        method.step(pair((16, 16)), Watched(method, step))
        groups = [group for o in method.optimisers.values() for group in o.param_groups]
        expected = [1e-6 + share * (rate - 1e-6) for rate in (1e-3, 1e-4)]
        assert [group["lr"] for group in groups] == pytest.approx(expected)


def errors():
    """Of three channels: one pixel far too dark, one too bright, each image at its own scale."""
    error = 0.01 * torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    error[0, :, 5, 7], error[0, :, 40, 41] = -1.0, 0.5
    error[1, :, 5, 7], error[1, :, 40, 41] = -0.2, 0.1
    target = torch.full_like(error, 0.5)
    return target + error, target


def test_signed_differences_weigh_what_is_too_dark_least():
    for removed, darkest_is in (
        ((), "least"),
        (("signed_difference",), "most"),
        (("signed_difference", "softmax_over_everything"), "most"),
        (("softmax_over_everything",), "least"),
    ):
        weights = build(but(*removed))._perception(*errors())
        for one in weights:
            extreme = one.max() if darkest_is == "most" else one.min()
            assert one[0, 5, 7] == extreme


def test_a_softmax_over_everything_weighs_next_to_nothing():
    """1 / 512^2 at the published size, whatever the error; 1 where it is corrected."""
    for size in (64, 512):
        prediction, target = (maps.repeat(1, 1, size // 64, size // 64) for maps in errors())
        literal = build()._perception(prediction, target)
        corrected = build(but("softmax_over_everything"))._perception(prediction, target)
        assert literal.mean((1, 2, 3)).tolist() == pytest.approx([1 / size**2] * 2, rel=1e-3)
        assert corrected.mean((1, 2, 3)).tolist() == pytest.approx([1, 1], rel=1e-4)
    assert literal.mean() < 4e-6


def test_without_defects_the_weights_are_those_of_the_interaction_loss():
    prediction, target = errors()
    error = (prediction - target).abs()
    scores = (error - error.min()) / (error.max() - error.min())
    found = build({"defects": []})._perception(prediction, target)
    assert torch.allclose(found, capped_softmax(scores.mean(1, keepdim=True), 10.0), rtol=1e-5)


def test_perception_both_ways_weighs_the_image_by_the_depth():
    """By hand; with one way alone there is no such term."""
    assert "weighted_image" not in (method := build()).step(pair(), Watched(method))
    method = build(but("one_way_perception", "softmax_over_everything", "jpeg", "eight_bit"))
    one = pair()
    full = ((one.full_dose * 1024 + 700) / 1000).clamp(0, 1)
    low = ((one.low_dose * 1024 + 700) / 1000).clamp(0, 1)
    with torch.no_grad():
        restored = method.denoiser.train().network(low.expand(-1, 3, -1, -1)).clamp(0, 1)
        depth = method._normalised(method.networks["estimator"](restored))
    weights = method._perception(depth, method._normalised(one.depth))
    expected = (weights * (restored - full).abs()).mean()
    terms = method.step(one, Watched(method))
    assert terms["weighted_image"].item() == pytest.approx(expected.item(), rel=1e-4)
    assert terms["weighted_image"] != terms["image"]


def test_depths_over_the_batch_depend_on_their_neighbours():
    depth, other = pair().depth, 50 * pair().depth + 3
    mixed = torch.cat((depth[:1], other[1:]))
    literal, corrected = build(), build(but("batch_normalised_depth"))
    assert literal._normalised(depth).aminmax() == (0, 1)
    assert not torch.allclose(literal._normalised(mixed)[0], literal._normalised(depth)[0])
    assert torch.equal(corrected._normalised(mixed)[0], corrected._normalised(depth)[0])
    # Neither scale nor shift of a depth is known.
    assert torch.allclose(corrected._normalised(other), corrected._normalised(depth), atol=1e-4)
    flat = corrected._normalised(depth).flatten(1)
    assert torch.allclose(flat.abs().mean(1), torch.ones(2))


def test_a_clamped_output_teaches_nothing_outside():
    """A denoiser whose whole output is below black."""
    for removed, expected in (((), 0.0), (("clamped_before_loss",), None)):
        method = build(but(*removed))
        head = method.denoiser.network.cddnet.conv_layer6
        nn.init.zeros_(head.weight)
        nn.init.constant_(head.bias, 0.5)
        one = pair()
        method.step(one._replace(low_dose=torch.full_like(one.low_dose, -0.6)), Watched(method))
        gradient = head.bias.grad.abs().max().item()
        assert (gradient == 0) == (expected == 0.0)


def test_eight_bits_are_truncated_and_jpeg_adds_errors():
    generator = torch.Generator().manual_seed(2)
    smooth = functional.avg_pool2d(torch.randn(1, 1, 66, 66, generator=generator), 9, 1, 4)
    image = 0.1 * smooth + 0.02 * torch.randn(1, 1, 66, 66, generator=generator) - 0.1
    grey = (image * 1024 + 700) / 1000
    none, bits, both = (
        build(but(*removed))._as_published(image)
        for removed in (("eight_bit", "jpeg"), ("jpeg",), ())
    )
    assert torch.allclose(none, grey, atol=1e-6)
    assert torch.allclose(bits * 255, (bits * 255).round(), atol=1e-4)
    # Uniform in a level: half a level below, with a standard deviation of level / sqrt(12).
    error = (bits - grey) * 255
    assert abs(error.mean() + 0.5) < 4 / np.sqrt(12 * error.numel())
    assert torch.equal(both, coded_by_hand(bits))
    assert 3 < 1000 * (both - bits).square().mean().sqrt() < 30
    assert torch.equal(
        build()._as_published(torch.full((2, 1, 9, 11), -2.0)).unique(), torch.zeros(1)
    )


def test_the_network_sees_those_levels_in_three_channels():
    method, seen = build(), []
    method.denoiser.network.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    one = pair()
    method.step(one, Watched(method))
    levels = method._as_published(one.low_dose)
    assert torch.allclose(seen[0], levels.expand(-1, 3, -1, -1), atol=1e-6)


def test_random_projections_leave_no_minimum_at_the_full_dose(five_maps):
    """0 there with one projection for all or none; about the level's weight, 1, with three."""
    full, low = (
        torch.rand(2, 3, 20, 20, generator=torch.Generator().manual_seed(n)) for n in (1, 2)
    )
    literal, corrected = (
        build(VGG | options)._contrast(full, full, low)
        for options in ({}, but("random_projections"))
    )
    assert 0.5 < literal < 2
    assert corrected == 0


def test_a_ratio_without_bound_explodes_where_nothing_was_removed(five_maps):
    full, low = (
        torch.rand(2, 3, 20, 20, generator=torch.Generator().manual_seed(n)) for n in (1, 2)
    )
    apart = VGG | but("random_projections")
    bounded = VGG | but("random_projections", "unbounded_ratio")
    assert build(apart)._contrast(low, full, low) > 1e4
    assert build(bounded)._contrast(low, full, low) == pytest.approx(10 * sum(LEVELS))


def test_levels_weigh_as_published():
    """Distances 1 and 2 in every map give half the sum of the weights."""
    contrast = PublishedContrast(
        features=lambda image: [image] * 5, projections=(nn.Identity(),) * 3, largest=np.inf
    )
    zeros = torch.zeros(1, 3, 4, 4)
    assert contrast(zeros, zeros + 1, zeros + 2) == pytest.approx(sum(LEVELS) / 2)


def test_projections_are_frozen_and_the_same_in_each_run():
    first, second = random_projections(), random_projections()
    assert all(map(torch.equal, first.parameters(), second.parameters()))
    assert not any(p.requires_grad for p in first.parameters())
    assert not torch.equal(first[0][0].weight, first[1][0].weight)


def test_vgg19_sees_grey_levels_or_pictures_of_imagenet(five_maps):
    grey = torch.rand(1, 3, 9, 9)
    raw, prepared = (
        build(VGG | options)._contrast.features.prepare(grey)
        for options in ({}, but("raw_vgg_input"))
    )
    mean = torch.tensor([0.485, 0.456, 0.406]).reshape(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).reshape(3, 1, 1)
    assert torch.equal(raw, grey)
    assert torch.allclose(prepared, (grey - mean) / std)


TEACHER = {"teacher_encoder": "encoder.pth", "teacher_decoder": "depth.pth"}


@pytest.mark.parametrize(
    ("options", "label"),
    [
        (TEACHER | VGG, "CDD-Net literal"),
        (TEACHER | VGG | {"defects": "all"}, "CDD-Net literal"),
        (TEACHER | VGG | but("jpeg"), "CDD-Net published losses, without jpeg"),
        (VGG, "CDD-Net published losses + radiological depth"),
        (TEACHER, "CDD-Net published losses, no contrastive term"),
        ({}, "CDD-Net published losses + radiological depth, no contrastive term"),
        (
            but("raw_vgg_input", "eight_bit"),
            "CDD-Net published losses + radiological depth, no contrastive term, without eight_bit",
        ),
    ],
)
def test_what_ran_is_named_for_it(options, label):
    assert Options(**options).label("radiological") == label
    assert Options(**VGG).label("shuffled") == "CDD-Net published losses + shuffled depth"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"defects": ["signed_diference"]}, "did you mean 'signed_difference'"),
        ({"defects": "none"}, "defects"),
        ({"teacher_encoder": "encoder.pth"}, "both teacher_encoder and teacher_decoder"),
        ({"defect": []}, "did you mean 'defects'"),
    ],
)
def test_what_is_wrong_with_the_options_is_named(options, said):
    with pytest.raises(ConfigError, match=said):
        build(options)


def test_another_network_is_refused():
    with pytest.raises(ConfigError, match="set model to cddnet_published"):
        methods.build(config(method="cddnet_literal"), models.build("cddnet", width=4))


def test_files_that_are_missing_or_others_are_refused(tmp_path):
    encoder, decoder = tmp_path / "encoder.pth", tmp_path / "depth.pth"
    given = {"teacher_encoder": str(encoder), "teacher_decoder": str(decoder)}

    def refused(said):
        with pytest.raises(ModelError, match=said):
            build(given)

    refused(r"encoder\.pth: weights of RA-Depth cannot be read: No such file.*take both out")
    encoder.write_bytes(b"nothing")
    refused("no file of weights")
    torch.save([1], encoder)
    refused("no table of weights")
    torch.save({"conv1.weight": torch.zeros(1), "height": 192}, encoder)
    torch.save({}, decoder)
    refused("published RA-Depth encoder")
    with pytest.raises(ModelError, match=r"vgg19\.pth: weights of VGG19 cannot be read"):
        build({"vgg19_file": str(tmp_path / "vgg19.pth")})


@pytest.mark.slow
def test_with_both_files_it_is_literal(tmp_path):
    """With weights drawn here: the target is the disparity of the full dose, over the batch."""
    torch.manual_seed(4)
    teacher = _ra_depth.build(_ra_depth.Config())
    torch.save(teacher.encoder.state_dict() | {"height": 192, "width": 640}, tmp_path / "e.pth")
    torch.save(teacher.decoder.state_dict(), tmp_path / "d.pth")
    state, number, before = {}, 0, 3
    for width, depth in ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4)):
        for _ in range(depth):
            drawn = torch.randn(width, before, 3, 3) * (2 / (9 * before)) ** 0.5
            state |= {
                f"features.{number}.weight": drawn,
                f"features.{number}.bias": drawn[:, 0, 0, 0],
            }
            before, number = width, number + 2
        number += 1
    torch.save(state, tmp_path / "v.pth")
    method = build(
        {
            "teacher_encoder": str(tmp_path / "e.pth"),
            "teacher_decoder": str(tmp_path / "d.pth"),
            "vgg19_file": str(tmp_path / "v.pth"),
            "vgg19_sha256": hashlib.sha256((tmp_path / "v.pth").read_bytes()).hexdigest(),
        }
    )
    one = pair((64, 64))
    full = method._as_published(one.full_dose)
    with torch.no_grad():
        disparity = teacher.eval()(full.expand(-1, 3, -1, -1))
    disparity = (disparity - disparity.min()) / (disparity.max() - disparity.min())
    assert torch.allclose(method._target(full, one.depth, Watched(method)), disparity, atol=1e-5)
    assert method.label == "CDD-Net literal"
    updates = Watched(method)
    terms = method.step(one, updates)
    assert terms["contrast"] > 0
    assert torch.isfinite(terms["total"])
    assert set(method.networks) == {"denoiser", "estimator"}


def test_every_defect_names_its_number_and_the_recipe_has_them_all():
    assert all(re.match(r"D\d\d: ", text) for text in DEFECTS.values())
    recipe = load_config(CONFIGS / "train_cddnet_literal.yaml", TrainConfig)
    load_config(CONFIGS / recipe.split, PatientSplit)
    method = methods.build(recipe, denoiser())
    assert method._defects == set(DEFECTS)
    assert "literal" not in method.label
    assert (recipe.crop, recipe.crops_per_slice * recipe.slices_per_step) == (512, 12)
    group = method.optimisers["both"].param_groups
    assert [g["lr"] for g in group] == [1e-3, 1e-4]
    assert {g["weight_decay"] for g in group} == {1e-8}


@pytest.fixture
def data(tmp_path):
    """A folder per patient, 40 x 40 pixels, and their split."""
    for patient in ("a", "b"):
        write_series(
            tmp_path / "data" / patient,
            patient,
            places=range(1),
            pixels=lambda place, patient=patient: tissue(patient, place, size=(40, 40)),
        )
    split = {"collections": ["made up"], "train": {"A": ["a"]}, "validation": {"B": ["b"]}}
    (tmp_path / "split.yaml").write_text(yaml.safe_dump(split | {"test": {}}))
    return tmp_path


@pytest.mark.parametrize(
    ("method", "values"),
    [
        ("cddnet_literal", {}),
        pytest.param(
            *("cddnet_literal", {"method_options": {"defects": []}}), marks=pytest.mark.slow
        ),
        ("supervised", {"loss": {"error": "mse", "local_mean": 0.0, "depth": 0.0}}),
    ],
)
def test_a_run_is_saved_and_goes_on_as_if_it_had_not_stopped(method, values, data):
    """Its weights are those of the network alone, which denoises with them."""
    recipe = {"model": "cddnet_published", "method": method, "split": "split.yaml", "steps": 4}
    recipe |= {"crop": 16, "slices_per_step": 1, "workers": 0, "device": "cpu", "log_every": 1}
    recipe |= {"checkpoint_every": 2, "validate_every": 4, "precision": "float32", **values}
    (data / "recipe.yaml").write_text(yaml.safe_dump(recipe))

    def run(name, stop_at=None):
        def progress(what, done, total):
            if done == stop_at:
                raise Stop

        torch.set_num_threads(1)
        options = TrainOptions(progress=progress)
        return train_from_config(data / "recipe.yaml", data / "data", data / name, options)

    whole = run("whole")
    with pytest.raises(Stop):
        run("broken", stop_at=3)
    broken = run("broken")
    assert broken.resumed_from == 2
    first, second = load_file(whole.weights), load_file(broken.weights)
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert first.keys() == second.keys() == PublishedCddNet().state_dict().keys()
    network, card = store.load(whole.weights)
    assert card.model == "cddnet_published"
    expected = "supervised" if method == "supervised" else "CDD-Net published losses"
    assert card.training["method"].startswith(expected)
    assert whole.skipped == 0
    image = torch.full((1, 1, 17, 23), 0.04)
    assert network(image).image.shape == image.shape
    torch.manual_seed(0)
    fresh = PublishedCddNet().state_dict()
    moved = {key for key in fresh if not torch.equal(fresh[key], first[key])}
    still = {key for key in fresh if key not in moved}
    assert still == {
        key
        for key in fresh
        if key.split(".")[0] in ("ae", "conv1", "conv2", "conv3") or key.endswith(".filt")
    }
