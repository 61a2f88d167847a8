"""Time per 512 x 512 slice: the native network against the published one, in one run.

    python benchmarks/speed.py [--threads 2] [--rounds 7]

Both in eager PyTorch, float32, after a warm-up, turn and turn about; the ratio is of medians.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

from cddnet import models


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    torch.manual_seed(0)
    published = models.build("cddnet_published").eval()
    native = models.build("cddnet").eval()
    image = torch.rand(1, 1, 512, 512) - 0.5
    calls = {
        "cddnet_published (3 channels)": lambda: published((image + 0.5).expand(-1, 3, -1, -1)),
        "cddnet": lambda: native(image),
    }
    times: dict[str, list[float]] = {name: [] for name in calls}
    with torch.inference_mode():
        macs = {}
        for name, call in calls.items():
            with FlopCounterMode(display=False) as counter:
                call()
            macs[name] = counter.get_total_flops() / 2e9
            call()
        for _ in range(chosen.rounds):
            for name, call in calls.items():
                times[name].append(seconds(call))
    print(
        f"512 x 512, float32, eager PyTorch {torch.__version__}, {chosen.threads} threads, "
        f"{platform.machine()}, median of {chosen.rounds} interleaved rounds"
    )
    slow = statistics.median(times["cddnet_published (3 channels)"])
    for name, values in times.items():
        median = statistics.median(values)
        print(
            f"{name:30} {macs[name]:7.2f} GMAC  {slow / median:6.1f} x as fast as the published "
            f"(rounds {min(values) / median:.2f}-{max(values) / median:.2f} of the median)"
        )


if __name__ == "__main__":
    main()
