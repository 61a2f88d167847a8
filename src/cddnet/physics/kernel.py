"""Reconstruction kernels: the apodisation of the ramp filter, which is the system's MTF."""

from __future__ import annotations

from dataclasses import dataclass

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
