"""Time for waits and ages, which nobody can put back while the node runs."""

from __future__ import annotations

import time
from collections.abc import Callable

Seconds = Callable[[], float]


class SteadyClock:
    """Seconds since 1970 as the system's clock said at the start, counted on without it.

    Whoever puts the system's clock back or forward neither holds up nor hurries what waits.
    """

    def __init__(self, wall: Seconds = time.time, monotonic: Seconds = time.monotonic) -> None:
        self._monotonic = monotonic
        self._offset_s = wall() - monotonic()

    def __call__(self) -> float:
        return self._monotonic() + self._offset_s
