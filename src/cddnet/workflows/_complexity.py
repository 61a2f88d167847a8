"""What a network costs: parameters, operations, weights on disk, time per slice."""

# Shapes: B batch, C channel, H row, W column.

from __future__ import annotations

import os
import platform
from pathlib import Path
from statistics import median
from time import perf_counter

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from cddnet.runtime import store

SIDE = 512
_RUNS = 5
_SMALL_SIDE = 64


class Complexity(BaseModel, frozen=True, extra="forbid"):
    """Of the inference graph alone: what the denoised image depends on, and nothing else."""

    name: str
    network: str
    parameters: int = Field(description="that the denoised image depends on")
    unused_parameters: int = Field(description="in the weights, without part in the image")
    flops: int = Field(
        description="torch.utils.flop_counter: convolutions, matrix products; 0: a filter"
    )
    macs: int = Field(description="multiply-accumulates: half of the flops")
    weights_bytes: int = Field(description="of the file that is shipped, no optimiser in it")
    height: int
    width: int
    dtype: str
    seconds_per_slice: float = Field(description="median of the runs, after one to warm up")
    runs: int
    threads: int
    machine: str


def measure(model: str | Path, *, side: int = SIDE) -> Complexity:
    """Cost of one slice of side x side pixels on this machine's CPU, batch 1.

    model: a shipped name or a weights file.  Raises ModelError where there is none.
    """
    weights = store.find(model)
    network, card = store.load(model)
    image = torch.zeros(1, 1, side, side)
    used = used_parameters(network)
    total = sum(parameter.numel() for parameter in network.parameters())
    flops = count_flops(network, image)
    return Complexity(
        name=card.name,
        network=card.model,
        parameters=used,
        unused_parameters=total - used,
        flops=flops,
        macs=flops // 2,
        weights_bytes=weights.stat().st_size,
        height=side,
        width=side,
        dtype=str(next(network.parameters(), image).dtype).removeprefix("torch."),
        seconds_per_slice=_seconds(network, image),
        runs=_RUNS,
        threads=torch.get_num_threads(),
        machine=machine(),
    )


def used_parameters(network: nn.Module) -> int:
    """Parameters that a gradient of the denoised image reaches."""
    small = torch.zeros(1, 1, _SMALL_SIDE, _SMALL_SIDE)
    parameters = list(network.parameters())
    if not parameters:
        return 0
    wanted = [parameter.requires_grad for parameter in parameters]
    try:
        network.requires_grad_(True)
        with torch.enable_grad():
            image: Tensor = network(small).image
            gradients = torch.autograd.grad(image.sum(), parameters, allow_unused=True)
    finally:
        for parameter, keep in zip(parameters, wanted, strict=True):
            parameter.requires_grad_(keep)
    pairs = zip(parameters, gradients, strict=True)
    return sum(parameter.numel() for parameter, gradient in pairs if gradient is not None)


def count_flops(network: nn.Module, image: Tensor) -> int:
    """Floating-point operations of one forward of image (B, C, H, W), as torch counts them.

    Elementwise work and normalisation are not counted.
    """
    # The counter does not see operations in inference mode.
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(image)
    return int(counter.get_total_flops())


def machine() -> str:
    """Processor and number of its cores, in words."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{models[0] if models else name}, {os.cpu_count()} cores, torch {torch.__version__}"


def _seconds(network: nn.Module, image: Tensor) -> float:
    seconds = []
    with torch.inference_mode():
        network(image)
        for _ in range(_RUNS):
            start = perf_counter()
            network(image)
            seconds.append(perf_counter() - start)
    return median(seconds)
