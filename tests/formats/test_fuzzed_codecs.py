"""Damaged files of every codec: the reading process lives, and says of each what it is."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

FUZZ = Path(__file__).parents[2] / "benchmarks" / "fuzz.py"


def fuzzed(folder, *options):
    """Rows of the table that the fuzzer prints, as numbers by codec."""
    command = [sys.executable, str(FUZZ), "codecs", "--out", str(folder), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    rows = re.findall(r"^\| (\w+) \| ([\d, |]+) \| [\d.]+ s \|$", done.stdout, re.MULTILINE)
    return {name: [int(cell.replace(",", "")) for cell in cells.split("|")] for name, cells in rows}


def test_a_few_damaged_files_of_every_codec(tmp_path):
    rows = fuzzed(tmp_path, "--decodes", "100")
    assert len(rows) == 12
    for files, refused, *by_decoders in rows.values():
        assert files == refused + sum(by_decoders)
        assert sum(by_decoders) >= 5


@pytest.mark.slow
def test_two_minutes_of_damaged_files(tmp_path):
    assert len(fuzzed(tmp_path, "--minutes", "2", "--seed", "20261")) == 12
