"""The truth of a phantom, as `cddnet phantom` wrote it beside the series."""

# Shapes: H row, W column.

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ValidationError
from scipy import ndimage

from cddnet.errors import FormatError, GeometryError
from cddnet.metrics.resolution import Rod
from cddnet.volume import CTVolume

_ROD_DIAMETER_MM = 10.0
_ROD_CONTRAST_HU = 30.0
# Of an edge, beyond the two pixels that labels keep from it.
_BLUR_MM = 2.0


class _Region(BaseModel, frozen=True):
    label: int
    name: str
    hu: float
    background_hu: float
    contrast_hu: float
    centre_pixel: tuple[float, float]
    diameter_mm: float | None
    pixels: int

    def rod(self) -> Rod:
        """Raises: ValueError where it is not round."""
        if self.diameter_mm is None:
            raise ValueError(f"{self.name} is not round")
        column, row = self.centre_pixel
        return Rod(row, column, self.diameter_mm / 2)


class _TruthFile(BaseModel, frozen=True):
    """What truth.json says that is needed here."""

    phantom: str
    size: int
    pixel_mm: float
    regions: tuple[_Region, ...]


class Truth(NamedTuple):
    """labels: (N, N), the number of the region that a pixel belongs to, 0 near rims."""

    phantom: str
    pixel_mm: float
    regions: tuple[_Region, ...]
    labels: NDArray[np.uint8]

    @property
    def largest(self) -> _Region:
        return max(self.regions, key=lambda region: region.pixels)

    def mask(self, region: _Region) -> NDArray[np.bool_]:
        """Its pixels, at least two from its rim."""
        own: NDArray[np.bool_] = self.labels == region.label
        return own

    def core(self, region: _Region) -> NDArray[np.bool_]:
        """Its pixels that the blur of its rim does not reach."""
        inward_mm = self.pixel_mm * ndimage.distance_transform_edt(self.mask(region))
        deep: NDArray[np.bool_] = inward_mm > _BLUR_MM
        return deep

    def rods(self) -> list[_Region]:
        """Round regions with contrast, in one material."""
        return [region for region in self.regions if self._is_rod(region)]

    def _is_rod(self, region: _Region) -> bool:
        if region.diameter_mm is None or region.diameter_mm < _ROD_DIAMETER_MM:
            return False
        if abs(region.contrast_hu) < _ROD_CONTRAST_HU:
            return False
        column, row = region.centre_pixel
        rows, columns = np.indices(self.labels.shape)
        away_mm = self.pixel_mm * np.hypot(rows - row, columns - column)
        radius_mm = region.diameter_mm / 2
        # Labels keep two pixels from every rim; the background is measured up to 1.8 radii.
        ring = (away_mm > radius_mm + 3.5 * self.pixel_mm) & (away_mm < 1.8 * radius_mm)
        around = np.unique(self.labels[ring])
        return around.size == 1 and around[0] != 0


def read_truth(path: Path) -> Truth:
    picture = path.with_name("regions.png")
    try:
        told = _TruthFile.model_validate_json(path.read_text(encoding="utf-8"))
        with Image.open(picture) as image:
            labels = np.asarray(image, np.uint8)
    except (OSError, ValidationError, ValueError) as error:
        raise FormatError(
            f"{path}: not the truth of a phantom ({error}); give the truth.json that "
            "'cddnet phantom' wrote, with regions.png beside it."
        ) from error
    if labels.shape != (told.size, told.size) or not told.regions:
        raise FormatError(
            f"{picture} has {labels.shape} pixels and {path.name} says {told.size} x {told.size} "
            f"with {len(told.regions)} regions; they are not of one phantom."
        )
    return Truth(told.phantom, told.pixel_mm, told.regions, labels)


def require_of(name: str, volume: CTVolume, known: Truth) -> None:
    spacing_mm = volume.spacing_mm[1:]
    if volume.shape[1:] != known.labels.shape or not np.allclose(
        spacing_mm, known.pixel_mm, rtol=1e-3
    ):
        raise GeometryError(
            f"{name} has slices of {volume.shape[1:]} pixels of {spacing_mm} mm, the truth of "
            f"'{known.phantom}' {known.labels.shape} of {known.pixel_mm:g} mm; "
            "give the truth that was written beside this series."
        )
