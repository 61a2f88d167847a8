"""Who may speak to the page: host, origin, token, and the headers of every answer."""

from __future__ import annotations

import hmac
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cddnet.errors import CddnetError
from cddnet.node.watch.vocabulary import Event

# What the log is told: event, reason or "", address of the visitor.
Told = Callable[[Event, str, str], None]
LOOPBACK = ("127.0.0.1", "localhost", "::1")
COOKIE = "cddnet_session"
SESSION_S = 12 * 3600
MOST_SESSIONS = 1000
SHORTEST_TOKEN = 16
MOST_BODY_BYTES = 64 * 1024
UPLOAD = "/api/upload"
_OPEN = ("/api/login", "/api/session")
_FORBIDDEN_SITES = ("cross-site", "same-site")
_REASONS = {401: "token", 403: "origin", 421: "host"}

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'self'; "
        "frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


@dataclass(frozen=True, kw_only=True)
class Access:
    """hosts: names by which the page may be asked for.  token: asked of visitors, None of nobody.

    Host and Origin are checked on loopback too: a web page elsewhere can have its own name resolve
    to 127.0.0.1 and would otherwise read everything.
    """

    hosts: tuple[str, ...] = LOOPBACK
    token: str | None = None
    _sessions: dict[str, float] = field(default_factory=dict, init=False, repr=False)
    """Open sessions and when each ends, oldest first. They end with this process too."""

    def __post_init__(self) -> None:
        if self.token is not None and len(self.token) < SHORTEST_TOKEN:
            raise CddnetError(
                f"the token has {len(self.token)} characters, expected at least {SHORTEST_TOKEN}; "
                "make it longer."
            )

    def refusal(self, path: str, headers: Headers) -> tuple[int, str] | None:
        """Status and reason, None where the request may pass."""
        host = headers.get("host", "")
        names = {name.lower() for name in self.hosts}
        if len(headers.getlist("host")) != 1 or _name(host) not in names:
            return 421, "this server does not answer under that name"
        origin = headers.get("origin")
        if origin is not None and origin not in (f"http://{host}", f"https://{host}"):
            return 403, "the request comes from another site"
        api = path.startswith("/api") or path == "/metrics"
        if api and headers.get("sec-fetch-site") in _FORBIDDEN_SITES:
            return 403, "the request comes from another site"
        if api and path not in _OPEN and not self.known(headers):
            return 401, "log in with the token first"
        return None

    def session(self, offered: str) -> str | None:
        """A cookie's value for the right token, None for a wrong one."""
        if self.token is None or not hmac.compare_digest(offered.encode(), self.token.encode()):
            return None
        now = time.monotonic()
        for name, until in tuple(self._sessions.items()):
            if until <= now or len(self._sessions) >= MOST_SESSIONS:
                self._sessions.pop(name, None)
        session = secrets.token_urlsafe(32)
        self._sessions[session] = now + SESSION_S
        return session

    def end_session(self, headers: Headers) -> None:
        """Make the cookie of these headers worthless, wherever else it is held."""
        self._sessions.pop(_cookie(headers), None)

    def known(self, headers: Headers) -> bool:
        """Whether a visitor has the token or a cookie got for it, or none is asked."""
        if self.token is None:
            return True
        scheme, _, offered = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return hmac.compare_digest(offered.strip().encode(), self.token.encode())
        return self._sessions.get(_cookie(headers), 0.0) > time.monotonic()


def _cookie(headers: Headers) -> str:
    return cookie_parser(headers.get("cookie", "")).get(COOKIE, "")


def _name(host: str) -> str | None:
    """Host name of a Host header, without its port."""
    try:
        parts = urlsplit(f"//{host}")
        _ = parts.port
    except ValueError:
        return None
    return parts.hostname if parts.netloc == host and "@" not in host else None


class Guard:
    """Middleware: refuses what `Access` refuses, bounds bodies, adds headers to every answer."""

    def __init__(self, app: ASGIApp, access: Access, told: Told) -> None:
        self._app, self._access, self._told = app, access, told

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        path = scope["path"]

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                headers["Cache-Control"] = "no-cache" if path.startswith("/page/") else "no-store"
            await send(message)

        headers = Headers(scope=scope)
        refusal = self._access.refusal(path, headers) or _body_refusal(path, headers)
        if refusal is None:
            await self._app(scope, receive, answer)
            return
        status, reason = refusal
        client = scope.get("client") or ("", 0)
        self._told("request_refused", _REASONS.get(status, "too_large"), client[0])
        extra: Mapping[str, str] = {"WWW-Authenticate": "Bearer"} if status == 401 else {}
        response = JSONResponse({"detail": reason}, status, headers=extra)
        await response(scope, receive, answer)


def _body_refusal(path: str, headers: Headers) -> tuple[int, str] | None:
    """Only uploads may be long: everything else is read into memory at once."""
    if path == UPLOAD:
        return None
    if "transfer-encoding" in headers:
        return 411, "state the length of the body"
    length = headers.get("content-length", "0")
    if not length.isdecimal() or int(length) > MOST_BODY_BYTES:
        return 413, "the body is too long"
    return None
