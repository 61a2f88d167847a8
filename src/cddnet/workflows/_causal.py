"""Which parts of a slice a denoised region depends on: by replacing them, and by gradients.

Above 300 lines: the two ways share their regions, and each checks the other.
"""

# Shapes: B batch, H row, W column of a slice; h, w of the region; R, C rows and columns of blocks.

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import compress, islice, pairwise
from time import monotonic
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from cddnet.metrics.fidelity import psnr

# Differences of PSNR do not depend on a window that nothing is clipped by.
PSNR_WINDOW_HU = (-1024.0, 3071.0)
# Of errors below 0.004 HU; equal images would be infinite.
_MOST_DB = 120.0

_TILE_BLOCKS = 4
_STRIDE = 64
_MARGINS = (0, _STRIDE, 2 * _STRIDE)
# Of a probe's effect: how much of it a smaller frame may miss.
_FRAME_ERROR = 0.05
# Larger batches spend their time on fresh memory.
_PIXELS_PER_BATCH = 2**19

# The blurred slice that a path of gradients starts from, as Gu and Dong blur theirs.
_BLUR_PIXELS = 9.0

SliceHU = NDArray[np.float32]
Intervention = tuple["Box", SliceHU]


class Box(NamedTuple):
    """A rectangle of pixels: its first row and column, and its sides."""

    row: int
    column: int
    height: int
    width: int

    @property
    def inside(self) -> tuple[slice, slice]:
        return (
            slice(self.row, self.row + self.height),
            slice(self.column, self.column + self.width),
        )

    def touches(self, other: Box) -> bool:
        return (
            self.row < other.row + other.height
            and other.row < self.row + self.height
            and self.column < other.column + other.width
            and other.column < self.column + self.width
        )

    def within(self, frame: Box) -> Box:
        """The same pixels, counted from the corner of a frame."""
        return self._replace(row=self.row - frame.row, column=self.column - frame.column)


class Watch(NamedTuple):
    """progress: (what is done, number done, number in all).  announce: one line for people."""

    progress: Callable[[str, int, int], None]
    announce: Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What is explained.

    hu: (H, W), air where nothing was measured.  region: whose denoised pixels are looked at.
    denoise: (B, H, W) HU to the same, differentiable.  reference: (h, w) HU of the region in full
    dose, None to compare with the network's own output.  donors: other slices (N, H, W) HU.
    donor_body: (N, H, W) where replacements are taken from.
    """

    hu: SliceHU
    region: Box
    denoise: Callable[[Tensor], Tensor]
    reference: SliceHU | None
    donors: SliceHU
    donor_body: NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class EffectSettings:
    """block: pixels per side.  reach_hu: a tile of 4 x 4 blocks that moves the region by less
    (root mean square) is not looked into, and its blocks count as zero.  most_tiles: those that
    move it most are looked into, so that the time is bounded.  coarse: replacements of
    each other block; fine: of those whose effect then reaches tolerance_hu.  Smaller effects count
    as zero.
    """

    block: int = 16
    reach_hu: float = 0.3
    most_tiles: int = 6
    coarse: int = 3
    fine: int = 5
    tolerance_hu: float = 0.01


class EffectMap(NamedTuple):
    """hu, db: (R, C) rise of the region's RMSE, fall of its PSNR, when a block is replaced; NaN
    where the block touches the region; db is NaN without a reference.
    row_edges, column_edges: of the blocks, pixels (R + 1,), (C + 1,).
    baseline_rmse_hu: of the region with nothing replaced.  reached: blocks that were replaced one
    by one.  beyond_hu: how far the others moved the region at most, a tile of them at once.
    refined: blocks replaced the fine number of times.  frame: what the network saw of the slice.
    """

    hu: NDArray[np.float64]
    db: NDArray[np.float64]
    row_edges: tuple[int, ...]
    column_edges: tuple[int, ...]
    baseline_rmse_hu: float
    reached: int
    beyond_hu: float
    refined: int
    frame: Box

    def pixels(self, values: NDArray[np.float64]) -> NDArray[np.float32]:
        """Values of blocks (R, C) as a map (H, W)."""
        rows = np.repeat(values, np.diff(self.row_edges), axis=0)
        return np.repeat(rows, np.diff(self.column_edges), axis=1).astype(np.float32)


class Attribution(NamedTuple):
    """weight: (H, W) HU of the region's mean per HU of a pixel, averaged on a straight path from
    the blurred slice to the slice.  change_hu: of the mean along the path; explained_hu: of it, by
    the weights, which converges to it with the number of steps.
    """

    weight: NDArray[np.float32]
    change_hu: float
    explained_hu: float


def effect_map(
    scene: Scene, settings: EffectSettings, rng: np.random.Generator, watch: Watch
) -> EffectMap:
    """Effect of each block of the slice on the denoised region.

    Positive where the block helped: without it the region is farther from the reference.
    Blocks are replaced by patches of other slices of the series, which have its dose and texture;
    those that touch the region are left out. Large tiles are replaced first, once each, and only
    those that move the region most are looked into.
    Source: Hu et al., IEEE TPAMI 2025 (arXiv 2407.19789), there with patches of photographs.
    """
    rows, columns = _grid(scene, settings.block)
    blocks = list(_boxes(rows, columns))
    # One stream per block: its patches do not depend on what was found in the others.
    probe_rng, *streams = rng.spawn(len(blocks) + 1)
    patches = _Patches(scene)
    touching = [block.touches(scene.region) for block in blocks]
    kept = [block for block, touches in zip(blocks, touching, strict=True) if touches]
    probe = _probe(scene, settings, _probes(scene, settings, kept, patches, probe_rng), watch)
    frame = _frame(scene, probe)
    found = [
        number
        for number, block in enumerate(blocks)
        if not touching[number] and any(block.touches(tile) for tile, _ in probe.reaching)
    ]
    least_s, most_s = (
        len(found) * count * frame.per_image_s
        for count in (settings.coarse, settings.coarse + settings.fine)
    )
    watch.announce(
        f"{len(found)} of {len(blocks)} blocks, the others move the region by at most "
        f"{probe.beyond_hu:.2f} HU: {least_s:.0f} to {most_s:.0f} s"
    )
    score = _Score(scene.reference, frame.untouched)

    def passed(numbers: list[int], count: int, what: str) -> NDArray[np.float64]:
        """Effects (2, blocks, count)."""
        interventions = (
            (blocks[number], patch)
            for number in numbers
            for patch in patches.draw(blocks[number], count, streams[number])
        )
        total = len(numbers) * count
        outputs = _outputs(
            scene, frame.box, interventions, lambda done: watch.progress(what, done, total)
        )
        effects = [score.effect(output) for output in outputs]
        return np.array(effects, np.float64).T.reshape(2, len(numbers), count)

    effects = np.zeros((2, len(blocks)))
    coarse = passed(found, settings.coarse, "coarse pass")
    effects[:, found] = coarse.mean(axis=2)
    strong = np.abs(coarse[0]).max(axis=1, initial=0.0) >= settings.tolerance_hu
    refined = [number for number, chosen in zip(found, strong, strict=True) if chosen]
    effects[:, refined] = passed(refined, settings.fine, "fine pass").mean(axis=2)
    effects[:, np.abs(effects[0]) < settings.tolerance_hu] = 0
    effects[:, touching] = np.nan
    shape = len(rows) - 1, len(columns) - 1
    return EffectMap(
        hu=effects[0].reshape(shape),
        db=effects[1].reshape(shape),
        row_edges=rows,
        column_edges=columns,
        baseline_rmse_hu=_Score(scene.reference, probe.untouched).baseline_hu,
        reached=len(found),
        beyond_hu=probe.beyond_hu,
        refined=len(refined),
        frame=frame.box,
    )


def attribution(scene: Scene, steps: int) -> Attribution:
    """How much each pixel of the slice weighs in the mean of the denoised region.

    Integrated gradients on a path that fades noise and detail in: a linear network gives its own
    kernel, whatever the path.
    Source: Sundararajan et al., ICML 2017; from a blurred image as in Gu and Dong, CVPR 2021.
    """
    hu = torch.from_numpy(scene.hu)
    blurred = torch.from_numpy(ndimage.gaussian_filter(scene.hu, _BLUR_PIXELS))
    weight = torch.zeros_like(hu)
    for step in range(steps):
        fraction = (step + 0.5) / steps
        image = (blurred + fraction * (hu - blurred)).requires_grad_()
        mean = scene.denoise(image[None])[0][scene.region.inside].mean()
        if mean.requires_grad:
            weight += torch.autograd.grad(mean, image)[0] / steps
    with torch.inference_mode():
        ends = [scene.denoise(image[None])[0][scene.region.inside] for image in (blurred, hu)]
    before, after = (float(end.double().mean()) for end in ends)
    return Attribution(
        weight=weight.numpy(),
        change_hu=after - before,
        explained_hu=float((weight.double() * (hu - blurred)).sum()),
    )


class _Frame(NamedTuple):
    """The part of a slice that the network is given.  untouched: (h, w) its answer."""

    box: Box
    untouched: SliceHU
    per_image_s: float


class _Probe(NamedTuple):
    """Tiles that move the region, with their patches and the change (h, w) they lead to.

    untouched: (h, w) without any.  beyond_hu: the largest change of the other tiles.
    """

    untouched: SliceHU
    reaching: list[Intervention]
    changes: list[SliceHU]
    beyond_hu: float


def _grid(scene: Scene, block: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Edges of blocks that begin where the region begins; those at the border may be smaller."""
    rows, columns = (
        tuple(sorted({0, *range(start % block, size, block), size}))
        for size, start in zip(scene.hu.shape, scene.region[:2], strict=True)
    )
    return rows, columns


def _boxes(rows: Sequence[int], columns: Sequence[int]) -> Iterator[Box]:
    for top, bottom in pairwise(rows):
        for left, right in pairwise(columns):
            yield Box(top, left, bottom - top, right - left)


class _Patches:
    """Replacements: pieces of random donors, centred on a random pixel of their body."""

    def __init__(self, scene: Scene) -> None:
        self._donors = scene.donors
        self._centres = np.flatnonzero(scene.donor_body)

    def draw(self, box: Box, count: int, rng: np.random.Generator) -> Iterator[SliceHU]:
        chosen = self._centres[rng.integers(len(self._centres), size=count)]
        for centre in chosen:
            donor, row, column = np.unravel_index(centre, self._donors.shape)
            _, height, width = self._donors.shape
            top = int(np.clip(row - box.height // 2, 0, height - box.height))
            left = int(np.clip(column - box.width // 2, 0, width - box.width))
            yield self._donors[donor][Box(top, left, box.height, box.width).inside]


def _probes(
    scene: Scene,
    settings: EffectSettings,
    kept: list[Box],
    patches: _Patches,
    rng: np.random.Generator,
) -> list[Intervention]:
    """One patch per tile; blocks that touch the region keep their pixels."""
    keep = np.zeros(scene.hu.shape, np.bool_)
    for block in kept:
        keep[block.inside] = True
    return [
        (tile, np.where(keep[tile.inside], scene.hu[tile.inside], patch))
        for tile in _boxes(*_grid(scene, settings.block * _TILE_BLOCKS))
        for patch in patches.draw(tile, 1, rng)
    ]


def _probe(
    scene: Scene, settings: EffectSettings, probes: list[Intervention], watch: Watch
) -> _Probe:
    whole = Box(0, 0, *scene.hu.shape)
    started = monotonic()
    (untouched,) = _outputs(scene, whole, [_nothing(scene)])
    most_s = (monotonic() - started) * len(probes)
    watch.announce(f"probing {len(probes)} tiles for what moves the region: {most_s:.0f} s")
    outputs = _outputs(
        scene, whole, probes, lambda done: watch.progress("probing", done, len(probes))
    )
    changes = [output - untouched for output in outputs]
    sizes = [_rms(change) for change in changes]
    strongest = sorted(sizes, reverse=True)[: settings.most_tiles]
    least = max(settings.reach_hu, strongest[-1])
    moved = [size >= least for size in sizes]
    return _Probe(
        untouched,
        list(compress(probes, moved)),
        list(compress(changes, moved)),
        max((size for size in sizes if size < least), default=0.0),
    )


def _frame(scene: Scene, probe: _Probe) -> _Frame:
    """The smallest frame in which every probe changes the region as in the whole slice."""
    boxes = [scene.region, *(tile for tile, _ in probe.reaching)]
    interventions = [_nothing(scene), *probe.reaching]
    for margin in (*_MARGINS, max(scene.hu.shape)):
        box = _around(boxes, margin, scene.hu.shape)
        started = monotonic()
        untouched, *outputs = _outputs(scene, box, interventions)
        per_image_s = (monotonic() - started) / len(interventions)
        if all(
            _rms(output - untouched - change) <= _FRAME_ERROR * _rms(change)
            for output, change in zip(outputs, probe.changes, strict=True)
        ):
            break
    return _Frame(box, untouched, per_image_s)


def _rms(values: SliceHU) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))


def _around(boxes: list[Box], margin: int, shape: tuple[int, ...]) -> Box:
    """Around all boxes, on multiples of the stride that networks sample a slice with."""
    sides = []
    for axis, size in enumerate(shape):
        first = min(box[axis] for box in boxes) - margin
        last = max(box[axis] + box[axis + 2] for box in boxes) + margin
        start = max(0, first // _STRIDE * _STRIDE)
        sides.append((start, min(size, -(-last // _STRIDE) * _STRIDE) - start))
    (row, height), (column, width) = sides
    return Box(row, column, height, width)


def _nothing(scene: Scene) -> Intervention:
    return scene.region, scene.hu[scene.region.inside]


def _outputs(
    scene: Scene,
    frame: Box,
    interventions: Iterable[Intervention],
    progress: Callable[[int], None] = lambda done: None,
) -> Iterator[SliceHU]:
    """The denoised region (h, w) in HU after each intervention, of the frame alone."""
    size = max(1, _PIXELS_PER_BATCH // (frame.height * frame.width))
    source, region = scene.hu[frame.inside], scene.region.within(frame).inside
    waiting, done = iter(interventions), 0
    while group := list(islice(waiting, size)):
        images = np.repeat(source[None], len(group), axis=0)
        for image, (box, patch) in zip(images, group, strict=True):
            image[box.within(frame).inside] = patch
        with torch.inference_mode():
            denoised = scene.denoise(torch.from_numpy(images)).cpu().numpy()
        yield from denoised[(slice(None), *region)]
        done += len(group)
        progress(done)


class _Score:
    """Error of the region against full dose, or against the network's own output."""

    def __init__(self, reference: SliceHU | None, untouched: SliceHU) -> None:
        self._has_reference = reference is not None
        self._reference = untouched if reference is None else reference
        self.baseline_hu = self._rmse_hu(untouched)
        self._baseline_db = self._psnr_db(untouched)

    def effect(self, output: SliceHU) -> tuple[float, float]:
        """In HU, positive where the error rose, and in dB."""
        lost_db = self._baseline_db - self._psnr_db(output) if self._has_reference else np.nan
        return self._rmse_hu(output) - self.baseline_hu, lost_db

    def _rmse_hu(self, output: SliceHU) -> float:
        return _rms(output - self._reference)

    def _psnr_db(self, output: SliceHU) -> float:
        return min(psnr(self._reference, output, window_hu=PSNR_WINDOW_HU), _MOST_DB)
