"""A file above 300 lines says why it is one file."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("src", "tests", "benchmarks")
MOST_LINES = 300
REASON = re.compile(r"^(?:// )?Above 300 lines: \w.{10,}$", re.MULTILINE)


def leading_text(name, text):
    """The docstring of a module, or the comment a script begins with."""
    if name.endswith(".py"):
        found = re.match(r'"""(.*?)"""', text, re.DOTALL)
        return found[1] if found else ""
    return re.match(r"(?://.*\n)*", text)[0]


def without_reason(root):
    """Files above the limit, named relative to root, that do not say why."""
    files = [
        path
        for folder in FOLDERS
        for suffix in ("py", "js")
        for path in (root / folder).rglob(f"*.{suffix}")
    ]
    assert files
    return sorted(
        path.relative_to(root).as_posix()
        for path in files
        for text in [path.read_text(encoding="utf-8")]
        if len(text.splitlines()) > MOST_LINES and not REASON.search(leading_text(path.name, text))
    )


def test_every_long_file_states_its_reason():
    assert without_reason(ROOT) == []


@pytest.mark.parametrize(
    ("name", "start", "lines", "is_found"),
    [
        ("long.py", '"""Many things."""\n', 301, True),
        ("long.py", "", 301, True),
        ("long.py", '"""Many things."""\n# Above 300 lines: said elsewhere.\n', 301, True),
        ("long.py", '"""Many.\n\nAbove 300 lines:\n"""\n', 301, True),
        ("long.py", '"""Many.\n\nAbove 300 lines: each is a line.\n"""\n', 301, False),
        ("long.py", '"""Many things."""\n', 300, False),
        ("long.js", "// Many things.\n", 301, True),
        ("long.js", "let late;\n// Above 300 lines: said too late.\n", 301, True),
        ("long.js", "// Many.\n// Above 300 lines: each is a line.\n", 301, False),
    ],
)
def test_a_planted_file_is_found(name, start, lines, is_found, tmp_path):
    planted = tmp_path / "src" / "deep" / name
    planted.parent.mkdir(parents=True)
    planted.write_text(start + "pass\n" * (lines - start.count("\n")), encoding="utf-8")
    assert without_reason(tmp_path) == ([f"src/deep/{name}"] if is_found else [])
