"""The parts of the node import downwards only, and know each other by these lines alone."""

import ast
from pathlib import Path

import cddnet.node

PACKAGE = Path(cddnet.node.__file__).parent
# Below first; parts on one line do not import each other.
LINES = (
    ("settings",),
    ("store",),
    ("watch",),
    ("station",),
    ("receive", "work"),
    ("send", "web", "archive"),
    ("service",),
)
HEIGHT = {part: height for height, line in enumerate(LINES) for part in line}


def upward(file, source):
    """Imports of a file of the node, named relative to it, that do not point down."""
    own = file.split("/")[0].removesuffix(".py")
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("cddnet.node"):
            path = [*node.module.split("."), node.names[0].name]
            if path[2] != own and HEIGHT[path[2]] >= HEIGHT[own]:
                found.append(f"{file}: {path[2]} is not below {own}")
    return found


def test_every_part_of_the_node_imports_downwards():
    files = [path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py")]
    parts = {file.split("/")[0].removesuffix(".py") for file in files} - {"__init__"}
    assert parts == set(HEIGHT)
    found = [
        line
        for file in files
        if file != "__init__.py"
        for line in upward(file, (PACKAGE / file).read_text(encoding="utf-8"))
    ]
    assert found == []


def test_a_planted_import_is_found():
    assert upward("store/images.py", "from cddnet.node import station")
    assert upward("store/images.py", "def f():\n    from cddnet.node.web.site import Web")
    assert upward("send/web.py", "from cddnet.node.web.http import app")
    assert not upward("send/web.py", "from cddnet.node.store.images import Images")
