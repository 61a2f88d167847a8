"""What a method removed, and at which detail it stops agreeing with the reference."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from cddnet.errors import CddnetError
from cddnet.metrics._body import body_mask
from cddnet.metrics.structure import residual_structure, scanning_frc
from cddnet.workflows._cases import Case
from cddnet.workflows._evaluation import Finding, Interval, Physics

_SLICES = 3
_RESIDUAL = "removed against edges, correlation", ""
_LOW_END = "above chance by", ""
_CROSSING = "agreement with the reference down to, median patch", "1/mm"
_WORST = "agreement with the reference down to, 5 % of patches below", "1/mm"


def structure_of(cases: Sequence[Case], low_dose: str) -> Physics:
    """Residual structure against the low dose, where there is one, and scanning Fourier ring
    correlation with the reference, in the body of three slices of each series; mean over slices.
    """
    values: dict[tuple[str, tuple[str, str]], list[float]] = defaultdict(list)
    within = f"body, {_SLICES} evenly spread slices of each series"
    for case in cases:
        count = case.reference.shape[0]
        rows = {name: case.aligned(name) for name in case.rows}
        for index in np.unique(np.linspace(0, count - 1, _SLICES + 2)[1:-1].round().astype(int)):
            full_dose = case.reference.read_slice(int(index))
            mask = body_mask(full_dose)
            images = {name: volume.read_slice(int(index)) for name, volume in rows.items()}
            for name, hu in images.items():
                try:
                    pixel_mm = case.reference.spacing_mm[2]
                    found = scanning_frc(full_dose, hu, pixel_mm=pixel_mm, mask=mask).distribution()
                    values[name, _CROSSING].append(found["median"])
                    values[name, _WORST].append(found["5 %"])
                    if low_dose in images and name != low_dose:
                        removed = residual_structure(full_dose, images[low_dose], hu, mask=mask)
                        values[name, _RESIDUAL].append(removed.correlation)
                        excess = removed.correlation - removed.chance_high
                        values[name, _LOW_END].append(excess)
                except CddnetError:
                    # Too small, or nothing removed: there is no figure then.
                    continue
    findings = tuple(
        Finding(
            row=name,
            family="structure",
            name=figure,
            value=Interval(value=float(np.mean(found))),
            unit=unit,
            within=within,
        )
        for (name, (figure, unit)), found in values.items()
    )
    said = tuple(
        f"{name}: what was removed follows edges, correlation "
        f"{np.mean(values[name, _RESIDUAL]):.2f}, {np.mean(excess):.2f} above chance: anatomy was "
        "removed with the noise."
        for (name, figure), excess in list(values.items())
        if figure == _LOW_END and np.mean(excess) > 0
    )
    return Physics(findings=findings, statements=said)
