"""Pairs of low and full dose, with new noise each time a slice is drawn."""

# Shapes: H row, W column; crops are (1, crop, crop).

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cddnet.config import NoiseRange, TrainConfig
from cddnet.intensity.normalise import HU_PER_UNIT, to_network
from cddnet.physics.beam import DEFAULT_SCANNER, Scanner, SliceGeometry
from cddnet.physics.depth import euclidean_depth, radiological_depth, shuffled_depth
from cddnet.physics.dose import SCANNER_FLOOR_HU, insert_noise, rng_for
from cddnet.physics.kernel import Kernel
from cddnet.training.lesions import draw_lesions

# Body against air and lung; a crop needs a fifth of it.
_BODY_HU = -300.0
_BODY_SHARE = 0.2
_TRIES = 20
# Brings the distance to the skin to about the range of the radiological depth.
_EUCLIDEAN_UNIT_MM = 30.0


# Real low dose does not say how low; this decides the small electronic part of its depth alone.
_MEASURED_DOSE = 0.25


_NO_LESIONS = torch.zeros(0, 1, 1)


class OwnNoise(NamedTuple):
    """Physics that give a series more of its own noise: the scanner's dose is the series' own."""

    scanner: Scanner
    kernel: Kernel
    geometry: SliceGeometry


class Learnable(Protocol):
    """One slice to learn from, held in memory or read each time `hu` is asked for."""

    @property
    def hu(self) -> NDArray[np.float32]: ...  # (H, W), padding set to air
    @property
    def geometry(self) -> SliceGeometry: ...
    @property
    def series_uid(self) -> str: ...
    @property
    def slice_index(self) -> int: ...
    @property
    def own(self) -> OwnNoise | None: ...  # None where it was not measured
    @property
    def cut(self) -> bool: ...  # whether the body is cut, so that its depth is not known


class FullDoseSlice(NamedTuple):
    """One slice to learn from, in memory."""

    hu: NDArray[np.float32]  # (H, W), padding set to air
    geometry: SliceGeometry
    series_uid: str
    slice_index: int
    own: OwnNoise | None = None
    cut: bool = False


@dataclass(frozen=True, slots=True)
class StoredSlice:
    """One slice to learn from, read from disk each time: a set may be larger than the memory."""

    read: Callable[[], NDArray[np.float32]]  # (H, W), padding set to air
    geometry: SliceGeometry
    series_uid: str
    slice_index: int
    own: OwnNoise | None = field(default=None, kw_only=True)
    cut: bool = field(default=False, kw_only=True)

    @property
    def hu(self) -> NDArray[np.float32]:
        return self.read()


@dataclass(frozen=True, slots=True)
class MeasuredPair(StoredSlice):
    """A slice with its real low dose (H, W) at the same position."""

    read_low_dose: Callable[[], NDArray[np.float32]]


class Pair(NamedTuple):
    """Crops in network range; depth is the radiological depth of the simulated beam, or what the
    recipe puts in its place; NaN where it is not known.

    lesions: (S + 1, crop, crop) without lesions S = -1: the weights of each stratum, per unit, and
    the lesions themselves.
    """

    low_dose: Tensor
    full_dose: Tensor
    depth: Tensor
    lesions: Tensor = _NO_LESIONS


class NoisySlice(NamedTuple):
    """hu: (H, W), cut at the scanner's floor.  depth: (H, W) radiological depth of that slice."""

    hu: NDArray[np.float32]
    depth: NDArray[np.float32]


class NoisyPairs:
    """Endless pairs: a slice, new noise or its real low dose, a few crops, flipped and turned.

    A draw is known by its number alone: every slice once in a round, its noise by that number.
    """

    def __init__(
        self, slices: Sequence[Learnable], config: TrainConfig, first_draw: int = 0
    ) -> None:
        self._slices, self._config, self._first_draw = slices, config, first_draw

    def __iter__(self) -> Iterator[Pair]:
        for number in itertools.count(self._first_draw):
            yield from self.draw(number)

    def draw(self, draw: int) -> Iterator[Pair]:
        """The crops of one draw."""
        seed, count = self._config.seed, len(self._slices)
        order = np.random.default_rng((seed, draw // count)).permutation(count)
        chosen = self._slices[order[draw % count]]
        source = in_memory(chosen)
        rng = rng_for(source.series_uid, source.slice_index, seed=seed * 10**9 + draw)
        lesions = None
        if self._config.lesions.per_slice:
            pixel_mm = source.geometry.pixel_mm
            lesions = draw_lesions(source.hu, pixel_mm, self._config.lesions, rng)
            source = source._replace(hu=source.hu + lesions.hu)
        if isinstance(chosen, MeasuredPair):
            low_dose = measured(chosen)
            if lesions is not None:
                low_dose = low_dose._replace(hu=low_dose.hu + lesions.hu)
        else:
            low_dose = self._noisy(source, rng)
        low_dose = self._with_target(low_dose, source, rng)
        maps = [to_network(low_dose.hu)[None], to_network(source.hu)[None], low_dose.depth[None]]
        if lesions is not None:
            strata = lesions.weights * HU_PER_UNIT
            maps.append(np.concatenate((strata, lesions.hu[None] / HU_PER_UNIT)))
        for _ in range(self._config.crops_per_slice):
            yield _crop(source.hu, maps, self._config.crop, rng)

    def _noisy(self, source: FullDoseSlice, rng: np.random.Generator) -> NoisySlice:
        """Made now, or by an earlier run: the slice, the ranges and the generator decide all."""
        folder, noise = self._config.noise_folder, self._config.noise
        if folder is None:
            return noisy(source, noise, rng)
        known = (source.geometry, source.own, noise.model_dump_json(), rng.bit_generator.state)
        digest = hashlib.sha256(repr(known).encode() + source.hu.tobytes()).hexdigest()
        kept = folder / f"{digest}.npz"
        if not kept.exists():
            made = noisy(source, noise, rng)
            state = json.dumps(rng.bit_generator.state)
            folder.mkdir(parents=True, exist_ok=True)
            partial = folder / f".part.{digest}.{os.getpid()}.npz"
            np.savez(partial, hu=made.hu, depth=made.depth, state=state)
            partial.replace(kept)
            return made
        with np.load(kept) as found:
            rng.bit_generator.state = json.loads(str(found["state"]))
            return NoisySlice(found["hu"], found["depth"])

    def _with_target(
        self, low_dose: NoisySlice, source: FullDoseSlice, rng: np.random.Generator
    ) -> NoisySlice:
        """With the depth that the recipe asks for."""
        if source.cut:
            return low_dose._replace(depth=np.full_like(low_dose.depth, np.nan))
        if self._config.depth_target == "euclidean":
            depth = euclidean_depth(source.hu, source.geometry.pixel_mm) / _EUCLIDEAN_UNIT_MM
            return low_dose._replace(depth=depth)
        if self._config.depth_target == "shuffled":
            return low_dose._replace(depth=shuffled_depth(low_dose.depth, rng))
        return low_dose


def in_memory(source: Learnable) -> FullDoseSlice:
    """The slice, read once."""
    return FullDoseSlice(
        source.hu, source.geometry, source.series_uid, source.slice_index, source.own, source.cut
    )


def measured(source: MeasuredPair) -> NoisySlice:
    """The real low dose, and the depth that it shows by the calibrated scanner."""
    hu = source.read_low_dose()
    return NoisySlice(hu, radiological_depth(hu, source.geometry, dose_fraction=_MEASURED_DOSE))


def noisy(source: Learnable, noise: NoiseRange, rng: np.random.Generator) -> NoisySlice:
    """The slice with noise drawn from the ranges, and the depth that the noisy slice shows."""
    if source.own is not None and noise.own_share and rng.random() < noise.own_share:
        return _own_noisy(source, source.own, noise, rng)
    sharp = rng.random() < noise.sharp_share
    cutoff = noise.sharp_cutoff_per_mm if sharp else noise.soft_cutoff_per_mm
    dose_fraction = _drawn_dose(noise, rng)
    scanner = Scanner(
        photons=DEFAULT_SCANNER.photons * float(np.exp(rng.uniform(*np.log(noise.photons)))),
        electronic_std=rng.uniform(*noise.electronic_std),
        bowtie_ratio=rng.uniform(*noise.bowtie_ratio),
        modulation=rng.uniform(*noise.modulation),
    )
    kernel = Kernel(
        cutoff_per_mm=rng.uniform(*cutoff),
        boost=rng.uniform(*noise.sharp_boost) if sharp else 0.0,
    )
    inserted = insert_noise(
        source.hu,
        source.geometry,
        rng,
        dose_fraction=dose_fraction,
        scanner=scanner,
        kernel=kernel,
    )
    hu = np.maximum(inserted.hu, np.float32(SCANNER_FLOOR_HU))
    depth = radiological_depth(hu, source.geometry, dose_fraction=dose_fraction, scanner=scanner)
    return NoisySlice(hu, depth)


def _own_noisy(
    source: Learnable, own: OwnNoise, noise: NoiseRange, rng: np.random.Generator
) -> NoisySlice:
    dose_fraction = _drawn_dose(noise, rng)
    hu = _own_dose(source.hu, own, dose_fraction, rng)
    depth = radiological_depth(hu, own.geometry, dose_fraction=dose_fraction, scanner=own.scanner)
    return NoisySlice(hu, depth)


def _own_dose(
    hu: NDArray[np.float32], own: OwnNoise, dose_fraction: float, rng: np.random.Generator
) -> NDArray[np.float32]:
    inserted = insert_noise(
        hu,
        own.geometry,
        rng,
        dose_fraction=dose_fraction,
        scanner=own.scanner,
        kernel=own.kernel,
    )
    return np.maximum(inserted.hu, np.float32(SCANNER_FLOOR_HU))


def _drawn_dose(noise: NoiseRange, rng: np.random.Generator) -> float:
    drawn = float(np.exp(rng.uniform(*np.log(noise.dose_fraction))))
    return 1.0 if rng.random() < noise.full_dose_share else drawn


def own_low_dose(source: Learnable, dose_fraction: float) -> NDArray[np.float32]:
    """The slice (H, W) in HU at a fraction of its series' own dose, cut at the scanner's floor.

    Always the same noise for a slice.  Raises: ValueError where its own noise was not measured.
    """
    if source.own is None:
        raise ValueError("the slice's own noise was not measured; load its series with `own`")
    rng = rng_for(source.series_uid, source.slice_index, seed=0)
    return _own_dose(source.hu, source.own, dose_fraction, rng)


def calibrated_low_dose(source: Learnable, dose_fraction: float) -> NDArray[np.float32]:
    """The slice (H, W) in HU at a fraction of the calibrated dose: what quality is measured on.

    Always the same noise for a slice; cut at the scanner's floor.
    """
    rng = rng_for(source.series_uid, source.slice_index, seed=0)
    inserted = insert_noise(source.hu, source.geometry, rng, dose_fraction=dose_fraction)
    return np.maximum(inserted.hu, np.float32(SCANNER_FLOOR_HU))


def _crop(
    full_dose_hu: NDArray[np.float32],
    maps: Sequence[NDArray[np.float32]],
    crop: int,
    rng: np.random.Generator,
) -> Pair:
    if min(full_dose_hu.shape) < crop:
        # Of a slice that was cropped itself: mirrored at its edges, texture stays what it is.
        missing = [(0, max(0, crop - side)) for side in full_dose_hu.shape]
        full_dose_hu = np.pad(full_dose_hu, missing, "symmetric")
        maps = [np.pad(values, [(0, 0), *missing], "symmetric") for values in maps]
    height, width = full_dose_hu.shape
    for _ in range(_TRIES):
        row, column = rng.integers(height - crop + 1), rng.integers(width - crop + 1)
        window = np.s_[row : row + crop, column : column + crop]
        if np.mean(full_dose_hu[window] > _BODY_HU) >= _BODY_SHARE:
            break
    turns, flip = int(rng.integers(4)), bool(rng.integers(2))
    return Pair(*(_turned(values[(..., *window)], turns, flip) for values in maps))


def _turned(values: NDArray[np.float32], turns: int, flip: bool) -> Tensor:
    turned = np.rot90(values, turns, axes=(1, 2))
    return torch.from_numpy(np.ascontiguousarray(turned[:, :, ::-1] if flip else turned))
