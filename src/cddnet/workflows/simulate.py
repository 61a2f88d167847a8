"""Simulate: read_volume -> match_source -> insert_noise -> write_volume."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from cddnet import __version__
from cddnet.errors import CddnetError
from cddnet.formats import read_volume, write_volume
from cddnet.intensity.hu import air_for_padding
from cddnet.physics.beam import DEFAULT_SCANNER
from cddnet.physics.dose import SCANNER_FLOOR_HU, STARVED_PHOTONS, LowDose, insert_noise, rng_for
from cddnet.physics.kernel import SOFT_KERNEL
from cddnet.training.slices import calibrated_geometry
from cddnet.volume import CTVolume, Derivation, SliceHU
from cddnet.workflows._matching import SourceNoise, match_source
from cddnet.workflows.fitness import marked_forced, require_hu

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class SimulateOptions:
    """dose_fraction: of the source's own dose, above 0 and at most 1.  seed: the same seed gives
    the same bytes.  kernel: auto, soft, sharp or a ConvolutionKernel text.  electronic_std: in
    photons per reading, None for the calibrated scanner's.  series: of a folder that holds several.
    acquisition: of a series that holds several at its places.  window_hu: of 8- or 16-bit pictures.
    force: also what is no HU.
    """

    dose_fraction: float = 0.25
    seed: int = 0
    kernel: str = "auto"
    electronic_std: float | None = None
    series: str | None = None
    acquisition: str | None = None
    window_hu: tuple[float, float] | None = None
    slice_axis: int | None = None
    """Axis of the slices (0, 1 or 2) in arrays that state no orientation."""
    force: bool = False


@dataclass(frozen=True, kw_only=True)
class Simulated:
    """volume: the low-dose series (lazy).  source: what its noise was matched to.
    starved_slices: slices with rays of fewer than 25 low-dose photons; starved: the largest share
    of such rays in a slice; fewest_photons: of any ray.
    """

    volume: CTVolume
    source: SourceNoise
    starved_slices: int
    starved: float
    fewest_photons: float

    @property
    def starvation(self) -> str:
        """One sentence for people; "" where every ray had photons enough."""
        if not self.starved_slices:
            return ""
        return (
            f"{self.starved_slices} slices have rays of fewer than {STARVED_PHOTONS:.0f} photons "
            f"(at worst {self.starved:.2%} of a slice's rays, down to {self.fewest_photons:.1f}): "
            "their noise is streaked and their mean HU shifted, as in a real scan"
        )


def simulate_file(
    source: Path, target: str | Path, options: SimulateOptions, progress: Progress
) -> Simulated:
    """Read a series, take it to a fraction of its dose slice by slice, write it.

    target: as of `write_volume`; text that ends with / is a folder.
    progress: called with (slices done, slices in all).
    Raises: CddnetError for a fraction outside (0, 1] or electronic noise below 0; UnfitError for
    values that are no HU, unless forced.
    """
    volume = read_volume(
        source,
        series=options.series,
        window_hu=options.window_hu,
        acquisition=options.acquisition,
        slice_axis=options.slice_axis,
    )
    refusal = require_hu(volume, force=options.force)
    matched = match_source(volume, kernel=options.kernel)
    if options.electronic_std is not None:
        scanner = replace(matched.scanner, electronic_std=options.electronic_std)
        matched = replace(matched, scanner=scanner)
    slices: list[LowDose] = []

    def watch(low_dose: LowDose) -> None:
        slices.append(low_dose._replace(hu=np.empty((0, 0), np.float32)))
        progress(len(slices), volume.shape[0])

    low_dose = marked_forced(simulate_volume(volume, matched, options, watch), refusal)
    write_volume(low_dose, target, window_hu=options.window_hu)
    return Simulated(
        volume=low_dose,
        source=matched,
        starved_slices=sum(item.starved > 0 for item in slices),
        starved=max(item.starved for item in slices),
        fewest_photons=min(item.fewest_photons for item in slices),
    )


def calibrated_source(volume: CTVolume) -> SourceNoise:
    """The calibrated scanner, its soft kernel and 3 mm slices, whatever noise the series carries.

    With it the inserted noise is absolute, as in the training data and in published figures.
    Raises: GeometryError where pixels are not square.
    """
    return SourceNoise(
        kernel=SOFT_KERNEL,
        scanner=DEFAULT_SCANNER,
        geometry=calibrated_geometry(volume),
        measured=None,
        model_frequency_per_mm=None,
        basis="noise of the calibrated scanner, soft kernel, 3 mm slices, not of the series.",
    )


def simulate_volume(
    volume: CTVolume,
    source: SourceNoise,
    options: SimulateOptions,
    watch: Callable[[LowDose], None] = lambda low_dose: None,
) -> CTVolume:
    """The volume at a fraction of the dose of `source`, computed as slices are read.

    Padding stays; air is cut at the scanner's floor, as in real low-dose series.
    watch: called with each slice that was simulated.
    """
    if not 0 < options.dose_fraction <= 1:
        raise CddnetError(
            f"the dose is {options.dose_fraction}; give a fraction above 0 and at most 1, "
            "such as 0.25."
        )
    if source.scanner.electronic_std < 0:
        raise CddnetError(
            f"electronic noise is {source.scanner.electronic_std} photons, expected 0 or more; "
            "correct the recipe."
        )

    def read_slice(index: int) -> SliceHU:
        hu, padding = volume.read_slice(index), volume.padding(index)
        low_dose = insert_noise(
            air_for_padding(hu, padding),
            source.geometry_of(index),
            rng_for(volume.series_uid, index, options.seed),
            dose_fraction=options.dose_fraction,
            scanner=source.scanner,
            kernel=source.kernel,
        )
        watch(low_dose)
        cut = np.maximum(low_dose.hu, np.minimum(hu, np.float32(SCANNER_FLOOR_HU)))
        result: SliceHU = np.where(padding, hu, cut)
        return result

    return volume.derived(read_slice, _step(source, options))


def _step(source: SourceNoise, options: SimulateOptions) -> Derivation:
    percent = f"{options.dose_fraction:.3g}"
    return Derivation(
        label=f"simulated dose x{percent}",
        description=(
            f"SIMULATED low dose, {percent} times the dose of the source: quantum and electronic "
            f"noise inserted (Yu 2012), cddnet {__version__}. Research use only."
        ),
        parameters=(
            ("dose_fraction", repr(options.dose_fraction)),
            ("kernel", repr(source.kernel)),
            ("scanner", repr(source.scanner)),
            ("seed", str(options.seed)),
            ("slice", repr(source.geometry)),
            *source.thickness_parameters.items(),
        ),
        version=__version__,
        timeless=True,
    )
