"""Text for the console: nothing that it cannot show, and no closed pipe, is an error."""

from __future__ import annotations

import io
import os
import re
import sys
from contextlib import suppress
from typing import TextIO

from cddnet.errors import CddnetError

# Control characters but tab and new line, and those that change the direction of writing.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def tolerate_any_encoding() -> None:
    """Let every writer to stdout and stderr replace what their encoding lacks, libraries too."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="replace")


def echo(text: str, *, err: bool = False) -> None:
    r"""Print lines of text on stdout, or stderr; characters that it cannot show become "?".

    Control characters, which headers and names of files may hold, are shown like `\u001b`, because
    a terminal obeys them. A reader that went away, such as `head`, is no error: what was computed
    is complete.
    Raises: CddnetError where stdout takes nothing more, as on a full disk.
    """
    stream = sys.stderr if err else sys.stdout
    # None without a console, as under pythonw.
    if stream is None:
        return
    try:
        stream.write(f"{_showable(text, stream)}\n")
        stream.flush()
    except OSError as error:
        _discard(stream)
        # Windows reports a closed pipe as an invalid argument.
        closed = isinstance(error, BrokenPipeError) or (os.name == "nt" and error.errno == 22)
        if not closed and not err:
            raise CddnetError(
                f"the output cannot be printed ({error.strerror}); files that were written are "
                "complete. Print it to another place."
            ) from error


def _showable(text: str, stream: TextIO) -> str:
    text = _CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
    encoding, errors = getattr(stream, "encoding", None), getattr(stream, "errors", None)
    if not encoding:
        return text
    try:
        text.encode(encoding, errors or "strict")
    except UnicodeError:
        return text.encode(encoding, "replace").decode(encoding)
    return text


def _discard(stream: TextIO) -> None:
    """Send the rest of a stream nowhere, so that the flush at exit does not fail again."""
    with suppress(OSError, ValueError):
        number = stream.fileno()
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), number)
