"""A series from DICOM folder to DICOM folder: time over the network's own, memory, start-up.

    python benchmarks/series.py [--slices 300] [--more 1500] [--engine NAME] [--uncompressed]
    python benchmarks/series.py --layers

Both take `--model NAME` and `--threads N`.

The series are slices of the packaged demo, 512 x 512 in JPEG-LS or uncompressed, with other UIDs
and positions, in a temporary folder that needs 0.7 MB a slice, uncompressed 1.1. Every figure is of
a process of its own. The ratio's two times are taken in one process, one half of the network's
before the series and one behind it. `--layers` tells where OpenVINO spends a slice instead.
"""

# Shapes: B batch, H row, W column.

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections import Counter
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
from pydicom import dcmread

from cddnet.formats import read_volume
from cddnet.intensity.hu import air_for_padding
from cddnet.intensity.normalise import to_network
from cddnet.models._cards import read_card
from cddnet.runtime import processor, store
from cddnet.runtime.engines import open_engine
from cddnet.workflows._complexity import machine
from cddnet.workflows.demo import demo_series
from cddnet.workflows.denoise import DenoiseOptions, denoise_file

COLD_STARTS = 5
LIGHT_ENGINE = "onnx"
PROFILED_RUNS = 5
WARM_UP = 3
# The last line of standard error; getrusage would tell the memory of the process that began it. The
# processes that decode are still there when the command is done.
WATCHED_COMMAND = """
import sys
from pathlib import Path
from cddnet.cli import main

def peak_kb(process):
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1])

try:
    main()
finally:
    if sys.platform == "linux":
        threads = Path("/proc/self/task").glob("*/children")
        decoders = [child for thread in threads for child in thread.read_text().split()]
        print(sum(map(peak_kb, ["self", *decoders])), file=sys.stderr)
"""


def make_series(folder: Path, slices: int, *, uncompressed: bool) -> Path:
    """A legal series of that many slices: those of the demo, over and over, 1 mm apart."""
    folder.mkdir()
    sources = [dcmread(file) for file in sorted(demo_series().iterdir())]
    for dataset in sources if uncompressed else ():
        dataset.decompress(generate_instance_uid=False)
    for index in range(slices):
        dataset = sources[index % len(sources)]
        dataset.SOPInstanceUID = f"2.25.{10**30 + index}"
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        dataset.SeriesInstanceUID = f"2.25.{10**30 - 1}"
        dataset.InstanceNumber = index + 1
        across = list(dataset.ImagePositionPatient)[:2]
        dataset.ImagePositionPatient = [*across, f"{index:.6f}"]
        dataset.SliceLocation = f"{index:.6f}"
        dataset.save_as(folder / f"{index:05d}.dcm")
    return folder


def timed_series(source: Path, target: Path, options: DenoiseOptions) -> dict[str, float]:
    """Seconds of the network alone and of the whole series, with the same engine and threads."""
    weights = store.find(options.model)
    engine = open_engine(
        weights, read_card(weights), name=options.engine, device="cpu", threads=options.threads
    )
    volume = read_volume(demo_series())
    images = [
        to_network(air_for_padding(volume.read_slice(i), volume.padding(i))[None, None])
        for i in range(volume.shape[0])
    ]
    slices = sum(1 for _ in source.iterdir())

    def network(count: int) -> float:
        start = perf_counter()
        for index in range(count):
            engine.run(images[index % len(images)])
        return perf_counter() - start

    network(WARM_UP)
    before = network(slices // 2)
    start, first = perf_counter(), []
    denoise_file(
        source, target, options, lambda *_: None if first else first.append(perf_counter())
    )
    whole = perf_counter() - start
    behind = network(slices - slices // 2)
    return {
        "network": before + behind,
        "before": before / (slices // 2),
        "behind": behind / (slices - slices // 2),
        "whole": whole,
        "first": first[0] - start,
    }


def child(*arguments: str) -> dict[str, float]:
    """This script in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, *arguments], capture_output=True, text=True, check=True
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def command(source: Path, target: Path, *options: str) -> tuple[float, float]:
    """Seconds and peak memory in MB of `cddnet denoise`; NaN MB where the system does not tell."""
    start = perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", WATCHED_COMMAND, "denoise", str(source), str(target), *options],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    seconds, told = perf_counter() - start, done.stderr.split()
    return seconds, int(told[-1]) / 1000 * 1.024 if sys.platform == "linux" else float("nan")


def disk_mb(folder: Path) -> float:
    return sum(file.stat().st_size for file in folder.iterdir()) / 1e6


def layers(model: str, threads: int | None) -> None:
    """Print OpenVINO's time for one slice by kind of layer and precision."""
    weights = store.find(model)
    engine: Any = open_engine(
        weights, read_card(weights), name="openvino", device="cpu", threads=threads
    )
    engine._core.set_property("CPU", {"PERF_COUNT": True})
    hu = read_volume(demo_series()).read_slice(0)
    image = to_network(np.ascontiguousarray(hu)[None, None])
    seconds: Counter[str] = Counter()
    for run in range(WARM_UP + PROFILED_RUNS):
        engine.run(image)
        for layer in engine._compiled[image.shape].profiling_info if run >= WARM_UP else ():
            kind = layer.exec_type.rsplit("_", 1)[-1]
            seconds[f"{layer.node_type}, {kind}"] += layer.real_time.total_seconds()
    total = seconds.total()
    described = engine.described
    print(f"{weights.stem}, {described.engine}, {described.precision}, {engine.threads} threads")
    print(f"{total / PROFILED_RUNS * 1e3:.1f} ms in layers, mean of {PROFILED_RUNS} runs")
    for kind, spent in seconds.most_common():
        if spent >= total / 200:
            print(f"  {kind:24}{spent / total:7.1%}")


def report(chosen: argparse.Namespace) -> None:
    """Measure and print everything."""
    options = ["--model", chosen.model, "--engine", chosen.engine]
    options += [] if chosen.threads is None else ["--threads", str(chosen.threads)]
    threads = processor.chosen_threads(chosen.threads)
    print(
        f"{machine()}; {threads} threads, {store.find(chosen.model).stem}, engine {chosen.engine}",
        flush=True,
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make = partial(make_series, uncompressed=chosen.uncompressed)
        short = make(folder / "short", chosen.slices)
        times = child("--timed", str(short), *options)
        drift = times["behind"] / times["before"]
        print(
            f"{chosen.slices} slices: network alone {times['network']:.1f} s "
            f"(second half {drift:.2f} of the first), folder to folder {times['whole']:.1f} s "
            f"({times['first']:.1f} s to the first slice)"
        )
        print(f"ratio {times['whole'] / times['network']:.3f}", flush=True)
        seconds, little = command(short, folder / "out", *options)
        print(
            f"cddnet denoise, {chosen.slices} slices: {seconds:.1f} s, peak {little:.0f} MB; on "
            f"disk {disk_mb(short):.0f} MB in, {disk_mb(folder / 'out'):.0f} MB out",
            flush=True,
        )
        one = make(folder / "one", 1)
        light = [*options[:2], *options[4:]]
        cold = [
            command(one, folder / f"cold{turn}", "--engine", LIGHT_ENGINE, *light)[0]
            for turn in range(COLD_STARTS)
        ]
        print(
            f"cold start, one slice, {LIGHT_ENGINE}: {median(cold):.2f} s, median of "
            f"{COLD_STARTS} processes ({min(cold):.2f}-{max(cold):.2f})",
            flush=True,
        )
        if chosen.more:
            long = make(folder / "long", chosen.more)
            seconds, much = command(long, folder / "long_out", *options)
            more = (much - little) * 1e3 / (chosen.more - chosen.slices)
            print(
                f"cddnet denoise, {chosen.more} slices: {seconds:.1f} s, peak {much:.0f} MB: "
                f"{much / little:.3f} times that of {chosen.slices}, {more:.1f} kB a slice; on "
                f"disk {disk_mb(long):.0f} MB in, {disk_mb(folder / 'long_out'):.0f} MB out"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slices", type=int, default=300)
    parser.add_argument("--more", type=int, default=1500, help="0: leave the long series out")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--model", default="default")
    parser.add_argument(
        "--uncompressed", action="store_true", help="Explicit VR Little Endian, not JPEG-LS"
    )
    parser.add_argument("--layers", action="store_true", help="where OpenVINO spends a slice")
    parser.add_argument("--timed", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.layers:
        layers(chosen.model, chosen.threads)
    elif chosen.timed:
        options = DenoiseOptions(
            model=chosen.model, engine=chosen.engine, device="cpu", threads=chosen.threads
        )
        print(json.dumps(timed_series(chosen.timed, chosen.timed.parent / "timed", options)))
    else:
        report(chosen)


if __name__ == "__main__":
    main()
