"""Tests in children of one pytest, and what each of them runs: for `mutation.py`."""

from __future__ import annotations

import gc
import hashlib
import importlib
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import _lru_cache_wrapper
from pathlib import Path
from types import FrameType
from typing import NamedTuple, Protocol

import pytest

PACKAGES = ("physics", "metrics", "intensity")
# Plausibility figures have their tests where they decide.
TESTS = ("tests/intensity", "tests/metrics", "tests/physics", "tests/workflows/test_fitness.py")
# Imported once, not once for each mutant.
HEAVY = (
    "hypothesis.extra.numpy", "numpy", "pydicom", "scipy.fft", "scipy.interpolate", "scipy.ndimage",
    "scipy.optimize", "scipy.signal", "scipy.sparse", "scipy.special", "scipy.stats", "torch",
)  # fmt: skip
LONGEST_FILE_S = 600.0
MORE_BYTES = 6 << 30


class Ended(NamedTuple):
    """status: of the process, negative for a signal.  said: what it wrote for its parent."""

    status: int
    cpu_s: float
    said: str


class Test(NamedTuple):
    """runs: "file:first line" of the functions below `src` that it calls."""

    node: str
    cpu_s: float
    runs: frozenset[str]


class _Talks(Protocol):
    tell: Callable[[str], int]


class Forks:
    """A pytest that has its plug-ins and libraries, and goes on in one child for each question."""

    def __init__(self, work: Callable[[Forks], None]) -> None:
        self._work = work
        self._in_child = False

    @pytest.hookimpl(tryfirst=True)
    def pytest_cmdline_main(self, config: pytest.Config) -> int | None:
        if self._in_child:
            return None
        if "cddnet" in sys.modules:
            raise SystemExit("cddnet was imported before its mutant; this measures nothing")
        self._config = config
        for name in HEAVY:
            with suppress(ImportError):
                importlib.import_module(name)
        gc.freeze()
        self._work(self)
        return 0

    def ask(self, tests: list[str], plugin: _Talks, most_cpu_s: float) -> Ended:
        """Run tests in a child; what the plug-in tells comes back."""
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            status = 99
            try:
                self._in_child = True
                os.close(reading)
                _bound(most_cpu_s)
                silence = os.open(os.devnull, os.O_WRONLY)
                os.dup2(silence, 1)
                os.dup2(silence, 2)
                plugin.tell = lambda text: os.write(writing, text.encode())
                self._config.args[:] = tests
                self._config.pluginmanager.register(plugin)
                status = int(self._config.hook.pytest_cmdline_main(config=self._config))
            except pytest.UsageError:
                status = pytest.ExitCode.USAGE_ERROR
            finally:
                os._exit(status)
        os.close(writing)
        with os.fdopen(reading) as pipe:
            said = pipe.read()
        _, status, usage = os.wait4(child, 0)
        return Ended(os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime, said)


class Watches:
    """Tells which tests failed; hypothesis stops at its first example."""

    tell: Callable[[str], int]

    def pytest_sessionstart(self) -> None:
        from hypothesis import Phase, settings

        phases = (Phase.explicit, Phase.generate)
        settings.register_profile("mutation", parent=settings.default, phases=phases)
        settings.load_profile("mutation")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.tell(f"{report.nodeid}\n")

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.tell(f"{report.nodeid}\n")


class _Follows:
    """Notes which functions below a folder every test runs."""

    tell: Callable[[str], int]

    def __init__(self, source: Path) -> None:
        self._source = f"{source}/"
        self._now: set[str] = set()
        self._of_all: set[str] = set()
        self._tests: dict[str, tuple[float, set[str]]] = {}

    def pytest_sessionstart(self) -> None:
        sys.settrace(self._called)

    def _called(self, frame: FrameType, event: str, argument: object) -> None:
        file = frame.f_code.co_filename
        if file.startswith(self._source):
            self._now.add(f"{file[len(self._source) :]}:{frame.f_code.co_firstlineno}")

    def pytest_collection_finish(self) -> None:
        self._of_all |= self._now
        package = sys.modules.get("cddnet")
        if package is None or not str(package.__file__).startswith(self._source):
            raise SystemExit(f"cddnet is not that of the copy: {package}")

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_setup(self) -> Iterator[None]:
        # What a fixture made for one test, or a cache holds, serves others too.
        for held in gc.get_objects():
            if isinstance(held, _lru_cache_wrapper) and held.__module__.startswith("cddnet"):
                held.cache_clear()
        self._now = set()
        self._began = time.process_time()
        sys.settrace(self._called)
        yield
        self._of_all |= self._now
        self._now = set()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Iterator[None]:
        yield
        sys.settrace(None)
        self._tests[item.nodeid] = (time.process_time() - self._began, self._now)

    def pytest_sessionfinish(self) -> None:
        found = {
            node: [round(cpu_s, 3), sorted(runs | self._of_all)]
            for node, (cpu_s, runs) in self._tests.items()
        }
        self.tell(json.dumps(found))


def followed(forks: Forks, copied: Path, kept: Path) -> list[Test]:
    """What each test runs; measured again for files of tests that changed, or if a package did."""
    known = json.loads(kept.read_text()) if kept.exists() else {}
    sources = [one for name in PACKAGES for one in (copied / "src/cddnet" / name).glob("*.py")]
    base = _digest([*sources, copied / "tests/conftest.py"])
    found: list[Test] = []
    paths = [copied / name for name in TESTS]
    files = [one for path in paths for one in ([path] if path.suffix else path.rglob("test_*.py"))]
    for file in sorted(files):
        name = str(file.relative_to(copied))
        key = base + _digest([file])
        if known.get(name, {}).get("key") != key:
            ended = forks.ask([str(file)], _Follows(copied / "src"), LONGEST_FILE_S)
            if ended.status:
                raise SystemExit(f"{name} fails without any mutant (status {ended.status})")
            known[name] = {"key": key, "tests": json.loads(ended.said)}
            kept.write_text(json.dumps(known))
            print(f"{name}: {len(known[name]['tests'])} tests, {ended.cpu_s:.1f} s", flush=True)
        tests = known[name]["tests"].items()
        found += [Test(node, cpu_s, frozenset(runs)) for node, (cpu_s, runs) in tests]
    return found


def _bound(most_cpu_s: float) -> None:
    # Processor time: a busy machine is not a mutant's fault. The alarm is for one that waits.
    resource.setrlimit(resource.RLIMIT_CPU, (int(most_cpu_s) + 1, int(most_cpu_s) + 5))
    signal.alarm(60 + 20 * int(most_cpu_s))
    with suppress(OSError, ValueError):
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * os.sysconf("SC_PAGE_SIZE") + MORE_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _digest(files: Iterable[Path]) -> str:
    whole = hashlib.sha256()
    for file in sorted(files):
        whole.update(hashlib.sha256(file.read_bytes()).digest())
    return whole.hexdigest()[:16]
