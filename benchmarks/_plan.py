"""The plan of a comparison: what each row is trained with, in which order, and what that costs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field

from cddnet.config import load_config

_HOUR = 3600


class PlannedRow(BaseModel, frozen=True, extra="forbid"):
    crops: int = Field(gt=0, description="of the training")
    searched_crops: int = Field(gt=0, description="of each run of the rate search")
    crop: int = Field(gt=0, description="pixels per side")
    slices_per_step: int = Field(gt=0)
    crops_per_slice: int = Field(gt=0)
    core_seconds: float = Field(gt=0, description="processor time of a crop, noise included")

    @property
    def core_hours(self) -> float:
        """Of the training and the three runs that a search has at least."""
        return (self.crops + 3 * self.searched_crops) * self.core_seconds / _HOUR


class Plan(BaseModel, frozen=True, extra="forbid"):
    """rows: in the order of their training."""

    split: str = Field(description="patients, relative to the plan")
    set: dict[str, Any] = Field({}, description="keys of every recipe, in place of its own")
    rows: dict[str, PlannedRow]

    @property
    def overrides(self) -> tuple[str, ...]:
        """Of every recipe, in the form of `cddnet train --set`."""
        return tuple(_flat(self.set))


def read(path: Path) -> Plan:
    """Raises: ConfigError naming every wrong key."""
    return load_config(path, Plan)


def table(plan: Plan) -> list[list[str]]:
    """Cells of each row: crops, side, processor seconds of a crop, hours of a core."""
    return [
        [
            name,
            f"{row.crops:,}",
            f"{row.crop}",
            f"{row.core_seconds:.2f}",
            f"{row.core_hours:.1f}",
        ]
        for name, row in plan.rows.items()
    ]


TABLE_HEAD = ["", "crops", "pixels a side", "core seconds a crop", "core hours with the search"]


def _flat(values: Mapping[str, Any], above: str = "") -> list[str]:
    """ "key.key=value" of nested values; JSON is YAML."""
    found: list[str] = []
    for key, value in values.items():
        if isinstance(value, dict):
            found += _flat(value, f"{above}{key}.")
        else:
            found.append(f"{above}{key}={json.dumps(value)}")
    return found
