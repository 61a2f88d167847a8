"""PyTorch as it is: what a plain install brings; the only engine that runs every network.

On a processor that multiplies bfloat16, convolutions of many channels use it where the network then
stays within the agreement; thin ones, which see the image or leave it, stay in float32.
"""

# Shapes: B batch, C channel, H row, W column.

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy

import torch
from torch import Tensor, nn

from cddnet.errors import ModelError
from cddnet.models import _weights
from cddnet.runtime import processor
from cddnet.runtime.engines import Described, Engine, Images, Job
from cddnet.runtime.engines._agreement import agrees

_FEW_CHANNELS = 16
_GPU_BATCH = 8


def refusal(job: Job) -> str:
    return ""


def open_engine(job: Job) -> Engine:
    network, _ = _weights.load(job.weights)
    return _Torch(network.requires_grad_(False), job)


def choose_device(name: str) -> str:
    """cpu, cuda or mps for a name or auto.  Raises ModelError for one this machine lacks."""
    found = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if name == "auto":
        return "cuda" if found["cuda"] else "cpu"
    if not found.get(name, False):
        usable = ", ".join(key for key, value in found.items() if value)
        raise ModelError(f"device '{name}' is not usable on this machine; choose auto, {usable}.")
    return name


class _Torch:
    name = "torch_eager"

    def __init__(self, network: nn.Module, job: Job) -> None:
        self._device, self.threads = job.device, job.threads
        self.batch = _GPU_BATCH if job.device == "cuda" else 1
        self._network = network.to(job.device)
        for weights in network.parameters():
            if weights.ndim == 4:
                weights.data = weights.data.contiguous(memory_format=torch.channels_last)
        precision = "float32"
        if job.device == "cpu" and processor.has_bfloat16():
            mixed = _mixed(self._network)
            if mixed is not None and agrees(lambda image: self._on(mixed, image), self.run):
                self._network, precision = mixed, "bfloat16"
        on_cpu = job.device == "cpu"
        units = torch.backends.cpu.get_cpu_capability() if on_cpu else job.device
        self.described = Described(f"torch {torch.__version__} {units}", job.device, precision)

    def run(self, image: Images) -> Images:
        return self._on(self._network, image)

    def _on(self, network: nn.Module, image: Images) -> Images:
        with _threads(self.threads), torch.inference_mode():
            given = torch.from_numpy(image).to(self._device)
            # The last batch of a series is short; a full one keeps the sums in one order.
            missing = -len(image) % self.batch
            whole = torch.cat((given, given[-1:].expand(missing, -1, -1, -1))) if missing else given
            restored: Tensor = network(whole).image[: len(image)]
            result: Images = restored.float().cpu().numpy()
        return result


class _Bfloat16(nn.Module):
    """A convolution in bfloat16, or one in float32 whose result goes on in bfloat16."""

    def __init__(self, convolution: nn.Conv2d, kind: torch.dtype, result: torch.dtype) -> None:
        super().__init__()
        self.convolution, self._kind, self._result = convolution.to(kind), kind, result

    def forward(self, features: Tensor) -> Tensor:
        found: Tensor = self.convolution(features.to(self._kind))
        return found.to(self._result)


def _mixed(network: nn.Module) -> nn.Module | None:
    """A copy with its wide convolutions in bfloat16; None where it has none, or where something
    else has weights, which stay in float32 and would meet features in bfloat16.
    """
    weighted = [item for item in network.modules() if [*item.parameters(recurse=False)]]
    if not all(isinstance(item, nn.Conv2d) for item in weighted):
        return None
    copy, found = deepcopy(network), False
    for name, module in list(copy.named_modules()):
        if not isinstance(module, nn.Conv2d):
            continue
        enters = module.in_channels < _FEW_CHANNELS
        leaves = module.out_channels < _FEW_CHANNELS
        wide = not (enters or leaves)
        found = found or wide
        kind = torch.bfloat16 if wide else torch.float32
        result = torch.float32 if leaves else torch.bfloat16
        parent, _, own = name.rpartition(".")
        setattr(copy.get_submodule(parent), own, _Bfloat16(module, kind, result))
    return copy if found else None


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """So many threads for a while; the number belongs to the whole process."""
    before = torch.get_num_threads()
    if before == count:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
