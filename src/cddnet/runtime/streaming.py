"""Slices one after the other, with the next ones in the making."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Generic, TypeVar

Item = TypeVar("Item")


def ahead(jobs: Iterable[Callable[[], Item]], count: int) -> Generator[Item]:
    """Results of jobs in their order; a thread of its own works up to `count` ahead of the taker.

    What a job raises is raised here, at its place. Closing the iterator drops jobs not yet begun.
    """
    waiting: deque[Future[Item]] = deque()
    with ThreadPoolExecutor(1) as thread:
        try:
            for job in jobs:
                waiting.append(thread.submit(job))
                if len(waiting) > count:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for job_ahead in waiting:
                job_ahead.cancel()


def batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Items in lists of `size`, the last one shorter."""
    source = iter(items)
    while batch := list(islice(source, size)):
        yield batch


class InOrder(Generic[Item]):
    """Random access to a stream: the next item comes from it, any other is made afresh."""

    def __init__(self, stream: Iterator[Item], make: Callable[[int], Item]) -> None:
        self._stream, self._make, self._next = stream, make, 0

    def __call__(self, index: int) -> Item:
        if index != self._next:
            return self._make(index)
        self._next += 1
        return next(self._stream)
