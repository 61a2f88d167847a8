"""Distances between the slices of a stack: missing slices, and protocols that change their step."""

# Shapes: D place.

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

SPACING_TOLERANCE_MM = 0.02
SPACING_TOLERANCE_FRACTION = 0.01
# Of the expected step: a larger one is a gap.
GAP = 1.5
# As many equal steps at an end of the stack are a section of the protocol.
SECTION_STEPS = 3
MOST_SECTIONS = 4


def step_problems(
    along_mm: NDArray[np.float64], thicknesses_mm: Sequence[float | None]
) -> list[str]:
    """What is uneven about places along the normal (D,), in ascending order.

    A step that changes with the thickness of the slices, or for a whole section at an end, is that
    of the protocol; any other large step is a gap.
    """
    steps = np.diff(along_mm)
    usual_mm = float(np.median(steps))
    tolerance_mm = max(SPACING_TOLERANCE_MM, SPACING_TOLERANCE_FRACTION * usual_mm)
    expected = _expected(steps, thicknesses_mm)
    sections = _sections(steps, tolerance_mm)
    for first, behind in (sections[0], sections[-1]):
        if behind - first >= SECTION_STEPS:
            expected[first:behind] = np.maximum(expected[first:behind], steps[first:behind])
    gaps = np.flatnonzero(steps > GAP * expected)
    problems = []
    if gaps.size:
        where = int(gaps[0])
        places = "1 place" if gaps.size == 1 else f"{gaps.size} places"
        problems.append(
            f"slices are missing at {places}, the first {steps[where]:.2f} mm wide "
            f"at {along_mm[where]:.1f} mm along the stack (usual step {expected[where]:.2f} mm)"
        )
    varied = np.abs(steps - usual_mm) > tolerance_mm
    varied[gaps] = False
    if not varied.any():
        return problems
    steady = [float(np.median(steps[a:b])) for a, b in sections if b - a > 1 and a not in gaps]
    changes = [steady[:1], *([b] for a, b in pairwise(steady) if abs(a - b) > tolerance_mm)]
    shown = [f"{step:.4g}" for change in changes for step in change]
    if 1 < len(shown) <= MOST_SECTIONS:
        problems.append(f"the step between slices changes along the stack: {', '.join(shown)} mm")
    elif not gaps.size:
        problems.append(
            f"slice spacing varies from {steps.min():.2f} to {steps.max():.2f} mm "
            f"(usual step {usual_mm:.2f} mm)"
        )
    return problems


def _expected(
    steps: NDArray[np.float64], thicknesses_mm: Sequence[float | None]
) -> NDArray[np.float64]:
    """Step at each place: in proportion to the thickness, where the slices state different ones."""
    stated = [thickness for thickness in thicknesses_mm if thickness]
    if len(stated) < len(thicknesses_mm) or len(set(stated)) == 1:
        return np.full(len(steps), np.median(steps))
    thickness = np.array(stated, dtype=np.float64)
    centres = (thickness[1:] + thickness[:-1]) / 2
    return np.asarray(np.median(steps / centres) * centres, dtype=np.float64)


def _sections(steps: NDArray[np.float64], tolerance_mm: float) -> list[tuple[int, int]]:
    """Runs of equal steps, each from its first to behind its last."""
    borders = np.flatnonzero(np.abs(np.diff(steps)) > tolerance_mm) + 1
    return list(pairwise([0, *borders.tolist(), len(steps)]))
