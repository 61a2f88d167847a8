"""The demo: a real abdominal series, a quarter of the dose, denoised, measured and drawn."""

from __future__ import annotations

from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from cddnet.formats import read_volume, write_volume
from cddnet.formats._atomic import new_folder
from cddnet.metrics._body import body_mask
from cddnet.metrics.fidelity import psnr, rmse_hu, ssim
from cddnet.metrics.noise import InsertedNoise, inserted_noise
from cddnet.runtime import store
from cddnet.volume import CTVolume
from cddnet.workflows._panel import Panel, Region, draw
from cddnet.workflows.denoise import DenoiseOptions, denoise_file
from cddnet.workflows.simulate import SimulateOptions, calibrated_source, simulate_volume

DOSE_FRACTION = 0.25
SEED = 0
METRIC_WINDOW_HU = (-160.0, 240.0)
_SHOWN_WINDOW_HU = (-110.0, 190.0)
_DIFFERENCE_WINDOW_HU = (-100.0, 100.0)
_SHOWN_SLICE = 5
_ZOOM = Region(row=170, column=95, side=128)

Progress = Callable[[str, int, int], None]


class Scores(NamedTuple):
    """Means over the slices, inside the body and the metric window."""

    psnr_db: float
    ssim: float
    rmse_hu: float


class DemoResult(NamedTuple):
    """method: network, version and strength."""

    method: str
    low_dose: Scores
    denoised: Scores
    noise: InsertedNoise
    slices: int
    picture: Path


def run_demo(out: Path, options: DenoiseOptions, progress: Progress) -> DemoResult:
    """Write out/low_dose, out/denoised (DICOM) and out/demo.png; `out` must not exist.

    It appears whole or not at all.
    progress: called with (what is done, slices done, slices in all).
    """
    store.find(options.model)
    with new_folder(out) as folder:
        result = _demonstrated(folder, options, progress)
    return result._replace(picture=out / result.picture.name)


def _demonstrated(out: Path, options: DenoiseOptions, progress: Progress) -> DemoResult:
    full_dose = read_volume(demo_series())
    calibrated = SimulateOptions(dose_fraction=DOSE_FRACTION, seed=SEED)
    low = simulate_volume(full_dose, calibrated_source(full_dose), calibrated)
    write_volume(low, out / "low_dose")
    low_dose = read_volume(out / "low_dose")
    written = denoise_file(
        out / "low_dose",
        out / "denoised",
        options,
        lambda done, total: progress("denoising", done, total),
    )
    denoised = read_volume(out / "denoised")
    _picture(full_dose, low_dose, denoised).save(out / "demo.png", optimize=True)
    return DemoResult(
        method=written.derivation[-1].label,
        low_dose=scores(full_dose, low_dose),
        denoised=scores(full_dose, denoised),
        noise=inserted_noise(zip(full_dose.slices(), low_dose.slices(), strict=True)),
        slices=full_dose.shape[0],
        picture=out / "demo.png",
    )


def demo_series() -> Path:
    """The series inside the package; its licence is in ATTRIBUTION.md beside it."""
    return Path(str(files("cddnet") / "data" / "demo" / "series"))


def scores(full_dose: CTVolume, test: CTVolume) -> Scores:
    """Fidelity of `test`, slice by slice in the body of the full dose, then the mean."""
    rows = []
    for reference, image in zip(full_dose.slices(), test.slices(), strict=True):
        mask = body_mask(reference)
        rows.append(
            [
                metric(reference, image, window_hu=METRIC_WINDOW_HU, mask=mask)
                for metric in (psnr, ssim, rmse_hu)
            ]
        )
    return Scores(*(float(value) for value in np.mean(rows, axis=0)))


def _picture(full_dose: CTVolume, low_dose: CTVolume, denoised: CTVolume) -> Image.Image:
    low, out, full = (v.read_slice(_SHOWN_SLICE) for v in (low_dose, denoised, full_dose))
    panels = [
        Panel("low dose (simulated)", low, _SHOWN_WINDOW_HU),
        Panel("denoised", out, _SHOWN_WINDOW_HU),
        Panel("full dose", full, _SHOWN_WINDOW_HU),
        Panel("low dose - denoised", low - out, _DIFFERENCE_WINDOW_HU),
    ]
    title = "CRLM-CT-1004, window [-110, 190] HU, difference [-100, 100] HU. Research use only."
    return draw(panels, _ZOOM, title)
