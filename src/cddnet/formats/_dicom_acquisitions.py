"""Several images at one place in a series: acquisitions, points in time, copies of an image."""

# Shapes: D slice.

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

from pydicom import Dataset

from cddnet.errors import GeometryError
from cddnet.formats._dicom_frames import Frame, group_item
from cddnet.formats._dicom_values import joined_text

MOST_LISTED = 8
Reader = Callable[[Frame], str]


class Acquisitions(NamedTuple):
    """What tells images at one place apart.

    labels: of each slice (D,), as `--acquisition` takes them.  order: of the labels.
    what: element that tells them apart, for people.
    """

    labels: tuple[str, ...]
    order: tuple[str, ...]
    what: str

    def listed(self) -> str:
        """Every label and the number of its slices."""
        return f"{self.what}: {counted(self.labels, self.order)}"


def acquisitions_of(frames: Sequence[Frame], places: Sequence[int]) -> Acquisitions:
    """What tells the slices at each place apart: acquisition number, time, or their own order.

    places: number of each slice's place (D,); several slices have one place.
    """
    most = max(Counter(places).values())
    for reader in (_number, _time_index, _moment, _cardiac_phase):
        values = [reader(frame) for frame in frames]
        groups = set(values)
        apart = len(set(zip(places, values, strict=True))) == len(frames)
        # A number of its own for every slice tells no acquisitions.
        if "" in groups or not apart or len(groups) > max(most, len(frames) // 2):
            continue
        order = sorted(groups, key=_rank)
        if reader is _number:
            return Acquisitions(tuple(values), tuple(order), "acquisition number")
        labels = {value: f"t{index}" for index, value in enumerate(order, 1)}
        return Acquisitions(
            tuple(labels[value] for value in values), tuple(labels.values()), "time"
        )
    return _in_turn(frames, places)


def of_acquisition(frames: Sequence[Frame], label: str | None) -> tuple[list[Frame], bool]:
    """The slices with an acquisition number, and whether one of them has it; all where none has."""
    wanted = [frame for frame in frames if label is not None and _number(frame) == label]
    return (wanted, True) if wanted else (list(frames), False)


def no_acquisition(uid: str, label: str, found: Sequence[str]) -> GeometryError:
    """The refusal of a label that no slice has.  found: labels of the slices."""
    known = [one for one in found if one]
    listed = counted(known, sorted(set(known), key=_rank)) if known else "none"
    return GeometryError(
        f"series {uid}: there is no acquisition {label} in it, but: {listed}; give one of these, "
        "or leave out --acquisition."
    )


def counted(labels: Sequence[str], order: Sequence[str]) -> str:
    """Labels with the number of their slices, in that order."""
    counts = Counter(labels)
    shown = [
        f"{label} ({counts[label]} slice{'s' if counts[label] > 1 else ''})"
        for label in order[:MOST_LISTED]
    ]
    more = len(order) - MOST_LISTED
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")


def instance_rank(frame: Frame) -> tuple[float, int]:
    """For sorting by instance number, frames of one file by their order in it."""
    number = _rank(frame.instance_number)[0]
    return number, frame.index


def _in_turn(frames: Sequence[Frame], places: Sequence[int]) -> Acquisitions:
    """The first image of each place by its number, the second, and so on."""
    labels = [""] * len(frames)
    taken: Counter[int] = Counter()
    for index in sorted(range(len(frames)), key=lambda index: instance_rank(frames[index])):
        taken[places[index]] += 1
        labels[index] = f"n{taken[places[index]]}"
    order = tuple(f"n{number}" for number in range(1, max(taken.values()) + 1))
    return Acquisitions(tuple(labels), order, "instance number")


def _rank(text: str) -> tuple[float, str]:
    """Numbers by their value, texts behind them."""
    try:
        return float(text), text
    except ValueError:
        return float("inf"), text


def _number(frame: Frame) -> str:
    return frame.acquisition or joined_text(_content(frame), "FrameAcquisitionNumber")


def _time_index(frame: Frame) -> str:
    stated = joined_text(frame.header, "TemporalPositionIdentifier")
    return stated or joined_text(_content(frame), "TemporalPositionIndex")


def _moment(frame: Frame) -> str:
    header, content = frame.header, _content(frame)
    parts = [joined_text(header, f"Acquisition{part}") for part in ("Date", "Time")]
    for text in (
        joined_text(content, "FrameAcquisitionDateTime"),
        joined_text(header, "AcquisitionDateTime"),
        "".join(parts) if all(parts) else "",
    ):
        if text:
            return text
    return parts[1]


def _cardiac_phase(frame: Frame) -> str:
    group = group_item(frame.header, frame.index, "CardiacSynchronizationSequence")
    for where, keyword in (
        (group, "NominalPercentageOfCardiacPhase"),
        (frame.header, "NominalPercentageOfCardiacPhase"),
        (group, "NominalCardiacTriggerDelayTime"),
        (frame.header, "TriggerTime"),
    ):
        text = joined_text(where, keyword)
        if text:
            return text
    return ""


def _content(frame: Frame) -> Dataset:
    return group_item(frame.header, frame.index, "FrameContentSequence")
