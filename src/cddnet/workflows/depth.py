"""Depth: how strongly the rays through each pixel were attenuated, and how noisy that makes it."""

# Shapes: D slice, H row, W column.

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from cddnet import __version__
from cddnet.errors import CddnetError
from cddnet.formats import read_volume, write_volume
from cddnet.formats._atomic import new_folder
from cddnet.formats._parametric import PREDICTED_NOISE, RADIOLOGICAL_DEPTH, write_parametric_map
from cddnet.intensity.window import hu_to_window
from cddnet.metrics._body import body_mask
from cddnet.physics.depth import predicted_noise_hu, radiological_depth
from cddnet.training.slices import filled
from cddnet.volume import CTVolume, Derivation
from cddnet.workflows._matching import SourceNoise, match_source
from cddnet.workflows.fitness import forced_notes, marked_forced, require_hu

SHOWN_WINDOW_HU = (-160.0, 240.0)
_TEXT = 14
_LINE = 20
_BAR = 12
_MARGIN = 8
_NARROWEST = 256

# Red, green and blue by cosine and sine of the angle (Green 2011, equation 2).
_HELIX = np.array([[-0.14861, 1.78277], [-0.29227, -0.90649], [1.97294, 0.0]], np.float32)

Map = NDArray[np.float32]
Range = tuple[float, float]
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class DepthOptions:
    """dose_fraction: of the source's own dose, above 0 to 1.  kernel: auto (from the series' own
    noise), soft, sharp or a tag.  series: of a folder that holds several.  acquisition: of a series
    that holds several at its places.  window_hu: that pictures stand for.  created: the moment of
    creation for the headers, with a time zone; None: they do not say.  force: also what is no HU.
    """

    dose_fraction: float = 1.0
    kernel: str = "auto"
    series: str | None = None
    acquisition: str | None = None
    window_hu: tuple[float, float] | None = None
    created: datetime | None = None
    slice_axis: int | None = None
    """Axis of the slices (0, 1 or 2) in arrays that state no orientation."""
    force: bool = False


class DepthResult(NamedTuple):
    """depth_range (no unit) and noise_range_hu: least and largest of the series.
    body_noise_hu: predicted in the body, median of the slices' medians.
    basis: where kernel and noise level come from.  files: names of the two maps.
    """

    slices: int
    depth_range: Range
    noise_range_hu: Range
    body_noise_hu: float
    basis: str
    notes: tuple[str, ...]
    files: tuple[str, str]


def depth_file(
    source: Path, target: Path, options: DepthOptions, progress: Progress
) -> DepthResult:
    """Write a new folder: both maps of every slice, and png/ with slice, depth and noise.

    Maps of a DICOM series are DICOM Parametric Maps; others are .npy with the record beside it,
    because the other formats here say of any number that it is in HU.  Slices are worked on one by
    one and may lie unevenly.
    progress: called with (what is done, slices done, slices in all).
    Raises: CddnetError for a dose outside (0, 1], UnfitError for values that are no HU, unless
    forced, else what reading, matching or writing raises.
    """
    if not 0 < options.dose_fraction <= 1:
        raise CddnetError(
            f"dose is {options.dose_fraction}; give a fraction above 0 and up to 1, such as 0.25."
        )
    volume = read_volume(
        source,
        series=options.series,
        window_hu=options.window_hu,
        acquisition=options.acquisition,
        slice_axis=options.slice_axis,
    )
    refusal = require_hu(volume, force=options.force)
    with new_folder(target) as folder, TemporaryFile(dir=folder) as file:
        matched = match_source(volume, kernel=options.kernel)
        maps = _Maps(volume, matched, options, file, refusal)
        ranges = maps.compute(lambda done: progress("depth", done, volume.shape[0]))
        files = _write_maps(maps, folder)
        (folder / "png").mkdir()
        digits = max(4, len(str(volume.shape[0])))
        for index in range(volume.shape[0]):
            title = f"slice {index + 1} of {volume.shape[0]}. Research use only."
            picture = _draw(_panels(maps, index, ranges), title)
            name = f"{index + 1:0{digits}}.png"
            picture.save(folder / "png" / name, compress_level=1)
            progress("drawing", index + 1, volume.shape[0])
    return DepthResult(
        slices=volume.shape[0],
        depth_range=ranges.depth,
        noise_range_hu=ranges.noise_hu,
        body_noise_hu=ranges.body_noise_hu,
        basis=matched.basis,
        notes=(*volume.notes, *forced_notes(refusal)),
        files=files,
    )


class _Ranges(NamedTuple):
    depth: Range
    noise_hu: Range
    body_noise_hu: float


class _Maps(NamedTuple):
    """The depth of every slice in a file, and the noise as a function of it."""

    volume: CTVolume
    matched: SourceNoise
    options: DepthOptions
    file: IO[bytes]
    refusal: str

    def compute(self, progress: Callable[[int], None]) -> _Ranges:
        lows, highs, medians = [], [], []
        for index in range(self.volume.shape[0]):
            hu = filled(self.volume, index)
            depth = radiological_depth(
                hu,
                self.matched.geometry_of(index),
                dose_fraction=self.options.dose_fraction,
                scanner=self.matched.scanner,
            )
            self.file.write(depth.astype(np.float32).tobytes())
            noise = self._noise(depth, index)
            lows.append((float(depth.min()), float(noise.min())))
            highs.append((float(depth.max()), float(noise.max())))
            medians.append(float(np.median(noise[body_mask(hu)])))
            progress(index + 1)
        low, high = np.min(lows, axis=0).tolist(), np.max(highs, axis=0).tolist()
        return _Ranges((low[0], high[0]), (low[1], high[1]), float(np.median(medians)))

    def derived(self, read_slice: Callable[[int], Map], quantity: str) -> CTVolume:
        """A volume of one of the maps."""
        return marked_forced(self.volume.derived(read_slice, _step(self, quantity)), self.refusal)

    def depth(self, index: int) -> Map:
        count = self.volume.shape[1] * self.volume.shape[2]
        self.file.seek(4 * count * index)
        stored = np.frombuffer(self.file.read(4 * count), np.float32)
        return stored.reshape(self.volume.shape[1:])

    def noise_hu(self, index: int) -> Map:
        return self._noise(self.depth(index), index)

    def _noise(self, depth: Map, index: int) -> Map:
        return predicted_noise_hu(
            depth,
            self.matched.geometry_of(index),
            dose_fraction=self.options.dose_fraction,
            scanner=self.matched.scanner,
            kernel=self.matched.kernel,
        )


def _write_maps(maps: _Maps, folder: Path) -> tuple[str, str]:
    depth = maps.derived(maps.depth, "radiological depth")
    noise = maps.derived(maps.noise_hu, "predicted noise")
    if maps.volume.headers is None:
        for name, volume in (("depth.npy", depth), ("noise.npy", noise)):
            write_volume(volume, folder / name)
        return "depth.npy", "noise.npy"
    write_parametric_map(depth, folder / "depth.dcm", RADIOLOGICAL_DEPTH)
    write_parametric_map(noise, folder / "noise.dcm", PREDICTED_NOISE)
    return "depth.dcm", "noise.dcm"


_MEANINGS = {
    "radiological depth": (
        "Radiological depth of each pixel, the log of its relative noise variance, no unit, from "
        "the attenuation along the rays through it"
    ),
    "predicted noise": (
        "Standard deviation of the noise of each pixel in HU, predicted from its radiological depth"
    ),
}


def _step(maps: _Maps, quantity: str) -> Derivation:
    matched = maps.matched
    parameters = {
        "dose_fraction": repr(maps.options.dose_fraction),
        "geometry": repr(matched.geometry),
        "quantity": quantity,
        "scanner": repr(matched.scanner),
        **matched.thickness_parameters,
    }
    if quantity == "predicted noise":
        parameters["kernel"] = repr(matched.kernel)
    return Derivation(
        label=quantity,
        description=f"{_MEANINGS[quantity]}, cddnet {__version__}. Research use only.",
        parameters=tuple(sorted(parameters.items())),
        version=__version__,
        created=maps.options.created,
    )


class _Panel(NamedTuple):
    """picture: (H, W, 3); bar: (1, 256, 3), low to high, with its ends in words."""

    caption: str
    picture: NDArray[np.uint8]
    bar: NDArray[np.uint8]
    ends: tuple[str, str]


def _panels(maps: _Maps, index: int, ranges: _Ranges) -> list[_Panel]:
    ramp = np.linspace(0.0, 1.0, 256, dtype=np.float32)[None]
    shown = (
        ("CT", filled(maps.volume, index), SHOWN_WINDOW_HU, _grey, "{:.0f} HU"),
        ("radiological depth", maps.depth(index), ranges.depth, _cubehelix, "{:.2f}"),
        ("predicted noise (SD)", maps.noise_hu(index), ranges.noise_hu, _cubehelix, "{:.1f} HU"),
    )
    return [
        _Panel(
            caption,
            colour(hu_to_window(values, _stretched(scale))),
            colour(ramp),
            (unit.format(scale[0]), unit.format(scale[1])),
        )
        for caption, values, scale, colour, unit in shown
    ]


def _stretched(scale: Range) -> Range:
    """The scale, or a wider one where all values are one."""
    low, high = scale
    return low, high if high > low else low + 1.0


def _draw(panels: list[_Panel], title: str) -> Image.Image:
    height, width = panels[0].picture.shape[:2]
    times = -(-_NARROWEST // width)
    height, width = height * times, width * times
    sheet = Image.new(
        "RGB",
        ((width + _MARGIN) * len(panels) - _MARGIN, height + 3 * _LINE + _BAR + _MARGIN),
        "white",
    )
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(_TEXT)
    pen.text((_MARGIN, 1), title, fill="black", font=font)
    below = 2 * _LINE + height + _MARGIN // 2
    for number, panel in enumerate(panels):
        left = number * (width + _MARGIN)
        pen.text((left + _MARGIN, _LINE), panel.caption, fill="black", font=font)
        picture, bar = Image.fromarray(panel.picture), Image.fromarray(panel.bar)
        sheet.paste(picture.resize((width, height), Image.Resampling.NEAREST), (left, 2 * _LINE))
        sheet.paste(bar.resize((width, _BAR)), (left, below))
        low, high = panel.ends
        pen.text((left + _MARGIN, below + _BAR), low, fill="black", font=font)
        pen.text((left + width, below + _BAR), high, fill="black", font=font, anchor="ra")
    return sheet


def _grey(fraction: NDArray[np.float32]) -> NDArray[np.uint8]:
    """(H, W, 3) of fractions (H, W)."""
    levels = np.rint(fraction * 255).astype(np.uint8)
    return np.repeat(levels[..., None], 3, axis=-1)


def _cubehelix(fraction: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Colours (H, W, 3) of fractions (H, W) whose brightness rises evenly from black to white.

    Source: Green, Bull. Astron. Soc. India 39:289, 2011, with its usual start, turns and hue.
    """
    turn = 2 * np.pi * (0.5 / 3 + 1 - 1.5 * fraction)
    amplitude = fraction * (1 - fraction) / 2
    mixed = np.stack([np.cos(turn), np.sin(turn)], axis=-1) @ _HELIX.T
    colour = fraction[..., None] + amplitude[..., None] * mixed
    return np.rint(np.clip(colour, 0, 1) * 255).astype(np.uint8)
