"""The node in figures, as Prometheus reads them. No label names a patient, a series or a file."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily
from prometheus_client.registry import Collector

from cddnet import __version__
from cddnet.node.settings.config import NodeConfig
from cddnet.node.watch.vocabulary import REASONS, STATES

OTHER = "other"
PROCESSING_SECONDS = (1, 2, 5, 10, 20, 40, 80, 160, 320, 640, 1280)
GB = 1e9


class OutputRow(Protocol):
    """destinations: name -> objects (queued, sent, failed)."""

    @property
    def state(self) -> str: ...
    @property
    def destinations(self) -> Mapping[str, tuple[int, int, int]]: ...


class SeriesRow(Protocol):
    """first_at: when its first slice came, seconds since 1970."""

    @property
    def state(self) -> str: ...
    @property
    def first_at(self) -> float: ...
    @property
    def outputs(self) -> Sequence[OutputRow]: ...


class Queue(Protocol):
    """What the journal tells of the series that are there."""

    def queue(self) -> Sequence[SeriesRow]:
        """Every series."""
        ...

    def oldest_unfinished_at(self) -> float | None:
        """When the last slice of the oldest came that anybody waits for; None without one."""
        ...


class Usage(Protocol):
    """What the images tell of the disk."""

    def used_bytes(self) -> int:
        """Of all that counts towards the quota."""
        ...

    def aside(self) -> int:
        """How many files are set aside."""
        ...


class NodeMetrics:
    """Counts since the start, and what the journal and the disk say at the time of asking."""

    def __init__(
        self,
        journal: Queue,
        config: NodeConfig,
        usage: Usage | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """usage: None: left out.  clock: that of the journal."""
        self._registry = CollectorRegistry()
        self._received = self._counter("received", "instances accepted")
        self._bytes = self._counter("received_bytes", "bytes of accepted instances")
        self._again = self._counter("received_again", "instances that were there already")
        self._refused = self._counter("refused", "instances or callers refused", "reason")
        self._slices = self._counter("denoised_slices", "slices denoised")
        self._seconds = Histogram(
            "cddnet_node_processing_seconds",
            "time to make one output of a series",
            buckets=PROCESSING_SECONDS,
            registry=self._registry,
        )
        self._registry.register(_Present(journal, config, usage, clock))

    def received(self, size_bytes: int) -> None:
        """An instance was accepted."""
        self._received.inc()
        self._bytes.inc(size_bytes)

    def received_again(self) -> None:
        """An instance came that was there already."""
        self._again.inc()

    def refused(self, reason: str) -> None:
        """An instance or a caller was refused; a reason that is not of REASONS counts as other."""
        self._refused.labels(reason if reason in REASONS else OTHER).inc()

    def processed(self, seconds: float, slices: int) -> None:
        """One output of a series was made."""
        self._seconds.observe(seconds)
        self._slices.inc(slices)

    def text(self) -> bytes:
        """All figures in the text format of Prometheus."""
        return generate_latest(self._registry)

    def _counter(self, name: str, told: str, *labels: str) -> Counter:
        return Counter(f"cddnet_node_{name}", told, labels, registry=self._registry)


class _Present(Collector):
    """Figures that are looked up when they are asked for."""

    def __init__(
        self, journal: Queue, config: NodeConfig, usage: Usage | None, clock: Callable[[], float]
    ) -> None:
        self._journal, self._config, self._usage, self._clock = journal, config, usage, clock

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """Nothing: the journal need not be open yet when this is registered."""
        return iter(())

    def collect(self) -> Iterator[GaugeMetricFamily | InfoMetricFamily]:
        """Every figure, labels out of closed lists alone."""
        rows = self._journal.queue()
        yield InfoMetricFamily("cddnet_node_build", "this node", {"version": __version__})
        yield _states("series", "series by state", [row.state for row in rows])
        outputs = [output for row in rows for output in row.outputs]
        yield _states("outputs", "outputs by state", [output.state for output in outputs])
        for place, told in enumerate(("queued", "sent", "send_failed")):
            counts = dict.fromkeys(self._config.destinations, 0)
            for output in outputs:
                for name, numbers in output.destinations.items():
                    known = name if name in self._config.destinations else OTHER
                    counts[known] = counts.get(known, 0) + numbers[place]
            yield _labelled(told, f"objects {told} by destination", "destination", counts)
        now = self._clock()
        unsent_at = min((row.first_at for row in rows if _is_unsent(row)), default=None)
        yield _age("oldest_unsent_seconds", "age of the oldest unsent series", now, unsent_at)
        unfinished_at = self._journal.oldest_unfinished_at()
        yield _age(
            "oldest_unfinished_seconds",
            "since the last slice of the oldest series that anybody waits for",
            now,
            unfinished_at,
        )
        disk = shutil.disk_usage(self._config.folder)
        yield _gauge("disk_free_bytes", "free on the disk of the folder", disk.free)
        needed = self._config.smallest_free_gb * GB
        yield _gauge("disk_needed_bytes", "with less, instances are refused", needed)
        if self._usage is not None:
            used, aside = self._usage.used_bytes(), self._usage.aside()
            yield _gauge("used_bytes", "of images, journal and files set aside", used)
            yield _gauge("set_aside_files", "files that a person should look at", aside)
        yield _gauge("quota_bytes", "that all images may use", self._config.quota_gb * GB)


def _is_unsent(row: SeriesRow) -> bool:
    """Whether a destination still waits for objects of a series."""
    return any(_waits(output) for output in row.outputs)


def _age(name: str, told: str, now: float, since: float | None) -> GaugeMetricFamily:
    return _gauge(name, told, 0.0 if since is None else max(0.0, now - since))


def _waits(output: OutputRow) -> bool:
    return any(queued or failed for queued, _, failed in output.destinations.values())


def _states(name: str, told: str, found: Sequence[str]) -> GaugeMetricFamily:
    counts = dict.fromkeys(sorted(STATES), 0)
    for state in found:
        known = state if state in STATES else OTHER
        counts[known] = counts.get(known, 0) + 1
    return _labelled(name, told, "state", counts)


def _labelled(name: str, told: str, label: str, counts: Mapping[str, int]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"cddnet_node_{name}", told, labels=[label])
    for value, count in counts.items():
        family.add_metric([value], count)
    return family


def _gauge(name: str, told: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"cddnet_node_{name}", told, value)
