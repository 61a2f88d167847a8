"""Time of an evaluation against scikit-image's SSIM alone on the same slices, one thread, one run.

    python benchmarks/evaluate_speed.py [--slices 100] [--rounds 3] [--protocol redcnn]

All fidelity metrics of the protocol but LPIPS, per-patient means, bootstrap and notes; slices of
512 x 512 in memory for both sides, ten slices per patient. Turn and turn about after a warm-up.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import time

import numpy as np
from skimage.metrics import structural_similarity

from cddnet.formats import read_volume
from cddnet.intensity.window import hu_to_window
from cddnet.volume import CTVolume
from cddnet.workflows._cases import Case
from cddnet.workflows._protocols import PROTOCOLS
from cddnet.workflows.demo import demo_series
from cddnet.workflows.evaluate import MASKS, EvaluateOptions, evaluate_cases

SLICES_PER_PATIENT = 10


def series(count: int) -> tuple[np.ndarray, np.ndarray]:
    """The demo's slices again and again, and the same with white noise of 20 HU: (D, H, W) HU."""
    real = read_volume(demo_series()).hu
    full_dose = real[np.arange(count) % len(real)]
    noise = np.random.default_rng(0).normal(0, 20, full_dose.shape)
    return full_dose, (full_dose + noise).astype(np.float32)


def patients(full_dose: np.ndarray, test: np.ndarray) -> list[Case]:
    cases = []
    for start in range(0, len(full_dose), SLICES_PER_PATIENT):
        own = np.s_[start : start + SLICES_PER_PATIENT]
        one, two = (CTVolume.from_hu(hu[own], (5.0, 0.8, 0.8)) for hu in (full_dose, test))
        cases.append(
            Case(
                patient=f"patient {start}",
                series="series 1",
                reference=one,
                rows={"test": two},
                slices={"test": tuple(range(one.shape[0]))},
            )
        )
    return cases


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slices", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--protocol", choices=PROTOCOLS, default="redcnn")
    parser.add_argument("--mask", choices=MASKS, default="none")
    chosen = parser.parse_args()
    if os.environ.get("OMP_NUM_THREADS") != "1":
        # NumPy's libraries read it when they are loaded.
        os.execve(
            sys.executable, [sys.executable, *sys.argv], os.environ | {"OMP_NUM_THREADS": "1"}
        )
    protocol = PROTOCOLS[chosen.protocol]
    full_dose, test = series(chosen.slices)
    cases = patients(full_dose, test)
    # What a user of scikit-image's SSIM holds: fractions of the window, in float64 as it computes.
    shown = [
        [hu_to_window(hu, protocol.window_hu).astype(np.float64) for hu in pair]
        for pair in zip(full_dose, test, strict=True)
    ]

    def ours() -> float:
        start = time.perf_counter()
        evaluate_cases(
            cases, protocol, mask=chosen.mask, options=EvaluateOptions(with_physics=False)
        )
        return time.perf_counter() - start

    def skimage() -> float:
        start = time.perf_counter()
        for one, two in shown:
            structural_similarity(one, two, data_range=1)
        return time.perf_counter() - start

    ours(), skimage()
    times = [(ours(), skimage()) for _ in range(chosen.rounds)]
    mine, peer = (statistics.median(column) for column in zip(*times, strict=True))
    print(
        f"{chosen.slices} slices of 512 x 512, one thread, {platform.machine()}, median of "
        f"{chosen.rounds} interleaved rounds; protocol {protocol.described}; mask {chosen.mask}"
    )
    print(f"scikit-image SSIM alone          {peer:8.2f} s")
    print(f"{', '.join(protocol.metrics)}, bootstrap {mine:8.2f} s")
    print(f"ratio {mine / peer:.2f} (target: at most 3)")


if __name__ == "__main__":
    main()
