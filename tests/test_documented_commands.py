"""Every command in the documents runs, as it stands, in a folder of small data under its names.

`SMALLER` says which ones run at a reduced size, and `NOT_RUN` which ones do not run here, and why.
"""

import os
import re
import shutil
import subprocess
import sys

import pytest

from document_commands import callable_as_it_stands, meant, parsed
from document_parts import NAMES, PAGES, ROOT, commands
from document_world import make_whole_world, run

FEW_STEPS = ("steps=2", "crop=32", "validate_every=2", "slices_per_step=1", "workers=0")

# First word of commands that run at a reduced size -> what is added.
SMALLER = {
    "train": [word for value in FEW_STEPS for word in ("--set", value)],
    "benchmark": ["--quick", "--model", "cddnet", "--threads", "1"],
    "archive": ["--workers", "0"],
}
# Part of a command -> why it does not run here.
NOT_RUN = {
    "node rebuild ": "needs a node whose journal is lost; tests/node/test_node_recovery.py has one",
    "node --config": "runs until it is stopped; tests/node/test_node_orthanc.py starts it",
    "view ": "serves a page until it is stopped; tests/node/test_page_browser.py",
    "dicom://": "needs a PACS; tests/node/test_archive_query.py",
    "https://": "needs a DICOMweb server; tests/node/test_archive_query.py",
    "--between": "waits for the evening; tests/node/test_archive.py",
    "--detect": "takes minutes; tests/workflows/test_detection.py",
    "train_cddnet_literal": "minutes per step; tests/training/test_cddnet_literal.py",
    "RECIPE": "stands for any recipe; those named are run",
    "--protocol NAME": "stands for any protocol; those named are run",
    "models export NAME": "stands for any network; tests/runtime/test_engines.py exports",
    "/data/ct": "a path of the reader's",
}

# Commands that another page has run already, in the same folder.
RAN = set()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    make_whole_world(folder)
    return folder


def reason_not_to_run(command):
    return next((why for part, why in NOT_RUN.items() if part in f"{command.text} "), "")


def test_every_exception_is_still_needed():
    everything = [f"{command.text} " for page in PAGES for command in commands(page)]
    for part in NOT_RUN:
        assert any(part in text for text in everything), part
    kept = [text for text in everything if not any(part in text for part in NOT_RUN)]
    assert len(kept) > 60


def run_command(world, command):
    words = meant(command.words)
    # The same word stands for a prepared set, and for a new folder.
    folder = {"train": "PREPARED", "models": "OUTPUT"}.get(words[0], "FOLDER")
    words = [word if word != "FOLDER" else folder for word in words]
    values = parsed(words)
    for value in (values.get("output"), values.get("out"), values.get("json_file")):
        if value is not None:
            make_room(world, world / str(value))
    run(world, [*words, *SMALLER.get(words[0], ())])


def make_room(world, target):
    """Away with what an earlier command made; never outside of the world."""
    if world.resolve() not in target.resolve().parents:
        return
    if target.is_dir() and not target.is_symlink():
        shutil.rmtree(target)
    else:
        target.unlink(missing_ok=True)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_command_runs(page, world):
    failed = []
    for command in commands(page):
        if not callable_as_it_stands(command) or reason_not_to_run(command):
            continue
        if command.text in RAN:
            continue
        RAN.add(command.text)
        try:
            run_command(world, command)
        except (Exception, SystemExit) as error:
            if getattr(error, "code", 1) != 0:
                failed.append(f"{command.text}: {type(error).__name__}: {error}")
    assert failed == [], "\n".join(failed)


@pytest.mark.slow
def test_the_site_is_built_without_a_broken_link_and_asks_nobody(tmp_path):
    pytest.importorskip("material", reason="needs the extra docs")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"})
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) >= len(PAGES)
    loaded = re.compile(r"<(?:script|img|iframe|source)[^>]+src=[\"']?(?:https?:)?//|<link[^>]+//")
    for page in pages:
        assert not loaded.search(page.read_text(encoding="utf-8")), page.name
    for sheet in tmp_path.rglob("*.css"):
        assert not re.search(r"url\([\"']?(https?:)?//", sheet.read_text(encoding="utf-8"))
