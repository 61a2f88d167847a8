"""The picture of the packages in the documentation shows the imports that there are."""

import ast
import re
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from test_layers import HEIGHT, PACKAGE, imports

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))

import draw_packages

SVG = "{http://www.w3.org/2000/svg}"


def real():
    """(package, package it imports), by the reader of the layer test."""
    for file in PACKAGE.rglob("*.py"):
        own = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for module, _, _ in imports(ast.parse(file.read_text(encoding="utf-8"))):
            top, *path = module.split(".")
            if own != "__init__" and top == "cddnet" and path[0] not in {own, "__version__"}:
                yield own, path[0]


def closure(pairs):
    """Those pairs and all that follow from them."""
    known = set(pairs)
    while more := {(a, d) for a, b in known for c, d in known if b == c} - known:
        known |= more
    return known


@pytest.fixture(scope="module")
def picture():
    return ElementTree.fromstring(draw_packages.PICTURE.read_text(encoding="utf-8"))


def arrows(picture):
    found = [path for path in picture.iter(f"{SVG}path") if path.get("data-from")]
    return [(path.get("data-from"), path.get("data-to")) for path in found]


def test_the_arrows_say_as_much_as_the_imports(picture):
    shown = {(a, b) for a, b in real() if not {a, b} & draw_packages.LEFT_OUT}
    assert len(shown) > 20
    assert closure(arrows(picture)) == closure(shown)


def test_no_arrow_is_a_guess_or_follows_from_others(picture):
    drawn = arrows(picture)
    assert set(drawn) <= set(real())
    assert len(drawn) == len(set(drawn))
    for arrow in drawn:
        assert arrow not in closure(set(drawn) - {arrow})


def test_every_package_has_a_box_and_arrows_point_down(picture):
    assert set(draw_packages.BOXES) == set(HEIGHT) - draw_packages.LEFT_OUT
    texts = [text.text for text in picture.iter(f"{SVG}text")]
    assert set(draw_packages.BOXES) <= set(texts)
    for path in picture.iter(f"{SVG}path"):
        if path.get("data-from"):
            numbers = list(map(int, re.findall(r"-?\d+", path.get("d"))))
            assert numbers[1] < numbers[-1]


def test_the_picture_is_the_one_that_its_command_draws():
    drawn = draw_packages.drawn(draw_packages.reduced(draw_packages.imported()))
    assert draw_packages.PICTURE.read_text(encoding="utf-8") == drawn
