"""Uncertainty: how far from a noisy full dose each denoised pixel is expected to be, as a map.

The log of the error's variance is a sum over what is known without a full dose: the noise that the
series' own level and depth predict, what the network removed around the pixel, how far a turned
view of the slice disagrees, structure, and HU. Its coefficients were fitted on patients of the
validation side, see docs/uncertainty.md.
"""

# Shapes: D slice, H row, W column, F feature.

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from cddnet import __version__
from cddnet.errors import ModelError
from cddnet.models._cards import Card
from cddnet.physics.depth import predicted_noise_hu, radiological_depth
from cddnet.volume import CTVolume, Derivation, Mask, SliceHU
from cddnet.workflows._matching import SourceNoise, match_source
from cddnet.workflows._uncertainty_file import Judged, Map, MapFile, kept_maps

CALIBRATION = "data/uncertainty.json"
# Between them the part of the HU is linear; of the slice smoothed by a pixel.
KNOTS_HU = (-1000.0, -900.0, -750.0, -300.0, -50.0, 50.0, 300.0, 900.0)
EVIDENCE = ("noise map", "removed", "turned view", "structure")
FEATURES = (*(f"{knot:.0f} HU" for knot in KNOTS_HU), *EVIDENCE)

_REMOVED_MM = 4.0
_TURNED_PIXELS, _STRUCTURE_PIXELS, _SMOOTHING = 1.5, 2.0, 1.0
# Variances below these, of rounding and of noise that was left, say nothing more.
_FLOOR_HU2, _STRUCTURE_FLOOR_HU2 = 1.0, 16.0
# From a tenth of a HU to beyond the largest step between two tissues.
_LOG_VARIANCE = (-4.6, 15.0)


class Evidence(NamedTuple):
    """What is known of a slice, each (H, W) HU.

    low_dose: padding as air.  restored: by the network at strength 1.  turned: the same of the
    slice with rows and columns exchanged, turned back.  noise: predicted for the low dose.
    """

    low_dose: SliceHU
    restored: SliceHU
    turned: SliceHU
    noise: Map
    pixel_mm: float


class Calibration(NamedTuple):
    """coefficients: of FEATURES (F,).  noise_hu: least and most, in flat tissue of a series, that
    they were fitted at.  dose_fraction: of that low dose.  weights: name of the network's weights.
    """

    coefficients: NDArray[np.float64]
    noise_hu: tuple[float, float]
    dose_fraction: float
    weights: str


def calibration_of(card: Card) -> Calibration:
    """What was fitted for a network's weights.  Raises ModelError where nothing was."""
    record = json.loads((files("cddnet") / CALIBRATION).read_text(encoding="utf-8"))
    fitted = record["weights"].get(card.name)
    if fitted is None or fitted["sha256"] != card.sha256:
        raise ModelError(
            f"{card.name}: its uncertainty was never calibrated; leave --uncertainty out, or "
            f"choose one of: {', '.join(record['weights'])}."
        )
    low, high = fitted["noise_hu"]
    return Calibration(
        np.array(fitted["coefficients"]), (low, high), record["dose_fraction"], card.name
    )


def gathered(
    images: Map,
    pixel_mm: float,
    matched: SourceNoise,
    network: Callable[[Map], Map],
    indices: Sequence[int] | None = None,
) -> list[Evidence]:
    """The evidence of slices.

    Parameters: images (B, H, W) HU with padding as air; matched: physics of their series; network:
    maps such images to restored ones, for any H and W; indices: of the slices in their series, None
    for the first ones.
    """
    restored = network(images)
    turned = network(np.ascontiguousarray(images.swapaxes(1, 2))).swapaxes(1, 2)
    return [
        Evidence(image, hu, other, _noise_hu(image, index, matched), pixel_mm)
        for image, hu, other, index in zip(
            images, restored, turned, indices or range(len(images)), strict=True
        )
    ]


def _noise_hu(low_dose: SliceHU, index: int, matched: SourceNoise) -> Map:
    geometry = matched.geometry_of(index)
    depth = radiological_depth(low_dose, geometry, scanner=matched.scanner)
    return predicted_noise_hu(depth, geometry, scanner=matched.scanner, kernel=matched.kernel)


def features(evidence: Evidence) -> NDArray[np.float64]:
    """Of each pixel (H, W, F): weights of the HU knots, then logs of variances."""
    restored = evidence.restored.astype(np.float64)
    smooth = ndimage.gaussian_filter(restored, _SMOOTHING)
    found = np.empty((*restored.shape, len(FEATURES)))
    for index, knot in enumerate(np.eye(len(KNOTS_HU))):
        found[..., index] = np.interp(smooth, KNOTS_HU, knot)
    mean = ndimage.gaussian_filter(restored, _STRUCTURE_PIXELS)
    square = ndimage.gaussian_filter(restored**2, _STRUCTURE_PIXELS)
    turned = ndimage.gaussian_filter((evidence.turned - restored) ** 2, _TURNED_PIXELS)
    variances = (
        evidence.noise.astype(np.float64) ** 2 + _FLOOR_HU2,
        removed_variance_hu2(evidence) + _FLOOR_HU2,
        turned + _FLOOR_HU2,
        np.maximum(square - mean**2, 0.0) + _STRUCTURE_FLOOR_HU2,
    )
    for index, variance in enumerate(variances, start=len(KNOTS_HU)):
        np.log(variance, out=found[..., index])
    return found


def removed_variance_hu2(evidence: Evidence) -> NDArray[np.float64]:
    """Mean square (H, W) around each pixel of what the network at strength 1 takes away."""
    removed = evidence.low_dose - evidence.restored.astype(np.float64)
    mean: NDArray[np.float64] = ndimage.gaussian_filter(removed**2, _REMOVED_MM / evidence.pixel_mm)
    return mean


def expected_error_hu(
    evidence: Evidence, calibration: Calibration, *, strength: float, padding: Mask
) -> Map:
    """Standard deviation (H, W) in HU of (noisy full dose - denoised slice); 0 in padding.

    At strength s the denoised slice is 1 - s of what was removed away from the network's; that adds
    its mean square, as an error that does not depend on the network's.
    """
    log_variance = np.clip(features(evidence) @ calibration.coefficients, *_LOG_VARIANCE)
    kept = (1 - strength) ** 2 * removed_variance_hu2(evidence)
    return np.where(padding, 0.0, np.sqrt(np.exp(log_variance) + kept)).astype(np.float32)


class Estimator:
    """Maps for the slices of a series that is being denoised."""

    def __init__(self, volume: CTVolume, path: Path, card: Card, *, strength: float) -> None:
        """volume: the series as it was read.  path: of the maps.

        Raises: ModelError for weights without calibration, else what matching raises.
        """
        self._path = path
        self._calibration = calibration_of(card)
        self._matched: SourceNoise = match_source(volume)
        self._mm, self._strength = volume.spacing_mm[2], strength

    def judged(
        self,
        images: Map,
        paddings: list[Mask],
        indices: list[int],
        network: Callable[[Map], Map],
    ) -> list[Judged]:
        """Slices at strength 1, each with the map for the strength of the series.

        Parameters: images (B, H, W) HU with padding as air; paddings: their masks (H, W); indices:
        of the slices in their series; network: maps such images to restored ones, for any H and W.
        """
        found = gathered(images, self._mm, self._matched, network, indices)
        return [
            Judged(evidence.restored, self._error_hu(evidence, padding))
            for evidence, padding in zip(found, paddings, strict=True)
        ]

    def _error_hu(self, evidence: Evidence, padding: Mask) -> Map:
        return expected_error_hu(
            evidence, self._calibration, strength=self._strength, padding=padding
        )

    def kept(self, denoised: CTVolume) -> AbstractContextManager[MapFile]:
        """Where the maps of the denoised series go."""
        return kept_maps(denoised, self._path)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of the maps: whether the calibration holds for this series."""
        measured, (low, high) = self._matched.measured, self._calibration.noise_hu
        if measured and low <= measured.noise_hu <= high:
            return ()
        found = f"{measured.noise_hu:.1f} HU" if measured else "not to be measured"
        return (
            f"uncertainty: noise in flat tissue is {found}, the calibration saw {low:.1f} to "
            f"{high:.1f} HU; intervals may be too narrow",
        )

    def step(self) -> Derivation:
        """The record of a map."""
        calibration, matched = self._calibration, self._matched
        parameters = {
            "calibrated_dose_fraction": repr(calibration.dose_fraction),
            "coefficients": repr([round(float(c), 6) for c in calibration.coefficients]),
            "geometry": repr(matched.geometry),
            "kernel": repr(matched.kernel),
            "quantity": "expected error",
            "scanner": repr(matched.scanner),
            "strength": repr(float(self._strength)),
            **matched.thickness_parameters,
        }
        return Derivation(
            label="expected error",
            description=(
                "Standard deviation in HU of a noisy full dose about the denoised pixel, "
                f"calibrated for {calibration.weights} at {calibration.dose_fraction:.0%} of the "
                f"dose, cddnet {__version__}. Research use only."
            ),
            parameters=tuple(sorted(parameters.items())),
            version=__version__,
        )
