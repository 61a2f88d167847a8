"""Receive rate of the node beside that of Orthanc, on the same files in the same run.

    python benchmarks/node_receive.py --slices 200 --rounds 3

Needs Orthanc and storescu (dcmtk). The slices are the demo series over and over, 512 x 512, in a
temporary folder. What is timed and checked is told in tests/node/receive_rate.py.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

TESTS = Path(__file__).parents[1] / "tests"
sys.path[:0] = [str(TESTS), str(TESTS / "node")]


def main() -> int:
    from receive_rate import measured

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slices", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="on the disk to be measured")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        times = measured(Path(folder), count=options.slices, rounds=options.rounds)
    for name, seconds in (("Orthanc", times.orthanc_s), ("node", times.node_s)):
        each = ", ".join(f"{value:.1f}" for value in seconds)
        middle_s = statistics.median(seconds)
        rate = options.slices / middle_s
        print(f"{name}: {middle_s:.1f} s at the median ({each}), {rate:.0f} slices/s")
    print(f"rate of the node over that of Orthanc: {times.ratio:.2f}")
    return 0 if times.ratio >= 1 else 1


if __name__ == "__main__":
    sys.exit(main())
