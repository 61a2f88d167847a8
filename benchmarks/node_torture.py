"""Nothing lost: a node that is killed while callers send to it and its archive is often away.

    python benchmarks/node_torture.py --instances 5000 --series 40 --kills 50 --seed 1
    python benchmarks/node_torture.py --instances 5000 --series 40 --kills 50 --trouble-every 10

With the latter, at every tenth kill the journal is deleted or damaged, the disk is full, or the
clock is put back. Ends with status 1 where an instance was lost, doubled, changed or is stuck. What
is done and checked is told in tests/node/torture.py, which the tests run with a tenth of it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "node"))


def main() -> int:
    from torture import Plan, Torture

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--instances", type=int, default=5000)
    parser.add_argument("--series", type=int, default=40)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--senders", type=int, default=4)
    parser.add_argument("--real", action="store_true", help="the shipped network, not a shift")
    parser.add_argument("--commitment", action="store_true", help="ask for storage commitment")
    parser.add_argument("--trouble-every", type=int, default=0, help="kills; 0: kills alone")
    parser.add_argument("--full-s", type=float, default=30.0, help="how long the disk is full")
    parser.add_argument("--tmpfs-mb", type=int, default=0, help="a real small disk; needs root")
    parser.add_argument("--longest-s", type=float, default=3600.0)
    plan = Plan(**vars(parser.parse_args()))
    with tempfile.TemporaryDirectory() as folder:
        seen = Torture(plan, Path(folder)).run()
    print(seen)
    print("events of the node:", dict(seen.events.most_common()))
    return 1 if seen.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
