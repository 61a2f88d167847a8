"""Bounds of what callers send: in time, per message, and over all of them."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Any, NamedTuple

# Only some systems have it.
_QUICK_ACKNOWLEDGE: int | None = getattr(socket, "TCP_QUICKACK", None)


# The most of the budget that one caller may hold, so that there is always some for others.
SHARE = 0.75


class Budget:
    """Bytes that may be in memory on the way in, over all associations and for each caller."""

    def __init__(self, most_bytes: int) -> None:
        self._most, self._share = most_bytes, int(most_bytes * SHARE)
        self._held, self._lock = Counter[str](), threading.Lock()

    def take(self, size: int, caller: str) -> bool:
        """Reserve bytes for a caller; False where it or all together would hold too many."""
        with self._lock:
            if self._held[caller] + size > self._share or self._held.total() + size > self._most:
                return False
            self._held[caller] += size
            return True

    def give(self, size: int, caller: str) -> None:
        """Give bytes back."""
        with self._lock:
            self._held[caller] -= size
            # Callers come and go, and each would leave its name here.
            if not self._held[caller]:
                del self._held[caller]

    def held(self) -> int:
        """Bytes that are reserved now."""
        with self._lock:
            return self._held.total()


class Bounds(NamedTuple):
    """What one connection may send, and how long it may take."""

    longest_pdu: int  # bytes
    silent_s: float  # without a byte
    pdu_s: float  # for the header or the rest of one PDU
    message_s: float  # for one message with its data set


class TooSlowError(TimeoutError):
    """A caller that sends, but takes longer than it may."""


def without_delay(connection: socket.socket) -> None:
    """Send short messages at once: to wait for company costs 40 ms per image."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


class Inflow:
    """Reads one connection; what breaks a bound ends the connection.

    Its `receive` takes the place of the library's, which has no bounds and reads 4 KiB at a time.
    """

    def __init__(
        self, connection: socket.socket, bounds: Bounds, budget: Budget, caller: str
    ) -> None:
        """caller: whose share of the budget it is, the address of the other side."""
        self._socket, self._bounds = connection, bounds
        self._budget, self._caller = budget, caller
        without_delay(connection)
        connection.settimeout(bounds.silent_s)
        self._lock = threading.Lock()
        self._message, self._kept, self._closed = 0, deque[int](), False
        self._until = 0.0

    def receive(self, count: int) -> bytearray:
        """`count` bytes, fewer where the connection ends.  Raises OSError beyond a bound."""
        if count > self._bounds.longest_pdu:
            raise OSError(f"a PDU of {count} bytes is longer than {self._bounds.longest_pdu}")
        now = time.monotonic()
        with self._lock:
            if self._closed or not self._budget.take(count, self._caller):
                raise OSError("more data than there is room for")
            if self._message == 0:
                self._until = now + self._bounds.message_s
            self._message += count
        until = min(self._until, now + self._bounds.pdu_s)
        data = bytearray(count)
        view, read = memoryview(data), 0
        try:
            while read < count:
                if _QUICK_ACKNOWLEDGE is not None:
                    # A sender that waits for company waits for this.
                    self._socket.setsockopt(socket.IPPROTO_TCP, _QUICK_ACKNOWLEDGE, 1)
                size = self._read_into(view[read:], until)
                if not size:
                    break
                read += size
        finally:
            view.release()
        del data[read:]
        return data

    def _read_into(self, view: memoryview, until: float) -> int:
        left_s = until - time.monotonic()
        if left_s <= 0:
            raise TooSlowError("a message took too long")
        if left_s >= self._bounds.silent_s:
            return self._socket.recv_into(view)
        self._socket.settimeout(left_s)
        try:
            return self._socket.recv_into(view)
        except TimeoutError as error:
            raise TooSlowError("a message took too long") from error
        finally:
            self._socket.settimeout(self._bounds.silent_s)

    def message_ended(self, *, kept: bool) -> None:
        """A message is whole. kept: it stays in memory until `handled`."""
        with self._lock:
            size, self._message = self._message, 0
            if kept:
                self._kept.append(size)
            else:
                self._budget.give(size, self._caller)

    def handled(self) -> None:
        """The oldest kept message is gone."""
        with self._lock:
            if self._kept:
                self._budget.give(self._kept.popleft(), self._caller)

    def close(self) -> None:
        """The connection is over."""
        with self._lock:
            self._budget.give(self._message + sum(self._kept), self._caller)
            self._message, self._closed = 0, True
            self._kept.clear()
        # The library leaves this to the garbage collector where the caller went away.
        self._socket.close()


def guard(
    association: Any,  # noqa: ANN401
    inflow: Inflow,
    refused: Callable[[str, Exception], None],
) -> None:
    """Let an association read through `inflow`, and end where the library fails on what it reads.

    refused: is told a reason for the log and the error.
    """

    def read(count: int) -> bytearray:
        try:
            return inflow.receive(count)
        except TooSlowError as error:
            refused("slow", error)
            raise
        except ssl.SSLError as error:
            # The library tells nobody of a handshake that failed.
            refused("tls", error)
            raise

    def ending(run: Callable[[], None]) -> Callable[[], None]:
        def guarded() -> None:
            try:
                run()
            except Exception as error:
                refused("damaged", error)
                # It would else stay connected, and hold two threads, for ever.
                association.dul.kill_dul()
                inflow.close()

        return guarded

    association.inflow = inflow
    association.dul.socket.recv = read
    for thread in (association, association.dul):
        thread.run = ending(thread.run)
