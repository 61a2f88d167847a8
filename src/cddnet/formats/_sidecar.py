"""The record of what was done to a volume, for formats whose header cannot hold it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from cddnet.errors import FormatError
from cddnet.formats._atomic import new_files
from cddnet.volume import CTVolume, Derivation

RESEARCH_USE = "research use only"
FOLDER_RECORD = "derivation.json"


def record(derivation: tuple[Derivation, ...]) -> str:
    """The steps as JSON."""
    steps = [step_as_json(step) for step in derivation]
    return json.dumps({"use": RESEARCH_USE, "derivation": steps}, indent=2) + "\n"


def step_as_json(step: Derivation) -> dict[str, object]:
    """The fields of a step; of date and growth only what there is, so that old records stay."""
    fields = asdict(step)
    del fields["created"], fields["grows"]
    if step.grows:
        fields["grows"] = True
    return fields if step.created is None else fields | {"created": step.created.isoformat()}


def _step(fields: dict[str, Any]) -> Derivation:
    created = fields.get("created")
    return Derivation(
        **{
            **fields,
            "parameters": tuple(map(tuple, fields["parameters"])),
            "created": None if created is None else datetime.fromisoformat(created),
        }
    )


def recorded(text: str, where: str) -> tuple[Derivation, ...]:
    """The steps of a record, the inverse of `record`."""
    try:
        return tuple(_step(step) for step in json.loads(text)["derivation"])
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise FormatError(
            f"{where}: not a record of processing steps ({error!r}); move it away if it is not "
            "from cddnet."
        ) from error


def sidecar_of(path: Path) -> Path:
    """scan.nii.gz -> scan.nii.gz.json."""
    return path.with_name(path.name + ".json")


def recorded_beside(path: Path) -> tuple[Derivation, ...]:
    """The steps recorded beside a file, or none."""
    return recorded_in(sidecar_of(path))


def recorded_in(sidecar: Path) -> tuple[Derivation, ...]:
    """The steps recorded in a file, or none where it does not exist."""
    if not sidecar.is_file():
        return ()
    return recorded(sidecar.read_text("utf-8", errors="replace"), str(sidecar))


@contextmanager
def new_recorded_files(volume: CTVolume, *paths: Path) -> Iterator[tuple[Path, ...]]:
    """`new_files`, and beside the last one the record where the volume was processed."""
    sidecar = sidecar_of(paths[-1])
    if os.path.lexists(sidecar):
        raise FormatError(
            f"{sidecar}: would be taken for the record of {paths[-1].name}; move it away or "
            "choose another name."
        )
    if not volume.derivation:
        with new_files(*paths) as temporaries:
            yield temporaries
        return
    with new_files(sidecar, *paths) as (record_file, *temporaries_list):
        record_file.write_text(record(volume.derivation), "utf-8")
        yield tuple(temporaries_list)
