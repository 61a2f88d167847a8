"""The processes that train together: one, or those that torchrun started."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from cddnet.config import ConfigError
from cddnet.errors import CddnetError

# The others wait while the first one validates.
_PATIENCE = timedelta(hours=3)


@dataclass(frozen=True, kw_only=True)
class Processes:
    """One process among those that train: rank from 0 of `size`, on its own device."""

    device: torch.device
    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """The first one validates and writes."""
        return self.rank == 0

    def share(self, network: nn.Module) -> nn.Module:
        """The network to call in training: its gradients become means over the processes."""
        if self.size == 1 or not any(p.requires_grad for p in network.parameters()):
            return network
        # Nothing depends on some parameters of published networks; and a method may call a network
        # twice before it learns, which forbids to send running means around in between.
        return DistributedDataParallel(
            network,
            device_ids=[self.device] if self.device.type == "cuda" else None,
            broadcast_buffers=False,
            find_unused_parameters=True,
        )

    def mean(self, values: Tensor) -> Tensor:
        """Mean over the processes, in each of them."""
        if self.size > 1:
            distributed.all_reduce(values)
        return values / self.size

    def wait(self) -> None:
        """Until every process is here.  Raises CddnetError if one of them has stopped."""
        if self.size > 1:
            try:
                distributed.barrier()
            except RuntimeError as error:
                raise CddnetError(
                    "another of the processes stopped; what it printed says why."
                ) from error


@contextmanager
def joined(device: str) -> Iterator[Processes]:
    """One process, joined to the others if torchrun started it.

    device: auto, cpu or cuda.  Raises: ConfigError for cuda where there is none.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device is cuda, and this machine has none; set it to auto or cpu.")
    on_gpu = device != "cpu" and torch.cuda.is_available()
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    own = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if on_gpu else None
    if own is not None:
        torch.cuda.set_device(own)
    processes = Processes(device=own or torch.device("cpu"), rank=rank, size=size)
    if size == 1:
        yield processes
        return
    distributed.init_process_group("nccl" if own else "gloo", timeout=_PATIENCE)
    try:
        with warnings.catch_warnings():
            # Of kernels of one pixel in channels-last layout, which have two ways to say the same.
            warnings.filterwarnings("ignore", message="Grad strides do not match")
            warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated")
            yield processes
    finally:
        distributed.destroy_process_group()
