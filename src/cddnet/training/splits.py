"""From a patient split, or a prepared set, to slices."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from cddnet.errors import FormatError
from cddnet.training.manifest import PreparedSeries
from cddnet.training.pairs import FullDoseSlice, MeasuredPair, OwnNoise, StoredSlice
from cddnet.training.slices import calibrated_geometry, full_dose_slices, stored_slices
from cddnet.training.store import PreparedSet
from cddnet.volume import CTVolume

MeasureNoise = Callable[[CTVolume], OwnNoise]


def load_slices(
    patients: Mapping[str, tuple[str, ...]],
    root: Path,
    read_all: Callable[[Path], tuple[CTVolume, ...]],
    *,
    own: MeasureNoise | None = None,
    cut: Collection[str] = (),
) -> dict[str, list[FullDoseSlice]]:
    """Full-dose slices of each patient.

    patients: patient -> series folders below `root`; read_all: folder -> every series in it.
    own: measures a series' own noise, for each slice to carry.  cut: patients whose body is cut.
    Raises: FormatError naming the folders that are missing.
    """
    missing = [name for names in patients.values() for name in names if not (root / name).is_dir()]
    if missing:
        raise FormatError(
            f"{root} lacks {len(missing)} series folders: {', '.join(missing[:5])}; fetch them, or "
            "take them out of the split."
        )
    return {
        patient: [
            piece._replace(own=noise, cut=patient in cut)
            for name in names
            for volume in read_all(root / name)
            for noise in [own(volume) if own else None]
            for piece in full_dose_slices(volume)
        ]
        for patient, names in patients.items()
    }


def prepared_slices(
    prepared: PreparedSet, side: str, *, own: MeasureNoise | None = None
) -> dict[str, list[StoredSlice]]:
    """Slices of each patient of one side, read when they are asked for.

    Real pairs come slice by slice; full-dose series as `stored_slices` gives them, with their own
    noise where `own` measures it.
    """
    return {
        patient: [item for one in series for item in _slices(prepared, one, own)]
        for patient, series in prepared.patients(side).items()
    }


def _slices(
    prepared: PreparedSet, series: PreparedSeries, own: MeasureNoise | None
) -> Iterator[StoredSlice]:
    full_dose = prepared.full_dose(series)
    if series.low_file is None:
        noise = own(full_dose) if own else None
        yield from (replace(piece, own=noise) for piece in stored_slices(full_dose))
        return
    low_dose = prepared.low_dose(series)
    for index in range(series.shape[0]):
        yield MeasuredPair(
            read=partial(full_dose.read_slice, index),
            geometry=calibrated_geometry(full_dose),
            series_uid=series.name,
            slice_index=index,
            read_low_dose=partial(low_dose.read_slice, index),
        )
