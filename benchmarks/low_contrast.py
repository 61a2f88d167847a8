"""Detectability: lesions in the demo series and in water, and the open low-contrast phantom.

    python benchmarks/low_contrast.py [--data FOLDER] [--model default]

About a minute. FOLDER is the sample of the simulated MITA low-contrast phantom of
github.com/DIDSR/LCD_CT (CC0): FBP and a learned denoiser at 10, 55 and 100 % of the dose, ten
images with four inserts and ten without. Ten are too few for the observer on the inserts, whose
contrast is measured; it sees discs that are added to many places of the FBP images.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from cddnet.formats import read_volume
from cddnet.metrics._body import body_mask
from cddnet.metrics.detectability import Estimate, Trials, channelised_hotelling, resampling
from cddnet.metrics.fidelity import psnr
from cddnet.metrics.structure import residual_power, residual_structure, scanning_frc
from cddnet.physics.beam import SliceGeometry
from cddnet.runtime import store
from cddnet.training.pairs import FullDoseSlice, calibrated_low_dose
from cddnet.training.slices import full_dose_slices
from cddnet.workflows._detection import detect_in_slices, detect_in_water
from cddnet.workflows._detection_words import statements
from cddnet.workflows._observer import DetectionOptions, LesionRow
from cddnet.workflows.demo import demo_series
from cddnet.workflows.denoise import denoise_slice

Image = NDArray[np.floating]
Method = Callable[[Image], Image]

WINDOW_HU = (-160.0, 240.0)
DOSE_FRACTION = 0.25
SIDE, STORED_ZERO = 256, 1000
PHANTOM_PIXEL_MM = 150 / 232  # its water is 150 mm and 232 pixels wide
RINGS_PX, REGION, DISC_MM, DISC_HU = (25, 47, 69, 91), 25, 7.0, 30.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of the low-contrast phantom")
    parser.add_argument("--model", default="default")
    chosen = parser.parse_args()
    methods = {**networks(chosen.model), "Gaussian 1 px": blur(1.0), "Gaussian 2 px": blur(2.0)}
    in_demo(methods)
    in_water(methods)
    if chosen.data:
        open_phantom(chosen.data)


def networks(model: str) -> dict[str, Method]:
    network, card = store.load(model)

    def denoise(hu: Image, strength: float) -> Image:
        return denoise_slice(hu, np.zeros(hu.shape, bool), network, strength=strength)

    strengths = sorted({card.strength, 1.0})
    return {f"{card.name} {s:.0%}": partial(denoise, strength=s) for s in strengths}


def blur(sigma_px: float) -> Method:
    return partial(ndimage.gaussian_filter, sigma=sigma_px)


def in_demo(methods: dict[str, Method]) -> None:
    slices = list(full_dose_slices(read_volume(demo_series())))
    rows = detect_in_slices(slices, methods, DetectionOptions(dose_fraction=DOSE_FRACTION))
    gains = {name: np.mean([gain_db(s, methods[name]) for s in slices]) for name in methods}
    show(rows, gains)
    print(
        "Middle slice: structure of the residual (0 for pure noise) with its range by chance, its"
    )
    print("power over that inserted, frequency in /mm where FRC with the full dose is below 0.5")
    source = slices[len(slices) // 2]
    low, body = calibrated_low_dose(source, DOSE_FRACTION), body_mask(source.hu)
    pixel_mm = source.geometry.pixel_mm
    for name, method in {"low dose": np.asarray, **methods}.items():
        output = method(low)
        crossing = scanning_frc(source.hu, output, pixel_mm=pixel_mm, mask=body).distribution()
        text = " ".join(f"{key} {value:.3f}" for key, value in crossing.items())
        if name == "low dose":
            print(f"  {name:16}{'':36} FRC {text}")
            continue
        found = residual_structure(source.hu, low, output, mask=body)
        chance = f"[{found.chance_low:+.3f}, {found.chance_high:+.3f}]"
        power = residual_power(source.hu, low, output, pixel_mm)
        ratio = power.removed.power[1:].sum() / power.added.power[1:].sum()
        print(f"  {name:16}{found.correlation:+.3f} {chance:16} power {ratio:5.2f} FRC {text}")


def gain_db(source: FullDoseSlice, method: Method) -> float:
    low, body = calibrated_low_dose(source, DOSE_FRACTION), body_mask(source.hu)
    before, after = (
        psnr(source.hu, image, window_hu=WINDOW_HU, mask=body) for image in (low, method(low))
    )
    return after - before


def in_water(methods: dict[str, Method]) -> None:
    options = DetectionOptions(dose_fraction=0.05)
    show(detect_in_water(SliceGeometry(0.9), 281, methods, options), {})


def show(rows: tuple[LesionRow, ...], gains: dict[str, float]) -> None:
    print(f"{rows[0].within}; LG-CHO, 95 % intervals")
    heads = ("d'", "over low dose", "AUC", "contrast recovery", "PSNR dB")
    widths = (20, 23, 19, 19, 9)
    line = "".join(f"{head:>{width}}" for head, width in zip(heads, widths, strict=True))
    print(f"  {'':36}{line}")
    for row in rows:
        columns = (text(row.detection.d_prime), text(row.change), text(row.detection.auc))
        gain = f"{gains[row.row]:+9.2f}" if row.row in gains else ""
        print(
            f"  {row.lesion.described:20}{row.row:16}{columns[0]:>20}{columns[1]:>23}"
            f"{columns[2]:>19}{text(row.recovery):>19}{gain}"
        )
    for sentence in statements(rows, gains):
        print(f"  {sentence}")


def text(estimate: Estimate) -> str:
    return f"{estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"


def open_phantom(folder: Path) -> None:
    truth = np.fromfile(folder / "fbp" / "ground_truth.raw", "<u2").reshape(SIDE, SIDE)
    # Rims are mixed with water; the inserts are found by any contrast and measured inside.
    labels, count = ndimage.label(truth > STORED_ZERO + 1)
    inner = [ndimage.binary_erosion(labels == number + 1) for number in range(count)]
    contrasts = [float(np.median(truth[mask])) - STORED_ZERO for mask in inner]
    heads = "".join(f"{contrast:13.0f} HU" for contrast in contrasts)
    print("Open phantom: contrast of the inserts in HU (standard error), ten images each; d' of a")
    print(f"disc of {DISC_MM:g} mm and {DISC_HU:g} HU in FBP, which goes with the root of the dose")
    print(f"  {'':18}{heads}")
    for kind in ("fbp", "DL_denoised"):
        for dose in ("010", "055", "100"):
            present, absent = (
                stored(folder / kind / f"dose_{dose}" / f"signal_{signal}", kind)
                for signal in ("present", "absent")
            )
            line = ""
            for mask in inner:
                with_insert, without = (i[:, mask].mean(axis=1) for i in (present, absent))
                error = np.sqrt((with_insert.var(ddof=1) + without.var(ddof=1)) / len(without))
                line += f"{with_insert.mean() - without.mean():8.2f} ({error:4.2f}) "
            observed = f"d' {text(seen_discs(absent))}" if kind == "fbp" else ""
            print(f"  {kind:12}{int(dose):3} %  {line} {observed}")


def stored(folder: Path, kind: str) -> Image:
    """Images (10, 256, 256) in HU; the denoised ones are big-endian and 32768 lower."""
    order, offset = ("<i2", STORED_ZERO) if kind == "fbp" else (">i2", STORED_ZERO - 32768)
    files = sorted(folder.glob("*.raw"))
    images = np.stack([np.fromfile(file, order).reshape(SIDE, SIDE) for file in files])
    return images.astype(np.float64) - offset


def seen_discs(absent: Image) -> Estimate:
    """Discs at places on rings; with and without the disc in different images."""
    centres = np.concatenate([ring(radius) for radius in RINGS_PX])
    half = REGION // 2
    regions = np.stack(
        [absent[:, r - half : r + half + 1, c - half : c + half + 1] for r, c in centres], axis=1
    )
    axis = np.arange(REGION) - half
    radius_px = DISC_MM / 2 / PHANTOM_PIXEL_MM
    disc = DISC_HU * (np.hypot(axis[:, None], axis) <= radius_px)
    shape = (-1, REGION, REGION)
    present, without = (regions + disc).reshape(shape), np.roll(regions, 1, axis=0).reshape(shape)
    place = np.tile(np.arange(len(centres)), len(absent))
    samples = resampling(place, np.random.default_rng(0))
    return channelised_hotelling(Trials(present, without, place), 2 * radius_px, samples).d_prime


def ring(radius_px: int) -> NDArray[np.intp]:
    angles = np.linspace(0, 2 * np.pi, int(2 * np.pi * radius_px / (REGION + 2)), endpoint=False)
    around = np.stack([np.sin(angles), np.cos(angles)], axis=1) * radius_px
    return np.rint(around + (SIDE - 1) / 2).astype(np.intp)


if __name__ == "__main__":
    main()
