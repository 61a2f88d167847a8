"""Phantom: a series of simulated slices whose true HU are known, with that truth beside it."""

# Shapes: N image side.

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cddnet import __version__
from cddnet.errors import CddnetError, GeometryError
from cddnet.formats._atomic import new_folder
from cddnet.formats._new_series import NewSeries, write_new_series
from cddnet.intensity.window import to_grey
from cddnet.physics import phantom
from cddnet.physics.beam import SliceGeometry
from cddnet.physics.dose import LowDose, add_noise, rng_for
from cddnet.physics.kernel import SHARP_KERNEL, SOFT_KERNEL, seen_through
from cddnet.physics.phantom import Phantom, Region
from cddnet.volume import Acquisition, CTVolume, Derivation, SliceHU

KERNELS = {"soft": SOFT_KERNEL, "sharp": SHARP_KERNEL}

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class PhantomOptions:
    """kind: a name of `physics.phantom`.  dose_fraction: of the calibrated full dose, None for the
    truth without noise.  kernel: soft or sharp, of the scan's edges and noise.  pixel_mm: None for
    the phantom's own field of view.  size: pixels on each side.
    """

    kind: str = "abdomen"
    slices: int = 8
    dose_fraction: float | None = None
    seed: int = 0
    kernel: str = "soft"
    pixel_mm: float | None = None
    size: int = 512


class PhantomResult(NamedTuple):
    """fewest_photons: least expected count of any ray; starved: share of the rays with fewer than
    25; both None without noise.
    """

    series: Path
    truth: Path
    series_uid: str
    slices: int
    pixel_mm: float
    label: str
    regions: tuple[str, ...]
    fewest_photons: float | None
    starved: float | None


def write_phantom(out: Path, options: PhantomOptions, progress: Progress) -> PhantomResult:
    """Write out/series (DICOM), out/truth.json, out/regions.png and out/preview.png.

    `out` appears whole or not at all; slices differ in their noise alone, and are independent.
    progress: called with (slices done, slices in all).
    Raises: CddnetError for an unknown kind or kernel or a dose that is none, GeometryError where
    the phantom does not fit into the image, FormatError where `out` exists.
    """
    scan = _Scan(options)
    with new_folder(out) as folder:
        series_uid = write_new_series(
            scan.volume(progress),
            folder / "series",
            NewSeries(options.kind, scan.phantom.window_hu),
        )
        regions = phantom.truth(scan.phantom, options.size, scan.pixel_mm)
        record = scan.record() | {"series_uid": series_uid}
        record["regions"] = [
            _told(number, region, options.size, scan.pixel_mm)
            for number, region in enumerate(regions, start=1)
        ]
        (folder / "truth.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        Image.fromarray(_labels(regions)).save(folder / "regions.png", optimize=True)
        shown = to_grey(scan.slice_hu(0), scan.phantom.window_hu, 8).astype(np.uint8)
        Image.fromarray(shown).save(folder / "preview.png", optimize=True)
    return PhantomResult(
        series=out / "series",
        truth=out / "truth.json",
        series_uid=series_uid,
        slices=options.slices,
        pixel_mm=scan.pixel_mm,
        label=scan.step().label,
        regions=tuple(region.ellipse.name for region in regions),
        fewest_photons=scan.counts and scan.counts.fewest_photons,
        starved=scan.counts and scan.counts.starved,
    )


class _Scan:
    """The slices of a phantom, computed as they are read."""

    def __init__(self, options: PhantomOptions) -> None:
        self.options = options
        self.phantom = _phantom(options)
        fitting_mm = self.phantom.field_mm / options.size
        self.pixel_mm = fitting_mm if options.pixel_mm is None else options.pixel_mm
        self.geometry = SliceGeometry(self.pixel_mm)
        self.counts: LowDose | None = None
        _require_inside(self.phantom, options.size, self.pixel_mm)

    @cached_property
    def truth_hu(self) -> SliceHU:
        return phantom.render(self.phantom, self.options.size, self.pixel_mm)

    @cached_property
    def blur_hu(self) -> SliceHU:
        """What the kernel does to the edges."""
        kernel = KERNELS[self.options.kernel]
        return seen_through(self.truth_hu, self.pixel_mm, kernel) - self.truth_hu

    def slice_hu(self, index: int) -> SliceHU:
        """The truth itself, or with a dose what a scan shows of it."""
        dose_fraction = self.options.dose_fraction
        if dose_fraction is None:
            return self.truth_hu
        # Not the series UID, which changes with every release of this package.
        rng = rng_for(json.dumps(self.step().parameters), index, self.options.seed)
        self.counts = add_noise(
            self.truth_hu,
            self.geometry,
            rng,
            dose_fraction=dose_fraction,
            kernel=KERNELS[self.options.kernel],
        )
        return self.counts.hu + self.blur_hu

    def volume(self, progress: Progress) -> CTVolume:
        size, slices = self.options.size, self.options.slices
        thickness_mm = self.geometry.thickness_mm
        first_mm = float(phantom.centres_mm(size, self.pixel_mm)[0])

        def read_slice(index: int) -> SliceHU:
            hu = self.slice_hu(index)
            progress(index + 1, slices)
            return hu

        noisy = self.options.dose_fraction is not None
        return CTVolume(
            shape=(slices, size, size),
            spacing_mm=(thickness_mm, self.pixel_mm, self.pixel_mm),
            read_slice=read_slice,
            origin_mm=(first_mm, first_mm, 0.0),
            thickness_mm=thickness_mm,
            acquisition=Acquisition(kernel=f"cddnet {self.options.kernel}" if noisy else ""),
            derivation=(self.step(),),
        )

    def step(self) -> Derivation:
        options = self.options
        parameters = {"phantom": options.kind, "pixel_mm": repr(self.pixel_mm)}
        parameters |= {"size": str(options.size)}
        label, noise = "no noise", "No noise."
        if options.dose_fraction is not None:
            label = f"{options.dose_fraction:.4g} dose {options.kernel}"
            noise = (
                f"Quantum and electronic noise of {options.dose_fraction:.4g} of the calibrated "
                f"full dose, 70 keV, kernel {options.kernel}."
            )
            parameters |= {"dose_fraction": repr(options.dose_fraction), "kernel": options.kernel}
            parameters |= {"seed": str(options.seed)}
        return Derivation(
            label=f"phantom {options.kind} {label}",
            description=(
                f"Simulated phantom {options.kind}: no scanner, no patient. {noise} "
                "Research use only."
            ),
            parameters=tuple(sorted(parameters.items())),
            version=__version__,
        )

    def record(self) -> dict[str, object]:
        """What truth.json says besides the regions."""
        options, counts = self.options, self.counts
        return {
            "phantom": options.kind,
            "use": "Research use only. Simulated.",
            "version": __version__,
            "size": options.size,
            "pixel_mm": self.pixel_mm,
            "slice_thickness_mm": self.geometry.thickness_mm,
            "slices": options.slices,
            "slices_differ_in": "noise, independent from slice to slice" if counts else "nothing",
            "dose_fraction": options.dose_fraction,
            "kernel": repr(KERNELS[options.kernel]) if counts else None,
            "seed": options.seed if counts else None,
            "fewest_photons": counts and counts.fewest_photons,
            "starved_share": counts and counts.starved,
            "coordinates": (
                "mm from the image centre, which is (0, 0) of the DICOM patient coordinates: x to "
                "the patient's left and along the columns, y to the back and down the rows; "
                "centre_pixel is (column, row) from 0"
            ),
            "edges": f"each pixel is the mean over its area{', then the kernel' if counts else ''}",
            "labels": "grey level of the region's pixels in regions.png, 2 pixels inside its rim",
        }


def _phantom(options: PhantomOptions) -> Phantom:
    dose_fraction = options.dose_fraction
    if options.kind not in phantom.names():
        found, known, what = options.kind, phantom.names(), "phantom"
    elif options.kernel not in KERNELS:
        found, known, what = options.kernel, tuple(KERNELS), "kernel"
    else:
        if dose_fraction is not None and not 0 < dose_fraction <= 1:
            raise CddnetError(f"dose is {dose_fraction}; give a fraction above 0 and up to 1.")
        if min(options.slices, options.size) < 1:
            raise CddnetError(
                f"{options.slices} slices of {options.size} pixels; give at least 1 of each."
            )
        return phantom.build(options.kind)
    raise CddnetError(f"no {what} '{found}'; choose {', '.join(known)}.")


def _require_inside(shown: Phantom, size: int, pixel_mm: float) -> None:
    """Rays through what lies outside the image would lack its attenuation."""
    if not pixel_mm > 0:
        raise GeometryError(f"pixel size is {pixel_mm} mm; give one above 0.")
    angles = np.array([[0.0], [np.pi / 2]])
    edge_mm = size * pixel_mm / 2
    beyond_mm = edge_mm + np.linspace(0.0, 1.0, 64) * shown.field_mm
    rays_mm = np.concatenate([-beyond_mm, beyond_mm])[None, :]
    if phantom.line_integrals(shown, angles, rays_mm).any():
        raise GeometryError(
            f"{size} pixels of {pixel_mm:g} mm cover {2 * edge_mm:.0f} mm, and the phantom "
            f"'{shown.name}' needs {shown.field_mm:.0f} mm; choose larger pixels or more of them."
        )


def _told(number: int, region: Region, size: int, pixel_mm: float) -> dict[str, object]:
    ellipse = region.ellipse
    first, second = ellipse.half_axes_mm
    return {
        "label": number,
        "name": ellipse.name,
        "hu": ellipse.hu,
        "background_hu": region.background_hu,
        "contrast_hu": ellipse.hu - region.background_hu,
        "centre_mm": ellipse.centre_mm,
        "centre_pixel": [place / pixel_mm + (size - 1) / 2 for place in ellipse.centre_mm],
        "diameter_mm": 2 * first if first == second else None,
        "half_axes_mm": ellipse.half_axes_mm,
        "angle_degrees": ellipse.angle_degrees,
        "pixels": int(region.mask.sum()),
    }


def _labels(regions: tuple[Region, ...]) -> NDArray[np.uint8]:
    labels = np.zeros(regions[0].mask.shape, np.uint8)
    for number, region in enumerate(regions, start=1):
        labels[region.mask] = number
    return labels
