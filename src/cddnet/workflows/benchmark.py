"""Benchmark: what every network costs on this machine, by every engine that runs it."""

# Shapes: B batch, D slice, H row, W column.

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from cddnet import __version__, models
from cddnet.formats import read_volume
from cddnet.formats._atomic import new_file
from cddnet.intensity.normalise import to_network
from cddnet.models._cards import read_card
from cddnet.runtime import processor, store
from cddnet.runtime.engines import Job, open_engine, refusals
from cddnet.workflows._complexity import count_flops, machine
from cddnet.workflows.demo import demo_series

SERIES_SLICES = 300
_PLAIN = "torch, float32"
_MATRIX = 2048
_MATRIX_RUNS = 5
_KINDS = ("float32", "bfloat16")
_CHILD = """
import json, sys, time
from pathlib import Path
from cddnet.workflows.denoise import DenoiseOptions, denoise_file
source, target, model, engine, threads = sys.argv[1:]
options = DenoiseOptions(model=model, engine=engine, device="cpu", threads=int(threads))
times = [time.perf_counter()]
show = lambda done, total: times.append(time.perf_counter())
volume = denoise_file(Path(source), Path(target), options, show)
try:
    # Not getrusage: what it tells begins with the memory of the process that started this one.
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
except OSError:
    peak = 0
start, first, *_, last = times
per_slice = (last - first) / (volume.shape[0] - 1)
print(json.dumps({"opening": first - start, "per_slice": per_slice, "peak_bytes": peak}))
"""

Images = NDArray[np.float32]
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class BenchmarkOptions:
    """rounds: of all, turn and turn about, after one to warm up.  side: pixels of the slice.
    threads: None for the cores there are.  only: networks or shipped names; () for all.
    """

    rounds: int = 5
    side: int = 512
    threads: int | None = None
    only: tuple[str, ...] = ()


QUICK = {"rounds": 2, "side": 256}


class Row(NamedTuple):
    """One network by one engine.  seconds: median per slice, with the fastest and slowest round.
    peak_share: achieved operations per second over those of a matrix product in that precision.
    series_per_hour: of 300 slices, DICOM folder to DICOM folder, from the demo's 12.
    peak_bytes: of a process that did it; None where the network has no weights to do it with.
    """

    network: str
    engine: str
    precision: str
    gmac: float
    seconds: float
    fastest: float
    slowest: float
    peak_share: float
    series_per_hour: float | None = None
    peak_bytes: int | None = None


class BenchmarkResult(NamedTuple):
    """peak_flops: of a matrix product, by precision."""

    machine: str
    version: str
    threads: int
    rounds: int
    side: int
    peak_flops: dict[str, float]
    rows: tuple[Row, ...]


class _Contender(NamedTuple):
    """weights: None for a network that was never trained, which costs the same."""

    network: str
    engine: str
    precision: str
    flops: int
    run: Callable[[Images], object]
    weights: Path | None


def benchmark(options: BenchmarkOptions, progress: Progress) -> BenchmarkResult:
    """Every network by every engine, on the processor, same slice, one run.

    Raises: ModelError for an unknown network.
    """
    threads = processor.chosen_threads(options.threads)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        contenders = _contenders(options, threads)
        seconds, peak_flops = _interleaved(
            contenders, _slice(options.side), options.rounds, progress
        )
    finally:
        torch.set_num_threads(before)
    rows = [
        _row(contender, times, peak_flops)
        for contender, times in zip(contenders, seconds, strict=True)
    ]
    rows = _with_series(rows, contenders, threads, progress)
    return BenchmarkResult(
        machine(), __version__, threads, options.rounds, options.side, peak_flops, tuple(rows)
    )


def write_json(result: BenchmarkResult, path: Path) -> None:
    """Everything as JSON, a new file.  Raises: FormatError where it exists."""
    record = result._asdict() | {"rows": [row._asdict() for row in result.rows]}
    with new_file(path) as file:
        file.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def table(result: BenchmarkResult) -> str:
    """The result as text; times as multiples of the fastest one."""
    least = min(row.seconds for row in result.rows)
    shares = ", ".join(f"{kind} {flops / 1e9:.0f}" for kind, flops in result.peak_flops.items())
    lines = [
        f"{result.machine}; {result.threads} threads, slices of {result.side} x {result.side}, "
        f"median of {result.rounds} interleaved rounds; matrix product, GFLOP/s: {shares}",
        f"{'network':20}{'engine':16}{'precision':10}{'GMAC':>8}{'ms/slice':>10}{'spread':>13}"
        f"{'x fastest':>10}{'of peak':>9}{'series/h':>10}{'peak MB':>9}",
    ]
    for row in sorted(result.rows, key=lambda row: row.seconds):
        spread = f"{row.fastest / row.seconds:.2f}-{row.slowest / row.seconds:.2f}"
        hour = "" if row.series_per_hour is None else f"{row.series_per_hour:.0f}"
        memory = "" if row.peak_bytes is None else f"{row.peak_bytes / 1e6:.0f}"
        lines.append(
            f"{row.network:20}{row.engine:16}{row.precision:10}{row.gmac:8.2f}"
            f"{row.seconds * 1e3:10.1f}{spread:>13}{row.seconds / least:10.1f}"
            f"{row.peak_share:9.0%}{hour:>10}{memory:>9}"
        )
    return "\n".join(lines)


def _contenders(options: BenchmarkOptions, threads: int) -> list[_Contender]:
    image = torch.zeros(1, 1, options.side, options.side)
    found: list[_Contender] = []
    shipped = {name: path for name, path in store.shipped().items() if _wanted(name, options.only)}
    for name, weights in shipped.items():
        card = read_card(weights)
        network, _ = store.load(weights)
        # A filter has no parameters, and its time depends on its search, not on a network's work.
        if not any(True for _ in network.parameters()):
            continue
        flops = count_flops(network, image)
        found.append(_Contender(name, _PLAIN, "float32", flops, _plain(network), weights))
        for engine, refusal in refusals(Job(weights, card, "cpu", threads)).items():
            if not refusal:
                opened = open_engine(weights, card, name=engine, device="cpu", threads=threads)
                precision = opened.described.precision
                found.append(_Contender(name, engine, precision, flops, opened.run, weights))
    trained = {read_card(path).model for path in shipped.values()}
    for name in models.names():
        if name in trained or not _wanted(name, options.only):
            continue
        network = models.in_network_range(name, models.build(name)).eval()
        if any(True for _ in network.parameters()):
            flops = count_flops(network, image)
            found.append(_Contender(name, _PLAIN, "float32", flops, _plain(network), None))
    if not found:
        store.find(options.only[0] if options.only else "default")
    return found


def _wanted(name: str, only: Sequence[str]) -> bool:
    return not only or name in only or name.split("@")[0] in only


def _plain(network: nn.Module) -> Callable[[Images], object]:
    def run(image: Images) -> object:
        with torch.inference_mode():
            restored: object = network(torch.from_numpy(image)).image
            return restored

    return run


def _slice(side: int) -> Images:
    """A real slice, repeated or cut to the side: (1, 1, H, W) network range."""
    hu = read_volume(demo_series()).read_slice(0)
    times = -(-side // hu.shape[0]), -(-side // hu.shape[1])
    return np.ascontiguousarray(to_network(np.tile(hu, times)[None, None, :side, :side]))


def _interleaved(
    contenders: list[_Contender], image: Images, rounds: int, progress: Progress
) -> tuple[list[list[float]], dict[str, float]]:
    """Seconds of each contender in each round, and the best matrix product of all rounds.

    The first round warms up and is dropped.
    """
    seconds: list[list[float]] = [[] for _ in contenders]
    peak_flops = dict.fromkeys(_KINDS, 0.0)
    for turn in range(rounds + 1):
        for kind in _KINDS:
            peak_flops[kind] = max(peak_flops[kind], _matrix_flops(getattr(torch, kind)))
        for contender, times in zip(contenders, seconds, strict=True):
            start = perf_counter()
            contender.run(image)
            times.append(perf_counter() - start)
        progress("timing", turn + 1, rounds + 1)
    return [times[1:] for times in seconds], peak_flops


def _matrix_flops(kind: torch.dtype) -> float:
    """Operations per second of the fastest of several matrix products."""
    left, right = torch.ones(_MATRIX, _MATRIX, dtype=kind), torch.ones(_MATRIX, _MATRIX, dtype=kind)
    seconds = []
    for _ in range(_MATRIX_RUNS):
        start = perf_counter()
        left @ right
        seconds.append(perf_counter() - start)
    return float(2 * _MATRIX**3 / min(seconds))


def _row(contender: _Contender, times: list[float], peak_flops: dict[str, float]) -> Row:
    middle = median(times)
    return Row(
        network=contender.network,
        engine=contender.engine,
        precision=contender.precision,
        gmac=contender.flops / 2e9,
        seconds=middle,
        fastest=min(times),
        slowest=max(times),
        peak_share=contender.flops / middle / peak_flops[contender.precision],
    )


def _with_series(
    rows: list[Row], contenders: list[_Contender], threads: int, progress: Progress
) -> list[Row]:
    done = []
    for number, (row, contender) in enumerate(zip(rows, contenders, strict=True), 1):
        if contender.weights is not None and contender.engine != _PLAIN:
            found = _series(contender, threads)
            seconds = found["opening"] + SERIES_SLICES * found["per_slice"]
            row = row._replace(
                series_per_hour=3600 / seconds,
                peak_bytes=int(found["peak_bytes"]) or None,
            )
        done.append(row)
        progress("series", number, len(rows))
    return done


def _series(contender: _Contender, threads: int) -> dict[str, float]:
    """A process of its own denoises the demo series from folder to folder."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = [str(demo_series()), f"{folder}/out", str(contender.weights), contender.engine]
        child = subprocess.run(
            [sys.executable, "-c", _CHILD, *arguments, str(threads)],
            capture_output=True,
            text=True,
            check=True,
        )
    found: dict[str, float] = json.loads(child.stdout)
    return found


__all__ = ["QUICK", "BenchmarkOptions", "BenchmarkResult", "benchmark", "table", "write_json"]
