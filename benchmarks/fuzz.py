"""Coverage-guided fuzzing of what reads files from outside.

    python benchmarks/fuzz.py TARGET --minutes 60 [--seed N] [--corpus DIR] [--out DIR]
    python benchmarks/fuzz.py codecs --decodes 200000 [--minutes 60] [--seed N] [--out DIR]

TARGET: dicom, derived, nifti, image, config or node. The law: a checked result or a CddnetError
within 10 s and 2 GB; whatever else happens is kept in OUT/findings, one file per place in the
code. CORPUS: more files to start from, which are only read. OUT: where findings and the inputs
that reached new code are kept, so that a later run can go on from them. Needs atheris (the extra
`fuzz`). Ends with status 1 where something was found.

`codecs` damages compressed files at random until decoders saw as many as `--decodes`, each of them
at least a twentieth, or the time is up. It needs no atheris: see `_fuzz_codecs.py`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import NamedTuple

import _fuzz_mutate

NAMES = ("dicom", "derived", "nifti", "image", "config", "node")
INSTRUMENTED = ["cddnet", "pydicom", "nibabel", "tifffile", "PIL", "yaml", "zipfile"]
LONGEST_S = 10
LARGEST_BYTES = 2 << 30
# Reading 4 GB where a length says so takes none of them; more is not given at all.
LARGEST_REQUEST_BYTES = 6 << 30
LARGEST_INPUT_BYTES = 1 << 18
IMPORTING = 60
# The fuzzer's own damage is done as often as that which knows the format.
BLIND_SHARE = 0.4
STATISTICS = re.compile(r"stat::number_of_executed_units:\s+(\d+)")
COVERAGE = re.compile(r"cov: (\d+) ft: (\d+)")


class Fuzzed(NamedTuple):
    """What one run of a target showed. stopped: how often the process ended before its time."""

    executions: int
    coverage: int
    features: int
    stopped: int
    findings: tuple[str, ...]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target", choices=(*NAMES, "codecs"))
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--corpus", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--decodes", type=int, default=1_000_000_000)
    parser.add_argument("--within", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--scratch", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    out = options.out or Path(tempfile.mkdtemp(prefix=f"fuzz-{options.target}-"))
    if options.target == "codecs":
        return _codecs(options, out)
    if options.within:
        _fuzz(options, out)
    print(
        f"{options.target}: seed {options.seed}, {options.minutes:g} min, kept in {out}", flush=True
    )
    found = fuzzed(options.target, out, options.corpus, seed=options.seed, minutes=options.minutes)
    print(
        f"{options.target}: {found.executions} executions, {found.coverage} edges, "
        f"{found.features} features, stopped {found.stopped} times, "
        f"{len(found.findings)} findings"
    )
    for line in found.findings:
        print(f"  {line}")
    return 1 if found.findings else 0


def _codecs(options: argparse.Namespace, out: Path) -> int:
    import _fuzz_codecs

    told = {"seed": options.seed, "decodes": options.decodes}
    if options.within:
        _fuzz_codecs.fuzz_within(out, minutes=options.within / 60, **told)
        return 0
    print(f"kept in {out}", flush=True)
    return 1 if _fuzz_codecs.fuzz_codecs(out, minutes=options.minutes, **told) else 0


def fuzzed(target: str, out: Path, extra: Path | None, *, seed: int, minutes: float) -> Fuzzed:
    """Fuzz in processes of their own, which a hang, a crash or too much memory may end."""
    corpus, ended = out / "corpus", time.monotonic() + 60 * minutes
    for folder in (corpus, out / "findings"):
        folder.mkdir(parents=True, exist_ok=True)
    _sow(target, corpus, extra)
    executions = coverage = features = stopped = 0
    while (left := ended - time.monotonic()) > 1:
        command = [sys.executable, __file__, target, "--out", str(out), "--within", f"{left:.0f}"]
        # In memory: a disk would be what is measured.
        shared = "/dev/shm" if os.path.isdir("/dev/shm") else None
        with tempfile.TemporaryDirectory(prefix="fuzzed-", dir=shared) as scratch:
            command += ["--seed", str(seed + stopped), "--scratch", scratch]
            done = subprocess.run(command, stderr=subprocess.PIPE, check=False)
        told = done.stderr.decode(errors="replace")
        (out / f"log-{stopped}.txt").write_text(told[-200_000:])
        executions += sum(map(int, STATISTICS.findall(told)[-1:]))
        for edges, reached in COVERAGE.findall(told)[-1:]:
            coverage, features = max(coverage, int(edges)), max(features, int(reached))
        if done.returncode == 0:
            break
        stopped += 1
        if not COVERAGE.search(told):
            raise SystemExit(f"the fuzzer did not start:\n{told[-3000:]}")
        _keep_stopped(out, told, done.returncode)
    lines = [file.read_text().splitlines()[0] for file in sorted(out.glob("findings/*.txt"))]
    return Fuzzed(executions, coverage, features, stopped, tuple(lines))


def _sow(target: str, corpus: Path, extra: Path | None) -> None:
    import _fuzz_seeds

    sown = "node" if target == "node" else "dicom" if target == "derived" else target
    for whole in getattr(_fuzz_seeds, sown)(extra):
        (corpus / hashlib.sha256(whole).hexdigest()[:16]).write_bytes(whole)


def _keep_stopped(out: Path, told: str, status: int) -> None:
    """Name what libFuzzer kept of a process that it, or the system, ended."""
    what = re.findall(r"ERROR: libFuzzer: (.*)|^(Fatal Python error.*)|SUMMARY: (.*)", told, re.M)
    reason = next((text for found in what for text in found if text), f"status {status}")
    for file in out.glob("findings/*-*"):
        if file.name.startswith(("crash-", "timeout-", "oom-", "slow-unit-", "leak-")):
            place = "\n".join(told.splitlines()[-60:])
            kept = file.with_name(f"stopped_{file.name}")
            file.rename(kept)
            kept.with_suffix(".txt").write_text(f"{kept.name}: {reason}\n{place}\n")


def _fuzz(options: argparse.Namespace, out: Path) -> None:
    """One process of libFuzzer; it does not come back."""
    import atheris

    # Libraries tell of every damaged field.
    logging.disable(logging.CRITICAL)
    name = options.target
    with atheris.instrument_imports(include=INSTRUMENTED):
        import _fuzz_targets

        target = _fuzz_targets.TARGETS[name](options.scratch)
        from cddnet.formats import _decoder_pool

        # Below the limit of an input.
        _decoder_pool.LIMIT_S = LONGEST_S / 5
        examine = _examined(target.run, out / "findings", target.suffix)
        # Much is imported when it is first needed, and only what is imported here is followed.
        for file in sorted((out / "corpus").iterdir())[:IMPORTING]:
            with suppress(Exception):
                target.run(file.read_bytes())
    damage: _fuzz_mutate.Damage = getattr(_fuzz_mutate, "dicom" if name == "derived" else name)

    def mutate(data: bytes, most_bytes: int, number: int) -> bytes:
        random = Random(number)
        if random.random() < BLIND_SHARE:
            return bytes(atheris.Mutate(data, most_bytes))
        return damage(bytes(data), random)[:most_bytes]

    flags = {
        "max_total_time": f"{options.within:.0f}",
        "seed": options.seed,
        "timeout": LONGEST_S,
        "rss_limit_mb": LARGEST_BYTES >> 20,
        "max_len": LARGEST_INPUT_BYTES,
        "artifact_prefix": f"{out / 'findings'}/",
        "print_final_stats": 1,
        "report_slow_units": LONGEST_S,
        "reload": 0,
    }
    arguments = [sys.argv[0], *(f"-{key}={value}" for key, value in flags.items())]
    atheris.Setup([*arguments, str(out / "corpus")], examine, custom_mutator=mutate)
    _bound_memory()
    atheris.Fuzz()


def _bound_memory() -> None:
    """What asks for far too much gets a MemoryError, and this machine stays well."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * os.sysconf("SC_PAGE_SIZE") + LARGEST_REQUEST_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _examined(run: Callable[[bytes], None], findings: Path, suffix: str) -> Callable[[bytes], None]:
    from cddnet.errors import CddnetError

    def examine(data: bytes) -> None:
        started = time.monotonic()
        Path("/proc/self/clear_refs").write_text("5")
        try:
            run(bytes(data))
        except CddnetError as error:
            # Also where it was taken for damage: on a larger machine it would have been granted.
            short = next((one for one in _chain(error) if isinstance(one, MemoryError)), None)
            if short is not None:
                _keep(findings, bytes(data), suffix, short)
        except Exception as error:
            _keep(findings, bytes(data), suffix, error)
        if time.monotonic() - started > LONGEST_S:
            _keep(findings, bytes(data), suffix, TimeoutError("slow"))
        if _peak_bytes() > LARGEST_BYTES:
            _keep(findings, bytes(data), suffix, MemoryError("peak"))

    return examine


def _peak_bytes() -> int:
    """The most that was resident since it was last reset."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return 1024 * int(found[1]) if found else 0


def _chain(error: BaseException | None) -> list[BaseException]:
    return [] if error is None else [error, *_chain(error.__cause__ or error.__context__)]


def _keep(findings: Path, data: bytes, suffix: str, error: BaseException) -> None:
    """Keep the smallest input for each kind of error and place in the code."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f"{Path(one.filename).name}:{one.lineno}" for one in frames if "cddnet" in one.filename]
    last = [f"{Path(one.filename).name}:{one.lineno}" for one in frames[-1:]]
    place = " <- ".join([*last, *ours[::-1][:3]])
    name = f"{type(error).__name__}-{hashlib.sha256(place.encode()).hexdigest()[:8]}"
    kept = findings / f"{name}{suffix}"
    if kept.exists() and kept.stat().st_size <= len(data):
        return
    kept.write_bytes(data)
    text = "".join(traceback.format_exception(error))
    summary = f"{kept.name}: {type(error).__name__}: {str(error)[:150]} at {place}"
    kept.with_suffix(".txt").write_text(f"{json.dumps(summary)}\n{text}")


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.exit(main())
