"""Steps between slices: those of a protocol have names of their own, and gaps stay gaps."""

import numpy as np
import pytest
from dicom_series import ct_dataset, read, save_series
from hypothesis import given
from hypothesis import strategies as st

from cddnet.formats._dicom_steps import step_problems

sections = st.lists(
    st.tuples(st.sampled_from([0.6, 1.0, 2.5, 4.0, 5.0, 7.0, 10.0]), st.integers(5, 8)),
    min_size=1,
    max_size=4,
)


def scanned(parts, overlap):
    """Positions and thicknesses of sections one behind the other, all with the same overlap."""
    thicknesses = [thickness for thickness, count in parts for _ in range(count)]
    borders = np.cumsum([0.0, *thicknesses]) * overlap
    return (borders[1:] + borders[:-1]) / 2, thicknesses


@given(parts=sections, overlap=st.sampled_from([0.5, 1.0, 1.25]))
def test_no_slice_is_missing_from_any_protocol(parts, overlap):
    along, thicknesses = scanned(parts, overlap)
    problems = step_problems(along, thicknesses)
    assert not any("missing" in problem for problem in problems)
    steps = np.diff(along)
    assert bool(problems) == bool(np.ptp(steps) > max(0.02, 0.01 * np.median(steps)))


@given(parts=sections, overlap=st.sampled_from([0.5, 1.0, 1.25]), data=st.data())
def test_a_slice_taken_out_of_a_section_is_missed_in_its_place(parts, overlap, data):
    along, thicknesses = scanned(parts, overlap)
    borders = np.cumsum([0, *(count for _, count in parts)])
    inside = [i for i in range(len(along)) if i not in borders and i + 1 not in borders]
    gone = data.draw(st.sampled_from(inside))
    problems = step_problems(np.delete(along, gone), np.delete(thicknesses, gone))
    step = thicknesses[gone] * overlap
    assert problems[0].startswith(f"slices are missing at 1 place, the first {2 * step:.2f} mm")
    assert problems[0].endswith(f"(usual step {step:.2f} mm)")


@pytest.mark.parametrize(
    ("steps", "thicknesses", "problems"),
    [
        ([4] * 5 + [5.5, 7, 7], [4] * 6 + [7] * 3, ["4, 7 mm"]),
        # High resolution: 1 mm slices, sparse above; and three sections.
        ([10] * 4 + [20] * 3, [1] * 8, ["10, 20 mm"]),
        ([20] * 3 + [10] * 4 + [20] * 3, [1] * 11, ["20, 10, 20 mm"]),
        ([20] * 3 + [10] * 4, [None] * 8, ["20, 10 mm"]),
        # Two large steps are gaps, wherever they lie.
        ([5] * 5 + [10] * 2, [5] * 8, ["slices are missing at 2 places, the first 10.00"]),
        ([5, 5, 10, 10, 10, 5, 5, 5, 5], [5] * 10, ["slices are missing at 3 places"]),
        ([5, 5, 10, 5], [None] * 5, ["slices are missing at 1 place, the first 10.00 mm wide"]),
        ([5, 5.4, 4.6], [5] * 4, ["slice spacing varies from 4.60 to 5.40 mm"]),
        # A gap in the thick part of a protocol with two.
        (
            [4] * 5 + [5.5, 7, 14, 7, 7],
            [4] * 6 + [7] * 5,
            ["missing at 1 place, the first 14.00 mm wide at 32.5 mm", "4, 7 mm"],
        ),
        # Contiguous slices of two thicknesses, all at one distance.
        ([5] * 5, [5, 5, 5, 4, 4, 4], []),
    ],
)
def test_what_is_said_of_steps(steps, thicknesses, problems):
    found = step_problems(np.cumsum([0.0, *steps]), thicknesses)
    assert len(found) == len(problems)
    for text, expected in zip(found, problems, strict=True):
        assert expected in text


def test_a_series_whose_protocol_changes_its_step(tmp_path):
    places = (0, 4, 8, 12, 16, 20, 25.5, 32.5, 39.5)
    datasets = [ct_dataset(index) for index in range(9)]
    for index, (dataset, place) in enumerate(zip(datasets, places, strict=True)):
        dataset.ImagePositionPatient = ["-20", "-30", str(place)]
        dataset.SliceThickness = "4" if index < 6 else "7"
    volume = read(save_series(tmp_path / "ct", datasets))
    assert volume.notes == (
        "the step between slices changes along the stack: 4, 7 mm",
        "slice thickness differs within the series",
    )
    assert volume.positions_mm == places
    assert volume.thickness_mm is None
    assert volume.thicknesses_mm == (4.0,) * 6 + (7.0,) * 3
    assert [volume.thickness_of(index) for index in (0, 8)] == [4.0, 7.0]
    whole = read(save_series(tmp_path / "even", [ct_dataset(index) for index in range(3)]))
    assert (whole.thickness_of(1), whole.thicknesses_mm) == (5.0, ())
