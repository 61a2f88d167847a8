"""Match inserted noise to the series it goes into: its kernel, its level, its slice thickness.

Above 300 lines: kernel, level and thickness are found from the same regions.
"""

# Shapes: H row, W column, N region, S side of a region, F frequency.

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cddnet.errors import CddnetError
from cddnet.metrics.noise import (
    RadialPower,
    detrended_std,
    flat_corners,
    flat_regions,
    mean_frequency_per_mm,
    noise_power_spectrum,
    radial_power,
)
from cddnet.physics.beam import TYPICAL_SCANNER, Scanner, SliceGeometry
from cddnet.physics.depth import predicted_noise_hu, radiological_depth
from cddnet.physics.dose import insert_noise, rng_for
from cddnet.physics.kernel import SHARP_KERNEL, SOFT_KERNEL, Kernel, fit_kernel, kernel_named
from cddnet.training.pairs import OwnNoise
from cddnet.training.slices import calibrated_geometry, filled, slab_volume
from cddnet.volume import CTVolume

_PROBED_SLICES = 16
_SLICES = 8

# Side and distance to other tissue in pixels, the first that a series has enough of; wide regions
# resolve low frequencies, and the blur of an edge ends within four pixels.
_REGIONS = ((32, 4), (24, 4), (16, 4), (16, 0))
_FEWEST = 12

# Soft tissue, and where there is none the water of a phantom; in patients the second mixes in fat.
_TISSUES_HU = ((0.0, 200.0), (-40.0, 200.0))
_MOST = 150
_QUIET_SHARE = 0.25
_DOSE = 0.25

# Whole HU have this noise themselves.
_ROUNDING_HU = 12**-0.5

# Between what readers notice in the body, 0.02, and in the lung, 0.04 (J. Med. Imaging 11:035501,
# 2024).
_NOTICED_PER_MM = 0.03
_TAG_AGREES_PER_MM = 0.05

# Hann cutoff below that of the softest body kernel (B10f); ours, approximate.
_SOFTEST_PER_MM = 0.4


class FlatNoise(NamedTuple):
    """Noise in flat tissue, an upper bound because anatomy counts; standard errors by jackknife
    over slices. The regions overlap.
    """

    noise_hu: float
    noise_error_hu: float
    mean_frequency_per_mm: float
    mean_frequency_error_per_mm: float
    regions: int
    slices: int


@dataclass(frozen=True, kw_only=True)
class SourceNoise:
    """Physics that give a series more of its own noise.

    scanner: its full dose is the dose of the series.  measured: None where flat tissue is missing.
    model_frequency_per_mm: mean frequency of inserted noise in the same regions.
    basis: one sentence for people on where this comes from and how sure it is.
    thicknesses_mm: of each slice (D,) where they differ; else empty, and `geometry` has it.
    """

    kernel: Kernel
    scanner: Scanner
    geometry: SliceGeometry
    measured: FlatNoise | None
    model_frequency_per_mm: float | None
    basis: str
    thicknesses_mm: tuple[float, ...] = ()

    def geometry_of(self, index: int) -> SliceGeometry:
        """Geometry of slice `index`."""
        if not self.thicknesses_mm:
            return self.geometry
        return self.geometry._replace(thickness_mm=self.thicknesses_mm[index])

    @property
    def thickness_parameters(self) -> dict[str, str]:
        """What a record says of slices of different thickness; nothing where all have one."""
        if not self.thicknesses_mm:
            return {}
        counts = sorted(Counter(self.thicknesses_mm).items())
        return {"slice_thickness_mm": ", ".join(f"{mm:g} ({count})" for mm, count in counts)}


class FlatSlice(NamedTuple):
    """A slice (H, W) in HU and the corners (N, 2) of its flat regions, `side` pixels each."""

    slice_index: int
    hu: NDArray[np.float32]
    corners: NDArray[np.intp]
    side: int
    geometry: SliceGeometry


def match_source(volume: CTVolume, *, kernel: str = "auto") -> SourceNoise:
    """Kernel, photons and geometry whose noise is that of the series itself.

    kernel: "auto" fits it to the noise of flat tissue, else the tag decides; "soft", "sharp" or the
    text of a tag, such as "B40f", fix it.  The level is measured in flat tissue in each case.
    Raises: CddnetError for an unknown kernel, GeometryError where pixels are not square.
    """
    geometry = calibrated_geometry(volume)
    if volume.thickness_mm:
        geometry = geometry._replace(thickness_mm=volume.thickness_mm)
    given = None if kernel == "auto" else _named(kernel)
    flat = quiet_slices(volume, geometry)
    if not flat:
        return _unmeasured(volume, geometry, given, "too little flat tissue to measure the noise")
    measured, power = measure_noise(flat, geometry, [item.hu for item in flat])
    if measured.noise_hu < _ROUNDING_HU:
        return _unmeasured(volume, geometry, given, "no noise beyond rounding in flat tissue")
    fitted = given or _fit(flat, geometry, power)
    origin = "kernel as asked for" if given else _fitted_origin(volume, fitted, geometry)
    scanner, expected_hu = _scanner(flat, fitted, measured.noise_hu)
    model, _ = _inserted(flat, geometry, scanner, fitted)
    # Small regions miss low frequencies, so inserted noise measures less than predicted.
    seen = (model.noise_hu / expected_hu) ** 2
    scanner = replace(scanner, photons=scanner.photons * seen)
    findings = _findings(measured, model, fitted)
    return SourceNoise(
        kernel=fitted,
        scanner=scanner,
        geometry=geometry,
        measured=measured,
        model_frequency_per_mm=model.mean_frequency_per_mm,
        basis=f"{origin}; {findings}; {_thickness(volume, geometry)} slices.",
        thicknesses_mm=_thicknesses_mm(volume, geometry),
    )


def own_noise(volume: CTVolume) -> OwnNoise:
    """What gives the slices that are learned from, which may be means of thin ones, more of their
    own noise.  Raises: as `match_source`.
    """
    found = match_source(slab_volume(volume))
    return OwnNoise(found.scanner, found.kernel, found.geometry)


def quiet_slices(volume: CTVolume, geometry: SliceGeometry) -> list[FlatSlice]:
    """Slices with the quietest flat regions of a series; none where there are too few.

    Of evenly spread slices, the quarter of the regions (150 at most) whose noise is lowest against
    the one predicted by radiological depth: the others hold vessels and edges.
    """
    count = volume.shape[0]
    probed = np.unique(np.linspace(0, count - 1, min(count, _PROBED_SLICES)).round().astype(int))
    slices = [(int(index), filled(volume, int(index))) for index in probed]
    for tissue_hu, (side, margin) in product(_TISSUES_HU, _REGIONS):
        corners = [_corners(hu, side, margin, tissue_hu) for _, hu in slices]
        found = [
            FlatSlice(index, hu, places, side, _geometry_of(volume, geometry, index))
            for (index, hu), places in zip(slices, corners, strict=True)
        ]
        found = [item for item in found if len(item.corners)]
        if sum(len(item.corners) for item in found) >= _FEWEST / _QUIET_SHARE:
            return _quietest(found, geometry)
    return []


def _corners(
    hu: NDArray[np.float32], side: int, margin: int, tissue_hu: tuple[float, float]
) -> NDArray[np.intp]:
    wide = flat_corners(hu, side + 2 * margin, tissue_hu=tissue_hu, step=side // 4)
    return wide + margin


def _quietest(found: list[FlatSlice], geometry: SliceGeometry) -> list[FlatSlice]:
    relative = []
    for item in found:
        depth = radiological_depth(item.hu, item.geometry, scanner=TYPICAL_SCANNER)
        deviation = detrended_std(flat_regions(item.hu, item.corners, item.side))
        # The variance of quantum noise goes with 1 / thickness.
        deviation *= (item.geometry.thickness_mm / geometry.thickness_mm) ** 0.5
        relative.append(deviation / np.exp(_at_centres(depth, item) / 2))
    ranked = np.sort(np.concatenate(relative))
    limit = ranked[min(int(_QUIET_SHARE * len(ranked)), _MOST) - 1]
    quiet = [
        item._replace(corners=item.corners[noise <= limit])
        for item, noise in zip(found, relative, strict=True)
    ]
    most = sorted(quiet, key=lambda item: len(item.corners), reverse=True)[:_SLICES]
    return sorted((item for item in most if len(item.corners)), key=lambda item: item.slice_index)


def measure_noise(
    flat: list[FlatSlice], geometry: SliceGeometry, noise: list[NDArray[np.float32]]
) -> tuple[FlatNoise, RadialPower]:
    """Level, texture and radial power of noise images, each (H, W) HU, in the regions of `flat`."""
    regions = [
        flat_regions(hu, item.corners, item.side) for item, hu in zip(flat, noise, strict=True)
    ]
    power = [
        radial_power(noise_power_spectrum(group, geometry.pixel_mm), geometry.pixel_mm)
        for group in regions
    ]
    variance = np.concatenate([detrended_std(group) ** 2 for group in regions])
    spectrum = RadialPower(power[0].frequency_per_mm, np.concatenate([p.power for p in power]))
    # Regions overlap, so whole slices are left out in turn; one or two slices give no choice.
    group_of = np.repeat(np.arange(len(flat)), [len(group) for group in regions])
    if len(flat) < 3:
        group_of = np.arange(len(variance)) * 6 // len(variance)

    def level(kept: NDArray[np.bool_]) -> float:
        return float(np.sqrt(variance[kept].mean()))

    def frequency(kept: NDArray[np.bool_]) -> float:
        return float(mean_frequency_per_mm(_mean(spectrum, kept)))

    everything = np.ones(len(variance), np.bool_)
    flat_noise = FlatNoise(
        noise_hu=level(everything),
        noise_error_hu=_jackknife(level, group_of),
        mean_frequency_per_mm=frequency(everything),
        mean_frequency_error_per_mm=_jackknife(frequency, group_of),
        regions=len(variance),
        slices=len(flat),
    )
    return flat_noise, _mean(spectrum, everything)


def _mean(power: RadialPower, kept: NDArray[np.bool_]) -> RadialPower:
    return power._replace(power=power.power[kept].mean(axis=0))


def _jackknife(estimate: Callable[[NDArray[np.bool_]], float], group_of: NDArray[np.intp]) -> float:
    """Standard error of an estimate when groups are left out in turn (Efron 1982)."""
    groups = np.unique(group_of)
    without = np.array([estimate(group_of != group) for group in groups])
    return float(np.sqrt((len(groups) - 1) * np.mean((without - without.mean()) ** 2)))


def _inserted(
    flat: list[FlatSlice], geometry: SliceGeometry, scanner: Scanner, kernel: Kernel
) -> tuple[FlatNoise, RadialPower]:
    noise = [
        insert_noise(
            item.hu,
            item.geometry,
            rng_for("source matching", item.slice_index, 0),
            dose_fraction=_DOSE,
            scanner=scanner,
            kernel=kernel,
        ).hu
        - item.hu
        for item in flat
    ]
    return measure_noise(flat, geometry, noise)


def _fit(flat: list[FlatSlice], geometry: SliceGeometry, power: RadialPower) -> Kernel:
    """Kernel fitted to the measured power; the second round starts near it, where leakage fits."""
    kernel = SHARP_KERNEL
    for _ in range(2):
        _, reference = _inserted(flat, geometry, TYPICAL_SCANNER, kernel)
        kernel = fit_kernel(
            power.frequency_per_mm[1:],
            power.power[1:],
            reference_power=reference.power[1:],
            reference=kernel,
        )
    return kernel


def _scanner(flat: list[FlatSlice], kernel: Kernel, noise_hu: float) -> tuple[Scanner, float]:
    """The calibrated scanner with photons that give the measured noise in the same regions, and
    the noise in HU that it is expected to insert there.
    """

    def variance(scanner: Scanner) -> float:
        squares = []
        for item in flat:
            depth = radiological_depth(item.hu, item.geometry, scanner=scanner)
            noise = predicted_noise_hu(depth, item.geometry, scanner=scanner, kernel=kernel)
            squares.append(_at_centres(noise, item) ** 2)
        return float(np.concatenate(squares).mean())

    # With s times the photons the quantum variance goes with 1 / s, the electronic with 1 / s^2.
    quantum = variance(replace(TYPICAL_SCANNER, electronic_std=0.0))
    electronic = max(variance(TYPICAL_SCANNER) - quantum, 0.0)
    scale = (quantum + np.sqrt(quantum**2 + 4 * electronic * noise_hu**2)) / (2 * noise_hu**2)
    inserted = sum(
        part * ((_DOSE * scale) ** -power - scale**-power)
        for part, power in ((quantum, 1), (electronic, 2))
    )
    scanner = replace(TYPICAL_SCANNER, photons=float(TYPICAL_SCANNER.photons * scale))
    return scanner, float(np.sqrt(inserted))


def _at_centres(values: NDArray[np.float32], item: FlatSlice) -> NDArray[np.float32]:
    rows, columns = (item.corners + item.side // 2).T
    centres: NDArray[np.float32] = values[rows, columns]
    return centres


def _named(text: str, manufacturer: str = "") -> Kernel:
    kernel = {"soft": SOFT_KERNEL, "sharp": SHARP_KERNEL}.get(text) or kernel_named(
        text, manufacturer
    )
    if kernel is None:
        raise CddnetError(
            f'kernel "{text}" is unknown; choose auto, soft, sharp or a name such as B40f, '
            "STANDARD or FC13."
        )
    return kernel


def _unmeasured(
    volume: CTVolume, geometry: SliceGeometry, given: Kernel | None, reason: str
) -> SourceNoise:
    tag = volume.acquisition.kernel
    named = given or kernel_named(tag, volume.acquisition.manufacturer)
    origin = "kernel as asked for" if given else f"kernel of the tag {tag}, approximate"
    return SourceNoise(
        kernel=named or SOFT_KERNEL,
        scanner=TYPICAL_SCANNER,
        geometry=geometry,
        measured=None,
        model_frequency_per_mm=None,
        basis=(
            f"{reason}; {origin if named else 'soft kernel assumed'}; level of the calibrated "
            f"scanner for {_thickness(volume, geometry)} slices, uncertain."
        ),
        thicknesses_mm=_thicknesses_mm(volume, geometry),
    )


def _fitted_origin(volume: CTVolume, fitted: Kernel, geometry: SliceGeometry) -> str:
    tag = volume.acquisition.kernel
    named = kernel_named(tag, volume.acquisition.manufacturer)
    if named is None:
        return "kernel fitted"
    apart = _texture_per_mm(named, geometry) - _texture_per_mm(fitted, geometry)
    verdict = "agrees" if abs(apart) <= _TAG_AGREES_PER_MM else "disagrees"
    return f"kernel fitted, tag {tag} {verdict}"


def _findings(measured: FlatNoise, model: FlatNoise, kernel: Kernel) -> str:
    text = (
        f"{measured.regions} flat regions of {measured.slices} slices have "
        f"{measured.noise_hu:.1f} +- {measured.noise_error_hu:.1f} HU, at most noise because "
        f"anatomy counts, of mean frequency {measured.mean_frequency_per_mm:.3f} +- "
        f"{measured.mean_frequency_error_per_mm:.3f} per mm, inserted noise has "
        f"{model.mean_frequency_per_mm:.3f}"
    )
    finer = model.mean_frequency_per_mm - measured.mean_frequency_per_mm
    if finer > _NOTICED_PER_MM or kernel.cutoff_per_mm < _SOFTEST_PER_MM:
        return (
            f"{text}: the source is coarser than filtered back projection makes it, by anatomy, "
            "iterative reconstruction or denoising"
        )
    return f"{text}: the source is finer than this kernel" if finer < -_NOTICED_PER_MM else text


def _texture_per_mm(kernel: Kernel, geometry: SliceGeometry) -> float:
    """Mean frequency of a kernel's noise, whose power is f A(f)^2 (Kak and Slaney 1988, ch. 5)."""
    frequency = np.linspace(0, 0.5 / geometry.pixel_mm, 256)
    return float(
        mean_frequency_per_mm(RadialPower(frequency, frequency * kernel.response(frequency) ** 2))
    )


def _geometry_of(volume: CTVolume, geometry: SliceGeometry, index: int) -> SliceGeometry:
    """The geometry of a slice, which may state another thickness than the others."""
    own_mm = volume.thicknesses_mm[index] if volume.thicknesses_mm else None
    return geometry._replace(thickness_mm=own_mm) if own_mm else geometry


def _thicknesses_mm(volume: CTVolume, geometry: SliceGeometry) -> tuple[float, ...]:
    indices = range(len(volume.thicknesses_mm))
    return tuple(_geometry_of(volume, geometry, index).thickness_mm for index in indices)


def _thickness(volume: CTVolume, geometry: SliceGeometry) -> str:
    stated = [thickness for thickness in volume.thicknesses_mm if thickness]
    if stated:
        return f"{min(stated):g} to {max(stated):g} mm"
    text = f"{geometry.thickness_mm:g} mm"
    return text if volume.thickness_mm else f"{text} (assumed)"
