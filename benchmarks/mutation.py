"""Mutation testing of physics, metrics and intensity: which small changes no test would see.

    python benchmarks/mutation.py --out FOLDER [--count 600] [--seed 8] [--again] [--drawings]

Each mutant of a seeded sample is made in a temporary copy of this repository and meets the tests
that run its function, the cheapest first. FOLDER keeps the outcomes (results.jsonl) and what each
test runs (tests.json): an interrupted run goes on where it was. --again repeats those that were
not killed, for when tests were added. --drawings samples what is left out otherwise: the numbers
that draw the anatomy of the phantoms. Takes a quarter of an hour of one core; needs Linux or macOS.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from _mutation_mutants import Mutant, mutants, sample
from _mutation_tests import PACKAGES, Forks, Test, Watches, followed

ROOT = Path(__file__).parents[1]
# Free numbers: no law says where an organ lies.
DRAWN = ("thorax", "abdomen", "shoulder", "_vertebra", "_ribs")
LEAST_OF_A_PACKAGE = 40
# Dearer tests are left out once those before take so long; what they would kill counts as alive.
MOST_TESTS_S = 12.0
PATIENCE, LEAST_S = 4.0, 15.0


def chosen(mutant: Mutant, tests: list[Test]) -> list[Test]:
    """Those that run the mutant's function, or its module if it is in none; those of its own file
    first, else file by file from the cheapest.
    """
    place = f"{mutant.file}:{mutant.first_line}" if mutant.first_line else f"{mutant.file}:"
    files: defaultdict[str, list[Test]] = defaultdict(list)
    for test in tests:
        if place in test.runs if mutant.first_line else any(r.startswith(place) for r in test.runs):
            files[test.node.split("::")[0]].append(test)
    own = f"test_{Path(mutant.file).stem.lstrip('_')}"
    order = sorted(
        files,
        key=lambda file: (not Path(file).stem.startswith(own), sum(t.cpu_s for t in files[file])),
    )
    cheapest = [test for file in order for test in sorted(files[file], key=lambda t: t.cpu_s)]
    taken: list[Test] = []
    spent = 0.0
    for test in cheapest:
        if spent + test.cpu_s <= MOST_TESTS_S or not taken:
            taken.append(test)
            spent += test.cpu_s
    return taken


def judged(mutant: Mutant, tests: list[Test], forks: Forks, copied: Path) -> dict[str, object]:
    """The record of a mutant: what it is, what became of it, and by which test."""
    taken = chosen(mutant, tests)
    record: dict[str, object] = {"name": mutant.name, **mutant._asdict(), "tests": len(taken)}
    if not taken:
        return record | {"outcome": "untested", "by": "", "cpu_s": 0.0}
    most_s = LEAST_S + PATIENCE * sum(test.cpu_s for test in taken)
    nodes = [str(copied / test.node) for test in taken]
    # A mutant may change the values in a test's name, or leave no test to be found.
    plain, files = ([node.split(end)[0] for node in nodes] for end in ("[", "::"))
    with _changed(copied / "src" / mutant.file, mutant):
        for asked in (nodes, plain, files):
            ended = forks.ask(list(dict.fromkeys(asked)), Watches(), most_s)
            if ended.status != pytest.ExitCode.USAGE_ERROR:
                break
    match ended.status:
        case 0:
            outcome = "survived"
        case 1 | 2:
            outcome = "killed"
        case _ if -ended.status in (signal.SIGXCPU, signal.SIGALRM, signal.SIGKILL):
            outcome = "timed out"
        case _ if ended.status < 0:
            outcome = "killed"
        case _:
            outcome = f"error {ended.status}"
    return record | {
        "outcome": outcome,
        "by": ended.said.split("\n")[0].removeprefix(f"{copied}/"),
        "cpu_s": round(ended.cpu_s, 1),
    }


@contextmanager
def _changed(file: Path, mutant: Mutant) -> Iterator[None]:
    original, times = file.read_bytes(), file.stat()
    file.write_bytes(mutant.source(original))
    # Compiled files go by time and size; this time is no other version's.
    os.utime(file, (1, 1))
    sys.dont_write_bytecode = True
    try:
        yield
    finally:
        sys.dont_write_bytecode = False
        file.write_bytes(original)
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


def everything(source: Path, *, drawings: bool) -> list[Mutant]:
    found: list[Mutant] = []
    for package in PACKAGES:
        for file in sorted((source / "cddnet" / package).glob("*.py")):
            found += mutants(file.read_bytes(), str(file.relative_to(source)))
    return [
        one
        for one in found
        if drawings == (one.function in DRAWN and one.kind in ("constant", "sign"))
    ]


def table(records: list[dict[str, object]]) -> str:
    """One line for each module and package, in Markdown."""
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for record in records:
        module = str(record["file"]).removeprefix("cddnet/")
        for name in (module, f"**{module.split('/')[0]}**", "**all**"):
            groups[name].append(str(record["outcome"]))
    lines = ["| module | mutants | killed | timed out | survived | untested | found |"]
    lines.append("|---|--:|--:|--:|--:|--:|--:|")
    for name in sorted(groups, key=lambda name: (name == "**all**", name.strip("*"))):
        outcomes = groups[name]
        counts = [outcomes.count(one) for one in ("killed", "timed out", "survived", "untested")]
        share = 100 * sum(counts[:2]) / len(outcomes)
        cells = " | ".join(map(str, [len(outcomes), *counts]))
        lines.append(f"| {name} | {cells} | {share:.1f} % |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=600)
    parser.add_argument("--seed", type=int, default=8)
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--drawings", action="store_true")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    results = options.out.resolve() / "results.jsonl"
    kept = options.out.resolve() / "tests.json"
    with tempfile.TemporaryDirectory(prefix="mutation-") as folder:
        copied = Path(folder).resolve()
        for name in ("src", "tests", "configs"):
            shutil.copytree(
                ROOT / name, copied / name, ignore=shutil.ignore_patterns("__pycache__")
            )
        shutil.copy2(ROOT / "pyproject.toml", copied)
        taken = sample(
            everything(copied / "src", drawings=options.drawings), options.count,
            seed=options.seed, least=LEAST_OF_A_PACKAGE,
        )  # fmt: skip

        def work(forks: Forks) -> None:
            known = _read(results)
            tests = followed(forks, copied, kept)
            for number, mutant in enumerate(taken, 1):
                before = known.get(mutant.name)
                found = before and before["outcome"] in ("killed", "timed out")
                if found or (before and not options.again):
                    continue
                record = judged(mutant, tests, forks, copied)
                with results.open("a") as file:
                    file.write(json.dumps(record) + "\n")
                print(
                    f"{number}/{len(taken)} {record['outcome']}: {mutant.file}:{mutant.line} "
                    f"{mutant.before[:60]} -> {mutant.after[:60]} ({record['cpu_s']} s)",
                    flush=True,
                )

        _run(copied, work)
    known = _read(results)
    records = [known[mutant.name] for mutant in taken if mutant.name in known]
    for record in records:
        if record["outcome"] not in ("killed", "timed out"):
            print(f"{record['outcome']} {record['name']} {record['file']}:{record['line']}")
            print(f"    {record['function']}: {record['before']}  ->  {record['after']}")
    print(table(records))
    return 0


def _run(copied: Path, work: Callable[[Forks], None]) -> None:
    os.chdir(copied)
    os.environ["PYTHONPATH"] = str(copied / "src")
    sys.path.insert(0, str(copied / "src"))
    arguments = ["-x", "-q", "-s", "-p", "no:cacheprovider", f"--rootdir={copied}", "tests"]
    arguments += ["-c", str(copied / "pyproject.toml")]
    status = pytest.main(arguments, plugins=[Forks(work)])
    if status:
        raise SystemExit(f"pytest ended with {status}")


def _read(results: Path) -> dict[str, dict[str, object]]:
    lines = results.read_text().splitlines() if results.exists() else []
    return {record["name"]: record for record in map(json.loads, lines)}


if __name__ == "__main__":
    sys.exit(main())
