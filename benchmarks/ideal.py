"""How much of a faint lesion any denoiser can keep without more false structures than full dose.

    python benchmarks/ideal.py [--noises 40] [--model NAME ...]

In the middle of the water phantom of benchmarks/trust.py, with its lesion of 5 mm and 30 HU and its
count of false structures: places where a disc sees 15 HU. For Gaussian noise of known power and a
lesion of known shape and place, all that an image says of the lesion is the output z of the
prewhitening matched filter, normal with mean d' (or 0 without it) and deviation 1 (Barrett and
Myers, Foundations of Image Science, 2004, ch. 13). A denoiser shows false structures where |z| > t,
with t set by how many there may be. At best it shows the whole lesion beyond t, elsewhere what just
does not count, with the sign of z, and never more than the whole.

First table: as many as at full dose may be there. Second: networks at a quarter of the dose, each
beside the most that could be kept with as many false structures as it makes.
"""

# Shapes: H row, W column, N image.

from __future__ import annotations

import argparse
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, optimize, stats

from _trust import DOSE_FRACTION, Method
from _trust_noise import FALSE_HU, FALSE_MM, KERNELS, PIXEL_MM, SIDE, disc_means, water_slices
from cddnet.metrics.noise import ensemble_noise, noise_power_spectrum
from cddnet.physics.kernel import Kernel
from cddnet.physics.lesion import Lesion, lesion_image
from trust import methods_of

_DOSES = (DOSE_FRACTION, 0.5, 0.75)
_MIDDLE = slice(SIDE // 2 - 64, SIDE // 2 + 64)
_LESION = Lesion(diameter_mm=FALSE_MM, contrast_hu=2 * FALSE_HU)
_APART = 30


class Ideal(NamedTuple):
    """d_prime: of the lesion.  kept: the largest share of its contrast."""

    d_prime: float
    kept: float


def noise_of(slices: NDArray[np.float32]) -> NDArray[np.float64]:
    return ensemble_noise(slices[:, _MIDDLE, _MIDDLE])


def matched(noise: NDArray[np.float64], kernel: Kernel) -> tuple[float, NDArray[np.float64]]:
    """d' of the lesion and z (N, H, W) at every place of noise (N, H, W)."""
    power = _by_ring(noise_power_spectrum(noise, PIXEL_MM).mean(axis=0)) / PIXEL_MM**2
    signal = np.fft.fft2(np.fft.ifftshift(_lesion_in_the_middle(noise.shape[-1], kernel)))
    d_prime = float(np.sqrt((np.abs(signal) ** 2 / power).mean()))
    filtered = np.fft.ifft2(np.fft.fft2(noise) * signal.conj() / power).real
    return d_prime, filtered / d_prime


def places(image: NDArray[np.float64], threshold: float) -> float:
    """Patches of pixels beyond the threshold in 100 cm2 of images (N, H, W)."""
    count = sum(int(ndimage.label(np.abs(one) > threshold)[1]) for one in image)
    return count / (image.size * (PIXEL_MM / 10) ** 2) * 100


def ideal(low: NDArray[np.float64], allowed: float, kernel: Kernel) -> Ideal:
    """The most that can be kept in low dose (N, H, W) at the allowed number of false structures."""
    d_prime, z = matched(low, kernel)
    threshold = optimize.bisect(lambda t: places(z, t) - allowed - 1e-9, 2.0, 8.0, xtol=1e-3)
    uncounted = FALSE_HU / float(disc_means(_lesion_in_the_middle(z.shape[-1], kernel)).max())
    return Ideal(d_prime, most_kept(d_prime, float(threshold), uncounted))


def most_kept(d_prime: float, threshold: float, uncounted: float) -> float:
    """Mean share of the contrast shown of a lesion, dark and bright ones treated alike.

    uncounted: the share that is shown where |z| is below the threshold.
    """
    beyond, positive, below = stats.norm.sf([threshold, 0.0, -threshold], loc=d_prime)
    between = (positive - beyond) - (below - positive)
    return float(beyond + uncounted * between - (1 - below))


def of_network(low: NDArray[np.float32], method: Method, kernel: Kernel) -> tuple[float, float]:
    """False structures in 100 cm2, and the share kept of lesions put into low dose (N, H, W)."""
    grid = np.arange(_MIDDLE.start + _APART // 2, _MIDDLE.stop, _APART)
    centres = np.stack(np.meshgrid(grid, grid), axis=-1).reshape(-1, 2)
    lesions = lesion_image((SIDE, SIDE), centres, _LESION, pixel_mm=PIXEL_MM, kernel=kernel)
    without = np.stack([method(one) for one in low])
    shown = np.stack([method(one + lesions) for one in low]) - without
    seen = np.stack([disc_means(one)[_MIDDLE, _MIDDLE] for one in without])
    kept = np.mean([disc_means(one)[tuple(centres.T)].mean() for one in shown])
    return places(seen, FALSE_HU), float(kept / disc_means(lesions)[tuple(centres.T)].mean())


def _lesion_in_the_middle(side: int, kernel: Kernel) -> NDArray[np.float32]:
    centre = np.full((1, 2), side // 2)
    return lesion_image((side, side), centre, _LESION, pixel_mm=PIXEL_MM, kernel=kernel)


def _by_ring(spectrum: NDArray[np.float64]) -> NDArray[np.float64]:
    """Means over rings one frequency step wide, at every frequency; zero is given the first."""
    cycles = np.fft.fftfreq(len(spectrum), 1 / len(spectrum))
    ring = np.maximum(np.rint(np.hypot(cycles[:, None], cycles)).astype(int), 1)
    total, count = np.bincount(ring.ravel(), spectrum.ravel()), np.bincount(ring.ravel())
    means: NDArray[np.float64] = (total / np.maximum(count, 1))[ring]
    return means


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--noises", type=int, default=40)
    parser.add_argument("--model", action="append", default=[], help="a name or a weights file")
    parser.add_argument("--strength", type=float, action="append", default=[])
    chosen = parser.parse_args()
    water = partial(water_slices, noises=chosen.noises, named="ideal")
    low = {name: water(kernel, DOSE_FRACTION) for name, kernel in KERNELS.items()}
    print("| kernel | dose | false structures in 100 cm2 | d' | most contrast kept |")
    print("| --- | --- | --- | --- | --- |")
    for name, kernel in KERNELS.items():
        full = noise_of(water(kernel, 1.0))
        allowed = places(np.stack([disc_means(one) for one in full]), FALSE_HU)
        for dose in _DOSES:
            slices = low[name] if dose == DOSE_FRACTION else water(kernel, dose)
            found = ideal(noise_of(slices), allowed, kernel)
            cells = f"{allowed:.2f} | {found.d_prime:.2f} | {found.kept:.2f}"
            print(f"| {name} | {dose:.0%} | {cells} |", flush=True)
    print("\n| network | kernel | false structures in 100 cm2 | kept | most that could be |")
    print("| --- | --- | --- | --- | --- |")
    for model in chosen.model:
        for described, method in methods_of(model, chosen.strength).items():
            for name, kernel in KERNELS.items():
                made, kept = of_network(low[name], method, kernel)
                most = ideal(noise_of(low[name]), made, kernel).kept
                cells = f"{made:.2f} | {kept:.2f} | {most:.2f}"
                print(f"| {described} | {name} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
