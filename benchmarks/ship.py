"""Make trained weights part of the package, in float16 and with what was measured in their card.

    python benchmarks/ship.py WEIGHTS --as fast@1 --strength 0.75 [--option views=4]
        [--after EARLIER_WEIGHTS ...] [--results FILE ...] [--limit TEXT ...]

EARLIER_WEIGHTS are those the training started from, oldest first; FILEs are what quality.py and
trust.py wrote with --json for these weights. Names are never given twice: raise the version.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from cddnet import __version__, models
from cddnet.models import _weights
from cddnet.models._cards import read_card
from cddnet.runtime import store


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("weights")
    parser.add_argument("--as", dest="name", required=True)
    parser.add_argument("--strength", type=float, required=True)
    parser.add_argument("--option", action="append", default=[], help="NAME=WHOLE NUMBER")
    parser.add_argument("--after", action="append", default=[])
    parser.add_argument("--results", type=Path, action="append", default=[])
    parser.add_argument("--limit", action="append", default=[])
    chosen = parser.parse_args()
    if chosen.name in store.shipped():
        parser.error(f"{chosen.name} is shipped already; raise the version")
    card = read_card(store.find(chosen.weights))
    changed = {name: int(value) for name, _, value in (o.partition("=") for o in chosen.option)}
    options = models.all_options(card.model, **card.options | changed)
    trained, _ = store.load(chosen.weights)
    network = models.build(card.model, **options)
    network.load_state_dict(trained.state_dict())
    earlier = [read_card(store.find(name)) for name in chosen.after]
    training = card.training | {
        "earlier": [
            {"name": e.name, "sha256": e.sha256, "recipe": e.training["recipe"]} for e in earlier
        ],
        "weights_before_rounding": card.sha256,
        "results": {path.stem: json.loads(path.read_text()) for path in chosen.results},
        "limits": chosen.limit,
    }
    shelf = store.shipped()["cddnet@1"].parent
    written = _weights.save(
        network,
        shelf / f"{chosen.name}.safetensors",
        half=True,
        name=chosen.name,
        model=card.model,
        options=options,
        version=__version__,
        strength=chosen.strength,
        training=training,
    )
    print(f"{written.name}: {written.sha256}; now run benchmarks/graphs.py")


if __name__ == "__main__":
    main()
