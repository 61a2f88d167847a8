"""When the next series may be taken from its source: a night window and a rate, and the time left.

Pure: the time is a parameter. The clock is the machine's own, without a time zone, as people mean
it when they write 20:00.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, time, timedelta

from cddnet.errors import CddnetError

HOUR = timedelta(hours=1)
_WINDOW = re.compile(r"([01]?\d|2[0-3]):([0-5]\d)-([01]?\d|2[0-3]):([0-5]\d)")
_DAY_S = 86400.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """A part of each day, over midnight where `end` is before `start`; `end` is outside."""

    start: time
    end: time

    @classmethod
    def parse(cls, text: str) -> Window:
        """The window of `20:00-06:00`.  Raises CddnetError for anything else."""
        found = _WINDOW.fullmatch(text.strip())
        if found is None:
            raise CddnetError(f"window '{text}': expected two times of day such as 20:00-06:00.")
        first, second, third, fourth = (int(digits) for digits in found.groups())
        start, end = time(first, second), time(third, fourth)
        if start == end:
            raise CddnetError(f"window '{text}': start and end are the same; leave it out for all.")
        return cls(start=start, end=end)

    def holds(self, moment: datetime) -> bool:
        """Whether a moment lies in it."""
        clock = moment.time()
        if self.start < self.end:
            return self.start <= clock < self.end
        return clock >= self.start or clock < self.end

    def wait_s(self, now: datetime) -> float:
        """Seconds until it opens, 0 while it is open."""
        if self.holds(now):
            return 0.0
        opens = datetime.combine(now.date(), self.start)
        if opens < now:
            opens += timedelta(days=1)
        return (opens - now).total_seconds()

    @property
    def share(self) -> float:
        """Of the day."""
        length = timedelta(hours=self.end.hour - self.start.hour)
        length += timedelta(minutes=self.end.minute - self.start.minute)
        return (length.total_seconds() % _DAY_S) / _DAY_S


@dataclass(frozen=True, kw_only=True, slots=True)
class Pace:
    """per_hour: series begun in an hour, evenly spaced. window: in which they are begun."""

    per_hour: float | None = None
    window: Window | None = None

    def __post_init__(self) -> None:
        if self.per_hour is not None and not self.per_hour > 0:
            raise CddnetError(f"{self.per_hour} series per hour: expected a number above 0.")

    def wait_s(self, now: datetime, last: datetime | None) -> float:
        """Seconds until a series may begin; last: when the one before began."""
        window_s = self.window.wait_s(now) if self.window else 0.0
        if self.per_hour is None or last is None:
            return window_s
        due = last + HOUR / self.per_hour
        # A clock that was set back must not stop the run for longer than the rate asks.
        rate_s = min((due - now).total_seconds(), HOUR.total_seconds() / self.per_hour)
        return max(window_s, rate_s, 0.0)

    def left_s(self, remaining: int, seconds_each: float | None) -> float | None:
        """Time left in seconds; None before anything is known.

        seconds_each: from one finished series to the next, all workers together, while it runs.
        """
        spacings = [] if self.per_hour is None else [HOUR.total_seconds() / self.per_hour]
        spacings += [] if seconds_each is None else [seconds_each]
        if remaining == 0:
            return 0.0
        if not spacings:
            return None
        return remaining * max(spacings) / (self.window.share if self.window else 1.0)
