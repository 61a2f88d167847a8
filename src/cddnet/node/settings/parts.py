"""Parts that the node's configuration is built of: names, patterns, TLS, destinations."""

from __future__ import annotations

import re
from collections.abc import Iterable
from ipaddress import ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal
from urllib.parse import urlsplit

import re2
from pydantic import (
    AfterValidator,
    BaseModel,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

from cddnet.config import nearest

if TYPE_CHECKING:
    from typing_extensions import Self


def _ae_title(text: str) -> str:
    title = text.strip()
    if not re.fullmatch(r"[ -\[\]-~]{1,16}", title):
        raise ValueError("an AE title has 1 to 16 ASCII characters and no backslash")
    return title


def _pattern(text: str) -> str:
    """A pattern of RE2, whose time grows with the text and not with the pattern's ways to match."""
    quiet = re2.Options()
    quiet.log_errors = False
    try:
        re2.compile(_encodable(text), quiet)
    except re2.error as error:
        (reason,) = error.args
        raise ValueError(
            f"is no regular expression of RE2: {reason.decode(errors='replace')}; escape what is "
            "literal. RE2 has no look-around and no back references: in place of (?!...) put a "
            "rule with `do: ignore` before this one"
        ) from None
    return text


def matches(pattern: str, text: str) -> bool:
    """Whether a checked pattern is found anywhere in a text."""
    return re2.search(_encodable(pattern), _encodable(text)) is not None


def _encodable(text: str) -> str:
    """Without lone surrogates, which RE2 cannot take."""
    return text.encode("utf-8", "replace").decode()


def _network(text: str) -> str:
    try:
        return str(ip_network(text))
    except ValueError:
        raise ValueError(
            "expected an address or a network, such as 127.0.0.1 or 10.1.2.0/24"
        ) from None


AeTitle = Annotated[str, AfterValidator(_ae_title)]
Pattern = Annotated[str, AfterValidator(_pattern)]
Network = Annotated[str, AfterValidator(_network)]
Port = Annotated[int, Field(ge=1, le=65535)]


class Part(BaseModel, frozen=True, extra="forbid"):
    """A part of the file; a wrong key is answered with the nearest right one, at any depth."""

    @model_validator(mode="wrap")
    @classmethod
    def _hinted(cls, values: object, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return handler(values)
        except ValidationError as error:
            raise ValidationError.from_exception_data(
                cls.__name__, [_clear(item, cls.model_fields) for item in error.errors()]
            ) from None


def _clear(item: ErrorDetails, known: Iterable[str]) -> InitErrorDetails:
    """The same error in our words: they never quote the value, which may be a secret."""
    reason = item["msg"].removeprefix("Value error, ")
    if item["type"] == "extra_forbidden":
        reason = f"there is no such key{nearest(str(item['loc'][-1]), known)}"
    kind = PydanticCustomError("config", "{reason}", {"reason": reason})
    return InitErrorDetails(type=kind, loc=item["loc"], input=None)


class ServerTls(Part):
    """TLS of the DICOM port, 1.2 or newer."""

    certificate: Path = Field(description="PEM file of the node's certificate and its chain")
    key: Path = Field(description="PEM file of its private key, readable by the node's user alone")
    ca: Path | None = Field(
        None, description="PEM file of authorities; a caller must then show their certificate"
    )


class ClientTls(Part):
    """TLS towards a destination, 1.2 or newer; its certificate is always verified."""

    ca: Path | None = Field(None, description="PEM file of authorities; default: the system's")
    certificate: Path | None = Field(None, description="PEM file the node shows of itself")
    key: Path | None = Field(None, description="PEM file of its private key")

    @model_validator(mode="after")
    def _pair(self) -> ClientTls:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key belong together; give both or neither")
        return self


class Retries(Part):
    """The waiting time doubles after each failure, from `first_s` to `longest_s`."""

    first_s: float = Field(10.0, gt=0, description="seconds after the first failure")
    longest_s: float = Field(3600.0, gt=0, description="seconds at most")
    attempts: int = Field(100, ge=1, description="then it waits in the failed box for a person")

    @model_validator(mode="after")
    def _in_order(self) -> Retries:
        if self.longest_s < self.first_s:
            raise ValueError("longest_s is shorter than first_s; swap or raise it")
        return self


class DicomDestination(Part):
    """An archive that takes C-STORE."""

    kind: Literal["dicom"] = Field(description="C-STORE")
    host: str = Field(min_length=1, description="name or address of the archive")
    port: Port = Field(description="its DICOM port")
    ae_title: AeTitle = Field(description="its AE title")
    tls: ClientTls | None = Field(None, description="default: none")
    commitment: bool = Field(
        False, description="ask for storage commitment, and count only what was committed as done"
    )
    timeout_s: float = Field(60.0, gt=0, description="for connecting and for each answer")
    retries: Retries = Field(Retries(), description="what happens while it does not answer")


class DicomwebDestination(Part):
    """An archive that takes STOW-RS."""

    kind: Literal["dicomweb"] = Field(description="STOW-RS")
    url: str = Field(description="base address, such as https://pacs.example/dicom-web")
    tls: ClientTls | None = Field(None, description="authorities and own certificate, with https")
    token_file: Path | None = Field(None, description="holds the bearer token sent along")
    timeout_s: float = Field(60.0, gt=0, description="for connecting and for each answer")
    retries: Retries = Field(Retries(), description="what happens while it does not answer")

    @field_validator("url")
    @classmethod
    def _address(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("expected an address that starts with https:// or http://")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError("no password, query or fragment may be in the address")
        return url.rstrip("/")


Destination = Annotated[DicomDestination | DicomwebDestination, Field(discriminator="kind")]
