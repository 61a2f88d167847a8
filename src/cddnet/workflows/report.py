"""Report: what an evaluation found, as one HTML file, Markdown, JSON and figures for a paper."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel

from cddnet.errors import GeometryError
from cddnet.formats._atomic import new_folder
from cddnet.workflows._cases import find_cases
from cddnet.workflows._complexity import Complexity, measure
from cddnet.workflows._evaluation import Evaluation
from cddnet.workflows._panel import Region
from cddnet.workflows._report_content import Content, read_explained, shown_slices
from cddnet.workflows._report_drawings import drawings_of
from cddnet.workflows._report_page import html
from cddnet.workflows._tables import markdown
from cddnet.workflows.evaluate import LOW_DOSE, EvaluateOptions, evaluate, full_and_low_dose

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """protocol, mask, evaluation: as in `evaluate`.  low_dose: None where there is none.
    models: whose cost is measured.  explained: folder of `cddnet explain`.
    region: row, column and side of what is enlarged at first, pixels of the whole slice; None for
    the place with most structure.
    """

    protocol: str
    mask: str = "none"
    low_dose: Path | None = None
    evaluation: EvaluateOptions = field(default_factory=EvaluateOptions)
    models: tuple[str, ...] = ()
    explained: Path | None = None
    region: tuple[int, int, int] | None = None


class Record(BaseModel, frozen=True, extra="forbid"):
    """What report.json holds."""

    evaluation: Evaluation
    complexity: tuple[Complexity, ...]


class ReportResult(NamedTuple):
    evaluation: Evaluation
    page: Path
    page_bytes: int
    slices_shown: int


def report_file(
    out: Path,
    reference: Path,
    methods: Mapping[str, Path],
    options: ReportOptions,
    progress: Progress,
) -> ReportResult:
    """Evaluate methods against a reference and write the new folder `out`.

    progress: called with (what is done, steps done, steps in all).
    Raises: FormatError where `out` exists, else what evaluating, reading or measuring raises.
    """
    region = None if options.region is None else Region(*options.region)
    if region is not None and (min(region) < 0 or region.side < 1):
        raise GeometryError(
            f"the region is {options.region}; give row and column of its corner from 0 and a side "
            "above 0, in pixels."
        )
    reference, low_dose = full_and_low_dose(reference, options.low_dose)
    with new_folder(out) as folder:
        evaluation = evaluate(
            reference,
            methods,
            protocol=options.protocol,
            low_dose=low_dose,
            mask=options.mask,
            options=options.evaluation._replace(progress=progress),
        )
        rows = {} if low_dose is None else {LOW_DOSE: low_dose}
        cases = find_cases(reference, rows | dict(methods), options.evaluation.reading)
        content = Content(
            evaluation=evaluation,
            shown=shown_slices(evaluation, cases),
            complexity=tuple(measure(model) for model in options.models),
            explained=() if options.explained is None else read_explained(options.explained),
            region=region,
        )
        page_bytes = write_report(folder, content)
    return ReportResult(evaluation, out / "report.html", page_bytes, len(content.shown))


def write_report(folder: Path, content: Content) -> int:
    """Write report.html, .md, .json and figures/ into an empty folder; returns the page's bytes."""
    record = Record(evaluation=content.evaluation, complexity=content.complexity)
    (folder / "report.json").write_text(record.model_dump_json(indent=2) + "\n", encoding="utf-8")
    (folder / "report.md").write_text(
        markdown(content.evaluation, content.complexity), encoding="utf-8"
    )
    drawings = drawings_of(content)
    pictures = folder / "figures"
    pictures.mkdir()
    for name, data in drawings.files():
        (pictures / name).write_bytes(data)
    page = html(content, drawings).encode("utf-8")
    (folder / "report.html").write_bytes(page)
    return len(page)
