"""Time per 512 x 512 slice of the simulation against scikit-image, one thread, in one run.

    python benchmarks/physics_speed.py [--rounds 5]

Turn and turn about after a warm-up; ratios are of medians.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from skimage.transform import iradon, radon

from cddnet.formats import read_volume
from cddnet.physics.beam import DEFAULT_SCANNER, SliceGeometry
from cddnet.physics.depth import radiological_depth
from cddnet.physics.dose import insert_noise
from cddnet.physics.kernel import SOFT_KERNEL
from cddnet.physics.scan import scan
from cddnet.workflows.demo import demo_series

VIEWS = 720


def skimage_pair(hu: np.ndarray) -> np.ndarray:
    """Projection and filtered back projection with as many views as the insertion has."""
    angles = np.linspace(0.0, 180.0, VIEWS, endpoint=False)
    sinogram = radon(hu / 1000.0 + 1.0, theta=angles, circle=True)
    return iradon(sinogram, theta=angles, filter_name="hann", circle=True)


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    if os.environ.get("OMP_NUM_THREADS") != "1":
        # NumPy's libraries read it when they are loaded.
        os.execve(
            sys.executable, [sys.executable, *sys.argv], os.environ | {"OMP_NUM_THREADS": "1"}
        )
    torch.set_num_threads(1)
    volume = read_volume(demo_series())
    hu, geometry = volume.read_slice(5), SliceGeometry(volume.spacing_mm[1])
    rng = np.random.default_rng(0)
    chain = {"dose_fraction": 0.25, "scanner": DEFAULT_SCANNER, "kernel": SOFT_KERNEL}
    calls = {
        f"scikit-image radon + iradon, {VIEWS} views": lambda: skimage_pair(hu),
        "insertion (insert_noise)": lambda: insert_noise(hu, geometry, rng),
        "depth (radiological_depth)": lambda: radiological_depth(hu, geometry),
        "full chain, fan beam (scan)": lambda: scan(hu, geometry, rng, **chain),
    }
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(seconds(call))
    medians = {name: statistics.median(values) for name, values in times.items()}
    peer, insertion, depth, _ = medians.values()
    print(f"512 x 512, one thread, {platform.machine()}, median of {rounds} interleaved rounds")
    for name, median in medians.items():
        print(f"{name:42}{1000 * median:9.1f} ms{peer / median:9.1f} x")
    print(
        f"insertion {peer / insertion:.0f} times as fast as scikit-image; "
        f"depth 1/{insertion / depth:.0f} of the insertion"
    )


if __name__ == "__main__":
    main()
