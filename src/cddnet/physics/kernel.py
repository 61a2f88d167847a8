"""Reconstruction kernels: the apodisation of the ramp filter, which is the system's MTF."""

# Shapes: F frequency.

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

CHANNEL_MM = 0.7047


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """Ramp times Hann window of `cutoff_per_mm`, times an edge boost 1 + boost (f / 0.5 per mm)^2.

    A cutoff of 0.70/mm resembles a soft B30f, 1.87/mm with boost a sharp D45.
    `aperture_mm` is the detector's and the interpolation's width (sinc squared).
    """

    cutoff_per_mm: float = 0.70
    boost: float = 0.0
    aperture_mm: float = CHANNEL_MM

    def response(self, frequency_per_mm: NDArray[np.float64]) -> NDArray[np.float64]:
        """Apodisation at frequencies in cycles per mm."""
        below = np.clip(frequency_per_mm / self.cutoff_per_mm, 0.0, 1.0)
        hann = 0.5 * (1.0 + np.cos(np.pi * below))
        edge = 1.0 + self.boost * (frequency_per_mm / 0.5) ** 2
        return hann * edge * np.sinc(frequency_per_mm * self.aperture_mm) ** 2


SOFT_KERNEL = Kernel()

# The boost is calibrated: noise level and texture of real sharp (D45) slices of full and quarter
# dose, on an abdomen of 340 x 250 mm at 50 HU.
SHARP_KERNEL = Kernel(cutoff_per_mm=1.87, boost=0.3)

# What a kernel spreads over the edge of an image comes back from its mirror image.
_RIM_PIXELS = 64

# MTF10 over MTF50 of a plain Hann window: arccos(-0.8) over a right angle.
_HANN_RATIO = float(np.arccos(-0.8) / (np.pi / 2))

# Sharpness in the numbers of Siemens' body kernels, MTF50 and MTF10 in cycles per mm. Ours,
# approximate: rising between a soft B30f (0.35 and 0.57) and the sharpest bone kernels.
_SHARPNESS = np.array([10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0])
_MTF50_PER_MM = np.array([0.25, 0.30, 0.35, 0.42, 0.60, 0.75, 0.92, 1.08])
_MTF10_PER_MM = np.array([0.42, 0.50, 0.57, 0.67, 0.90, 1.05, 1.20, 1.40])

# Sharpness of kernels that carry names instead of numbers. Ours, approximate; SOFT, STANDARD, B, D,
# L and UB lie near the noise texture of one to three real series, and YA was set by one.
_NAMED = {
    "GE": {
        "SOFT": 28,
        "STANDARD": 35,
        "CHST": 42,
        "DETAIL": 45,
        "LUNG": 60,
        "BONE": 65,
        "BONEPLUS": 70,
        "EDGE": 75,
    },
    "PHILIPS": {
        "A": 20,
        "B": 30,
        "UB": 32,
        "C": 40,
        "D": 50,
        "L": 55,
        "YA": 65,
        "YB": 70,
        "E": 65,
        "YC": 75,
    },
}
# Body and head FC kernels rise within each ten; lung and bone ones start at 30 and at 80.
_CANON = ((1, 10, 20, 40), (11, 19, 25, 45), (20, 29, 20, 45), (30, 39, 55, 75))
_CANON_SHARP = ((40, 49, 20, 45), (50, 59, 50, 65), (60, 79, 25, 45), (80, 86, 65, 80))


def seen_through(
    hu: NDArray[np.floating], pixel_mm: float, kernel: Kernel = SOFT_KERNEL
) -> NDArray[np.float32]:
    """A slice (H, W) as a reconstruction with the kernel shows it: its MTF on every edge."""
    rim = min(_RIM_PIXELS, *hu.shape)
    padded = np.pad(hu.astype(np.float64), rim, mode="symmetric")
    down = np.fft.fftfreq(padded.shape[0], pixel_mm)
    across = np.fft.rfftfreq(padded.shape[1], pixel_mm)
    response = kernel.response(np.hypot(down[:, None], across))
    shown = np.fft.irfft2(np.fft.rfft2(padded) * response, s=padded.shape)
    return shown[rim : rim + hu.shape[0], rim : rim + hu.shape[1]].astype(np.float32)


def kernel_with_mtf(mtf50_per_mm: float, mtf10_per_mm: float) -> Kernel:
    """Kernel whose response, the MTF of our filtered back projection, is 0.5 and 0.1 there.

    The blur of a scanner's focal spot and detector lies in its rays, not in the filter that shapes
    the noise; a nominal MTF holds both, so the noise comes out slightly too soft.
    Where the MTF falls more steeply than a Hann window the edges are boosted and the aperture is
    zero; where less, the aperture makes the tail and nothing is boosted.
    Raises: ValueError unless 0 < MTF50 < MTF10 < about 1.72 MTF50, the reach of this family.
    """
    if not 0 < mtf50_per_mm < mtf10_per_mm:
        raise ValueError(
            f"MTF50 of {mtf50_per_mm} and MTF10 of {mtf10_per_mm} per mm: "
            "give 0 < MTF50 < MTF10, in cycles per mm"
        )
    steep = mtf10_per_mm <= _HANN_RATIO * mtf50_per_mm
    shape = _boosted if steep else _wide

    def excess(cutoff_per_mm: float) -> float:
        kernel = shape(cutoff_per_mm, mtf50_per_mm)
        return float(kernel.response(np.array(mtf10_per_mm))) - 0.1

    plain = 2 * mtf50_per_mm
    if steep:
        return shape(_root(excess, mtf10_per_mm, plain), mtf50_per_mm)
    for cutoff_per_mm in (plain * np.geomspace(1, 4, 40)[1:]).tolist():
        if excess(cutoff_per_mm) >= 0:
            return shape(_root(excess, plain, cutoff_per_mm), mtf50_per_mm)
    raise ValueError(
        f"MTF10 of {mtf10_per_mm} per mm is too far above MTF50 of {mtf50_per_mm}; "
        f"give at most {1.7 * mtf50_per_mm:.2f} per mm"
    )


def kernel_named(text: str, manufacturer: str = "") -> Kernel | None:
    """Kernel of a ConvolutionKernel tag, None where the name says nothing.

    Knows the numbers of Siemens (B40f, Br40d, I31f, H60s, AB50), the FC numbers of Toshiba and
    Canon, and the names of GE and Philips. Approximate: the sharpness of a name is ours, and
    scanners that share it differ.
    """
    sharpness = _sharpness(text, manufacturer)
    if sharpness is None:
        return None
    mtf50 = float(np.interp(sharpness, _SHARPNESS, _MTF50_PER_MM))
    return kernel_with_mtf(mtf50, float(np.interp(sharpness, _SHARPNESS, _MTF10_PER_MM)))


def fit_kernel(
    frequency_per_mm: NDArray[np.float64],
    measured_power: NDArray[np.float64],
    *,
    reference_power: NDArray[np.float64],
    reference: Kernel,
    anatomy_per_mm: float = 0.08,
) -> Kernel:
    """Kernel whose noise has the measured radial power spectrum, up to a factor.

    Parameters: frequency_per_mm (F,), above zero; measured_power (F,); reference_power (F,), the
    noise of the kernel `reference` measured in the same way, so that regions, trends and leakage
    of the estimator cancel; below about anatomy_per_mm anatomy outweighs noise and counts little.
    The power of a kernel's noise goes with the square of its response (Kak and Slaney 1988,
    chapter 5). Least squares of its root, whose error changes little with the frequency.
    """
    weight = 1 / (1 + (anatomy_per_mm / frequency_per_mm) ** 4)
    target = np.sqrt(measured_power)
    # Where the reference passes next to nothing, its measured power is leakage.
    passed = np.maximum(np.abs(reference.response(frequency_per_mm)), 0.03)
    per_response = np.sqrt(reference_power) / passed

    def misfit(kernel: Kernel) -> float:
        model = np.abs(kernel.response(frequency_per_mm)) * per_response
        scale = float((weight * model) @ target) / max(float((weight * model) @ model), 1e-30)
        return float(weight @ np.square(scale * model - target))

    # Boosts reach 30, in steps that are finer near zero.
    boosts = (30 * np.linspace(0, 1, 25) ** 3).tolist()
    grid = product(np.geomspace(0.2, 5.0, 40).tolist(), boosts)
    best = min((Kernel(cutoff_per_mm=c, boost=b) for c, b in grid), key=misfit)
    for width in (0.1, 0.01):
        near = np.linspace(-width, width, 17)
        root = np.cbrt(best.boost / 30)
        finer = [
            Kernel(
                cutoff_per_mm=float(best.cutoff_per_mm * np.exp(step)),
                boost=float(30 * max(root + shift, 0.0) ** 3),
            )
            for step in near
            for shift in near / 2
        ]
        best = min(finer, key=misfit)
    return best


def _boosted(cutoff_per_mm: float, mtf50_per_mm: float) -> Kernel:
    hann = Kernel(cutoff_per_mm=cutoff_per_mm, aperture_mm=0.0)
    needed = 0.5 / float(hann.response(np.array(mtf50_per_mm))) - 1
    boost = max(needed, 0.0) * (0.5 / mtf50_per_mm) ** 2
    return Kernel(cutoff_per_mm=cutoff_per_mm, boost=boost, aperture_mm=0.0)


def _wide(cutoff_per_mm: float, mtf50_per_mm: float) -> Kernel:
    def excess(aperture_mm: float) -> float:
        kernel = Kernel(cutoff_per_mm=cutoff_per_mm, aperture_mm=aperture_mm)
        return 0.5 - float(kernel.response(np.array(mtf50_per_mm)))

    return Kernel(cutoff_per_mm=cutoff_per_mm, aperture_mm=_root(excess, 0.0, 1 / mtf50_per_mm))


def _root(rising: Callable[[float], float], low: float, high: float) -> float:
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (low, middle) if rising(middle) > 0 else (middle, high)
    return (low + high) / 2


def _sharpness(text: str, manufacturer: str) -> float | None:
    # A second value is the strength of an iterative reconstruction, as in Br40d\3.
    name = text.split("\\")[0].strip().upper()
    maker = manufacturer.upper()
    for vendor, names in _NAMED.items():
        if name in names and (vendor in maker or not maker):
            return names[name]
    canon = re.fullmatch(r"FC(\d\d)", name)
    if canon:
        number = int(canon[1])
        for first, last, soft, sharp in (*_CANON, *_CANON_SHARP):
            if first <= number <= last:
                return soft + (sharp - soft) * (number - first) / (last - first)
        return None
    # Siemens: family, sharpness, speed; old ones after a software version.
    siemens = re.search(r"(?:^|[\s.])(A[BH]|[BHIUDQSJT][A-Z]?)(\d\d)[A-Z]?$", name)
    if siemens is None or (maker and "SIEMENS" not in maker):
        return None
    # The numbers of the SOMATOM Plus 4 mean less: set by one series, whose AB50 is like a B40.
    return float(siemens[2]) - (10 if siemens[1][0] == "A" else 0)
