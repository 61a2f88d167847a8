"""What an archive run came to: done, refused with reasons, failed, noise for each scanner."""

from __future__ import annotations

import json
import os
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from cddnet import __version__
from cddnet.node.archive.manifest import Manifest
from cddnet.node.archive.series import Recipe

JSON_FILE, TEXT_FILE = "report.json", "report.md"
LISTED = 50


class Scanner(NamedTuple):
    """Series of one scanner and kernel; noise: medians over them in HU, None where unknown.

    change: median of after over before.
    """

    manufacturer: str
    model: str
    kernel: str
    series: int
    slices: int
    noise_before_hu: float | None
    noise_after_hu: float | None
    change: float | None


class Left(NamedTuple):
    """A series that was not denoised. key: its name in manifest and log."""

    key: str
    reason: str
    error: str
    attempts: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """grown: series that have more or fewer files now than when they were done. seconds: of this
    run; work_seconds: of the workers, in all runs. unreadable: files of the
    source that cannot be read, so that their slices or series are missing.
    """

    done: int
    waiting: int
    slices: int
    refused: tuple[Left, ...]
    failed: tuple[Left, ...]
    scanners: tuple[Scanner, ...]
    engines: dict[str, int]
    grown: int
    unreadable: int
    seconds: float
    work_seconds: float


def report_of(manifest: Manifest, *, seconds: float, unreadable: int) -> Report:
    """The state of the whole archive."""
    groups: dict[tuple[str, str, str], list[tuple[int, float | None, float | None]]]
    groups = defaultdict(list)
    engines: Counter[str] = Counter()
    work_seconds = 0.0
    for row in manifest.rows("done"):
        noise = row["noise_before_hu"], row["noise_after_hu"]
        groups[row["manufacturer"], row["model"], row["kernel"]].append((row["slices"], *noise))
        engines[row["engine"]] += 1
        work_seconds += row["seconds"]
    scanners = tuple(_scanner(*name, series=groups[name]) for name in sorted(groups))
    return Report(
        done=sum(item.series for item in scanners),
        waiting=manifest.counts()["waiting"],
        slices=sum(item.slices for item in scanners),
        refused=tuple(_left(manifest, "refused")),
        failed=tuple(_left(manifest, "failed")),
        scanners=scanners,
        engines=dict(engines),
        grown=manifest.grown(),
        unreadable=unreadable,
        seconds=seconds,
        work_seconds=work_seconds,
    )


def write_report(report: Report, recipe: Recipe, folder: Path) -> None:
    """As JSON and as Markdown, in place of those of an earlier run."""
    record = {"cddnet": __version__, "recipe": asdict(recipe), **asdict(report)}
    record["scanners"] = [item._asdict() for item in report.scanners]
    for name in ("refused", "failed"):
        record[name] = [item._asdict() for item in getattr(report, name)]
    _replace(folder / JSON_FILE, json.dumps(record, indent=2, default=str) + "\n")
    _replace(folder / TEXT_FILE, markdown(report, recipe))


def markdown(report: Report, recipe: Recipe) -> str:
    """The report for people."""
    strength = "the model card's" if recipe.strength is None else f"{recipe.strength:g}"
    dated = f", dated {recipe.created.isoformat(timespec='seconds')}" if recipe.created else ""
    lines = [
        "# Archive report",
        "",
        f"Model {Path(recipe.model).stem}, strength {strength}, weights SHA-256 "
        f"{recipe.weights_sha256[:16]}, cddnet {__version__}{dated}. "
        "Research use only.",
        "",
        "| series | count |",
        "|---|---|",
        f"| done ({report.slices} slices) | {report.done} |",
        f"| refused | {len(report.refused)} |",
        f"| failed | {len(report.failed)} |",
        f"| waiting | {report.waiting} |",
        "",
        f"This run took {report.seconds:.0f} s; the workers spent {report.work_seconds:.0f} s on "
        "what is done.",
        "",
    ]
    lines += [f"Engine {name}: {count} series." for name, count in report.engines.items()]
    if len(report.engines) > 1:
        lines.append("Several engines took part: their results differ in the last bits.")
    if report.unreadable:
        lines.append(
            f"{report.unreadable} files cannot be read, and their slices are missing: damaged "
            "headers, permissions, or links that lead nowhere."
        )
    if report.grown:
        lines.append(
            f"{report.grown} series have another number of files now than when they were done; "
            "move their results away to have them done again."
        )
    lines += [
        "",
        "## Noise",
        "",
        "Global noise level of five slices of a series (mode of the local standard deviation in "
        "soft tissue, before and after at the same places), median over the series.",
        "",
        "| manufacturer | model | kernel | series | slices | before, HU | after, HU | ratio |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for item in report.scanners:
        figures = (item.noise_before_hu, item.noise_after_hu, item.change)
        texts = [_cell(text) for text in (item.manufacturer, item.model, item.kernel)]
        texts += [str(item.series), str(item.slices)]
        texts += ["-" if figure is None else f"{figure:.2f}" for figure in figures]
        lines.append(f"| {' | '.join(texts)} |")
    lines += _section("Refused", report.refused) + _section("Failed", report.failed)
    return "\n".join(lines) + "\n"


def _section(title: str, left: tuple[Left, ...]) -> list[str]:
    if not left:
        return []
    lines = ["", f"## {title}", "", "| series | reason |", "|---|---|"]
    for item in left[:LISTED]:
        kind = f"{item.error}: " if item.error else ""
        lines.append(f"| {item.key} | {_cell(kind + item.reason)} |")
    if len(left) > LISTED:
        lines += ["", f"And {len(left) - LISTED} more, see {JSON_FILE}."]
    return lines


def _left(manifest: Manifest, state: str) -> Iterable[Left]:
    rows = manifest.rows("refused" if state == "refused" else "failed")
    return (Left(row["key"], row["reason"], row["error"], row["attempts"]) for row in rows)


def _scanner(
    manufacturer: str,
    model: str,
    kernel: str,
    *,
    series: list[tuple[int, float | None, float | None]],
) -> Scanner:
    known = [(b, a) for _, b, a in series if b is not None and a is not None]
    before = after = change = None
    if known:
        before = statistics.median(b for b, _ in known)
        after = statistics.median(a for _, a in known)
        ratios = [a / b for b, a in known if b > 0]
        change = statistics.median(ratios) if ratios else None
    slices = sum(count for count, _, _ in series)
    return Scanner(manufacturer, model, kernel, len(series), slices, before, after, change)


def _cell(text: str) -> str:
    return text.replace("|", "/").replace("\n", " ") or "-"


def _replace(path: Path, text: str) -> None:
    draft = path.with_name(f".{path.name}")
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8") as stream:
        stream.write(text)
    os.replace(draft, path)
