"""Laws of geometry and rescaling that hold for every series, not for chosen ones."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
from dicom_series import SERIES, ct_dataset, read, save, stored_of
from hypothesis import given, settings
from hypothesis import strategies as st

from cddnet.formats._axes import axes_from_ras, axes_from_steps, ras_from_axes
from cddnet.formats._dicom_frames import Frame
from cddnet.formats._dicom_geometry import stack

EPS64 = np.finfo(np.float64).eps
LARGEST_MM = 2000.0
angles = st.tuples(*[st.floats(-180, 180)] * 3)
places_mm = st.tuples(*[st.floats(-LARGEST_MM, LARGEST_MM)] * 3)
steps_mm = st.lists(st.floats(0.1, 20), min_size=1, max_size=7)


def rotation(degrees):
    turned = np.eye(3)
    for axis, angle in enumerate(np.radians(degrees)):
        i, j = [k for k in range(3) if k != axis]
        step = np.eye(3)
        step[i, i] = step[j, j] = np.cos(angle)
        step[i, j], step[j, i] = -np.sin(angle), np.sin(angle)
        turned = turned @ step
    return turned


def frames_at(positions, turned=None):
    """A frame at each position (D, 3) mm, in the plane of the first two columns of `turned`."""
    row, column, _ = (np.eye(3) if turned is None else turned).T
    kept = ct_dataset()
    return [
        Frame(
            path=Path("a"),
            index=index,
            kept=kept,
            sop_uid=f"1.{index + 1}",
            instance_number="",
            size=(31, 45),
            spacing_mm=(0.7, 0.8),
            thickness_mm=1.0,
            position_mm=tuple(map(float, position)),
            row_direction=tuple(row),
            column_direction=tuple(column),
            slope=1.0,
            intercept=0.0,
            gantry_tilt_degrees=0.0,
            acquisition="1",
            legal=(0, 1),
            padding=None,
        )
        for index, position in enumerate(positions)
    ]


def along(normal, steps, origin=(0.0, 0.0, 0.0)):
    return np.asarray(origin) + np.outer(np.cumsum([0.0, *steps]), normal)


@given(degrees=angles, origin=places_mm, steps=steps_mm)
@settings(max_examples=60)
def test_the_distance_is_the_median_and_the_places_are_the_positions(degrees, origin, steps):
    turned = rotation(degrees)
    result = stack(frames_at(along(turned[:, 2], steps, origin), turned), SERIES)
    # Rounding of a place of two metres, and of the unit vectors it is measured along.
    rounding_mm = 32 * EPS64 * LARGEST_MM
    assert result.spacing_mm[0] == pytest.approx(np.median(steps), abs=rounding_mm)
    assert result.spacing_mm[1:] == (0.7, 0.8)
    even = [result.spacing_mm[0] * index for index in range(len(steps) + 1)]
    places = result.positions_mm or even
    largest = max(0.02, 0.01 * np.median(steps)) * len(steps) if not result.positions_mm else 0
    np.testing.assert_allclose(places, np.cumsum([0.0, *steps]), atol=largest + rounding_mm)
    assert bool(result.problems) == bool(result.positions_mm)


@given(steps=steps_mm, moved=places_mm)
@settings(max_examples=60)
def test_moving_the_patient_moves_the_origin_alone(steps, moved):
    """By whole eighths of a millimetre, which add without rounding."""
    eighths = [max(1, round(8 * step)) / 8 for step in steps]
    shift = np.round(8 * np.asarray(moved)) / 8
    here = stack(frames_at(along((0, 0, 1), eighths)), SERIES)
    there = stack(frames_at(along((0, 0, 1), eighths, shift)), SERIES)
    np.testing.assert_array_equal(np.subtract(there.origin_mm, here.origin_mm), shift)
    unmoved = [problem.split(" at ")[0] for problem in here.problems]
    assert [problem.split(" at ")[0] for problem in there.problems] == unmoved
    assert there[1:2] == here[1:2]
    assert there[3:5] == here[3:5]


@given(steps=steps_mm, order=st.randoms(use_true_random=False))
@settings(max_examples=60)
def test_the_order_of_the_files_decides_nothing(steps, order):
    frames = frames_at(along((0, 0, 1), steps))
    shuffled = order.sample(frames, len(frames))
    assert stack(shuffled, SERIES) == stack(frames, SERIES)


@given(steps=steps_mm)
@settings(max_examples=60)
def test_turning_the_rows_over_reverses_the_slices(steps):
    """The normal is the cross product of rows and columns, so that it turns over with them."""
    positions = along((0, 0, 1), steps)
    upright = stack(frames_at(positions), SERIES)
    turned = stack(frames_at(positions, np.diag([1.0, -1.0, -1.0])), SERIES)
    assert [frame.index for frame in turned.frames] == [
        frame.index for frame in reversed(upright.frames)
    ]
    assert turned.origin_mm == tuple(positions[-1])
    assert turned.direction[0] == (0.0, 0.0, -1.0)
    assert turned.spacing_mm == pytest.approx(upright.spacing_mm, rel=8 * EPS64)


@given(degrees=angles, spacing=st.tuples(*[st.floats(0.05, 20)] * 3), origin=places_mm)
@settings(max_examples=100)
def test_to_ras_and_back_is_the_same_grid(degrees, spacing, origin):
    steps = rotation(degrees) * np.asarray(spacing)[:, None]
    axes = axes_from_steps("a", steps, origin)
    ras = ras_from_axes(axes)
    back = axes_from_ras("a", ras)
    np.testing.assert_allclose(back.spacing_mm, spacing, rtol=32 * EPS64)
    np.testing.assert_array_equal(back.origin_mm, axes.origin_mm)
    np.testing.assert_allclose(back.direction, axes.direction, atol=32 * EPS64)
    # A voxel lies where both say, x and y of opposite sign.
    index = np.array([2, 3, 5])
    lps = np.asarray(origin) + index @ steps
    np.testing.assert_allclose(
        ras @ [*index[::-1], 1], [-lps[0], -lps[1], lps[2], 1], atol=64 * EPS64 * LARGEST_MM
    )


@given(
    slope=st.floats(0.01, 16) | st.floats(-16, -0.01),
    intercept=st.floats(-8192, 8192),
    bits=st.integers(10, 16),
    signed=st.booleans(),
)
@settings(max_examples=25)
def test_hu_are_the_stored_values_by_the_numbers_in_the_file(slope, intercept, bits, signed):
    """Sixteen characters hold a decimal number; what the file says is what counts."""
    told = [f"{value:.9g}" for value in (slope, intercept)]
    dataset = ct_dataset(size=(5, 7), bits=bits, signed=signed, slope=told[0], intercept=told[1])
    with tempfile.TemporaryDirectory() as folder:
        volume = read(save(dataset, Path(folder) / "a.dcm"))
        hu = volume.read_slice(0)
    expected = stored_of(dataset).astype(np.float64) * float(told[0]) + float(told[1])
    np.testing.assert_array_equal(hu, expected.astype(np.float32))
