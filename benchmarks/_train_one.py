"""One run of a benchmark, in a process of its own: RECIPE DATA OUT [KEY=VALUE ...].

Started by `_runs.py`, which holds the other end of this process's input: when that closes, because
the benchmark ended in whatever way, so does the run, and the next one goes on from its checkpoint.
"""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

from cddnet.errors import CddnetError
from cddnet.training.engine import TrainingError
from cddnet.workflows.train import TrainOptions, train_from_config

DIVERGED = 3


def main() -> int:
    recipe, data, out, *overrides = sys.argv[1:]
    threading.Thread(target=_end_with_the_benchmark, daemon=True).start()
    try:
        train_from_config(Path(recipe), Path(data), Path(out), TrainOptions(overrides=overrides))
    except TrainingError as error:
        print(error)
        return DIVERGED
    except CddnetError as error:
        print(error)
        return 1
    return 0


def _end_with_the_benchmark() -> None:
    # Below sys.stdin, whose lock the interpreter wants when it ends.
    while os.read(0, 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
