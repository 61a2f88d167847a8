"""Program that decodes compressed frames and is expected to crash over some of them.

    python -m cddnet.formats._decoder_process

It says READY, then answers each request on standard input with a reply on standard output, and ends
with its standard input. A request is a line of JSON (the fields of CodedFrame before the stream,
the length of the stream, seconds that decoding may take) and the stream. A reply is one byte and,
behind PIXELS, the stored values in the byte order of the machine.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import sys
from contextlib import suppress

from cddnet.formats._codecs import CodedFrame, decode_frame

READY, PIXELS, DAMAGED, MISSING = b"r", b"p", b"d", b"m"
# Beside what the process has: for a decoder and its work, and for each byte of the decoded frame.
MEMORY_BYTES = 128 << 20
MEMORY_FACTOR = 16
IDLE_S = 60.0


def request_of(frame: CodedFrame, limit_s: float) -> bytes:
    """A request to decode a frame."""
    *fields, stream = frame
    return json.dumps([*fields, len(stream), limit_s]).encode() + b"\n" + stream


def main() -> None:
    """Answer requests until there are no more, or none comes for a minute."""
    _prepare_signals()
    requests = sys.stdin.buffer
    # Libraries print to standard output, and a reply must not be mixed with it.
    with os.fdopen(os.dup(1), "wb") as replies, open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        replies.write(READY)
        replies.flush()
        while True:
            _end_after(IDLE_S)
            line = requests.readline()
            if not line:
                return
            *fields, length, limit_s = json.loads(line)
            frame = CodedFrame._make([*fields, requests.read(length)])
            _end_after(limit_s)
            _limit_memory(frame)
            reply = _reply(frame)
            _end_after(IDLE_S)
            replies.writelines(reply)
            replies.flush()


def _reply(frame: CodedFrame) -> tuple[bytes, ...]:
    try:
        return PIXELS, decode_frame(frame).tobytes()
    except ImportError:
        return (MISSING,)
    except Exception:
        return (DAMAGED,)


def _prepare_signals() -> None:
    """End with standard input alone: one who stops all processes may want this frame finished."""
    for name in ("SIGINT", "SIGTERM"):
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    if hasattr(signal, "SIGALRM"):
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})


def _end_after(seconds: float) -> None:
    """End this process after so long, unless called again; a decoder that never returns as well."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, seconds)
    else:
        faulthandler.dump_traceback_later(seconds, exit=True)


def _limit_memory(frame: CodedFrame) -> None:
    """Let a decoder take what a frame of this size may need.  Does nothing outside Linux."""
    if sys.platform != "linux":
        return
    import resource

    with open("/proc/self/statm", encoding="ascii") as told:
        used = int(told.read().split()[0]) * resource.getpagesize()
    most = used + MEMORY_BYTES + MEMORY_FACTOR * frame.decoded_bytes
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard != resource.RLIM_INFINITY:
        most = min(most, hard)
    resource.setrlimit(resource.RLIMIT_AS, (most, hard))
    # The memory of a process that crashes holds an image.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    # The other end may be gone.
    with suppress(BrokenPipeError):
        main()
