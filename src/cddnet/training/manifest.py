"""The manifest of a prepared training set: what its slices are, without naming anybody.

Names of patients and UIDs appear only as keyed digests: a hospital's short number could be found
from a bare SHA-256 by trying them all. The key is a hash of every series UID of the source and is
not kept, so the same number gives other digests in another set.
"""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field, ValidationError

from cddnet.errors import FormatError

MANIFEST = "manifest.json"
SLICES = "slices"
UNFINISHED = ".unfinished"
SIDES = ("train", "validation", "test")
Side = Literal["train", "validation", "test"]

# Slices without tissue, and of a single value, are alike in everybody.
_TISSUE_HU = -500


class StoredFile(BaseModel, frozen=True, extra="forbid"):
    """One `.npy` of int16 HU (D, H, W)."""

    name: str = Field(description="below the folder slices")
    sha256: str = Field(description="of the whole file")
    slices: tuple[str, ...] = Field(description="SHA-256 of each slice's HU; empty without tissue")


class PreparedSeries(BaseModel, frozen=True, extra="forbid"):
    """One series; what ends in `digest` or `digests` is keyed, of the full and the low dose."""

    name: str = Field(description="digest of the series UID and its folder")
    side: Side
    patient_digest: str = Field(description="of the patient it is filed under")
    header_patient_digests: tuple[str, ...] = Field(description="of the headers' PatientID")
    study_digests: tuple[str, ...]
    series_digests: tuple[str, ...]
    frame_of_reference_digests: tuple[str, ...]
    manufacturer: str
    scanner: str
    kernel: str
    collection: str = Field(description="ClinicalTrialProtocolID")
    shape: tuple[int, int, int] = Field(description="slices, rows, columns")
    pixel_mm: float | None = Field(description="square pixel pitch; none in pictures")
    spacing_mm: float = Field(description="usual distance between slices")
    thickness_mm: float | None
    positions_mm: tuple[float, ...] = Field(description="of each slice along its normal")
    low_dose: Literal["real", "simulated"] = Field(description="simulated: drawn in training")
    full_file: StoredFile
    low_file: StoredFile | None = Field(description="the real low dose, slice by slice")
    notes: tuple[str, ...] = Field(description="what the reader said of the source")
    volume_problems: tuple[str, ...] = Field(description="what forbids work across slices")

    @property
    def files(self) -> tuple[StoredFile, ...]:
        return (self.full_file,) if self.low_file is None else (self.full_file, self.low_file)


class Manifest(BaseModel, frozen=True, extra="forbid"):
    """Everything about a prepared set; it exists only once the set is whole and free of leaks."""

    format: Literal[1] = 1
    version: str = Field(description="of cddnet")
    request: str = Field(description="SHA-256 of the options and of the source's file list")
    layout: str
    collections: tuple[str, ...] = Field(description="licence and source; empty: nobody stated any")
    warnings: tuple[str, ...]
    series: tuple[PreparedSeries, ...]

    def of_side(self, side: str) -> tuple[PreparedSeries, ...]:
        return tuple(item for item in self.series if item.side == side)


def load_manifest(folder: Path) -> Manifest:
    """The manifest of a prepared set.  Raises FormatError where there is none, or a wrong one."""
    path = folder / MANIFEST
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise FormatError(
            f"{folder}: is no prepared set, or an unfinished one ({MANIFEST} is missing); "
            "run cddnet prepare."
        ) from error
    except (OSError, ValidationError) as error:
        what = (
            f"{error.error_count()} wrong values" if isinstance(error, ValidationError) else error
        )
        raise FormatError(
            f"{path}: is no manifest of this version ({what}); prepare the set again."
        ) from error


def digest_of(text: str, key: str) -> str:
    """Keyed digest of a name or UID, "" of ""."""
    return hmac.new(key.encode(), text.encode(), hashlib.sha256).hexdigest() if text else ""


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, read in pieces."""
    total = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            total.update(block)
    return total.hexdigest()


def slice_sha256(hu: NDArray[np.int16]) -> str:
    """SHA-256 of a slice (H, W) and its size; "" for one without tissue, which identifies nobody.

    Without tissue: no pixel above -500 HU, or all of one value.
    """
    if hu.max() <= _TISSUE_HU or hu.max() == hu.min():
        return ""
    size = f"{hu.shape[0]} x {hu.shape[1]} int16 ".encode()
    return hashlib.sha256(size + np.ascontiguousarray(hu, "<i2").tobytes()).hexdigest()
