"""Decoder processes kept warm: a frame that crashes or hangs its decoder costs that frame alone."""

# Shapes: H row, W column.

from __future__ import annotations

import atexit
import os
import select
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from numpy.typing import NDArray

from cddnet.errors import CddnetError
from cddnet.formats._codecs import CodedFrame
from cddnet.formats._decoder_process import MISSING, PIXELS, READY, request_of

PROGRAM = "cddnet.formats._decoder_process"
# Some thousand times what a sound frame takes, so that a busy machine refuses nothing.
LIMIT_S = 10.0
LIMIT_S_PER_PIXEL = 10e-6
START_LIMIT_S = 60.0
# Beyond its limit a process should have ended itself.
_GRACE_S = 5.0
_END_S = 1.0
# The most that Linux grants everybody; a frame then goes through at once.
_PIPE_BYTES = 1 << 20

Reason = Literal["damaged", "missing", "ended", "late"]


class DecodingError(Exception):
    """A frame that was not decoded.

    reason: damaged: the decoder says so; missing: there is no decoder; ended: the decoder crashed
    or wanted too much memory; late: it took too long.
    """

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason: Reason = reason


class DecoderPool:
    """Decoder processes for the threads of this process, at most one for each processor."""

    def __init__(self) -> None:
        self._places = threading.BoundedSemaphore(_processors())
        self._idle: list[_Decoder] = []
        self._all: set[_Decoder] = set()

    def decode(self, frame: CodedFrame) -> NDArray[np.integer[Any]]:
        """Stored values (H, W).

        Raises DecodingError where the frame is to blame, CddnetError where no process starts.
        """
        with self._places:
            decoder = self._take_idle()
            if decoder is not None:
                # It may have ended for other reasons, such as a minute without work.
                with suppress(_EndedError):
                    return self._ask(decoder, frame)
            try:
                return self._ask(self._start(), frame)
            except _EndedError:
                raise DecodingError("ended") from None

    def close(self) -> None:
        """End all processes."""
        for decoder in tuple(self._all):
            decoder.close()
        for decoder in tuple(self._all):
            self._end(decoder)

    def forget(self) -> None:
        """Let go of the processes of another process, from which this one was forked."""
        for decoder in tuple(self._all):
            decoder.forget()

    def _take_idle(self) -> _Decoder | None:
        while True:
            try:
                decoder = self._idle.pop()
            except IndexError:
                return None
            if decoder.runs():
                return decoder
            self._end(decoder)

    def _start(self) -> _Decoder:
        decoder = _Decoder()
        self._all.add(decoder)
        return decoder

    def _ask(self, decoder: _Decoder, frame: CodedFrame) -> NDArray[np.integer[Any]]:
        """Decode by one process, which goes on only after a sound frame.

        A damaged frame may have left damage in the memory of its decoder.
        """
        try:
            stored = decoder.decode(frame)
        except BaseException:
            self._end(decoder)
            raise
        self._idle.append(decoder)
        return stored

    def _end(self, decoder: _Decoder) -> None:
        decoder.end()
        self._all.discard(decoder)


class _EndedError(Exception):
    """The process ended before it answered."""


class _Decoder:
    """One decoder process."""

    def __init__(self) -> None:
        self._ready = False
        root = str(Path(__file__).parents[2])
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-m", PROGRAM],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                # Libraries complain there of what is damaged, and of some things that are not.
                stderr=subprocess.DEVNULL,
                bufsize=0,
                # Not the folder of the user, where a file may have the name of a module.
                cwd=root,
                env=_environment(root),
                # Away from the signals of the terminal.
                start_new_session=True,
            )
        except (OSError, TypeError) as error:
            raise _start_error(type(error).__name__) from error
        for pipe in (self._requests, self._replies):
            _widen(pipe)

    @property
    def _requests(self) -> IO[bytes]:
        assert self._process.stdin is not None
        return self._process.stdin

    @property
    def _replies(self) -> IO[bytes]:
        assert self._process.stdout is not None
        return self._process.stdout

    def runs(self) -> bool:
        """Whether the process has not ended."""
        return self._process.poll() is None

    def decode(self, frame: CodedFrame) -> NDArray[np.integer[Any]]:
        """Stored values (H, W).  Raises _EndedError where the process ends."""
        self._require_ready()
        limit_s = LIMIT_S + LIMIT_S_PER_PIXEL * frame.rows * frame.columns
        started = time.monotonic()
        until = started + limit_s + _GRACE_S
        try:
            self._write(request_of(frame, limit_s), until)
            kind = self._read(1, until)
            if kind == MISSING:
                raise DecodingError("missing")
            if kind != PIXELS:
                raise DecodingError("damaged")
            stored = np.empty((frame.rows, frame.columns), frame.dtype)
            self._read_into(stored.data.cast("B"), until)
        except _EndedError:
            if time.monotonic() - started >= limit_s:
                raise DecodingError("late") from None
            raise
        return stored

    def _require_ready(self) -> None:
        if self._ready:
            return
        with suppress(_EndedError, DecodingError):
            self._ready = self._read(1, time.monotonic() + START_LIMIT_S) == READY
        if not self._ready:
            raise _start_error(f"python -m {PROGRAM} fails")

    def _write(self, data: bytes, until: float) -> None:
        left = memoryview(data)
        while left:
            _await(self._requests, until, writing=True)
            try:
                left = left[self._requests.write(left) or 0 :]
            except OSError:
                raise _EndedError from None

    def _read(self, count: int, until: float) -> bytes:
        data = bytearray(count)
        self._read_into(memoryview(data), until)
        return bytes(data)

    def _read_into(self, left: memoryview, until: float) -> None:
        while left:
            _await(self._replies, until)
            count = self._replies.readinto(left)  # type: ignore[attr-defined]
            if count == 0:
                raise _EndedError
            left = left[count or 0 :]

    def close(self) -> None:
        """Tell the process that no more frames come."""
        with suppress(OSError):
            self._requests.close()

    def end(self) -> None:
        """End the process now, unless it already ends by itself."""
        if not self._requests.closed:
            self._process.kill()
        self.close()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._replies.close()

    def forget(self) -> None:
        """Close what a fork copied; the process belongs to another one."""
        self.close()
        self._replies.close()
        self._process.returncode = 0


def _await(pipe: IO[bytes], until: float, *, writing: bool = False) -> None:
    """Wait until a pipe is ready.  Raises DecodingError when it is late.

    Where the system cannot wait for a pipe, the process alone watches the time.
    """
    if not hasattr(select, "poll"):
        return
    waiting = select.poll()
    waiting.register(pipe, select.POLLOUT if writing else select.POLLIN)
    # A process that was stopped for a while looks at the pipe at least once.
    if not waiting.poll(max(0.0, until - time.monotonic()) * 1000):
        raise DecodingError("late")


def _widen(pipe: IO[bytes]) -> None:
    """Make a pipe hold a frame, where that is possible, and never wait for it."""
    if os.name == "nt":
        return
    import fcntl

    os.set_blocking(pipe.fileno(), False)
    if hasattr(fcntl, "F_SETPIPE_SZ"):
        with suppress(OSError):
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)


def _environment(root: str) -> dict[str, str]:
    """That of this process, in which the same package is found; a decoder uses one thread."""
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "OPJ_NUM_THREADS": "0"}
    return {**os.environ, **threads, "PYTHONPATH": os.pathsep.join(paths)}


def _start_error(why: str) -> CddnetError:
    remedy = "close other programs and try again"
    if why == "PermissionError":
        remedy = f"this user may not run {sys.executable}, so change its permissions"
    return CddnetError(
        f"compressed images are decoded by a process of its own, which cannot be started ({why}); "
        f"{remedy}, or send the images uncompressed."
    )


def _processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


_pool = DecoderPool()


def decode(frame: CodedFrame) -> NDArray[np.integer[Any]]:
    """Stored values (H, W) of a frame, by the decoders of this process.  Raises as DecoderPool."""
    return _pool.decode(frame)


def _close() -> None:
    _pool.close()


def _start_afresh() -> None:
    global _pool
    _pool.forget()
    _pool = DecoderPool()


atexit.register(_close)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_afresh)
