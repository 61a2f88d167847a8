"""What was decided on a series, in a file beside its images, for the day the journal is lost.

Without it a series would be decided on anew, perhaps with other weights and with another date, and
its results would no longer be those that an archive has.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cddnet.node.store.images import Images, decision_file
from cddnet.node.store.journal import Journal

_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What was decided on a series, and what its results were made by."""

    series_uid: str
    frozen: Mapping[str, object]  # rule, time and number of outputs, as the journal keeps them
    outputs: tuple[Mapping[str, object], ...]  # output_key, place and spec (JSON) of each
    made: Mapping[str, tuple[str, str]] = field(default_factory=dict)  # UID of a derived series ->
    # (hash over how it was made, hash of the weights)


class Decisions:
    """Writes the files, for the one thread that makes results, and reads them at a start."""

    def __init__(self, images: Images, journal: Journal) -> None:
        self._images, self._journal = images, journal
        self._noted: dict[str, Decision] = {}

    def note(self, series_uid: str, derived_uid: str, made_by: tuple[str, str]) -> None:
        """Have the decision on a series, and how a series was derived from it, on the disk.

        To be called before a result appears: a result without a decision has no destination.
        made_by: (hash over how it was made, hash of the weights).
        """
        frozen, outputs = self._journal.decision(series_uid)
        file = self._images.path(decision_file(series_uid))
        before = self._noted.get(series_uid) or read_decision(file)
        made = {**(before.made if before else {}), derived_uid: made_by}
        decision = Decision(series_uid=series_uid, frozen=frozen, outputs=outputs, made=made)
        if decision != before or not file.is_file():
            content = json.dumps({"version": _VERSION, **vars(decision)})
            self._images.note(decision_file(series_uid), content.encode())
        # Only the series under way: a node runs for years.
        self._noted = {series_uid: decision}


def read_decision(file: Path) -> Decision | None:
    """The decision in a file, None where there is none that can be read."""
    try:
        record = json.loads(file.read_bytes())
        if record["version"] != _VERSION:
            return None
        return Decision(
            series_uid=str(record["series_uid"]),
            frozen=dict(record["frozen"]),
            outputs=tuple(
                {name: item[name] for name in ("output_key", "place", "spec")}
                for item in record["outputs"]
            ),
            made={str(uid): (str(one), str(two)) for uid, (one, two) in record["made"].items()},
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
