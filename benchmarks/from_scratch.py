"""Train a network like `fast@1` from nothing, in one command, and compare it with what is shipped.

    python benchmarks/from_scratch.py --data FOLDER --out RUNS

Two trainings, the second from the weights of the first; a command that was stopped or killed goes
on where it was. FOLDER holds the open CT collection named in configs/split_open_ct.yaml. Prints
the minutes of each training and the PSNR on the validation patients at strength 100 %.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from cddnet.models._cards import read_card
from cddnet.runtime import store

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
CDDNET = "from cddnet.cli import main; main()"
STAGES = {
    "one": ("train_cddnet.yaml", ("steps=9000",)),
    "two": (
        "train_cddnet_lesions.yaml",
        ("steps=4000", "loss.lesion=2", "loss.lesion_bias=0.12"),
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args()
    runs = chosen.out.resolve()
    runs.mkdir(parents=True, exist_ok=True)
    clock = runs / "seconds.json"
    seconds = json.loads(clock.read_text()) if clock.exists() else {}
    start: tuple[str, ...] = ()
    for stage, (recipe, settings) in STAGES.items():
        out = runs / stage
        if stage not in seconds:
            begun = time.monotonic()
            _train(CONFIGS / recipe, chosen.data, out, (*start, *_set(settings)))
            seconds[stage] = round(time.monotonic() - begun)
            clock.write_text(json.dumps(seconds))
        weights = out / "weights.safetensors"
        start = ("--from", str(weights))
    ours = _psnr(weights)
    shipped = _psnr(store.find("fast@1"))
    for stage, value in seconds.items():
        print(f"{stage}: {value / 60:.0f} min since its last start")
    print(f"together {sum(seconds.values()) / 60:.0f} min")
    print(f"validation: {ours:.2f} dB, fast@1 {shipped:.2f} dB, {ours - shipped:+.2f} dB")


def _train(recipe: Path, data: Path, out: Path, more: tuple[str, ...]) -> None:
    told = (str(recipe), "--data", str(data), "--out", str(out), *more)
    subprocess.run([sys.executable, "-c", CDDNET, "train", *told], check=True)


def _set(settings: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(word for setting in settings for word in ("--set", setting))


def _psnr(weights: Path) -> float:
    return float(read_card(weights).training["validation"]["denoised_db"])


if __name__ == "__main__":
    main()
