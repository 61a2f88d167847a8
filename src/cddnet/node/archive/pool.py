"""Who does the work of an archive run: this process, a local Dask cluster, or a real one."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from cddnet.errors import CddnetError
from cddnet.node.archive.manifest import Outcome
from cddnet.node.archive.series import Task, denoise_series

LOOPBACK = "127.0.0.1"
CONNECT_S = 30.0


class Pool(Protocol):
    """Takes tasks and gives outcomes back, in any order."""

    def slots(self) -> int:
        """Series that may be under way at once; 0 while no worker is there."""
        ...

    def submit(self, task: Task) -> None: ...

    def finished(self, timeout_s: float) -> list[tuple[str, Outcome]]:
        """(key, outcome) of what has ended, after waiting for it so long at most."""
        ...


class Here:
    """Without Dask, in the process itself, one series at a time."""

    def __init__(self) -> None:
        self._tasks: list[Task] = []

    def slots(self) -> int:
        """One."""
        return 1

    def submit(self, task: Task) -> None:
        """Keep it until somebody asks for the outcome."""
        self._tasks.append(task)

    def finished(self, timeout_s: float) -> list[tuple[str, Outcome]]:
        """Work on what was submitted, however long it takes."""
        tasks, self._tasks = self._tasks, []
        return [(task.key, denoise_series(task)) for task in tasks]


class Dask:
    """Workers of a Dask cluster, one series on each, so that a killed one costs no other."""

    def __init__(self, client: Any) -> None:  # noqa: ANN401
        self._client, self._futures, self._count = client, dict[Any, str](), 0

    def slots(self) -> int:
        """Workers, whatever their threads: the network of a series may use those."""
        self._require_connection()
        return len(self._client.nthreads())

    def submit(self, task: Task) -> None:
        """Send the names of a series to a worker."""
        self._count += 1
        name = f"series-{task.key}-{self._count}"
        self._futures[self._client.submit(denoise_series, task, key=name, pure=False)] = task.key

    def finished(self, timeout_s: float) -> list[tuple[str, Outcome]]:
        """Outcomes; a worker that died, or a cluster that lost the series, is a failed one."""
        import distributed

        self._require_connection()
        if not self._futures:
            return []
        # A cancelled one is among those that are done.
        with suppress(distributed.TimeoutError, distributed.CancelledError):
            distributed.wait(  # type: ignore[no-untyped-call]
                list(self._futures), timeout=timeout_s, return_when="FIRST_COMPLETED"
            )
        done = [future for future in self._futures if future.done()]
        return [(self._futures.pop(future), _outcome(future)) for future in done]

    def _require_connection(self) -> None:
        if self._client.status != "running":
            raise CddnetError(
                "the connection to the Dask scheduler is lost; run the same command again, it goes "
                "on where it was."
            )


def _outcome(future: Any) -> Outcome:  # noqa: ANN401
    if future.status == "finished":
        outcome: Outcome = future.result()
        return outcome
    error = future.exception() if future.status == "error" else None
    why = type(error).__name__ if error is not None else "Lost"
    return Outcome("failed", "the worker was killed or lost, maybe for want of memory", why)


@contextmanager
def open_pool(workers: int, scheduler: str | None, folder: Path) -> Iterator[Pool]:
    """Workers for the time of the block.

    workers: processes of this machine with a thread each; 0 for this process itself, without Dask.
    scheduler: address of a Dask scheduler whose workers have this package and the same folders.
    folder: for what Dask writes.  Raises: CddnetError without Dask, or an answer from the address.
    """
    if workers < 0:
        raise CddnetError(f"{workers} workers: expected 0 (this process) or more.")
    if scheduler is None and workers == 0:
        yield Here()
        return
    try:
        import dask
        import distributed
    except ImportError as error:
        raise CddnetError(
            "an archive run needs Dask, which is not installed; pip install cddnet[archive], or "
            "give --workers 0 to work in this process."
        ) from error
    # Its messages quote addresses and keys, and what matters is in the manifest.
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    with ExitStack() as stack:
        address: Any = scheduler
        if scheduler is None:
            # A dead worker costs its series one attempt, which is counted here.
            stack.enter_context(dask.config.set({"distributed.scheduler.allowed-failures": 0}))
            address = stack.enter_context(
                distributed.LocalCluster(  # type: ignore[no-untyped-call]
                    n_workers=workers,
                    threads_per_worker=1,
                    processes=True,
                    host=LOOPBACK,
                    dashboard_address=None,
                    worker_dashboard_address=None,
                    local_directory=str(folder),
                    silence_logs=logging.CRITICAL,
                    # Others on this machine reach the loopback too.
                    security=importlib.util.find_spec("cryptography") is not None or None,
                )
            )
        try:
            client = distributed.Client(  # type: ignore[no-untyped-call]
                address, timeout=CONNECT_S
            )
        except (OSError, ValueError, distributed.TimeoutError) as error:
            raise CddnetError(
                f"{scheduler}: no Dask scheduler answers there ({type(error).__name__}); give an "
                "address such as tcp://10.0.0.5:8786."
            ) from None
        stack.enter_context(client)
        yield Dask(client)
