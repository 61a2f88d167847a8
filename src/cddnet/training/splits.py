"""From a patient split to slices."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from cddnet.errors import FormatError
from cddnet.training.pairs import FullDoseSlice
from cddnet.training.slices import full_dose_slices
from cddnet.volume import CTVolume


def load_slices(
    patients: Mapping[str, tuple[str, ...]],
    root: Path,
    read_all: Callable[[Path], tuple[CTVolume, ...]],
) -> dict[str, list[FullDoseSlice]]:
    """Full-dose slices of each patient.

    patients: patient -> series folders below `root`; read_all: folder -> every series in it.
    Raises: FormatError naming the folders that are missing.
    """
    missing = [name for names in patients.values() for name in names if not (root / name).is_dir()]
    if missing:
        raise FormatError(f"{root} lacks {len(missing)} series folders: {', '.join(missing[:5])}")
    return {
        patient: [
            piece
            for name in names
            for volume in read_all(root / name)
            for piece in full_dose_slices(volume)
        ]
        for patient, names in patients.items()
    }
