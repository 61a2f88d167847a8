"""The fitness check on series that are fit and on misfits made of them.

    python benchmarks/fitness.py --data FOLDER [--side tune|test] [--list]

FOLDER holds the open CT collection of configs/split_open_ct.yaml. `tune` is its training and
validation patients, on which the thresholds were chosen; docs/fitness.md says what `test` changed.
A row is a kind of series: how many, and the shares refused, noted, and caught: a finding of the
kind that the row names, with the kernel tag known and without any header. --list names every
series that is fit and was refused or noted.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import yaml

from _misfits import MISFITS, Stack
from cddnet.formats import read_all_series, read_volume, write_volume
from cddnet.formats._facts import HeaderFacts, read_facts
from cddnet.formats.dicom import DicomHeaders
from cddnet.physics.beam import SliceGeometry
from cddnet.physics.dose import insert_noise, rng_for
from cddnet.physics.kernel import SOFT_KERNEL, kernel_named
from cddnet.training.slices import calibrated_geometry, filled
from cddnet.volume import CTVolume
from cddnet.workflows._fitness_header import Kind
from cddnet.workflows.denoise import denoise_volume
from cddnet.workflows.fitness import Fitness, Outcome, examine

SPLIT = Path(__file__).resolve().parents[1] / "configs" / "split_open_ct.yaml"
SIDES = {"tune": ("train", "validation"), "test": ("test",)}
SLICES = 3
DOSE_FRACTION = 0.25
CAUGHT_AS = {
    "MR as CT": {Kind.values},
    "HU offset of 1000": {Kind.values},
    "8-bit rescaled": {Kind.levels, Kind.values},
    "blurred kernel": {Kind.smooth},
    "metal": {Kind.metal},
    "denoised twice, as written": {Kind.denoised},
    "denoised twice, no record": {Kind.denoised, Kind.smooth},
}


@dataclass(frozen=True)
class Source:
    """A series of the collection.  volume: all of it.  stack: three of its slices (D, H, W) HU."""

    name: str
    volume: CTVolume
    stack: Stack
    facts: HeaderFacts
    geometry: SliceGeometry

    def like(self, stack: Stack) -> CTVolume:
        """A volume without header over other slices of the same grid."""
        volume = CTVolume.from_hu(stack, self.volume.spacing_mm)
        return replace(volume, thickness_mm=self.volume.thickness_mm)

    @property
    def kernel_only(self) -> HeaderFacts:
        """Facts that a stranger's header would have in common with this one."""
        return HeaderFacts(kernel=self.facts.kernel, manufacturer=self.facts.manufacturer)


def sources(root: Path, sides: tuple[str, ...]) -> Iterator[Source]:
    """Every series of some sides of the split."""
    split = yaml.safe_load(SPLIT.read_text(encoding="utf-8"))
    for folder in (name for side in sides for names in split[side].values() for name in names):
        for number, volume in enumerate(read_all_series(root / folder)):
            headers = volume.headers
            if not isinstance(headers, DicomHeaders):
                raise SystemExit(f"{folder} is no DICOM series.")
            depth = volume.shape[0]
            places = np.linspace(0.1, 0.9, SLICES) * (depth - 1)
            chosen = sorted({round(place) for place in places.tolist()})
            stack = np.stack([filled(volume, index) for index in chosen])
            facts = read_facts(headers.frames[0].path)
            yield Source(f"{folder} {number}", volume, stack, facts, calibrated_geometry(volume))


class Table:
    """Findings of every kind of series."""

    def __init__(self) -> None:
        self.outcomes: dict[str, list[tuple[Fitness, Fitness | None]]] = {}

    def add(self, kind: str, known: Fitness, bare: Fitness | None = None) -> None:
        self.outcomes.setdefault(kind, []).append((known, bare))

    def rows(self) -> Iterator[str]:
        yield "| series | n | refused | noted | caught | caught without header |"
        yield "|---|---|---|---|---|---|"
        for kind, found in self.outcomes.items():
            wanted = CAUGHT_AS.get(kind, set())
            known = [one for one, _ in found]
            bare = [one for _, one in found if one is not None]
            shares = (
                _share(known, _is(Outcome.refused)),
                _share(known, _is(Outcome.noted)),
                _share(known, _has(wanted)),
                _share(bare, _has(wanted)),
            )
            yield f"| {kind} | {len(found)} | {' | '.join(shares)} |"


def _is(outcome: Outcome) -> Callable[[Fitness], bool]:
    return lambda fitness: fitness.outcome is outcome


def _has(kinds: set[Kind]) -> Callable[[Fitness], bool] | None:
    if not kinds:
        return None
    return lambda fitness: any(finding.kind in kinds for finding in fitness.findings)


def _share(found: list[Fitness], holds: Callable[[Fitness], bool] | None) -> str:
    if holds is None or not found:
        return ""
    return f"{np.mean([holds(fitness) for fitness in found]):.1%}"


def quarter_dose(source: Source) -> Stack:
    """The slices at a quarter of the calibrated dose, in whole HU."""
    kernel = kernel_named(source.facts.kernel, source.facts.manufacturer) or SOFT_KERNEL
    slices = [
        insert_noise(
            hu,
            source.geometry,
            rng_for(source.name, index, 0),
            dose_fraction=DOSE_FRACTION,
            kernel=kernel,
        ).hu
        for index, hu in enumerate(source.stack)
    ]
    return np.rint(np.stack(slices)).astype(np.float32)


def as_written(denoised: CTVolume) -> Fitness:
    """The check on a denoised series that was written as NIfTI and read again."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "denoised.nii.gz"
        write_volume(denoised, target)
        return examine(read_volume(target))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--side", choices=sorted(SIDES), default="test")
    parser.add_argument("--list", action="store_true")
    options = parser.parse_args()
    table, surprises, seconds = Table(), [], []
    kinds: Counter[str] = Counter()
    for source in sources(options.data, SIDES[options.side]):
        began = time.process_time()
        own = examine(source.volume)
        seconds.append((time.process_time() - began) / min(source.volume.shape[0], 5))
        table.add("fit, as scanned", own, examine(source.like(source.stack)))
        kinds.update(finding.kind.value for finding in own.findings)
        surprises += [f"{source.name}: {one.refuses=} {one.text}" for one in own.findings]
        low_dose = quarter_dose(source)
        for name, stack in (("fit, quarter dose", low_dose), *_misfits(source)):
            volume = source.like(stack)
            table.add(name, examine(volume, source.kernel_only), examine(volume))
        once = denoise_volume(source.like(low_dose))
        restored = np.rint(once.hu)
        table.add("denoised twice, as written", as_written(once))
        volume = source.like(restored)
        table.add("denoised twice, no record", examine(volume, source.kernel_only), examine(volume))
    print("\n".join(table.rows()))
    print(
        f"CPU per slice, ms: median {1e3 * np.median(seconds):.0f}, most {1e3 * max(seconds):.0f}"
    )
    print("findings in fit series:", dict(kinds))
    if options.list:
        print("\n".join(surprises))


def _misfits(source: Source) -> Iterator[tuple[str, Stack]]:
    for number, (name, make) in enumerate(MISFITS.items()):
        rng = rng_for(source.name, number, 1)
        yield name, make(source.stack, source.geometry.pixel_mm, rng)


if __name__ == "__main__":
    main()
