"""The workflow of training: losses, validation, what is written, and a short run that learns."""

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
import yaml

from cddnet import models
from cddnet.config import LossWeights, TrainConfig
from cddnet.losses.pixel import absolute, charbonnier, local_mean
from cddnet.metrics.fidelity import psnr
from cddnet.models import _weights
from cddnet.models._output import Output
from cddnet.physics.beam import TYPICAL_SCANNER, SliceGeometry
from cddnet.physics.dose import add_noise, insert_noise, rng_for
from cddnet.training import engine, methods
from cddnet.training.methods.supervised import losses
from cddnet.training.pairs import FullDoseSlice, NoisyPairs, Pair
from cddnet.training.processes import Processes
from cddnet.volume import CTVolume
from cddnet.workflows import train
from cddnet.workflows._matching import own_noise

SMALL = {"width": 4, "depth_width": 4}
QUICK = {"crop": 64, "workers": 0}


def tissue(index):
    """A disc with organs, different in each slice."""
    rng = np.random.default_rng(index)
    rows, columns = np.indices((128, 128))
    hu = np.where(np.hypot(rows - 64, columns - 64) < 55, 40.0, -1000.0)
    for _ in range(12):
        centre, radius = rng.uniform(30, 98, 2), rng.uniform(3, 14)
        hu[np.hypot(rows - centre[0], columns - centre[1]) < radius] = rng.uniform(-100, 200)
    return FullDoseSlice(hu.astype(np.float32), SliceGeometry(2.5, 5.0), "1.2.3", index)


def fixed_batch(config, count=8):
    pairs = NoisyPairs([tissue(90)], config, first_draw=10**6)
    drawn = [pair for pair, _ in zip(pairs, range(count), strict=False)]
    return Pair(*(torch.stack(maps) for maps in zip(*drawn, strict=True)))


@pytest.mark.parametrize("error", ["charbonnier", "mse", "l1"])
def test_the_total_loss_is_the_weighted_sum_of_its_terms(error, rng):
    maps = [torch.from_numpy(rng.normal(size=(2, 1, 33, 47))) for _ in range(5)]
    output, pair = Output(maps[0].float(), maps[1].float()), Pair(*(m.float() for m in maps[2:]))
    weights = LossWeights(error=error, image=2.0, local_mean=3.0, depth=5.0)
    difference = output.image - pair.full_dose
    noise_hu = 1024 * (pair.low_dose - pair.full_dose).abs().mean(dim=(1, 2, 3), keepdim=True)
    prediction = pair.full_dose + difference * 50 / (noise_hu + 30)
    if error != "charbonnier":
        prediction = output.image
    image = {
        "charbonnier": charbonnier(prediction, pair.full_dose),
        "mse": difference.square().mean(),
        "l1": difference.abs().mean(),
    }[error]
    expected = (
        2 * image
        + 3 * local_mean(prediction, pair.full_dose)
        + 5 * absolute(output.depth, pair.depth)
    )
    total = losses(output, pair, weights)["total"]
    assert total.item() == pytest.approx(expected.item(), rel=1e-6)


def test_nothing_is_learned_of_a_depth_that_is_not_known(rng):
    """Of two images the first cuts the body: only the second moves the estimated depth."""
    image, depth, low, full, known = (
        torch.from_numpy(rng.normal(size=(2, 1, 16, 16))).float() for _ in range(5)
    )
    known[0] = torch.nan
    depth.requires_grad_()
    total = losses(Output(image, depth), Pair(low, full, known), LossWeights())["total"]
    total.backward()
    assert torch.isfinite(total)
    assert not depth.grad[0].any()
    assert depth.grad[1].all()


@pytest.mark.parametrize(
    ("method", "model", "cut_bodies", "learned"),
    [
        ("supervised", "cddnet", True, ["cut", "whole"]),
        ("supervised", "cddnet", False, ["whole"]),
        ("dual_task", "cddnet", True, ["whole"]),
        ("cddnet_literal", "cddnet_published", True, ["whole"]),
    ],
)
def test_who_needs_the_depth_does_not_learn_from_cut_bodies(
    method, model, cut_bodies, learned, tmp_path, monkeypatch
):
    split = {"collections": [], "train": {"whole": ["a"], "cut": ["b"]}, "test": {}}
    split |= {"validation": {"v": ["c"]}, "cut": ["cut"]}
    (tmp_path / "split.yaml").write_text(yaml.safe_dump(split))
    for name in "abc":
        (tmp_path / name).mkdir()
    hu = tissue(1).hu
    monkeypatch.setattr(
        train, "read_all_series", lambda folder: (CTVolume.from_hu(hu, (5.0, 2.5, 2.5)),)
    )
    config = TrainConfig(split="split.yaml", method=method, model=model, cut_bodies=cut_bodies)
    found = train._data(tmp_path / "recipe.yaml", config, tmp_path)
    assert sorted(found.learned) == learned
    assert all(item.cut == (name == "cut") for name in learned for item in found.learned[name])


def test_validation_at_the_own_dose_is_that_of_simulate():
    """A series with noise of a known level: a quarter of its dose has four times its variance."""
    rng = np.random.default_rng(3)
    clean = [np.full((128, 128), 40.0, np.float32) for _ in range(4)]
    clean = np.where(np.hypot(*(np.indices((128, 128)) - 63.5)) < 55, clean, -1000.0)
    scanner = replace(TYPICAL_SCANNER, photons=TYPICAL_SCANNER.photons / 20)
    hu = np.stack([add_noise(one, SliceGeometry(1.5), rng, scanner=scanner).hu for one in clean])
    volume = CTVolume.from_hu(hu.astype(np.float32), (5.0, 1.5, 1.5), thickness_mm=5.0)
    own = own_noise(volume)
    item = FullDoseSlice(volume.read_slice(0), SliceGeometry(1.5), "1.2.3", 0, own)
    low_dose = train._low_dose(item, "own")
    inside = np.s_[44:84, 44:84]
    ratio = (low_dose - item.hu)[inside].var() / (hu[:, 44:84, 44:84] - 40).var()
    assert ratio == pytest.approx(3.0, abs=0.9)
    assert not np.array_equal(low_dose, train._low_dose(item, "calibrated"))


def test_validation_is_the_psnr_of_the_quarter_dose():
    class Identity(torch.nn.Module):
        def forward(self, image):
            return Output(image)

    item = tissue(1)
    noisy = insert_noise(item.hu, item.geometry, rng_for("1.2.3", 1, 0), dose_fraction=0.25)
    expected = psnr(item.hu, np.maximum(noisy.hu, -1024), window_hu=(-160.0, 240.0))
    found = train.validate(Identity(), {"A": [item]})
    assert found.low_dose_db == found.denoised_db == pytest.approx(expected)
    assert 5 < expected < 60


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_weights_written_are_usable_whatever_the_precision(precision, tmp_path):
    """The card says what was trained on; the weights are those validated last."""
    config = TrainConfig(steps=4, precision=precision, options=SMALL, **QUICK)
    network = models.build("cddnet", **SMALL).to(engine.number_type(config))
    writer = train._Writer(config, {"collections": ["made up"]})
    writer.write(tmp_path / "weights.safetensors", network, 4, {"denoised_db": 30.0})
    loaded, card = _weights.load(tmp_path / "weights.safetensors")
    # Never the name of shipped weights: headers of images will carry it.
    assert card.name == f"{card.model}@own"
    assert card.training["collections"] == ["made up"]
    assert card.training["recipe"]["steps"] == card.training["step"] == 4
    for mine, theirs in zip(network.parameters(), loaded.parameters(), strict=True):
        assert torch.equal(mine.float(), theirs)
    assert train._validated(network, {"A": [tissue(1)]}).figures["low_dose_db"] > 5
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "weights.json",
        "weights.safetensors",
    ]


def test_the_picture_shows_low_dose_denoised_and_full_dose():
    network = models.build("cddnet", **SMALL)
    item = tissue(2)
    low, denoised, full = np.split(train._validated(network, {"A": [item]}).draw(), 3, axis=1)
    window = np.clip((item.hu + 160) / 400, 0, 1)
    assert np.abs(full - window).max() < 1e-6
    assert np.abs(low - full).mean() > 0.005
    # Fresh weights are nearly the identity.
    assert 0 < np.abs(denoised - low).mean() < 0.1 * np.abs(low - full).mean()


@pytest.mark.slow
def test_thirty_steps_lower_the_loss(tmp_path):
    config = TrainConfig(
        steps=30, crop=64, learning_rate=3e-3, validate_every=30, ema=0.5, options=SMALL
    )
    torch.manual_seed(0)
    network = models.build("cddnet", **SMALL)
    batch = fixed_batch(config)

    def loss(trained):
        with torch.inference_mode():
            return losses(trained.eval()(batch.low_dose), batch, config.loss)["total"].item()

    before = loss(network)
    slices = [tissue(index) for index in range(6)]
    job = engine.Job(
        config=config,
        method=methods.build(config, network),
        slices=slices,
        folder=tmp_path,
        processes=Processes(device=torch.device("cpu")),
        validate=lambda averaged: train._validated(averaged, {"A": slices[:1]}),
        keep_best=train._Writer(config, {}).write,
        progress=lambda what, done, total: None,
    )
    averaged = engine.train(
        replace(job, keep_best=partial(job.keep_best, tmp_path / "best.safetensors"))
    ).denoiser
    assert loss(averaged) < 0.7 * before
    assert loss(network) < 0.7 * before
    (line,) = (tmp_path / "log.jsonl").read_text().splitlines()
    assert json.loads(line)["step"] == 30
    assert (tmp_path / "best.safetensors").is_file()
