"""CTVolume: a CT series in HU, with its geometry, its origin and what was done to it."""

# Shapes: D slice, H row, W column. Coordinates are DICOM patient coordinates (LPS), mm.

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime

import numpy as np
from numpy.typing import NDArray

from cddnet.errors import GeometryError

SliceHU = NDArray[np.float32]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, slots=True)
class Derivation:
    """One processing step, recorded so that a writer can say what was done.

    label: a few ASCII characters for the series description, such as "cddnet 80%".
    description: one ASCII sentence for people.
    parameters: everything that decides the pixels (model, weights hash, strength, engine,
        precision, series-level estimates, seed) as sorted (name, value) text pairs; derived UIDs
        are a hash over it and the source's UIDs and pixels.
    version: of this package.
    weights_sha256: of the network, empty when none took part.
    neighbours: slices used on each side of the one derived.
    image_type: value 2 of the DICOM ImageType, SECONDARY by the letter, PRIMARY as a site option.
    timeless: a seed decides the step, so that headers never say when it ran.
    created: when this was first done, with a time zone, for the headers; None: they do not say,
        and the same input gives the same bytes.
    grows: the series may still get slices: derived UIDs depend neither on which others are there
        nor on `created`, which must then be kept somewhere.
    """

    label: str
    description: str
    parameters: tuple[tuple[str, str], ...]
    version: str
    weights_sha256: str = ""
    neighbours: int = 0
    image_type: str = "SECONDARY"
    timeless: bool = False
    created: datetime | None = None
    grows: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Acquisition:
    """What the source says of its making, "" where it says nothing.

    Names a patient: never to be printed, logged or written where it was not before. `repr` shows
    what names nobody.
    series_description: "" also where it holds the name, number or a date of the patient.
    """

    patient_id: str = field(default="", repr=False)
    study_uid: str = field(default="", repr=False)
    frame_of_reference_uid: str = field(default="", repr=False)
    manufacturer: str = ""
    model: str = ""
    kernel: str = ""
    collection: str = ""
    series_description: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Storage:
    """How the source file holds a volume, for a writer that gives it back in the same form."""

    axes: tuple[int, int, int] = (0, 1, 2)
    """Axis of the file, slowest first, along which slices, rows and columns follow each other."""
    placed: bool = True
    """False where the file states neither position nor orientation."""
    forms: object | None = None
    """Position and orientation in the words of the file, opaque outside the format."""


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class CTVolume:
    """A CT series in HU, read slice by slice.

    shape: (D, H, W).
    spacing_mm: (slice, row, column) distance between centres; the slice distance is the median.
    read_slice: index -> (H, W) float32 HU; reads or computes on each call, and keeps nothing.
    read_padding: index -> (H, W) bool, true where the scanner measured nothing; None if nowhere.
    origin_mm: centre of the first voxel, LPS.
    direction: unit vectors (slice, row index, column index) in LPS; row index grows downwards.
    thickness_mm: of each slice, None where the format does not say; slices may overlap.
    thicknesses_mm: of each slice (D,) where they differ, None where one does not say; else empty.
    positions_mm: of each slice along the normal (D,), ascending; empty for even spacing.
    acquisition_labels: of each slice (D,), where several lie at one place; else empty.
    series_uid: names the series; "" where the format has none.
    acquisition: patient, study and kernel, for those who must know.
    headers: the source's headers, opaque outside the format that read them; None if it has none.
    notes: what a user should know and slice-wise work may ignore.
    volume_problems: what forbids work across slices (gaps, differing frames of reference).
    skew: how the axes miss right angles (gantry tilt). Slices are right, and a writer can state it.
    storage: how the source file holds the volume; a writer gives it back in the same form.
    derivation: processing steps, oldest first.
    window_hu: (low, high) that the source's grey levels cut HU to; None where it holds HU.
    """

    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    read_slice: Callable[[int], SliceHU]
    read_padding: Callable[[int], Mask] | None = None
    origin_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)
    direction: tuple[tuple[float, float, float], ...] = (
        (0.0, 0.0, 1.0),
        (0.0, 1.0, 0.0),
        (1.0, 0.0, 0.0),
    )
    thickness_mm: float | None = None
    thicknesses_mm: tuple[float | None, ...] = ()
    positions_mm: tuple[float, ...] = ()
    acquisition_labels: tuple[str, ...] = ()
    series_uid: str = ""
    acquisition: Acquisition = Acquisition()
    headers: object | None = None
    notes: tuple[str, ...] = ()
    volume_problems: tuple[str, ...] = ()
    skew: tuple[str, ...] = ()
    storage: Storage = Storage()
    derivation: tuple[Derivation, ...] = ()
    window_hu: tuple[float, float] | None = None

    def __repr__(self) -> str:
        """Shape, spacing and the description of the series, never what else may name a patient."""
        spacing_mm = ", ".join(f"{value:g}" for value in self.spacing_mm)
        described = self.acquisition.series_description
        named = f", series_description={described!r}" if described else ""
        return f"CTVolume(shape={self.shape}, spacing_mm=({spacing_mm}){named})"

    @classmethod
    def from_hu(
        cls, hu: NDArray[np.float32], spacing_mm: tuple[float, float, float], **fields: object
    ) -> CTVolume:
        """Volume over an array (D, H, W) or (H, W) in HU; `fields` are those of the class."""
        stack = np.asarray(hu, dtype=np.float32)
        if stack.ndim == 2:
            stack = stack[None]
        if stack.ndim != 3 or 0 in stack.shape:
            raise GeometryError(
                f"an array of shape {np.shape(hu)} is no CT volume; "
                "give (D, H, W) or (H, W) with at least one voxel."
            )
        depth, height, width = stack.shape
        return cls(
            shape=(depth, height, width),
            spacing_mm=spacing_mm,
            read_slice=stack.__getitem__,
            **fields,  # type: ignore[arg-type]
        )

    @property
    def hu(self) -> NDArray[np.float32]:
        """All slices (D, H, W) float32 HU; reads the whole series into memory."""
        return np.stack(list(self.slices()))

    def slices(self) -> Iterator[SliceHU]:
        """Slices (H, W) in HU, one after the other."""
        return (self.read_slice(index) for index in range(self.shape[0]))

    def padding(self, index: int) -> Mask:
        """Where slice `index` holds padding instead of a measurement: (H, W) bool."""
        if self.read_padding is None:
            return np.zeros(self.shape[1:], dtype=np.bool_)
        return self.read_padding(index)

    def slice_positions_mm(self) -> tuple[float, ...]:
        """Position of each slice along the normal, mm (D,)."""
        return self.positions_mm or tuple(
            index * self.spacing_mm[0] for index in range(self.shape[0])
        )

    def thickness_of(self, index: int) -> float | None:
        """Thickness of slice `index` in mm, None where it is not stated."""
        return self.thicknesses_mm[index] if self.thicknesses_mm else self.thickness_mm

    def derived(self, read_slice: Callable[[int], SliceHU], step: Derivation) -> CTVolume:
        """The same geometry and source with new slices, and `step` added to the record."""
        return replace(self, read_slice=read_slice, derivation=(*self.derivation, step))

    def require_whole(self) -> None:
        """Refuse work across slices where they do not form one evenly spaced volume."""
        if self.volume_problems:
            raise GeometryError(
                f"these slices cannot be treated as one volume: {'; '.join(self.volume_problems)}. "
                "Export the complete series again, or give each part alone."
            )
