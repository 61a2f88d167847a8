"""Draws docs/images/packages.svg: who imports whom, read from the source, and a slice's way.

    python benchmarks/draw_packages.py

An import that a chain of others implies is not drawn; `errors`, `files`, `console` and `plugins`,
which all may use, are left out, and `__main__`, which only starts `cli`.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "cddnet"
PICTURE = ROOT / "docs" / "images" / "packages.svg"
LEFT_OUT = {"errors", "files", "console", "plugins", "__version__", "__main__"}
Graph = Mapping[str, frozenset[str]]


class Box(NamedTuple):
    """x, y: of its centre in pixels.  steps: of the journey of a slice that happen here."""

    x: int
    y: int
    what: str
    steps: str = ""


WIDTH, HEIGHT, HALF_WIDTH, HALF_HEIGHT = 830, 620, 68, 21
BOXES = {
    "cli": Box(330, 40, "one command each"),
    "node": Box(330, 125, "DICOM in, DICOM out"),
    "workflows": Box(330, 210, "one verb each", "2, 5"),
    "runtime": Box(410, 300, "engines, weights", "4"),
    "training": Box(650, 300, "pairs, loop, splits"),
    "formats": Box(90, 400, "files to volumes", "1, 6"),
    "metrics": Box(250, 400, "HU to figures"),
    "models": Box(410, 400, "the networks", "4"),
    "losses": Box(570, 400, "what is learned"),
    "physics": Box(730, 400, "dose, projector"),
    "intensity": Box(490, 490, "HU to network", "3, 5"),
    "grid": Box(330, 580, "planes in words"),
    "volume": Box(540, 580, "CTVolume, HU"),
    "config": Box(710, 580, "files people write"),
}
# Where a straight line would cross a box.
BENDS = {
    ("training", "grid"): (330, 370),
    ("training", "volume"): (644, 425),
    ("training", "config"): (656, 425),
}


def imported() -> Graph:
    """Package -> those below `cddnet` that its files import, in functions too."""
    found: dict[str, set[str]] = {}
    for file in SOURCE.rglob("*.py"):
        own = file.relative_to(SOURCE).parts[0].removesuffix(".py")
        names = set(_names(ast.parse(file.read_text(encoding="utf-8"))))
        if own not in LEFT_OUT | {"__init__"}:
            found.setdefault(own, set()).update(names - LEFT_OUT - {own})
    return {own: frozenset(names) for own, names in found.items()}


def _names(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            paths = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            paths = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (path.split(".")[1] for path in paths if path.startswith("cddnet."))


def reachable(graph: Graph, start: str) -> frozenset[str]:
    """All that a package imports, directly or through others."""
    direct = graph.get(start, frozenset())
    return direct.union(*(reachable(graph, name) for name in direct))


def reduced(graph: Graph) -> Graph:
    """Without the imports that follow from others; nothing more and nothing less is reachable."""
    return {
        own: frozenset(
            name
            for name in names
            if not any(name in reachable(graph, other) for other in names - {name})
        )
        for own, names in graph.items()
    }


def drawn(graph: Graph) -> str:
    """The picture of a reduced graph."""
    arrows = [_arrow(own, name) for own in BOXES for name in BOXES if name in graph.get(own, ())]
    boxes = [line for name, box in BOXES.items() for line in _box(name, box)]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
            'font-family="sans-serif" text-anchor="middle">',
            '<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" '
            'markerHeight="7" orient="auto"><path d="M0 0 8 4 0 8z" fill="#557"/></marker></defs>',
            f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
            *arrows,
            *boxes,
            "</svg>",
            "",
        ]
    )


def _arrow(own: str, name: str) -> str:
    start, end = BOXES[own], BOXES[name]
    bend = BENDS.get((own, name))
    # Side by side where several arrive or leave: a tenth of the way towards the other box.
    lean = max(-50, min(50, (end.x - start.x) // 6))
    points = [(start.x + lean, start.y + HALF_HEIGHT), (end.x - lean, end.y - HALF_HEIGHT)]
    if bend:
        points = [(bend[0], start.y + HALF_HEIGHT), bend, (end.x, end.y - HALF_HEIGHT)]
    path = " ".join(f"{x} {y}" for x, y in points)
    return (
        f'<path data-from="{own}" data-to="{name}" d="M{path}" fill="none" stroke="#557" '
        'marker-end="url(#tip)"/>'
    )


def _box(name: str, box: Box) -> Iterator[str]:
    colour = "#dcebff" if box.steps else "#f2f2f2"
    yield (
        f'<rect x="{box.x - HALF_WIDTH}" y="{box.y - HALF_HEIGHT}" width="{2 * HALF_WIDTH}" '
        f'height="{2 * HALF_HEIGHT}" rx="5" fill="{colour}" stroke="#557"/>'
    )
    yield f'<text x="{box.x}" y="{box.y - 3}" font-size="14" font-weight="bold">{name}</text>'
    yield f'<text x="{box.x}" y="{box.y + 13}" font-size="11">{box.what}</text>'
    if box.steps:
        yield (
            f'<text x="{box.x + HALF_WIDTH - 4}" y="{box.y - 8}" font-size="11" fill="#a40" '
            f'text-anchor="end">{box.steps}</text>'
        )


if __name__ == "__main__":
    PICTURE.write_text(drawn(reduced(imported())), encoding="utf-8")
