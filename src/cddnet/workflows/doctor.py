"""What this machine offers to cddnet, what is broken, and what would make it faster.

Nothing is downloaded and nobody is asked: only this machine is looked at.
"""

# Shapes: B batch, H row, W column.

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from enum import Enum
from importlib.resources import files
from math import inf
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import numpy as np

from cddnet import __version__
from cddnet.errors import CddnetError
from cddnet.formats import read_volume
from cddnet.intensity.normalise import to_network
from cddnet.models._cards import read_card, read_checked
from cddnet.runtime import graphs, processor, store
from cddnet.runtime.engines import Images, Job, open_engine, refusals
from cddnet.volume import SliceHU
from cddnet.workflows._extras import EXTRAS, missing

SIDE = 256
# Each engine keeps within 0.5 HU of torch in float32, so two of them within 1 HU of each other.
MOST_APART_HU = 1.0
# More than this much slower than the fastest engine is worth a word.
_CLEARLY_SLOWER = 1.25
_ROUNDS = 3
_LITTLE_MEMORY_GB = 1.5
_LITTLE_DISK_GB = 1.0
_GB = 1e9
# A sample compressed with loss is within 10 HU of the plain one, one of 8 bits within 30.
_LOSS_HU = 40.0
_REFERENCE = "explicit_little_endian"


class State(str, Enum):
    """ok; note: works, and could be better; broken: will not work."""

    ok = "ok"
    note = "note"
    broken = "broken"


class Finding(NamedTuple):
    """One thing looked at.  advice: what to do about it, "" if nothing."""

    what: str
    state: State
    found: str
    advice: str = ""


class Timed(NamedTuple):
    """An engine that ran.  seconds: median per slice.  denoised: (1, 1, H, W) network range."""

    name: str
    described: str
    seconds: float
    denoised: Images


def examine(folder: Path) -> tuple[Finding, ...]:
    """Everything there is to say about this machine, for work in `folder`; takes some seconds."""
    return (
        Finding("cddnet", State.ok, f"{__version__}, Python {platform.python_version()}"),
        *_processor(),
        _memory(),
        *_disks(folder),
        *_weights(),
        *_engines(),
        *codecs(Path(str(files("cddnet") / "data" / "codecs"))),
        *_extras(),
    )


def healthy(findings: tuple[Finding, ...]) -> bool:
    """Whether nothing is broken."""
    return all(finding.state is not State.broken for finding in findings)


def table(findings: tuple[Finding, ...]) -> str:
    """A line for each finding, its advice below it."""
    wide = max(len(finding.what) for finding in findings)
    lines = []
    for what, state, found, advice in findings:
        lines.append(f"{state.value:7}{what:{wide}}  {found}")
        if advice:
            lines.append(f"{'':7}{'':{wide}}  -> {advice}")
    return "\n".join(lines)


def _processor() -> Iterator[Finding]:
    usable, threads = processor.physical_cores(), processor.default_threads()
    bfloat16 = "bfloat16" if processor.has_bfloat16() else "no bfloat16, so float32"
    found = f"{usable} cores to use of {os.cpu_count()} processors, {processor.units()}, {bfloat16}"
    yield Finding("processor", State.ok, found)
    said = os.environ.get("OMP_NUM_THREADS")
    if said is not None and threads < min(usable, processor.MOST_THREADS):
        advice = "unset it, or give --threads, where nothing else runs on this machine"
        yield Finding("threads", State.note, f"{threads}, by OMP_NUM_THREADS={said}", advice)
    else:
        yield Finding("threads", State.ok, f"{threads} for the network")
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if load > usable:
        advice = "others are at work here: the times below are too long, compare them only"
        yield Finding("load", State.note, f"{load:.1f} on {usable} cores", advice)


def _memory() -> Finding:
    available = _available_memory_gb()
    if available is None:
        return Finding("memory", State.ok, "this system does not say how much is free")
    if available < _LITTLE_MEMORY_GB:
        advice = "close other programs; large matrices may not fit"
        return Finding("memory", State.note, f"{available:.1f} GB free", advice)
    return Finding("memory", State.ok, f"{available:.1f} GB free")


def _available_memory_gb() -> float | None:
    """What the system has free, or less where a container may not have it; None if not told."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        kilobytes = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return None
    free = kilobytes * 1024 / _GB
    try:
        most = int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="utf-8"))
        used = int(Path("/sys/fs/cgroup/memory.current").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return free
    return min(free, (most - used) / _GB)


def _disks(folder: Path) -> Iterator[Finding]:
    for what, place in (("this folder", folder), ("temporary files", Path(tempfile.gettempdir()))):
        if not os.access(place, os.W_OK):
            yield Finding(what, State.broken, f"{place} cannot be written", "work in another one")
            continue
        free = shutil.disk_usage(place).free / _GB
        state, advice = State.ok, ""
        if free < _LITTLE_DISK_GB:
            state, advice = State.note, "make room: 300 slices of 512 x 512 take 0.16 GB"
        yield Finding(what, state, f"{free:.1f} GB free", advice)


def _weights() -> Iterator[Finding]:
    for name, path in store.shipped().items():
        try:
            card = read_card(path)
            read_checked(path, card)
        except CddnetError as error:
            yield Finding(name, State.broken, str(error), "install cddnet again")
            continue
        graph = "" if graphs.find(path, card) is None else ", with a graph for onnx and openvino"
        yield Finding(name, State.ok, f"its SHA-256 is that of its card{graph}")


def _engines() -> Iterator[Finding]:
    try:
        weights = store.find(store.DEFAULT)
        job = Job(weights, read_card(weights), "cpu", processor.default_threads())
    except CddnetError:
        return
    ran: list[Timed] = []
    for name, refusal in refusals(job).items():
        if refusal:
            yield Finding(f"engine {name}", State.note, "not here", refusal)
            continue
        try:
            timed = _time_engine(name, job)
        except Exception as error:
            advice = "install it again, or give --engine with another one"
            yield Finding(
                f"engine {name}", State.broken, f"failed ({type(error).__name__})", advice
            )
            continue
        ran.append(timed)
        yield _judged(timed, ran[0])
    yield from _choice(ran)


def _time_engine(name: str, job: Job) -> Timed:
    engine = open_engine(job.weights, job.card, name=name, device="cpu", threads=job.threads)
    image = to_network(_slice_hu())[None, None]
    denoised, seconds = engine.run(image), []
    for _ in range(_ROUNDS):
        start = perf_counter()
        engine.run(image)
        seconds.append(perf_counter() - start)
    told = engine.described
    return Timed(name, f"{told.engine}, {told.precision}", sorted(seconds)[1], denoised)


def _judged(timed: Timed, other: Timed) -> Finding:
    what = f"engine {timed.name}"
    apart = np.abs(timed.denoised - other.denoised).mean() * 1024
    if not np.isfinite(apart) or apart > MOST_APART_HU:
        found = f"{timed.described}: {apart:.2f} HU from {other.name} on average"
        return Finding(what, State.broken, found, f"report it, and give --engine {other.name}")
    shown = f"{timed.described}: {1000 * timed.seconds:.1f} ms per slice of {SIDE} x {SIDE}"
    return Finding(what, State.ok, shown)


def _choice(ran: list[Timed]) -> Iterator[Finding]:
    if processor.may_have_gpu():
        found = "torch is asked whether it can use it"
        advice = "the first line of `cddnet denoise` tells the device; --device cpu does without"
        yield Finding("GPU", State.note, found, advice)
    if not ran:
        yield Finding("--engine auto", State.broken, "no engine runs", "pip install torch")
        return
    taken, fastest = ran[0], min(ran, key=lambda timed: timed.seconds)
    slower = taken.seconds / fastest.seconds
    if slower > _CLEARLY_SLOWER:
        found = f"takes {taken.name}, {slower:.1f} times slower here than {fastest.name}"
        advice = f"try --engine {fastest.name}; `cddnet benchmark --quick` measures it longer"
        yield Finding("--engine auto", State.note, found, advice)
        return
    yield Finding("--engine auto", State.ok, f"takes {taken.name}")


def _slice_hu() -> SliceHU:
    """A disc of noisy water in air, with a dense spot (H, W)."""
    row, column = np.mgrid[:SIDE, :SIDE] - SIDE / 2
    noisy = np.random.default_rng(0).normal(0, 30, (SIDE, SIDE))
    hu = np.where(row**2 + column**2 < (0.4 * SIDE) ** 2, noisy, -1000)
    return np.where((row - 40) ** 2 + column**2 < 100, 900, hu).astype(np.float32)


def codecs(folder: Path) -> Iterator[Finding]:
    """Whether each sample in `folder` decodes to the plain one, or near it if lossy.

    The samples are those of `benchmarks/codec_samples.py`.
    """
    decoded = {path.stem: _decoded(path) for path in sorted(folder.glob("*.dcm"))}
    plain = decoded[_REFERENCE]
    bad = []
    for name, hu in decoded.items():
        most = _LOSS_HU if name.startswith("lossy") else 0.0
        apart = inf if hu is None or plain is None else float(np.abs(hu - plain).max())
        if not apart <= most:
            bad.append(f"{name} " + ("not at all" if apart == inf else f"{apart:.0f} HU off"))
    told = f"{len(decoded) - len(bad)} of {len(decoded)} ways of coding CT pixels are read"
    if bad:
        advice = "install cddnet again, with its pylibjpeg, pyjpegls and python-gdcm"
        yield Finding("codecs", State.broken, f"{told}; {', '.join(bad)}", advice)
    else:
        yield Finding("codecs", State.ok, told)


def _decoded(path: Path) -> SliceHU | None:
    """HU of a sample (1, H, W); None where reading fails in whatever way."""
    try:
        return read_volume(path).hu
    except Exception:
        return None


def _extras() -> Iterator[Finding]:
    for extra, (_, purpose) in EXTRAS.items():
        lacking = missing(extra)
        if lacking:
            advice = f"for {purpose}: pip install cddnet[{extra}]"
            yield Finding(f"extra {extra}", State.note, f"without {', '.join(lacking)}", advice)
        else:
            yield Finding(f"extra {extra}", State.ok, purpose)
