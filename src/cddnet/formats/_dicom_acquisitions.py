"""Several images at one place in a series: acquisitions, points in time, copies of an image."""

# Shapes: D slice.

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from pydicom import Dataset

from cddnet.errors import GeometryError
from cddnet.formats._dicom_frames import Frame, group_item
from cddnet.formats._dicom_values import joined_text

MOST_LISTED = 8
Reader = Callable[[Dataset, int], str]


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
    for stated in stated_acquisitions(frames, most):
        if len(set(zip(places, stated.labels, strict=True))) == len(frames):
            return stated
    return _in_turn(frames, places)


def stated_acquisitions(frames: Sequence[Frame], most: int = 2) -> Iterator[Acquisitions]:
    """Ways in which headers group the slices, into two groups or more.

    most: groups that are no surprise; a number of its own for every slice tells no acquisitions.
    """
    numbers = _numbers(frames)
    largest = max(most, len(frames) // 2)
    order = sorted(set(numbers), key=_rank)
    if "" not in order and 1 < len(order) <= largest:
        yield Acquisitions(tuple(numbers), tuple(order), "acquisition number")
    for values in _times(frames):
        order = sorted(set(values), key=_rank)
        if "" not in order and 1 < len(order) <= largest:
            labels = {value: f"t{index}" for index, value in enumerate(order, 1)}
            in_order = tuple(labels[value] for value in values)
            yield Acquisitions(in_order, tuple(labels.values()), "time")


def of_acquisition(frames: Sequence[Frame], label: str | None) -> tuple[list[Frame], bool]:
    """The slices with an acquisition number, and whether one of them has it; all where none has."""
    if label is None:
        return list(frames), False
    numbers = zip(frames, _numbers(frames), strict=True)
    wanted = [frame for frame, number in numbers if number == label]
    return (wanted, True) if wanted else (list(frames), False)


def no_acquisition(uid: str, label: str, labels: Sequence[str]) -> GeometryError:
    """The refusal of a label that no slice has.  labels: of the slices."""
    known = [one for one in labels if one]
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


def _numbers(frames: Sequence[Frame]) -> list[str]:
    return [
        frame.acquisition or _stated(_content(frame.header, frame.index), "FrameAcquisitionNumber")
        for frame in frames
    ]


def _times(frames: Sequence[Frame]) -> Iterator[list[str]]:
    """Elements that tell when each slice was measured; each header is made once."""
    read: list[tuple[str, ...]] = []
    for frame in frames:
        header = frame.header
        read.append(tuple(reader(header, frame.index) for reader in _READERS))
    return ([times[number] for times in read] for number in range(len(_READERS)))


def _time_index(header: Dataset, index: int) -> str:
    stated = _stated(header, "TemporalPositionIdentifier")
    return stated or _stated(_content(header, index), "TemporalPositionIndex")


def _moment(header: Dataset, index: int) -> str:
    whole = _stated(_content(header, index), "FrameAcquisitionDateTime")
    whole = whole or _stated(header, "AcquisitionDateTime")
    return whole or _stated(header, "AcquisitionDate") + _stated(header, "AcquisitionTime")


def _cardiac_phase(header: Dataset, index: int) -> str:
    group = group_item(header, index, "CardiacSynchronizationSequence")
    for where, keyword in (
        (group, "NominalPercentageOfCardiacPhase"),
        (header, "NominalPercentageOfCardiacPhase"),
        (group, "NominalCardiacTriggerDelayTime"),
        (header, "TriggerTime"),
    ):
        if text := _stated(where, keyword):
            return text
    return ""


_READERS: tuple[Reader, ...] = (_time_index, _moment, _cardiac_phase)


def _stated(header: Dataset, keyword: str) -> str:
    return joined_text(header, keyword) if keyword in header else ""


def _content(header: Dataset, index: int) -> Dataset:
    return group_item(header, index, "FrameContentSequence")
