"""What anybody may know of a node, answered soon however busy the journal is."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Protocol, TypedDict

PATIENCE_S = 2.0


class HealthView(TypedDict):
    """The answer of /health."""

    status: str
    oldest_unfinished_s: float  # since the last slice of the oldest series that anybody waits for
    set_aside: int  # files that a person should look at


class Unfinished(Protocol):
    """What the journal tells."""

    def oldest_unfinished_at(self, patience_s: float) -> float | None:
        """When the last slice of the oldest unfinished series came.  Raises TimeoutError."""
        ...


class Health:
    """Any thread may ask."""

    def __init__(
        self, journal: Unfinished, aside: Callable[[], int], clock: Callable[[], float]
    ) -> None:
        """aside: how many files are set aside.  clock: that of the journal."""
        self._journal, self._aside, self._clock = journal, aside, clock
        self._unfinished_at: float | None = None

    def view(self) -> HealthView:
        """As of now; where the journal does not answer soon, as of the last time it did."""
        with suppress(TimeoutError):
            self._unfinished_at = self._journal.oldest_unfinished_at(PATIENCE_S)
        since = self._unfinished_at
        age_s = 0.0 if since is None else max(0.0, self._clock() - since)
        return HealthView(status="ok", oldest_unfinished_s=round(age_s, 1), set_aside=self._aside())
