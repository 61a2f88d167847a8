"""Batches by the number of their step, made in processes of their own.

The draws of a step do not depend on how many processes train or make noise: step k (from 1) holds
draws (k - 1) S to k S - 1 of S slices, and each training process takes its part of them.
"""

# Shapes: B batch; crops (B, 1, crop, crop).

from __future__ import annotations

from collections.abc import Generator, Sequence

import torch
from torch.utils.data import DataLoader, Dataset

from cddnet.config import ConfigError, TrainConfig
from cddnet.training.pairs import Learnable, NoisyPairs, Pair

# Batches made ahead by each worker, so that a slow slice is not waited for.
_AHEAD = 8


class StepBatches(Dataset[Pair]):
    """Batch of a step: the share of one process among `size`, rank from 0.

    Raises: ConfigError if the slices of a step cannot be shared equally.
    """

    def __init__(
        self, slices: Sequence[Learnable], config: TrainConfig, *, rank: int = 0, size: int = 1
    ) -> None:
        if config.slices_per_step % size:
            raise ConfigError(
                f"slices_per_step is {config.slices_per_step}, which {size} processes cannot share "
                "equally; choose a multiple of their number."
            )
        self._pairs = NoisyPairs(slices, config)
        self._all, self._own, self._rank = (
            config.slices_per_step,
            config.slices_per_step // size,
            rank,
        )

    def __getitem__(self, step: int) -> Pair:
        first = (step - 1) * self._all + self._rank * self._own
        crops = [
            pair for number in range(first, first + self._own) for pair in self._pairs.draw(number)
        ]
        return Pair(*(torch.stack(maps) for maps in zip(*crops, strict=True)))


def batches(
    dataset: StepBatches, steps: range, *, workers: int, pinned: bool
) -> Generator[Pair, None, None]:
    """The batch of each step, in order.  pinned: memory that copies fast to an accelerator."""
    ahead = {"multiprocessing_context": "spawn", "prefetch_factor": _AHEAD} if workers else {}
    loader = DataLoader(
        dataset,
        batch_size=None,
        sampler=steps,
        num_workers=workers,
        pin_memory=pinned,
        **ahead,  # type: ignore[arg-type]
    )
    yield from loader
