"""Destinations on the page: what they wait for, what is wrong, what a person may do about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

from pydantic import BaseModel, Field

from cddnet.errors import CddnetError
from cddnet.node.store.deliveries import Deliveries
from cddnet.node.web.pairs import plain

LONGEST_NAME = 256


class DestinationStatus(BaseModel):
    """A destination of the configuration, or of an earlier one that is still waited for."""

    name: str
    configured: bool
    queued: int  # objects on their way
    failed: int  # objects that a person must look at
    problem: str  # why it cannot be spoken to now, "" where it can


class Change(BaseModel, frozen=True, extra="forbid"):
    """What to do with the objects for a destination that is not configured any more."""

    name: str = Field(max_length=LONGEST_NAME)
    # Another destination; None: drop them.
    to: str | None = Field(max_length=LONGEST_NAME)


class Changed(BaseModel):
    """How many objects another destination gets now, or none."""

    objects: int


class NotPossible(CddnetError):
    """A change that is not offered."""

    status = 409


class Destinations(NamedTuple):
    """Those of a node."""

    deliveries: Deliveries
    configured: tuple[str, ...]
    troubles: Mapping[str, str]
    changed: Callable[
        [Literal["redirected", "dropped"], int], None
    ]  # hears what was done: redirected or dropped, objects

    def view(self) -> list[DestinationStatus]:
        """All of the configuration, then those that are waited for besides."""
        waiting = {item.destination: item for item in self.deliveries.waiting()}
        return [
            DestinationStatus(
                name=name,
                configured=name in self.configured,
                queued=waiting[name].queued if name in waiting else 0,
                failed=waiting[name].failed if name in waiting else 0,
                problem=plain(self.troubles.get(name, "")),
            )
            for name in dict.fromkeys((*self.configured, *waiting))
        ]

    def change(self, change: Change) -> Changed:
        """Redirect or drop.  Raises: NotPossible, KeyError where nobody waits for the name."""
        if change.name in self.configured:
            raise NotPossible("this destination is configured; its objects are sent to it.")
        if change.name not in {item.destination for item in self.deliveries.waiting()}:
            raise KeyError(change.name)
        if change.to is not None and change.to not in self.configured:
            raise NotPossible("there is no such destination to send to; choose a configured one.")
        if change.to is None:
            count = self.deliveries.drop(change.name)
            self.changed("dropped", count)
        else:
            count = self.deliveries.redirect(change.name, change.to)
            self.changed("redirected", count)
        return Changed(objects=count)
