"""The words of the node's log: every event, every field, and what each field may hold.

A value that its field does not allow is not written, so that no header gets there by mistake.
"""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Callable
from typing import Literal

Event = Literal[
    "started",
    "stopping",
    "stopped",
    "recovered",
    "entered",
    "set_aside",
    "missing",
    "open_folder",
    "association_accepted",
    "association_refused",
    "association_aborted",
    "echoed",
    "received",
    "received_again",
    "refused",
    "full",
    "space_again",
    "series_complete",
    "series_reopened",
    "series_ignored",
    "series_refused",
    "series_forced",
    "decided",
    "processing",
    "processed",
    "failed",
    "sent",
    "send_failed",
    "commitment_asked",
    "committed",
    "not_committed",
    "retried",
    "redirected",
    "dropped",
    "log_reopened",
    "cleaned",
    "uploaded",
    "downloaded",
    "login_refused",
    "request_refused",
    "library",
    "crashed",
]
Level = Literal["info", "warning", "error"]
WARNINGS = {
    *("association_refused", "association_aborted", "refused", "full", "series_refused"),
    *("set_aside", "open_folder"),
    *(
        "series_forced",
        "send_failed",
        "not_committed",
        "login_refused",
        "request_refused",
        "library",
    ),
}
ERRORS = {"failed", "crashed", "missing"}
# Why something was refused or ignored; also the labels of the metric that counts it.
REASONS = frozenset(
    {
        *(
            "called_ae",
            "caller",
            "too_many",
            "slow",
            "tls",
            "wrong_class",
            "wrong_syntax",
            "no_uid",
        ),
        *(
            "bad_uid",
            "damaged",
            "too_large",
            "full",
            "quota",
            "busy",
            "different_bytes",
            "stopping",
        ),
        *(
            "no_rule",
            "rule_ignores",
            "ours",
            "localizer",
            "no_ct",
            "unfit",
            "no_answer",
            "rejected",
        ),
        *("token", "host", "origin", "zip", "died", "unknown_sender", "other"),
    }
)
STATES = frozenset(
    {
        *("receiving", "complete", "waiting", "processing", "ready", "sending", "done", "failed"),
        *("refused", "ignored", "queued", "sent", "stored", "committed", "purged"),
    }
)
# What the fitness check refuses a series for, `workflows.fitness.Kind`.
FITNESS_KINDS = frozenset(
    {
        *("denoised", "deep-learning reconstruction", "iterative reconstruction", "derived map"),
        *("localizer", "values", "levels", "small", "pixel size", "slice thickness", "metal"),
        *("smooth texture", "sharp texture", "noise level"),
    }
)
LIBRARIES = frozenset(
    {
        *(
            "pynetdicom",
            "pydicom",
            "uvicorn",
            "fastapi",
            "starlette",
            "httpx",
            "httpcore",
            "asyncio",
        ),
        *("requests", "urllib3", "dicomweb_client", "multipart", "python_multipart", "concurrent"),
        *("torch", "py", "PIL", "distributed", "anyio", "h11"),
    }
)


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**53


def _number(value: object) -> bool:
    return _whole(value) or (isinstance(value, float) and math.isfinite(value))


def _flag(value: object) -> bool:
    return isinstance(value, bool)


def _like(pattern: str) -> Callable[[object], bool]:
    compiled = re.compile(pattern)
    return lambda value: isinstance(value, str) and compiled.fullmatch(value) is not None


def _one_of(words: frozenset[str]) -> Callable[[object], bool]:
    return lambda value: isinstance(value, str) and value in words


def _kinds(value: object) -> bool:
    return isinstance(value, str) and FITNESS_KINDS.issuperset(value.split(", "))


def _address(value: object) -> bool:
    try:
        ipaddress.ip_address(value if isinstance(value, str) else "")
    except ValueError:
        return False
    return True


def _library(value: object) -> bool:
    return isinstance(value, str) and value.split(".")[0] in LIBRARIES and len(value) < 80


UIDS = frozenset({"study", "series", "instance"})
CONFIGURED = frozenset({"rule", "destination", "model"})
KINDS: dict[str, Callable[[object], bool]] = {
    **dict.fromkeys(("images", "results", "decisions"), _whole),
    **dict.fromkeys(("count", "slices", "bytes", "attempts", "done", "total"), _whole),
    **dict.fromkeys(("status", "port", "http_port", "generation", "left"), _whole),
    **dict.fromkeys(("seconds", "wait_s", "age_s", "free_gb", "used_gb"), _number),
    **dict.fromkeys(("duplicate", "late", "tls"), _flag),
    # Names that the node gave itself, out of hashes.
    **dict.fromkeys(("key", "output"), _like(r"[0-9a-f]{16}(-[0-9]{1,3})?")),
    "weights": _like(r"[0-9a-f]{64}"),
    "state": _one_of(STATES),
    "reason": _one_of(REASONS),
    "kinds": _kinds,
    # Titles of machines: they come from the network, but not from an image.
    "caller": _like(r"[A-Za-z0-9_.-]{1,16}"),
    "peer": _address,
    # UIDs that the standard itself gives out, such as those of transfer syntaxes.
    **dict.fromkeys(("sop_class", "syntax"), _like(r"1\.2\.840\.10008\.[0-9.]{1,40}")),
    "version": _like(r"[0-9]+(\.[0-9]+)*[a-z0-9.+-]{0,20}"),
    "severity": _one_of(frozenset({"warning", "error", "critical"})),
    "logger": _library,
}
