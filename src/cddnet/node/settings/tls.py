"""TLS of the DICOM port and towards archives: 1.2 or newer, certificates verified."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager

from cddnet.config import ConfigError
from cddnet.node.settings.parts import ClientTls, ServerTls


class _PatientTls(ssl.SSLContext):
    """Shakes hands when the connection is first read, so that a silent caller holds up nobody."""

    def wrap_socket(self, sock: socket.socket, server_side: bool = True) -> ssl.SSLSocket:  # type: ignore[override]
        return super().wrap_socket(sock, server_side=server_side, do_handshake_on_connect=False)


def server_tls(tls: ServerTls) -> ssl.SSLContext:
    """TLS 1.2 or newer, with the caller's certificate where an authority is given.

    Raises: ConfigError for files that cannot be used.
    """
    context = _PatientTls(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    with _usable(tls):
        context.load_cert_chain(tls.certificate, tls.key)
        if tls.ca is not None:
            context.load_verify_locations(tls.ca)
            context.verify_mode = ssl.CERT_REQUIRED
    return context


def client_tls(tls: ClientTls) -> ssl.SSLContext:
    """TLS 1.2 or newer that verifies the other side.  Raises: ConfigError as `server_tls`."""
    with _usable(tls):
        context = ssl.create_default_context(cafile=None if tls.ca is None else str(tls.ca))
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if tls.certificate is not None:
            context.load_cert_chain(tls.certificate, tls.key)
    return context


@contextmanager
def _usable(tls: ServerTls | ClientTls) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        files = ", ".join(str(file) for file in (tls.certificate, tls.key, tls.ca) if file)
        raise ConfigError(
            f"tls: {files}: cannot be used ({error.strerror or type(error).__name__}); expected "
            "PEM files that this user can read, and a key that belongs to its certificate."
        ) from None
