"""Training: the rate, the average, and a short run that learns."""

import json

import numpy as np
import pytest
import torch

from cddnet import models
from cddnet.config import LossWeights, PatientSplit, TrainConfig
from cddnet.errors import FormatError
from cddnet.losses.pixel import absolute, charbonnier, local_mean
from cddnet.metrics.fidelity import psnr
from cddnet.models._output import Output
from cddnet.physics.beam import SliceGeometry
from cddnet.physics.dose import insert_noise, rng_for
from cddnet.training.pairs import FullDoseSlice, NoisyPairs, Pair
from cddnet.workflows import train


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


def test_the_total_loss_is_the_weighted_sum_of_its_terms(rng):
    maps = [torch.from_numpy(rng.normal(size=(2, 1, 33, 47))) for _ in range(5)]
    output, pair = Output(maps[0].float(), maps[1].float()), Pair(*(m.float() for m in maps[2:]))
    weights = LossWeights(image=2.0, local_mean=3.0, depth=5.0)
    noise_hu = 1024 * (pair.low_dose - pair.full_dose).abs().mean(dim=(1, 2, 3), keepdim=True)
    relative = (output.image - pair.full_dose) * 50 / (noise_hu + 30)
    prediction = pair.full_dose + relative
    expected = (
        2 * charbonnier(prediction, pair.full_dose)
        + 3 * local_mean(prediction, pair.full_dose)
        + 5 * absolute(output.depth, pair.depth)
    )
    total = train._losses(output, pair, weights)["total"]
    assert total.item() == pytest.approx(expected.item(), rel=1e-6)


def test_the_rate_warms_up_and_falls_to_a_hundredth():
    rates = [train._rate(progress) for progress in np.linspace(0.01, 1, 50)]
    assert rates == sorted(rates, reverse=True)
    assert train._rate(0.0) == 0.0
    assert train._rate(0.01) == pytest.approx(1.0, rel=1e-3)
    assert train._rate(1.0) == pytest.approx(0.01)


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


def test_an_existing_folder_is_never_overwritten(tmp_path):
    (tmp_path / "r.yaml").write_text("split: s.yaml")
    split = {"collections": [], "train": {"A": []}, "validation": {}, "test": {}}
    (tmp_path / "s.yaml").write_text(json.dumps(split))
    assert PatientSplit.model_validate(split)
    with pytest.raises(FormatError, match="never overwritten"):
        train.train_from_config(tmp_path / "r.yaml", tmp_path, tmp_path)


@pytest.mark.slow
def test_thirty_steps_lower_the_loss(tmp_path):
    config = TrainConfig(
        split="none", steps=30, crop=64, learning_rate=3e-3, validate_every=30, ema=0.5
    )
    torch.manual_seed(0)
    network = models.build("cddnet", width=4, depth_width=4)
    config = config.model_copy(update={"options": {"width": 4, "depth_width": 4}})
    batch = fixed_batch(config)

    def loss(trained):
        with torch.inference_mode():
            return train._losses(trained.eval()(batch.low_dose), batch, config.loss)["total"].item()

    before = loss(network)
    slices = [tissue(index) for index in range(6)]
    averaged = train._optimise(network, slices, config, {"A": slices[:1]}, tmp_path)
    assert loss(averaged) < 0.7 * before
    assert loss(network) < 0.7 * before
    (line,) = (tmp_path / "log.jsonl").read_text().splitlines()
    assert json.loads(line)["step"] == 30
    assert (tmp_path / "latest.safetensors").is_file()
