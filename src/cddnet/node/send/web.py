"""Sending by STOW-RS (PS3.18 section 10.5)."""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Iterator, Mapping, Sequence

import httpx

from cddnet.node.send.sender import Outcome, Unreachable, unresolved
from cddnet.node.settings.config import DicomwebDestination, read_token
from cddnet.node.settings.tls import client_tls
from cddnet.node.store.images import Images
from cddnet.node.store.records import Parcel

MOST_BYTES = 64 * 10**6
ALL_STORED, SOME_STORED, NONE_STORED = 200, 202, 409
FAILED, INSTANCE = "00081198", "00081155"
REASON = "00081197"
STORED = "00081199"


class StowCarrier:
    """Speaks to one DICOMweb archive."""

    def __init__(self, destination: DicomwebDestination, images: Images) -> None:
        self._destination, self._images = destination, images

    def carry(self, parcels: Sequence[Parcel], stop: threading.Event) -> Outcome:
        """Send in requests of bounded size until the end or `stop`.  Raises Unreachable."""
        stored: list[str] = []
        refused: dict[str, str] = {}
        with self._client() as client:
            for group in self._groups(parcels):
                if stop.is_set():
                    break
                try:
                    outcome = self._post(client, group)
                except Unreachable:
                    if stored or refused:
                        break
                    raise
                stored += outcome.stored
                refused |= outcome.refused
        return Outcome(tuple(stored), refused)

    def ask(self, parcels: Sequence[Parcel], transaction: str) -> None:
        """There is no storage commitment here."""
        raise Unreachable("DICOMweb has no storage commitment")

    def _client(self) -> httpx.Client:
        there = self._destination
        headers = {"Accept": "application/dicom+json"}
        if there.token_file is not None:
            headers["Authorization"] = f"Bearer {read_token(there.token_file)}"
        verify = True if there.tls is None else client_tls(there.tls)
        # No proxy out of the environment: images go where the configuration says, or nowhere.
        return httpx.Client(
            headers=headers, verify=verify, timeout=there.timeout_s, trust_env=False
        )

    def _groups(self, parcels: Sequence[Parcel]) -> Iterator[list[Parcel]]:
        group: list[Parcel] = []
        size = 0
        for parcel in parcels:
            path = self._images.path(parcel.file)
            more = path.stat().st_size if path.is_file() else 0
            if group and size + more > MOST_BYTES:
                yield group
                group, size = [], 0
            group.append(parcel)
            size += more
        if group:
            yield group

    def _post(self, client: httpx.Client, group: Sequence[Parcel]) -> Outcome:
        boundary = secrets.token_hex(24)
        parts: list[bytes] = []
        missing: dict[str, str] = {}
        sent = []
        for parcel in group:
            try:
                content = self._images.path(parcel.file).read_bytes()
            except OSError:
                missing[parcel.sop_uid] = "its file cannot be read"
                continue
            head = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n"
            parts += [head.encode(), content, b"\r\n"]
            sent.append(parcel.sop_uid)
        if not sent:
            return Outcome((), missing)
        parts.append(f"--{boundary}--\r\n".encode())
        kind = f'multipart/related; type="application/dicom"; boundary={boundary}'
        try:
            response = client.post(
                f"{self._destination.url}/studies",
                content=b"".join(parts),
                headers={"Content-Type": kind},
            )
        except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
            words = f"the archive did not answer ({type(error).__name__})"
            raise Unreachable(unresolved(error) or words) from None
        outcome = outcome_of(response.status_code, response.content, sent)
        return Outcome(outcome.stored, {**outcome.refused, **missing})


def outcome_of(status: int, body: bytes, sent: Sequence[str]) -> Outcome:
    """What an answer says became of each instance that was sent.

    Raises Unreachable for an answer that is not about the instances, such as 401 or 503.
    """
    if status not in (ALL_STORED, SOME_STORED, NONE_STORED):
        raise Unreachable(f"the archive answered with HTTP status {status}")
    try:
        told = json.loads(body) if body else {}
        failed = {_value(item, INSTANCE): _value(item, REASON) for item in _items(told, FAILED)}
        stored = {_value(item, INSTANCE) for item in _items(told, STORED)}
    except (ValueError, TypeError, KeyError, IndexError, AttributeError):
        raise Unreachable("the archive answered with something that is no DICOM JSON") from None
    if status == ALL_STORED and not stored and not failed:
        stored = set(sent)
    good = tuple(item for item in sent if item in stored and item not in failed)
    bad = {item: _refusal(failed.get(item, "")) for item in sent if item not in good}
    return Outcome(good, bad)


def _refusal(reason: str) -> str:
    code = f" (reason {int(reason):04X})" if reason.isdigit() else ""
    return f"the archive refused it{code}"


def _items(told: object, tag: str) -> list[Mapping[str, Mapping[str, list[object]]]]:
    if isinstance(told, list):
        told = told[0] if told else {}
    found: list[Mapping[str, Mapping[str, list[object]]]] = told.get(tag, {}).get("Value", [])  # type: ignore[attr-defined]
    return found


def _value(item: Mapping[str, Mapping[str, list[object]]], tag: str) -> str:
    values = item.get(tag, {}).get("Value", [])
    return str(values[0]) if values else ""
