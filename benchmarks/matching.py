"""Noise inserted into real series against their own: level and texture in the same regions.

    python benchmarks/matching.py [--data FOLDER ...]

Every folder of one series of eight slices or more below the FOLDERs is matched; a quarter of its
dose is inserted and measured by the same estimator. Frequencies are means of the radial noise power
up to Nyquist, and from 0.1 per mm on, where anatomy hardly counts. The ratio is of standard
deviations, over the root of three that quantum noise alone would give. The calibrated kernels on an
abdomen come first; without --data they are all.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

from cddnet.errors import CddnetError
from cddnet.formats import read_all_series
from cddnet.metrics.noise import (
    RadialPower,
    detrended_std,
    flat_corners,
    flat_regions,
    mean_frequency_per_mm,
    noise_power_spectrum,
    radial_power,
)
from cddnet.physics.beam import DEFAULT_SCANNER, SliceGeometry
from cddnet.physics.dose import add_noise, insert_noise, rng_for
from cddnet.physics.kernel import SHARP_KERNEL, SOFT_KERNEL, Kernel
from cddnet.volume import CTVolume
from cddnet.workflows._matching import match_source, measure_noise, quiet_slices

DOSE_FRACTION = 0.25
FEWEST_SLICES = 8
ALLOWED_PER_MM = 0.03
ABDOMEN = SliceGeometry(pixel_mm=0.729, thickness_mm=3.0)
SIDE = 32


def calibration(kernel: Kernel) -> str:
    """Noise of full and quarter dose in the middle 120 mm of a soft abdomen of 340 x 250 mm."""
    centred = (np.arange(512) - 255.5) * ABDOMEN.pixel_mm
    inside = (centred[None, :] / 170) ** 2 + (centred[:, None] / 125) ** 2 <= 1
    hu = np.where(inside, 50.0, -1000.0).astype(np.float32)
    corners = flat_corners(hu, SIDE)
    corners = corners[np.hypot(*(corners + SIDE / 2 - 256).T) * ABDOMEN.pixel_mm < 60]
    levels, frequencies = [], []
    for fraction in (1.0, DOSE_FRACTION):
        rng = np.random.default_rng(0)
        noisy = add_noise(hu, ABDOMEN, rng, dose_fraction=fraction, kernel=kernel).hu
        regions = flat_regions(noisy, corners, SIDE)
        levels.append(np.sqrt(np.mean(detrended_std(regions) ** 2)))
        power = noise_power_spectrum(regions, ABDOMEN.pixel_mm).mean(axis=0)
        frequencies.append(mean_frequency_per_mm(radial_power(power, ABDOMEN.pixel_mm)))
    return (
        f"| {kernel.cutoff_per_mm:.2f} | {kernel.boost:.2f} | {levels[0]:.1f} | {levels[1]:.1f} "
        f"| {levels[1] / levels[0]:.2f} | {np.mean(frequencies):.3f} |"
    )


def above(power: RadialPower) -> float:
    kept = power.frequency_per_mm >= 0.1
    return float(power.power[kept] @ power.frequency_per_mm[kept] / power.power[kept].sum())


def row(name: str, volume: CTVolume) -> str:
    started = time.perf_counter()
    source = match_source(volume)
    seconds = time.perf_counter() - started
    tag, kernel = volume.acquisition.kernel, source.kernel
    if source.measured is None:
        return f"| {name} | {tag} | {source.basis} |"
    flat = quiet_slices(volume, source.geometry)
    own, own_power = measure_noise(flat, source.geometry, [item.hu for item in flat])
    noise = [
        insert_noise(
            item.hu,
            source.geometry,
            rng_for(volume.series_uid, item.slice_index, 1),
            dose_fraction=DOSE_FRACTION,
            scanner=source.scanner,
            kernel=kernel,
        ).hu
        - item.hu
        for item in flat
    ]
    new, new_power = measure_noise(flat, source.geometry, noise)
    # A mark where the difference is above what is allowed.
    gap = new.mean_frequency_per_mm - own.mean_frequency_per_mm
    return (
        f"| {name} | {tag} | {source.geometry.thickness_mm:g} | {source.geometry.pixel_mm:.2f} "
        f"| {own.regions} / {own.slices} | {own.noise_hu:.1f} +- {own.noise_error_hu:.1f} "
        f"| {own.mean_frequency_per_mm:.3f} +- {own.mean_frequency_error_per_mm:.3f} "
        f"| {new.mean_frequency_per_mm:.3f} | {gap:+.3f}{' !' * (abs(gap) > ALLOWED_PER_MM)} "
        f"| {above(new_power) - above(own_power):+.3f} "
        f"| {new.noise_hu / own.noise_hu / 3**0.5:.2f} "
        f"| {kernel.cutoff_per_mm:.2f}, {kernel.boost:.2f} "
        f"| {source.scanner.photons / DEFAULT_SCANNER.photons:.2f} | {seconds:.1f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, nargs="+", default=[])
    arguments = parser.parse_args()
    print("| cutoff per mm | boost | full HU | quarter HU | ratio | mean frequency per mm |")
    print("|---|---|---|---|---|---|")
    boosts = (0.0, 0.2, SHARP_KERNEL.boost, 0.4, 0.8)
    tried = [Kernel(cutoff_per_mm=SHARP_KERNEL.cutoff_per_mm, boost=boost) for boost in boosts]
    for kernel in (SOFT_KERNEL, *tried):
        print(calibration(kernel))
    if not arguments.data:
        return
    print(
        "\n| series | tag | mm | pixel mm | regions / slices | noise HU | own per mm | inserted "
        "| difference | from 0.1 per mm | ratio | cutoff, boost | dose | s |"
    )
    print("|" + "---|" * 14)
    for data in arguments.data:
        for folder in sorted({file.parent for file in data.rglob("*.dcm")}):
            try:
                found = read_all_series(folder)
            except CddnetError as error:
                print(f"| {folder.relative_to(data)} | {error} |")
                continue
            for volume in found:
                if volume.shape[0] >= FEWEST_SLICES:
                    print(row(str(folder.relative_to(data)), volume), flush=True)


if __name__ == "__main__":
    main()
