"""Every rival of the comparison can learn: trained on 20 slices it takes noise off them.

A network that cannot do this says nothing in a table. Networks and losses are the published ones,
of the recipes in configs/; the optimiser is that of the comparison's plan.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from cddnet import models
from cddnet.config import TrainConfig, load_config
from cddnet.physics.beam import Scanner, SliceGeometry
from cddnet.physics.kernel import SOFT_KERNEL
from cddnet.training import engine, methods
from cddnet.training.pairs import FullDoseSlice, OwnNoise, own_low_dose
from cddnet.workflows.denoise import denoise_slice
from tiny_training import ALONE

ROOT = Path(__file__).parents[2]
SIDE, DOSE = 64, 0.25
# About 50 HU at a quarter of this dose.
OWN = OwnNoise(Scanner(photons=7e5, electronic_std=0.0), SOFT_KERNEL, SliceGeometry(0.8, 3.0))


def tissue(index):
    """A disc of fat with organs and vessels, different in each slice."""
    rng = np.random.default_rng(index)
    rows, columns = np.indices((SIDE, SIDE))
    hu = np.where(np.hypot(rows - SIDE / 2, columns - SIDE / 2) < 0.46 * SIDE, -90.0, -1000.0)
    for _ in range(10):
        centre, radius = rng.uniform(0.3 * SIDE, 0.7 * SIDE, 2), rng.uniform(3, 16)
        hu[np.hypot(rows - centre[0], columns - centre[1]) < radius] = rng.uniform(-100, 200)
    return FullDoseSlice(hu.astype(np.float32), OWN.geometry, "1.2.3", index, OWN)


SLICES = [tissue(index) for index in range(20)]


def errors_hu(network):
    """Root mean square error in the body of all slices: input, and what the network gives."""
    network.eval()
    before, after = [], []
    for item in SLICES:
        low_dose, body = own_low_dose(item, DOSE), item.hu > -300
        denoised = denoise_slice(low_dose, np.zeros_like(body), network, strength=1.0)
        before.append((low_dose - item.hu)[body])
        after.append((denoised - item.hu)[body])
    return tuple(float(np.sqrt(np.mean(np.concatenate(all_) ** 2))) for all_ in (before, after))


def trained(recipe, folder, **values):
    """The averaged denoiser after all steps."""
    plan = yaml.safe_load((ROOT / "benchmarks" / "comparison.yaml").read_text())["set"]
    here = {"device": "cpu", "workers": 0, "validate_every": 10**6, "checkpoint_every": 10**6}
    # Few steps: their average must not hold the first of them.
    here |= {"ema": 0.9, "crops_per_slice": 8, "slices_per_step": 1}
    here["noise"] = plan["noise"] | {"dose_fraction": [DOSE, DOSE]}
    recipe = load_config(ROOT / "configs" / f"{recipe}.yaml", TrainConfig).model_dump()
    config = TrainConfig.model_validate(recipe | plan | here | values)
    torch.manual_seed(0)
    network = models.in_network_range(config.model, models.build(config.model, **config.options))
    job = engine.Job(
        config=config,
        method=methods.build(config, network),
        slices=SLICES,
        folder=folder,
        processes=ALONE,
        validate=lambda network: engine.Validation(0.0, {}, lambda: None),
        keep_best=lambda *best: None,
        progress=lambda *done: None,
    )
    before = torch.get_num_threads()
    torch.set_num_threads(config.threads)
    try:
        return engine.train(job).denoiser
    finally:
        torch.set_num_threads(before)


# The generator of WGAN starts black, and most of its steps are the warm-up. CNCL normalises by the
# whole image, so that its crops are whole slices.
WGAN = {"critic_updates": 4, "penalty": 10, "perceptual": 0.1, "distance": "paper"}
RIVALS = {
    "train_red_cnn": {"steps": 150, "crop": 32, "learning_rate": 3e-4},
    "train_wgan_vgg": {
        "steps": 700,
        "crop": 32,
        "learning_rate": 2e-3,
        "method_options": WGAN | {"warm_up": 0.85, "features": "own"},
    },
    "train_cncl": {
        "steps": 220,
        "crop": SIDE,
        "slices_per_step": 2,
        "crops_per_slice": 1,
        "learning_rate": 1e-3,
        "threads": 2,
    },
    "train_cddnet_literal": {"steps": 60, "crop": SIDE, "learning_rate": 1e-3},
}


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RIVALS)
def test_every_rival_takes_noise_off_the_slices_it_learned_from(recipe, tmp_path):
    before, after = errors_hu(trained(recipe, tmp_path, **RIVALS[recipe]))
    assert 40 < before < 60
    assert after < before
