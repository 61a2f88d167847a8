"""Serve the page: sockets, the server, and `cddnet view`."""

from __future__ import annotations

import socket
import threading
import webbrowser
from collections.abc import Callable, Sequence
from contextlib import suppress

# First: it names the extra that brings what the page needs.
from cddnet.node.web.http import app  # isort: skip
import uvicorn
from fastapi import FastAPI

from cddnet.errors import CddnetError
from cddnet.node.web.access import LOOPBACK, Access
from cddnet.node.web.pairs import LocalPair

_REQUESTS_AT_ONCE = 128


def server(page: FastAPI, proxies: Sequence[str] = ()) -> uvicorn.Server:
    """A server that logs no requests; run it with `.run(sockets=[...])`, end it by should_exit.

    proxies: addresses or networks whose X-Forwarded-For and X-Forwarded-Proto are believed.
    """
    return uvicorn.Server(
        uvicorn.Config(
            page,
            access_log=False,
            log_config=None,
            server_header=False,
            proxy_headers=bool(proxies),
            forwarded_allow_ips=list(proxies),
            limit_concurrency=_REQUESTS_AT_ONCE,
            timeout_keep_alive=15,
            timeout_graceful_shutdown=5,
        )
    )


def listen(host: str, port: int) -> socket.socket:
    """A bound socket; port 0 takes any that is free.  Raises: CddnetError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise CddnetError(
            f"cannot listen on {host} port {port} ({error.strerror}); choose another with --port."
        ) from error


def serve_pair(
    sources: LocalPair, port: int, *, browser: bool, say: Callable[[str], object]
) -> None:
    """Show two series on this machine's own browser until interrupted.

    port: 0 takes any that is free.  say: gets the address.
    """
    sock = listen(LOOPBACK[0], port)
    address = f"http://{LOOPBACK[0]}:{sock.getsockname()[1]}/"
    running = server(app(sources, Access()))
    say(address)
    if browser:
        threading.Timer(0.5, webbrowser.open, [address]).start()
    with suppress(KeyboardInterrupt):
        running.run(sockets=[sock])
