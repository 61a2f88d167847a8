"""Efficiency of `cddnet archive`: series per minute with one worker and with two, a thread each.

    python benchmarks/archive.py --series 60

The series are copies of the demo series under new UIDs. Workers start and load the network before
the clock: what counts is the time from the first series that ends to the last, which a population
of thousands is made of; the whole time is told beside it. Each worker has one core; a lone worker
that may use two, and so read and write beside its network, is the third figure. Other work on the
machine takes from two workers more than from one: `busy` (the share of that time in which a worker
has a series) and the CPU time of a series do not see it, and their product over that of one worker
is the second figure.
"""

from __future__ import annotations

import argparse
import json
import os
import sqlite3
import statistics
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from datetime import datetime
from multiprocessing import get_context
from pathlib import Path

from pydicom import dcmread

from cddnet.node.archive.run import ArchiveOptions, archive

DEMO = Path(__file__).parents[1] / "src" / "cddnet" / "data" / "demo" / "series"
Rate = Callable[[dict[str, float]], float]
# Workers, and the cores that they share.
ONE, TWO, ROOMY = LAYOUTS = ((1, 1), (2, 2), (1, 2))


def copies(folder: Path, count: int, slices: int) -> None:
    """Write the demo series `count` times, each with UIDs of its own."""
    originals = [dcmread(file) for file in sorted(DEMO.iterdir())[:slices]]
    for number in range(1, count + 1):
        target = folder / f"{number:04d}"
        target.mkdir(parents=True)
        for index, image in enumerate(originals, 1):
            image.SeriesInstanceUID = f"2.25.7710.{number}"
            image.SOPInstanceUID = f"2.25.7710.{number}.{index}"
            image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
            image.save_as(target / f"{index:04d}.dcm")


def confined(source: Path, out: Path, workers: int, cores: int) -> dict[str, float]:
    """Figures of one run on so many cores, in a process of its own."""
    usable = sorted(os.sched_getaffinity(0))[:cores]
    with ProcessPoolExecutor(
        1, get_context("spawn"), initializer=os.sched_setaffinity, initargs=(0, usable)
    ) as pool:
        return pool.submit(measured, source, out, workers).result()


def measured(source: Path, out: Path, workers: int) -> dict[str, float]:
    """Figures of one run."""
    load = os.getloadavg()[0]
    times = os.times()
    report = archive(ArchiveOptions(source=str(source), out=out, workers=workers), lambda _: None)
    after = os.times()
    with sqlite3.connect(out / "manifest.sqlite") as database:
        query = "SELECT finished_at, seconds, cpu_seconds FROM series ORDER BY finished_at"
        rows = database.execute(query).fetchall()
    ends = [datetime.fromisoformat(row[0]) for row in rows]
    steady = rows[workers:]
    # Every worker's first series holds its start: it is left out, as are those beside it.
    steady_s = (ends[-1] - ends[workers - 1]).total_seconds()
    return {
        "workers": workers,
        "cores": len(os.sched_getaffinity(0)),
        "series": report.done,
        "slices": report.slices,
        "whole_s": round(report.seconds, 2),
        "steady_series_per_min": round(60 * (report.done - workers) / steady_s, 3),
        "busy": round(sum(row[1] for row in steady) / workers / steady_s, 3),
        "worker_cpu_s_per_series": round(sum(row[2] for row in steady) / len(steady), 3),
        "client_cpu_s": round(after.user + after.system - times.user - times.system, 2),
        "load_before": round(load, 2),
    }


def median_of(runs: list[dict[str, float]], layout: tuple[int, int], rate: Rate) -> float:
    """Of a rate over the runs of a layout."""
    return statistics.median(rate(r) for r in runs if (r["workers"], r["cores"]) == layout)


def by_the_clock(run: dict[str, float]) -> float:
    """Series per minute."""
    return run["steady_series_per_min"]


def by_what_it_did(run: dict[str, float]) -> float:
    """Busy workers per CPU second of a series: other work on the machine does not change it."""
    return run["busy"] / run["worker_cpu_s_per_series"] * run["workers"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--series", type=int, default=60)
    parser.add_argument("--slices", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "source")
        copies(source, options.series, options.slices)
        for turn in range(options.rounds):
            for workers, cores in LAYOUTS:
                out = Path(folder, f"out{turn}{workers}{cores}")
                runs.append(confined(source, out, workers, cores))
                print(runs[-1], flush=True)
    efficiency, apart = (
        median_of(runs, TWO, rate) / median_of(runs, ONE, rate) / 2
        for rate in (by_the_clock, by_what_it_did)
    )
    over_roomy = median_of(runs, TWO, by_the_clock) / median_of(runs, ROOMY, by_the_clock) / 2
    print(f"efficiency of 2 workers over 1: {efficiency:.3f}; other work aside: {apart:.3f}")
    print(f"over 1 that may use both cores: {over_roomy:.3f}")
    if options.json:
        record = {
            "runs": runs,
            "efficiency": efficiency,
            "other_work_aside": apart,
            "over_one_on_two_cores": over_roomy,
        }
        options.json.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
