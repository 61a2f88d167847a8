"""What was removed: anatomy in it, its change when the input is moved, its neighbours."""

# Shapes: H row, W column, N image.

from __future__ import annotations

from itertools import pairwise

import numpy as np
from scipy import ndimage

from _trust import (
    DOSE_FRACTION,
    LOW_DOSE,
    Image,
    Line,
    Method,
    Methods,
    Patients,
    images_of,
)
from cddnet.metrics._body import body_mask
from cddnet.metrics.structure import residual_structure
from cddnet.training.pairs import calibrated_low_dose


def structure(patients: Patients, methods: Methods) -> list[Line]:
    """Correlation of what was removed with the edges of the full dose; 0 for pure noise."""
    found: dict[str, list[float]] = {}
    for slices in patients.values():
        source = slices[len(slices) // 2]
        made, mask = images_of(source, methods), body_mask(source.hu)
        for name in methods:
            result = residual_structure(source.hu, made[LOW_DOSE], made[name], mask=mask)
            found.setdefault(name, []).append(result.correlation)
    values = {name: float(np.mean(correlations)) for name, correlations in found.items()}
    return [Line("structure of the residual", "", values, f"{len(patients)} slices")]


def consistency(patients: Patients, methods: Methods) -> list[Line]:
    """Root mean square change of the output, over the noise removed, when the input is mirrored or
    moved by half a pixel and the output brought back."""
    moves: dict[str, tuple[Method, Method]] = {
        "mirrored": (_mirrored, _mirrored),
        "moved by half a pixel": (lambda hu: _moved(hu, 0.5), lambda hu: _moved(hu, -0.5)),
    }
    lines = []
    for title, (move, back) in moves.items():
        found: dict[str, list[float]] = {}
        for slices in patients.values():
            source = slices[len(slices) // 2]
            low, mask = calibrated_low_dose(source, DOSE_FRACTION), body_mask(source.hu)
            # Interpolation is no part of the answer: both ways start from what it leaves.
            start = back(move(low))
            for name, method in methods.items():
                straight, around = method(start), back(method(move(low)))
                removed = np.sqrt(np.mean((straight - start)[mask] ** 2))
                changed = np.sqrt(np.mean((straight - around)[mask] ** 2))
                found.setdefault(name, []).append(float(changed / removed))
        values = {name: float(np.mean(v)) for name, v in found.items()}
        lines.append(
            Line(f"change where {title}, of what is removed", "", values, f"{len(patients)} slices")
        )
    return lines


def between_slices(patients: Patients, methods: Methods) -> list[Line]:
    """Correlation between neighbours of what was removed: 0, for inserted noise is new in each."""
    found: dict[str, list[float]] = {}
    for slices in patients.values():
        for one, other in pairwise(slices):
            if one.series_uid != other.series_uid or one.hu.shape != other.hu.shape:
                continue
            mask = body_mask(one.hu) & body_mask(other.hu)
            lows = [calibrated_low_dose(source, DOSE_FRACTION) for source in (one, other)]
            for name, method in methods.items():
                removed = [(low - method(low))[mask] for low in lows]
                found.setdefault(name, []).append(float(np.corrcoef(*removed)[0, 1]))
    if not found:
        return []
    count = len(next(iter(found.values())))
    values = {name: float(np.mean(v)) for name, v in found.items()}
    return [Line("correlation of what is removed between neighbours", "", values, f"{count} pairs")]


def _mirrored(hu: Image) -> Image:
    return np.ascontiguousarray(hu[:, ::-1])


def _moved(hu: Image, pixels: float) -> Image:
    """By its spectrum, both ways, without loss but at the Nyquist frequency."""
    moved = ndimage.fourier_shift(np.fft.fft2(hu), (pixels, pixels))
    return np.fft.ifft2(moved).real.astype(np.float32)
