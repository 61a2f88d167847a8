"""Pairs of low and full dose, with new noise each time a slice is drawn."""

# Shapes: H row, W column; crops are (1, crop, crop).

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import IterableDataset

from cddnet.config import NoiseRange, TrainConfig
from cddnet.intensity.normalise import to_network
from cddnet.physics.beam import DEFAULT_SCANNER, Scanner, SliceGeometry
from cddnet.physics.depth import radiological_depth
from cddnet.physics.dose import SCANNER_FLOOR_HU, insert_noise, rng_for
from cddnet.physics.kernel import Kernel

# Body against air and lung; a crop needs a fifth of it.
_BODY_HU = -300.0
_BODY_SHARE = 0.2
_TRIES = 20


class FullDoseSlice(NamedTuple):
    """One slice to learn from."""

    hu: NDArray[np.float32]  # (H, W), padding set to air
    geometry: SliceGeometry
    series_uid: str
    slice_index: int


class Pair(NamedTuple):
    """Crops in network range; depth is the radiological depth of the simulated beam."""

    low_dose: Tensor
    full_dose: Tensor
    depth: Tensor


class NoisySlice(NamedTuple):
    """hu: (H, W), cut at the scanner's floor.  depth: (H, W) radiological depth of that slice."""

    hu: NDArray[np.float32]
    depth: NDArray[np.float32]


class NoisyPairs(IterableDataset[Pair]):
    """Endless pairs: a slice, new noise, a few crops, flipped and turned."""

    def __init__(self, slices: list[FullDoseSlice], config: TrainConfig, first_draw: int) -> None:
        self._slices, self._config, self._first_draw = slices, config, first_draw

    def __iter__(self) -> Iterator[Pair]:
        worker = torch.utils.data.get_worker_info()
        start, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        draw = self._first_draw + start
        while True:
            yield from self._draw(draw)
            draw += stride

    def _draw(self, draw: int) -> Iterator[Pair]:
        seed, count = self._config.seed, len(self._slices)
        order = np.random.default_rng((seed, draw // count)).permutation(count)
        source = self._slices[order[draw % count]]
        rng = rng_for(source.series_uid, source.slice_index, seed=seed * 10**9 + draw)
        low_dose = noisy(source, self._config.noise, rng)
        for _ in range(self._config.crops_per_slice):
            yield _crop(source.hu, low_dose, self._config.crop, rng)


def noisy(source: FullDoseSlice, noise: NoiseRange, rng: np.random.Generator) -> NoisySlice:
    """The slice with noise drawn from the ranges, and the depth that the noisy slice shows."""
    sharp = rng.random() < noise.sharp_share
    cutoff = noise.sharp_cutoff_per_mm if sharp else noise.soft_cutoff_per_mm
    drawn = float(np.exp(rng.uniform(*np.log(noise.dose_fraction))))
    dose_fraction = 1.0 if rng.random() < noise.full_dose_share else drawn
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


def calibrated_low_dose(source: FullDoseSlice, dose_fraction: float) -> NDArray[np.float32]:
    """The slice (H, W) in HU at a fraction of the calibrated dose: what quality is measured on.

    Always the same noise for a slice; cut at the scanner's floor.
    """
    rng = rng_for(source.series_uid, source.slice_index, seed=0)
    inserted = insert_noise(source.hu, source.geometry, rng, dose_fraction=dose_fraction)
    return np.maximum(inserted.hu, np.float32(SCANNER_FLOOR_HU))


def _crop(
    full_dose_hu: NDArray[np.float32], low_dose: NoisySlice, crop: int, rng: np.random.Generator
) -> Pair:
    height, width = full_dose_hu.shape
    for _ in range(_TRIES):
        row, column = rng.integers(height - crop + 1), rng.integers(width - crop + 1)
        window = np.s_[row : row + crop, column : column + crop]
        if np.mean(full_dose_hu[window] > _BODY_HU) >= _BODY_SHARE:
            break
    turns, flip = int(rng.integers(4)), bool(rng.integers(2))
    maps = (to_network(low_dose.hu), to_network(full_dose_hu), low_dose.depth)
    return Pair(*(_turned(values[window], turns, flip) for values in maps))


def _turned(values: NDArray[np.float32], turns: int, flip: bool) -> Tensor:
    turned = np.rot90(values, turns)
    return torch.from_numpy(np.ascontiguousarray(turned[:, ::-1] if flip else turned))[None]
