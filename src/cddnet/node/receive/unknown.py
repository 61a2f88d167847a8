"""Images in the node's folder that its journal does not know: entered again, or set aside.

They are there after a crash between the writing of an image and its entry, and where the journal is
lost, of an earlier day, or new. Nothing is ever deleted here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from pydicom import Dataset, dcmread

from cddnet.node.receive.arriving import arriving
from cddnet.node.station import Station
from cddnet.node.store.decisions import Decision, read_decision
from cddnet.node.store.folder import taking_up
from cddnet.node.store.images import DECISION, INBOX, hidden, sha256_of
from cddnet.node.store.origin import read_head
from cddnet.node.store.records import Instance, Made

AT_ONCE = 500
_SOURCES = (
    ("SourceImageSequence",),
    ("ReferencedSeriesSequence", "ReferencedInstanceSequence"),
)


class Entered(NamedTuple):
    """What became of the files that the journal did not know."""

    images: int  # originals that it knows again
    results: int
    decisions: int  # on series, taken back from the files beside them
    aside: int  # moved away, for a person to look at


def enter_unknown(station: Station, sender: str | None = None) -> Entered:
    """Enter what can be read and belongs to the node, and set the rest aside.

    sender: AE title to take for images that do not say who sent them; None: their series wait for
    a person where a rule asks for it.  Raises: CddnetError on a full disk.
    """
    with taking_up(station.config.folder):
        return _enter(station, sender or "")


def _enter(station: Station, sender: str) -> Entered:
    originals = [file for file in station.unknown if file.startswith(f"{INBOX}/")]
    results = [file for file in station.unknown if not file.startswith(f"{INBOX}/")]
    aside: list[str] = []
    images = 0
    readable = _originals(station, originals, sender, aside)
    while batch := list(islice(readable, AT_ONCE)):
        station.journal.enter(batch)
        images += len(batch)
    decided = {decision.series_uid: decision for decision in _decisions(station)}
    restored = sum(
        station.journal.restore(uid, item.frozen, item.outputs) for uid, item in decided.items()
    )
    made = _enter_results(station, results, decided, aside)
    for file in aside:
        station.images.set_aside(file)
    station.unknown = ()
    if images or made or restored:
        station.log.event("entered", images=images, results=made, decisions=restored)
    if aside:
        station.log.event("set_aside", count=len(aside))
    return Entered(images, made, restored, len(aside))


def _originals(
    station: Station, files: Iterable[str], sender: str, aside: list[str]
) -> Iterator[tuple[Instance, float]]:
    """(image, when it came) of the files that can be entered; the others go to `aside`."""
    entered: set[str] = set()
    for file in files:
        path = station.images.path(file)
        read = _original(path, file, sender)
        if read is None:
            aside.append(file)
            continue
        instance = read[0]
        held = station.journal.file_of(instance.sop_uid)
        twice = held is not None and station.images.path(held).is_file()
        if twice or instance.sop_uid in entered:
            aside.append(file)
            continue
        entered.add(instance.sop_uid)
        station.images.counted(instance.size)
        yield read


def _original(path: Path, file: str, sender: str) -> tuple[Instance, float] | None:
    """An image as the intake would take it; None where it would refuse it."""
    if path.is_symlink() or not path.is_file():
        return None
    try:
        head = read_head(path)
        content = path.read_bytes()
        data = BytesIO(content[head.length :])
        identity = arriving(data, head.syntax, None)
    except OSError:
        raise
    except Exception:
        return None
    digest = hashlib.sha256(head.syntax.encode())
    with data.getbuffer() as body:
        digest.update(body)
    instance = Instance(
        sop_uid=identity.sop_uid,
        series_uid=identity.series_uid,
        sop_class=identity.sop_class,
        file=file,
        size=len(content),
        sha256=digest.hexdigest(),
        caller=head.origin.caller if head.origin else sender,
        expected=identity.expected,
    )
    return instance, head.origin.received_at if head.origin else path.stat().st_mtime


def _decisions(station: Station) -> Iterator[Decision]:
    for file in sorted((station.config.folder / INBOX).glob(f"*/{DECISION}")):
        decision = read_decision(file)
        if decision is not None:
            yield decision


def _enter_results(
    station: Station, files: Iterable[str], decided: Mapping[str, Decision], aside: list[str]
) -> int:
    folders = {hidden(key): (key, *output) for key, output in station.journal.outputs().items()}
    count = 0
    for file in files:
        path = station.images.path(file)
        output = folders.get(path.parent.name)
        made = None if output is None else _result(path, file, decided.get(output[1]))
        if output is None or made is None or station.journal.object_file(made.sop_uid) is not None:
            aside.append(file)
            continue
        station.journal.enter_objects(output[0], [made], output[2])
        station.images.counted(made.size)
        count += 1
    return count


def _result(path: Path, file: str, decision: Decision | None) -> Made | None:
    """A derived object, as its making noted it; None where it cannot be read to its end."""
    if path.is_symlink() or not path.is_file():
        return None
    try:
        head = read_head(path)
        data = BytesIO(path.read_bytes()[head.length :])
        identity = arriving(data, head.syntax, None)
        source_uid = _source_of(dcmread(path, stop_before_pixels=True))
    except OSError:
        raise
    except Exception:
        return None
    recipe, weights = decision.made.get(identity.series_uid, ("", "")) if decision else ("", "")
    return Made(
        sop_uid=identity.sop_uid,
        source_uid=source_uid,
        recipe=recipe,
        sop_class=identity.sop_class,
        file=file,
        size=path.stat().st_size,
        sha256=sha256_of(path),
        weights=weights,
    )


def _source_of(header: Dataset) -> str:
    """UID of the original that a derived object was made of; its own slice is named first."""
    for path in _SOURCES:
        items = header
        for keyword in path:
            sequence = items.get(keyword)
            if not sequence:
                break
            items = sequence[0]
        else:
            return str(items.ReferencedSOPInstanceUID)
    raise ValueError("it names no source")
