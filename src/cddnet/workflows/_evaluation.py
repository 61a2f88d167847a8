"""What an evaluation found, as it is written to JSON and drawn in a report.

Names of patients are those that the user's folders or headers carry, shortened to a digest unless
asked for: a report is passed on.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field


# Equal images have an infinite PSNR, which JSON has no number for: "Infinity".
class _Record(BaseModel, frozen=True, extra="forbid", ser_json_inf_nan="strings"):
    pass


class Interval(_Record):
    """A mean over patients with its 95 % bootstrap interval; no bounds below two patients."""

    value: float
    low: float | None = None
    high: float | None = None


class Protocol(_Record):
    """Where fidelity is measured. bits: of the grey levels the window is cut into, or None.

    error_window_hu: of errors in HU, and vif_window_hu: of VIF, where they differ from window_hu.
    metrics: by name, in the order of the table.
    """

    name: str
    window_hu: tuple[float, float]
    bits: int | None = None
    error_window_hu: tuple[float, float] | None = None
    vif_window_hu: tuple[float, float] | None = None
    metrics: tuple[str, ...] = ()

    @property
    def range_hu(self) -> float:
        return self.window_hu[1] - self.window_hu[0]

    @property
    def described(self) -> str:
        """In words, for every table that holds a number measured under it."""
        low, high = self.window_hu
        levels = f", {2**self.bits} grey levels" if self.bits else ""
        text = f"{self.name}: window [{low:g}, {high:g}] HU, range {self.range_hu:g} HU{levels}"
        for what, window in (("RMSE and MAE", self.error_window_hu), ("VIF", self.vif_window_hu)):
            text += f", {what} in [{window[0]:g}, {window[1]:g}] HU" if window else ""
        return text


class Metric(_Record):
    """unit: "" for none.  definition: variant and source in a few words.

    window_hu: images are clipped to it; that of the protocol where None.
    """

    name: str
    unit: str
    higher_is_better: bool
    definition: str
    window_hu: tuple[float, float] | None = None


class ImageScores(_Record):
    patient: str
    series: str
    slice_number: int = Field(description="from 1, along the series")
    position_mm: float
    values: dict[str, float]


class Row(_Record):
    """One input or method.  per_patient: patient -> metric -> mean over its slices.
    flagged: metrics in which it is worse than the low dose.
    """

    name: str
    is_low_dose: bool
    images: tuple[ImageScores, ...]
    per_patient: dict[str, dict[str, float]]
    mean: dict[str, Interval]
    flagged: tuple[str, ...] = ()


class Comparison(_Record):
    """first minus second, over patients; p of a paired permutation or Wilcoxon test, as named."""

    metric: str
    first: str
    second: str
    difference: Interval
    p_value: float | None
    test: str
    patients: int


class Curve(_Record):
    """x and y of equal length, such as a noise power spectrum."""

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    x_label: str
    y_label: str


class Finding(_Record):
    """One figure of physics, of one row. within: what it was measured in, in words."""

    row: str
    family: Literal["noise", "resolution", "bias", "detectability", "structure", "uniformity"]
    name: str
    value: Interval
    unit: str
    within: str


class Physics(_Record):
    """statements: sentences that the figures prove, such as "PSNR up, detectability not"."""

    findings: tuple[Finding, ...] = ()
    curves: dict[str, tuple[Curve, ...]] = Field({}, description="family -> one curve per row")
    statements: tuple[str, ...] = ()


class Evaluation(_Record):
    """rows: the low dose first where there is one.  unavailable: metric -> why, and what to do.
    mode: paired with a reference, unpaired without, phantom against known truth.
    """

    format: Literal[1] = 1
    version: str
    mode: Literal["paired", "unpaired", "phantom"]
    protocol: Protocol
    mask: str
    reference: str
    metrics: tuple[Metric, ...]
    unavailable: dict[str, str]
    rows: tuple[Row, ...]
    comparisons: tuple[Comparison, ...]
    physics: Physics
    notes: tuple[str, ...]
