"""The node's one configuration file, checked: who may send, what is done to it, where it goes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import Field, field_validator, model_validator

from cddnet.config import ConfigError, checked, nearest, read_yaml
from cddnet.files import read_text
from cddnet.node.settings.parts import (
    AeTitle,
    ClientTls,
    Destination,
    DicomDestination,
    DicomwebDestination,
    Network,
    Part,
    Port,
    Retries,
    ServerTls,
)
from cddnet.node.settings.rules import Conditions, Output, Rule
from cddnet.runtime import store

__all__ = [
    "ClientTls",
    "Conditions",
    "Destination",
    "DicomDestination",
    "DicomwebDestination",
    "HttpConfig",
    "NodeConfig",
    "Output",
    "Retries",
    "Rule",
    "ServerTls",
    "load_node",
    "read_token",
]

ANY_CALLER = "any"
LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
SHORTEST_TOKEN = 16


class HttpConfig(Part):
    """The page, the programming interface, /health and /metrics."""

    host: str = Field("127.0.0.1", description="address to listen on")
    port: Port = Field(8080, description="port to listen on")
    token: str | None = Field(
        None, repr=False, description="asked of every visitor; required beyond loopback"
    )
    token_file: Path | None = Field(None, description="holds the token, in place of `token`")
    hosts: tuple[str, ...] = Field(
        (), description="names under which the page may be asked for, besides `host` and loopback"
    )
    proxies: tuple[Network, ...] = Field(
        (),
        description="addresses or networks of proxies; X-Forwarded-For and -Proto of others are "
        "ignored",
    )

    @model_validator(mode="after")
    def _guarded(self) -> HttpConfig:
        if self.token is not None and self.token_file is not None:
            raise ValueError("token and token_file are both given; keep one")
        if self.token is not None and len(self.token) < SHORTEST_TOKEN:
            raise ValueError(
                f"the token has fewer than {SHORTEST_TOKEN} characters; make it longer"
            )
        if self.host not in LOOPBACK and self.token is None and self.token_file is None:
            raise ValueError(
                f"host {self.host} can be reached from other machines: set token or token_file, "
                "or listen on 127.0.0.1"
            )
        return self

    def secret(self) -> str | None:
        """The token, wherever it is kept; None: nobody is asked.  Raises: ConfigError."""
        return self.token if self.token_file is None else read_token(self.token_file)


class NodeConfig(Part):
    """All that `cddnet node` does; deploy/node.yaml is an example."""

    ae_title: AeTitle = Field("CDDNET", description="what callers must call, and the node's own")
    host: str = Field("127.0.0.1", description="address to listen on; 0.0.0.0: every one")
    dicom_port: Port = Field(11112, description="port to listen on")
    allowed_callers: tuple[AeTitle, ...] = Field(
        min_length=1, description="AE titles that may send, or the word any"
    )
    tls: ServerTls | None = Field(None, description="default: none")
    maximum_pdu: int = Field(131_072, ge=4096, le=2**24, description="bytes of a received PDU")
    maximum_associations: int = Field(16, ge=1, description="at the same time; more are refused")
    associations_per_address: int = Field(
        12, ge=1, description="of these from one address, so that places are left for others"
    )
    timeout_s: float = Field(60.0, gt=0, description="after which a silent caller is let go")
    longest_pdu_s: float = Field(
        120.0, gt=0, description="that a caller may take for one PDU, however it trickles"
    )
    longest_message_s: float = Field(
        3600.0, gt=0, description="that a caller may take for one image"
    )
    largest_in_memory_mb: float = Field(
        1000.0,
        gt=0,
        description="of images on their way in, all callers together, 10^6 bytes; one caller "
        "may hold three quarters",
    )
    folder: Path = Field(description="holds images, journal, audit and secret; for this user alone")
    quiet_s: float = Field(
        60.0, gt=0, description="without a new slice, after which a series starts"
    )
    keep_originals_h: float = Field(
        72.0, ge=0, description="hours that originals and results stay after all was sent"
    )
    quota_gb: float = Field(100.0, gt=0, description="of all images in the folder, 10^9 bytes")
    smallest_free_gb: float = Field(
        5.0, ge=0, description="free on the disk; with less, new images are refused"
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="of the network")
    log_file: Path | None = Field(None, description="JSON lines; default: standard error")
    http: HttpConfig = Field(HttpConfig(), description="page and programming interface")
    destinations: dict[str, Destination] = Field({}, description="name -> archive")
    rules: tuple[Rule, ...] = Field((), description="first match decides; none: ignored")

    @field_validator("allowed_callers", mode="before")
    @classmethod
    def _any(cls, value: object) -> object:
        titles = (value,) if isinstance(value, str) else value
        if not isinstance(titles, list | tuple) or not titles:
            raise ValueError("expected a list of AE titles, or the word any")
        if isinstance(value, str) and value != ANY_CALLER:
            raise ValueError(f"'{value}' is neither a list of AE titles nor the word any")
        if ANY_CALLER in titles and len(titles) > 1:
            raise ValueError("the word any stands alone; leave the titles out, or the word")
        return titles

    @model_validator(mode="after")
    def _names_fit(self) -> NodeConfig:
        twice = _twice(rule.name for rule in self.rules)
        if twice:
            raise ValueError(f"two rules are named '{twice}'; give each a name of its own")
        for rule in self.rules:
            for name in (name for output in rule.do for name in output.destinations):
                if name not in self.destinations:
                    hint = nearest(name, self.destinations) or "; add it to destinations"
                    raise ValueError(f"rule '{rule.name}': there is no destination '{name}'{hint}")
        return self

    @model_validator(mode="after")
    def _ports_apart(self) -> NodeConfig:
        if self.http.port == self.dicom_port:
            raise ValueError(f"dicom_port and http.port are both {self.dicom_port}; change one")
        return self

    def permits(self, caller: str) -> bool:
        """Whether an AE title may send."""
        return self.allowed_callers == (ANY_CALLER,) or caller.strip() in self.allowed_callers


def load_node(path: Path) -> NodeConfig:
    """The node's configuration; its relative paths are taken from the folder of the file.

    Raises: ConfigError naming every wrong key; ModelError for weights that do not exist.
    """
    config = checked(read_yaml(path), NodeConfig, str(path))
    resolved = _resolved_part(config, path.resolve().parent)
    for output in (output for rule in resolved.rules for output in rule.do):
        store.find(output.model)
    return resolved


def read_token(file: Path) -> str:
    """The secret in a file, without the blanks around it.  Raises: ConfigError."""
    try:
        token = read_text(file).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{file}: the token cannot be read ({type(error).__name__}); write it there, readable "
            "by the node's user alone."
        ) from None
    if len(token) < SHORTEST_TOKEN:
        raise ConfigError(
            f"{file}: the token has {len(token)} characters, expected at least {SHORTEST_TOKEN}; "
            "make a longer one."
        )
    return token


def _resolved(value: object, folder: Path) -> object:
    if isinstance(value, Path):
        return folder / value
    if isinstance(value, tuple):
        return tuple(_resolved(item, folder) for item in value)
    if isinstance(value, dict):
        return {key: _resolved(item, folder) for key, item in value.items()}
    return _resolved_part(value, folder) if isinstance(value, Part) else value


AnyPart = TypeVar("AnyPart", bound=Part)


def _resolved_part(part: AnyPart, folder: Path) -> AnyPart:
    """The same part of the configuration with absolute paths."""
    update = {name: _resolved(getattr(part, name), folder) for name in type(part).model_fields}
    if isinstance(part, Output) and part.model.endswith(".safetensors"):
        update["model"] = str(folder / part.model)
    return part.model_copy(update=update)


def _twice(names: Iterable[str]) -> str:
    """The first name that was there before, or none."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return ""
