"""Bounds of what callers send: in time, per message, and over all of them."""

from __future__ import annotations

import socket
import ssl
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

# Only some systems have it.
_QUICK_ACKNOWLEDGE: int | None = getattr(socket, "TCP_QUICKACK", None)


class Budget:
    """Bytes that may be in memory on the way in, over all associations."""

    def __init__(self, most_bytes: int) -> None:
        self._most, self._used, self._lock = most_bytes, 0, threading.Lock()

    def take(self, size: int) -> bool:
        """Reserve bytes; False where there are not so many left."""
        with self._lock:
            if self._used + size > self._most:
                return False
            self._used += size
            return True

    def give(self, size: int) -> None:
        """Give bytes back."""
        with self._lock:
            self._used -= size


def without_delay(connection: socket.socket) -> None:
    """Send short messages at once: to wait for company costs 40 ms per image."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


class Inflow:
    """Reads one connection; what breaks a bound ends the connection.

    Its `receive` takes the place of the library's, which has no bounds and reads 4 KiB at a time.
    """

    def __init__(self, connection: socket.socket, longest_pdu: int, budget: Budget) -> None:
        self._socket, self._longest, self._budget = connection, longest_pdu, budget
        without_delay(connection)
        self._lock = threading.Lock()
        self._message, self._kept, self._closed = 0, deque[int](), False

    def receive(self, count: int) -> bytearray:
        """`count` bytes, fewer where the connection ends.  Raises OSError beyond a bound."""
        if count > self._longest:
            raise OSError(f"a PDU of {count} bytes is longer than {self._longest}")
        with self._lock:
            if self._closed or not self._budget.take(count):
                raise OSError("more data than there is room for")
            self._message += count
        data = bytearray(count)
        view, read = memoryview(data), 0
        while read < count:
            if _QUICK_ACKNOWLEDGE is not None:
                # A sender that waits for company waits for this.
                self._socket.setsockopt(socket.IPPROTO_TCP, _QUICK_ACKNOWLEDGE, 1)
            size = self._socket.recv_into(view[read:])
            if not size:
                break
            read += size
        view.release()
        del data[read:]
        return data

    def message_ended(self, *, kept: bool) -> None:
        """A message is whole. kept: it stays in memory until `handled`."""
        with self._lock:
            size, self._message = self._message, 0
            if kept:
                self._kept.append(size)
            else:
                self._budget.give(size)

    def handled(self) -> None:
        """The oldest kept message is gone."""
        with self._lock:
            if self._kept:
                self._budget.give(self._kept.popleft())

    def close(self) -> None:
        """The connection is over."""
        with self._lock:
            self._budget.give(self._message + sum(self._kept))
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
