"""Licences of what is installed with cddnet, and the data that weights and demo come from."""

from __future__ import annotations

import re
from importlib.metadata import Distribution, PackageNotFoundError, distribution, distributions
from importlib.resources import files
from typing import NamedTuple

from cddnet.runtime import store
from cddnet.workflows._extras import EXTRAS

NOT_STATED = "not stated"
_LONGEST = 100
# GPL and AGPL; neither LGPL nor what GCC's exception lets anybody link.
_COPYLEFT = re.compile(r"\bA?GPL|GNU (Affero )?General Public", re.IGNORECASE)
_GCC_EXCEPTION = re.compile(r"\bA?GPL[\w.-]*\s+WITH\s+GCC-exception[\w.-]*", re.IGNORECASE)
_NOT_COMMERCIAL = re.compile(r"non-?commercial|\bNC\b", re.IGNORECASE)
_CLASSIFIER = "License :: OSI Approved :: "


class Package(NamedTuple):
    """needed: by cddnet or one of its extras.  objection: why not to pass it on with cddnet."""

    name: str
    version: str
    licence: str
    needed: bool
    objection: str = ""


class Licences(NamedTuple):
    """packages: those needed, then the others with an objection.  data: of each weights file."""

    packages: tuple[Package, ...]
    data: tuple[tuple[str, tuple[str, ...]], ...]
    demo: str


def licences() -> Licences:
    """Of everything cddnet brought along; of what else is installed only what is objected to."""
    needed = _needed()
    found = {_normal(item.name): item for item in distributions()}
    packages = [_described(item, name in needed) for name, item in sorted(found.items())]
    shown = [package for package in packages if package.needed]
    shown += [package for package in packages if not package.needed and package.objection]
    trained = tuple((card.name, _collections(card.training)) for card in store.cards())
    demo = files("cddnet") / "data" / "demo" / "ATTRIBUTION.md"
    return Licences(tuple(shown), trained, demo.read_text(encoding="utf-8"))


def table(found: Licences) -> str:
    """Lines for people."""
    wide = max(len(package.name) for package in found.packages)
    lines = ["Packages that cddnet needs here, by what their own metadata says:"]
    for package in found.packages:
        mark = "!" if package.objection else " "
        lines.append(f"{mark} {package.name:{wide}}  {package.version:12} {package.licence}")
        if package.objection:
            whose = "cddnet needs it" if package.needed else "cddnet does not need it"
            lines.append(f"    {package.objection}; {whose}")
    for name, collections in found.data:
        lines += ["", f"Data behind the weights {name}:", *(f"  {item}" for item in collections)]
    return "\n".join([*lines, "", found.demo.rstrip()])


def objection(licence: str) -> str:
    """Why a package under this licence must not be passed on with cddnet, "" if it may."""
    if _COPYLEFT.search(_GCC_EXCEPTION.sub("", licence)):
        return "under GPL: a program made of both is bound by it"
    if _NOT_COMMERCIAL.search(licence):
        return "for non-commercial use only"
    return ""


def licence_of(item: Distribution) -> str:
    """What its metadata says: the expression, else the classifiers, else the first line of text."""

    def stated(field: str) -> list[str]:
        return [str(value) for value in item.metadata.get_all(field) or ()]

    if expression := stated("License-Expression"):
        return expression[0]
    if listed := [line for line in stated("Classifier") if line.startswith("License ::")]:
        return ", ".join(line.removeprefix(_CLASSIFIER) for line in listed)
    text = "".join(stated("License")).strip().splitlines()
    return text[0][:_LONGEST] if text else NOT_STATED


def _described(item: Distribution, needed: bool) -> Package:
    licence = licence_of(item)
    return Package(item.name, item.version, licence, needed, objection(licence))


def _needed() -> frozenset[str]:
    """Normal names of what cddnet and its extras bring along, as far as it is installed."""
    roots = [name for names, _ in EXTRAS.values() for name in names]
    waiting = [("cddnet", frozenset[str]()), *((name, frozenset[str]()) for name in roots)]
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        name, extras = waiting.pop()
        if (_normal(name), extras) in seen:
            continue
        try:
            requirements = distribution(name).requires or ()
        except PackageNotFoundError:
            continue
        seen.add((_normal(name), extras))
        waiting += filter(None, (_parsed(text, extras) for text in requirements))
    return frozenset(name for name, _ in seen)


def _parsed(requirement: str, extras: frozenset[str]) -> tuple[str, frozenset[str]] | None:
    """Name and extras of a requirement line; None where it belongs to an extra nobody asked for.

    Other conditions, such as on the system, are not weighed: what they rule out is not installed.
    """
    asked = re.search(r"extra\s*==\s*['\"]([^'\"]+)", requirement)
    if asked and asked[1] not in extras:
        return None
    match = re.match(r"\s*([\w.-]+)\s*(?:\[([^\]]*)\])?", requirement)
    if match is None:
        return None
    wanted = frozenset(part.strip() for part in (match[2] or "").split(",") if part.strip())
    return match[1], wanted


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _collections(training: dict[str, object]) -> tuple[str, ...]:
    listed = training.get("collections")
    return tuple(map(str, listed)) if isinstance(listed, list | tuple) else ()
