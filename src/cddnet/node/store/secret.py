"""Names for UIDs that tell nobody the UID: a keyed hash, the key kept in the node's folder."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from pathlib import Path

from cddnet.errors import CddnetError

FILE = "secret"
KEY_BYTES = 32
HASH_DIGITS = 16


class Pseudonyms:
    """The same UID has the same name in log, audit, page and metrics of one node."""

    def __init__(self, folder: Path) -> None:
        """Read the node's key, or make one.  Raises CddnetError for a damaged one."""
        self._key = _key(folder / FILE)

    def of(self, uid: str) -> str:
        """Sixteen hexadecimal digits (HMAC-SHA-256) that stand for a UID."""
        return hmac.new(self._key, uid.encode(), hashlib.sha256).hexdigest()[:HASH_DIGITS]


def _key(file: Path) -> bytes:
    try:
        found = file.read_bytes()
    except FileNotFoundError:
        return _new_key(file)
    if len(found) != KEY_BYTES:
        raise CddnetError(
            f"{file}: has {len(found)} bytes, expected {KEY_BYTES}; restore it, or delete it: the "
            "node then starts to call its series by new names."
        )
    return found


def _new_key(file: Path) -> bytes:
    """A key that is whole once it is there; of two processes that make one, the first wins."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    key = secrets.token_bytes(KEY_BYTES)
    draft = file.with_name(f".{FILE}-{secrets.token_hex(8)}")
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(key)
            stream.flush()
            os.fsync(stream.fileno())
        os.link(draft, file)
    except FileExistsError:
        key = file.read_bytes()
    finally:
        draft.unlink()
    return key
