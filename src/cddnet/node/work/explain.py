"""What the rules and the fitness check of a node decide on files, and why, for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from cddnet.errors import DicomError
from cddnet.files import walk_files
from cddnet.node.settings.rules import Decision, Facts, Rule, decide, facts_of
from cddnet.node.work.fitness import explained


def explain(sources: Iterable[Path], rules: Sequence[Rule], calling_ae: str = "") -> str:
    """Text that says what the rules decide on files and folders, and why; alike files once."""
    groups: dict[Facts | str, list[Path]] = {}
    for file in _files(sources):
        try:
            groups.setdefault(facts_of([file], calling_ae), []).append(file)
        except DicomError as error:
            groups.setdefault(f"  {error}", []).append(file)
    blocks = []
    for facts, files in groups.items():
        more = f" and {len(files) - 1} like it" if len(files) > 1 else ""
        told = [facts] if isinstance(facts, str) else _told(decide(facts, rules), files)
        blocks.append("\n".join([f"{files[0].name}{more}", *told]))
    return "\n".join(blocks)


def _told(decision: Decision, files: Sequence[Path]) -> Iterator[str]:
    for line in decision.why:
        yield f"  {line}"
    for output in decision.outputs:
        strength = "the model card's" if output.strength is None else f"{output.strength:.0%}"
        where = ", ".join(output.destinations)
        yield f"  -> model {output.model}, strength {strength}, to {where}"
    if not decision.outputs:
        yield "  -> ignored"
        return
    for line in explained(files, force=any(output.force for output in decision.outputs)):
        yield f"  {line}"


def _files(sources: Iterable[Path]) -> Iterator[Path]:
    for source in sources:
        if not source.is_dir():
            if not source.is_file():
                raise DicomError(f"{source}: no such file or folder; check the name.")
            yield source
            continue
        yield from walk_files(source)
