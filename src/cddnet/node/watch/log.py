"""The node's log: JSON lines that hold nothing of a patient.

Nothing is written unless `vocabulary` lists it: events, fields, and for each field the kind of
value. UIDs become keyed hashes. Of an error its class and the place in this package are
told, never its text, because that may quote a header; the same holds for what libraries log.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from traceback import walk_tb
from typing import TextIO, get_args

from cddnet.node.settings.config import NodeConfig
from cddnet.node.store.secret import Pseudonyms
from cddnet.node.watch.vocabulary import CONFIGURED, ERRORS, KINDS, UIDS, WARNINGS, Event
from cddnet.runtime import store

PACKAGE = "cddnet."


class NodeLog:
    """Writes events. It may be used by several threads, and never raises or stops the node."""

    def __init__(self, names: Pseudonyms, config: NodeConfig, stream: TextIO | None = None) -> None:
        """`stream`: in place of the file of the configuration, or standard error."""
        self._names = names
        self._file = config.log_file if stream is None else None
        self._stream = stream or _opened(config.log_file)
        self._known = _names_in(config)
        self._lock = threading.Lock()

    def event(self, event: Event, **fields: object) -> None:
        """One line. A field that is not listed, or of another kind, is left out and counted."""
        self._write(event, fields)

    def error(self, event: Event, error: BaseException, **fields: object) -> None:
        """One line with the class of an error and the place in this package it passed last."""
        self._write(event, {**fields, "error": error})

    def close(self) -> None:
        """Close the file, if the log opened one."""
        if self._file is not None:
            self._stream.close()

    def reopen(self) -> None:
        """Go on in a new file under the configured name, where the old one was moved away.

        Where it cannot be opened, the log goes on in the old one.
        """
        if self._file is None:
            return
        try:
            stream = _opened(self._file)
        except OSError as error:
            self.error("crashed", error)
            return
        with self._lock:
            before, self._stream = self._stream, stream
            before.close()
        self.event("log_reopened")

    @contextmanager
    def guarding(self) -> Iterator[None]:
        """Take over what libraries log or warn, and errors that nobody caught, while it lasts."""
        handler = _Libraries(self)
        loggers = [logging.getLogger(), *_loggers()]
        before = [(item, item.level, item.handlers, item.propagate) for item in loggers]
        hooks = sys.excepthook, threading.excepthook, logging.raiseExceptions
        for item in loggers:
            item.handlers, item.propagate = [], True
            item.setLevel(logging.NOTSET)
        loggers[0].handlers = [handler]
        loggers[0].setLevel(logging.WARNING)
        logging.captureWarnings(True)
        logging.raiseExceptions = False
        sys.excepthook = lambda kind, error, place: self.error("crashed", error)
        threading.excepthook = lambda told: self._crashed_thread(told)
        try:
            yield
        finally:
            logging.captureWarnings(False)
            sys.excepthook, threading.excepthook, logging.raiseExceptions = hooks
            for item, level, handlers, propagate in before:
                item.setLevel(level)
                item.handlers, item.propagate = handlers, propagate

    def _crashed_thread(self, told: threading.ExceptHookArgs) -> None:
        if told.exc_value is not None:
            self.error("crashed", told.exc_value)

    def _write(self, event: str, fields: Mapping[str, object]) -> None:
        known = event if event in get_args(Event) else "unlisted"
        level = "error" if event in ERRORS else "warning" if event in WARNINGS else "info"
        now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        line: dict[str, object] = {"at": now, "level": level, "event": known}
        left_out = 0
        for name, value in fields.items():
            if value is None:
                continue
            told = self._told(name, value)
            left_out += not told
            line |= told
        if left_out:
            line["left_out"] = left_out
        try:
            with self._lock:
                self._stream.write(json.dumps(line) + "\n")
                self._stream.flush()
        except (OSError, ValueError):
            # A full disk or a closed stream must not stop what the log tells of.
            pass

    def _told(self, name: str, value: object) -> dict[str, object]:
        """What the line says of a field; nothing for one that is not listed."""
        if name in UIDS and isinstance(value, str):
            return {name: self._names.of(value)}
        if name in CONFIGURED and isinstance(value, str) and value in self._known:
            return {name: value}
        if name == "error" and isinstance(value, BaseException):
            return {"error": type(value).__name__, "where": _where(value)}
        fits = KINDS.get(name)
        return {name: value} if fits is not None and fits(value) else {}


class _Libraries(logging.Handler):
    """Tells that a library had something to say, and nothing of what."""

    def __init__(self, log: NodeLog) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        fields = {"logger": record.name, "severity": record.levelname.lower(), "error": error}
        self._log._write("library", fields)


def _where(error: BaseException) -> str:
    """Module and line of this package that an error passed last, "" outside it."""
    place = ""
    for frame, line in walk_tb(error.__traceback__):
        module = str(frame.f_globals.get("__name__", ""))
        if module.startswith(PACKAGE):
            place = f"{module}:{line}"
    return place


def _names_in(config: NodeConfig) -> frozenset[str]:
    """Names that the person who runs the node gave, or that ship with it; never a path."""
    models = {output.model for rule in config.rules for output in rule.do} | set(store.shipped())
    own = {rule.name for rule in config.rules} | set(config.destinations)
    return frozenset(own | {model for model in models if os.sep not in model})


def _opened(file: Path | None) -> TextIO:
    if file is None:
        return sys.stderr
    file.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    return os.fdopen(handle, "a", encoding="utf-8")


def _loggers() -> list[logging.Logger]:
    """Every logger there is, the root aside."""
    found = list(logging.Logger.manager.loggerDict.values())
    return [item for item in found if isinstance(item, logging.Logger)]
