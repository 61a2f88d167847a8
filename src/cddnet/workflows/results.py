"""What an evaluation leaves behind: its files, and its table for a terminal."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from csv import writer
from pathlib import Path

from cddnet.errors import FormatError
from cddnet.formats._atomic import new_files
from cddnet.workflows import _tables
from cddnet.workflows._evaluation import Evaluation


def write_results(
    evaluation: Evaluation,
    *,
    json: Path | None = None,
    csv: Path | None = None,
    markdown: Path | None = None,
) -> None:
    """Write what is asked for, all or nothing.  Raises FormatError where a file exists."""
    wanted: list[tuple[Path | None, Callable[[], str]]] = [
        (json, lambda: evaluation.model_dump_json(indent=2) + "\n"),
        (csv, lambda: csv_text(evaluation)),
        (markdown, lambda: _tables.markdown(evaluation, ())),
    ]
    texts = [(path, text()) for path, text in wanted if path is not None]
    paths = [path for path, _ in texts]
    if len(set(paths)) < len(paths):
        raise FormatError(f"{paths[0]}: is named twice; give each result a file of its own.")
    if not texts:
        return
    with new_files(*paths) as temporaries:
        for temporary, (_, text) in zip(temporaries, texts, strict=True):
            temporary.write_text(text, encoding="utf-8")


def csv_text(evaluation: Evaluation) -> str:
    """One line per image and row; every line names the protocol, its window and the mask."""
    protocol = evaluation.protocol
    text = io.StringIO()
    table = writer(text, lineterminator="\n")
    table.writerow(
        [
            *("protocol", "window_low_hu", "window_high_hu", "grey_bits", "mask"),
            *("row", "patient", "series", "slice", "position_mm"),
            *(_tables.with_unit(metric.name, metric.unit) for metric in evaluation.metrics),
        ]
    )
    under_which = [protocol.name, *protocol.window_hu, protocol.bits or "", evaluation.mask]
    for row in evaluation.rows:
        for image in row.images:
            place = [image.patient, image.series, image.slice_number, f"{image.position_mm:.3f}"]
            values = [image.values[metric.name] for metric in evaluation.metrics]
            table.writerow([*under_which, row.name, *place, *values])
    return text.getvalue()


def summary(evaluation: Evaluation) -> str:
    """The table for a terminal; the protocol, its window and range, mask and n stand above it."""
    metrics = evaluation.metrics
    heads = ["", *(_tables.with_unit(metric.name, metric.unit) for metric in metrics)]
    lines = [heads] if metrics else []
    for row in _tables.table(evaluation) if metrics else ():
        cells = [" ".join(filter(None, (c.value, c.bounds, "!" * c.worse))) for c in row.cells]
        lines.append([row.name, *cells])
    text = [_tables.caption(evaluation), *_aligned(lines)]
    text += [f"! {warning}" for warning in _tables.warnings(evaluation)]
    text += [
        f"{item.metric}: {item.pair} = {' '.join(filter(None, (item.difference, item.bounds)))}, "
        f"p = {item.p_value} ({item.test}, {item.patients} patients)"
        for item in _tables.compared(evaluation)
        if item.p_value != "-"
    ]
    text += _physics_lines(evaluation)
    text += [f"{name}: unavailable: {why}" for name, why in evaluation.unavailable.items()]
    text += [f"note: {note}" for note in evaluation.notes]
    return "\n".join(text)


def _physics_lines(evaluation: Evaluation) -> list[str]:
    """Figures of physics by family, and what they prove in words."""
    lines: list[str] = []
    for family in _tables.finding_tables(evaluation):
        grid = [[family.title, *family.rows]]
        grid += [
            [
                "  " + _tables.with_unit(item.name, item.unit),
                *(" ".join(filter(None, cell)) for cell in item.cells),
            ]
            for item in family.findings
        ]
        lines += _aligned(grid)
    said = [f"* {statement}" for statement in evaluation.physics.statements]
    where = ["What each figure was measured in is told by --json and --markdown."] if lines else []
    return [*lines, *said, *where]


def _aligned(grid: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*grid, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in grid
    ]
