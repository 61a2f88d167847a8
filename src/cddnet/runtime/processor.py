"""What this machine's processor offers to a network: cores, instructions, whether a GPU may be."""

from __future__ import annotations

import os
import platform
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from cddnet.errors import ModelError

# A slice keeps no more cores than this busy; on a shared machine more would only be in the way.
MOST_THREADS = 8
_TOPOLOGY = "/sys/devices/system/cpu/cpu{}/topology"
_QUOTA = Path("/sys/fs/cgroup/cpu.max")
_GPU_NODES = ("/dev/nvidiactl", "/dev/dxg")
_BFLOAT16 = frozenset({"avx512_bf16", "amx_bf16", "bf16"})


def chosen_threads(asked: int | None) -> int:
    """Threads for a network: as asked, else `default_threads`.  Raises: ModelError below 1."""
    if asked is None:
        return default_threads()
    if asked < 1:
        raise ModelError(f"{asked} threads were asked for; give 1 or more.")
    return asked


def default_threads() -> int:
    """OMP_NUM_THREADS where it is set, else the cores this process may use; at most 8."""
    said = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    cores = int(said) if said.isdecimal() and int(said) > 0 else physical_cores()
    return min(cores, MOST_THREADS)


def physical_cores() -> int:
    """Cores, not hyper-threads, this process may run on; a container's quota counts."""
    try:
        usable = os.sched_getaffinity(0)
    except AttributeError:
        return max(1, (os.cpu_count() or 2) // 2)
    cores = {_core(number) for number in usable}
    return max(1, min(len(cores), _quota_cores(len(cores))))


@cache
def flags() -> frozenset[str]:
    """Instruction sets by the names of Linux; empty elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    listed = (line.split(":", 1)[1] for line in lines if line.startswith(("flags", "Features")))
    return frozenset(next(listed, "").split())


def has_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 itself; emulated it would be slower."""
    return bool(flags() & _BFLOAT16)


def units() -> str:
    """The widest vectors, which decide the order of a sum and so its last bit."""
    known = (name for name in ("avx512_bf16", "avx512f", "avx2") if name in flags())
    return next(known, platform.machine())


def may_have_gpu() -> bool:
    """False where asking torch for a GPU, which takes seconds to import, cannot find one."""
    if find_spec("torch") is None:
        return False
    return platform.system() == "Windows" or any(map(os.path.exists, _GPU_NODES))


def _core(number: int) -> tuple[str, str]:
    folder = Path(_TOPOLOGY.format(number))
    try:
        package = (folder / "physical_package_id").read_text().strip()
        return package, (folder / "core_id").read_text().strip()
    except OSError:
        return "", str(number)


def _quota_cores(cores: int) -> int:
    try:
        quota, period = _QUOTA.read_text().split()
        return max(1, int(quota) // int(period))
    except (OSError, ValueError):
        return cores
