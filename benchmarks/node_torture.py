"""Nothing lost: a node that is killed while callers send to it and its archive is often away.

    python benchmarks/node_torture.py --instances 5000 --series 40 --kills 50 --seed 1

Ends with status 1 where an instance was lost, doubled, changed or is stuck. What is done and
checked is told in tests/node/torture.py, which the tests run with a tenth of it.
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
    parser.add_argument("--longest-s", type=float, default=3600.0)
    plan = Plan(**vars(parser.parse_args()))
    with tempfile.TemporaryDirectory() as folder:
        seen = Torture(plan, Path(folder)).run()
    print(seen)
    print("events of the node:", dict(seen.events.most_common()))
    return 1 if seen.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
