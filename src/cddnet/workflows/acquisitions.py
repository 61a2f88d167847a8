"""Which slices of two series belong together where several lie at one place."""

# Shapes: D slice.

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cddnet.errors import FormatError, GeometryError
from cddnet.formats import read_volume
from cddnet.formats.dicom import DicomHeaders
from cddnet.volume import CTVolume

_LISTED = 6

# Of the slices of two series, (D,) each.
Labels = tuple[tuple[str, ...], tuple[str, ...]]


def labels_of(one: CTVolume, other: CTVolume) -> Labels | None:
    """Labels that slices of two series have in common, where several lie at one place.

    None where each place has one slice.  Raises: GeometryError where nothing tells them apart.
    """
    labels = one.acquisition_labels, other.acquisition_labels
    if not any(labels):
        return None
    if set(labels[0]) & set(labels[1]):
        return labels
    numbers = _numbers(one), _numbers(other)
    if all(numbers):
        return numbers
    if all(labels) and one.shape[0] == other.shape[0]:
        # Maps of a series do not say what its slices were; they are in the same order.
        return tuple(map(str, range(one.shape[0]))), tuple(map(str, range(one.shape[0])))
    shown = ", ".join(sorted({label for found in labels for label in found})[:_LISTED])
    raise GeometryError(
        f"several acquisitions ({shown}) lie at the same places; choose one with --acquisition."
    )


def of_acquisition(found: Sequence[tuple[Path, CTVolume]], label: str | None) -> list[CTVolume]:
    """Series, each with where it was read, of which one acquisition is asked for by its label.

    It is taken of those that hold several at their places, and of every DICOM series where none
    does.  Raises: FormatError where none is DICOM; GeometryError for a label that is not there.
    """
    volumes = [volume for _, volume in found]
    if label is None:
        return volumes
    taken = [bool(volume.acquisition_labels) for volume in volumes]
    if not any(taken):
        taken = [isinstance(volume.headers, DicomHeaders) for volume in volumes]
    if not any(taken):
        raise FormatError(
            f"{found[0][0]}: only DICOM series hold acquisitions to choose from; leave out "
            "--acquisition."
        )
    return [
        read_volume(path, series=volume.series_uid, acquisition=label) if take else volume
        for (path, volume), take in zip(found, taken, strict=True)
    ]


def _numbers(volume: CTVolume) -> tuple[str, ...]:
    """Acquisition and instance number of every slice; empty where these do not tell them apart."""
    headers = volume.headers
    if not isinstance(headers, DicomHeaders):
        return ()
    numbers = tuple(f"{frame.acquisition}/{frame.instance_number}" for frame in headers.frames)
    return numbers if len(set(numbers)) == len(numbers) else ()
