"""How long training waits for its data, with the native recipe.

    python benchmarks/training.py --data FOLDER [--recipe configs/train_cddnet.yaml] [--steps 300]
        [--set workers=1] [--set threads=1]

FOLDER holds the open CT collection named in configs/split_open_ct.yaml, or a prepared set. The
steps are those of the recipe, only fewer; reading the slices, the start of the worker processes and
validation are not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path

import numpy as np

from cddnet.training.journal import LOG
from cddnet.workflows.train import TrainOptions, train_from_config

_LINE_EVERY = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--recipe", type=Path, default=Path("configs/train_cddnet.yaml"))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    chosen = parser.parse_args()
    fewer = (f"steps={chosen.steps}", f"validate_every={chosen.steps}", f"log_every={_LINE_EVERY}")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        options = TrainOptions(overrides=(*chosen.overrides, *fewer))
        train_from_config(chosen.recipe, chosen.data, out, options)
        lines = [json.loads(line) for line in (out / LOG).read_text().splitlines()]
    measured = [line for line in lines if "waiting" in line]
    seconds = np.array([_LINE_EVERY / line["steps_per_s"] for line in measured])
    waiting = np.array([line["waiting"] for line in measured])
    print(
        f"{chosen.recipe.name} {' '.join(chosen.overrides)}: {len(seconds) * _LINE_EVERY} steps, "
        f"{len(seconds) * _LINE_EVERY / seconds.sum():.2f} steps/s, waiting for data "
        f"{(waiting * seconds).sum() / seconds.sum():.1%} of the time (each {_LINE_EVERY} steps: "
        f"{waiting.min():.1%} to {waiting.max():.1%}); {os.cpu_count()} processors, load "
        f"{os.getloadavg()[0]:.1f}"
    )


if __name__ == "__main__":
    main()
