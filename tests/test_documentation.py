"""The documents say what is there: commands and options, links, configurations, Python blocks."""

import json
import os
import re
import subprocess
import sys

import pytest
import yaml

from cddnet import __version__
from cddnet.config import PatientSplit, load_config
from cddnet.node.settings.config import load_node
from document_commands import complaint
from document_parts import NAMES, PAGES, ROOT, anchors, blocks, commands, links, shell_text, spans
from document_world import make_world


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_command_exists_with_its_options(page):
    assert [said for command in commands(page) if (said := complaint(command))] == []


@pytest.mark.parametrize(
    "line",
    [
        "cddnet denois FOLDER OUTPUT",
        "cddnet denoise FOLDER OUTPUT --strong 0.5",
        "cddnet denoise FOLDER",
        "cddnet denoise FOLDER OUTPUT --strength 2",
        "cddnet models exprt NAME --onnx FILE",
        ".venv/bin/cddnet phantom OUTPUT --slices none   # a remark",
        "cddnet train a.yaml --data FOLDER --out RUN [--sett steps=100]",
        "torchrun --nproc-per-node 2 --no-python cddnet train a.yaml --data FOLDER --outt RUN",
    ],
)
def test_a_wrong_command_is_found(line, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"Do\n\n```\n{line}\n```\n\nor\n\n    {line}\n")
    assert [bool(complaint(command)) for command in commands(page)] == [True, True]


def test_commands_in_sentences_are_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "Call `cddnet denoise\nFOLDER --strong 1` or `cddnet info`, says cddnet info.\n"
    )
    found = list(commands(page))
    assert [command.text for command in found] == ["denoise FOLDER --strong 1", "info"]
    assert [bool(complaint(command)) for command in found] == [True, False]


def test_pages_hold_many_commands():
    found = {name: len(list(commands(page))) for name, page in zip(NAMES, PAGES, strict=True)}
    assert found["README.md"] >= 18
    assert sum(found.values()) > 90


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_scripts_targets_and_extras_exist(page):
    told = "\n".join([shell_text(page), *spans(page)])
    for script, rest in re.findall(r"python (benchmarks/\w+\.py)([^\n]*)", told):
        shared = (ROOT / "benchmarks").glob("_*.py")
        source = "".join(file.read_text(encoding="utf-8") for file in (ROOT / script, *shared))
        options = re.findall(r"--[a-z-]+", rest)
        assert [option for option in options if f'"{option}"' not in source] == [], script
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^make (\w+)", told, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for listed in re.findall(r"(?:cddnet|\.)\[([a-z,]+)\]", told):
        for extra in listed.split(","):
            assert re.search(rf"^{extra} = \[", project, re.MULTILINE), extra


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_somewhere(page):
    broken = []
    for link in links(page):
        place, _, anchor = link.partition("#")
        target = page if not place else (page.parent / place).resolve()
        if re.match(r"https?:", link):
            continue
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_configurations_are_valid(page, tmp_path):
    for number, block in enumerate(blocks(page)):
        if block.language == "yaml":
            file = tmp_path / f"{number}.yaml"
            file.write_text(block.text)
            keys = set(yaml.safe_load(block.text))
            if "allowed_callers" in keys:
                load_node(file)
            elif "validation" in keys:
                load_config(file, PatientSplit)
        elif block.language == "json":
            json.loads(block.text)


def test_the_site_lists_every_page():
    def named(entry):
        if isinstance(entry, str):
            return [entry]
        values = entry.values() if isinstance(entry, dict) else entry
        return [page for value in values for page in named(value)]

    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    docs = ROOT / "docs"
    pages = [page.relative_to(docs).as_posix() for page in docs.rglob("*.md")]
    assert sorted(named(nav)) == sorted(pages)


def test_the_citation_names_this_version():
    told = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert (told["cff-version"], told["license"]) == ("1.2.0", "Apache-2.0")
    assert told["version"] == __version__


# ---- Python blocks and the notebook


RUN_BLOCKS = """
import json, os, sys, traceback
from pathlib import Path
import torch
torch.set_num_threads(1)
world, told = Path(sys.argv[1]), {}
for page, blocks in json.load(sys.stdin).items():
    here = world / f"python_{page}"
    here.mkdir()
    os.chdir(here)
    for name in ("FOLDER", "PREPARED"):
        Path(name).symlink_to(world / name)
    space = {"__name__": page}
    for title, line, text in blocks:
        try:
            if title:
                Path(title).parent.mkdir(exist_ok=True)
                Path(title).write_text(text, encoding="utf-8")
            else:
                exec(compile("\\n" * (line - 1) + text, page, "exec"), space)
        except BaseException:
            told[page] = traceback.format_exc()
            break
    else:
        told[page] = ""
Path(sys.argv[2]).write_text(json.dumps(told), encoding="utf-8")
"""


def run_python(world, pages):
    """Each page's blocks one after the other in a folder of its own; page -> traceback or ""."""
    result = world / "told.json"
    subprocess.run(
        [sys.executable, "-c", RUN_BLOCKS, str(world), str(result)],
        input=json.dumps(pages),
        text=True,
        check=True,
        capture_output=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    return json.loads(result.read_text(encoding="utf-8"))


def python_of(page):
    return [tuple(block[1:]) for block in blocks(page) if block.language == "python"]


def notebook():
    cells = json.loads((ROOT / "examples" / "first_hour.ipynb").read_text(encoding="utf-8"))[
        "cells"
    ]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    return [("", 1, text) for text in code]


@pytest.fixture(scope="module")
def python_told(tmp_path_factory):
    world = tmp_path_factory.mktemp("world")
    make_world(world)
    pages = {name: python_of(page) for name, page in zip(NAMES, PAGES, strict=True)}
    wrong = [("", 1, "raise RuntimeError('seen')")]
    pages = {name: found for name, found in pages.items() if found}
    return run_python(world, pages | {"first_hour.ipynb": notebook(), "wrong": wrong})


def test_python_blocks_run(python_told):
    assert "seen" in python_told.pop("wrong")
    assert set(python_told) >= {"README.md", "index.md", "extending.md", "first_hour.ipynb"}
    assert {page: error for page, error in python_told.items() if error} == {}


def test_the_notebook_holds_no_output():
    cells = json.loads((ROOT / "examples" / "first_hour.ipynb").read_text(encoding="utf-8"))[
        "cells"
    ]
    assert all(not cell.get("outputs") for cell in cells)
