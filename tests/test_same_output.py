"""The comparison of two checkouts sees every kind of difference, and no other."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

from same_output import differences

FIGURES = {"rows": [{"psnr": 30.5, "seconds": 1.0}], "note": "one"}


@pytest.fixture
def pair(tmp_path):
    """Two folders that hold the same."""
    for side in ("old", "new"):
        (tmp_path / side / "series").mkdir(parents=True)
        (tmp_path / side / "series" / "1.dcm").write_bytes(b"DICM slice")
        (tmp_path / side / "figures.json").write_text(json.dumps(FIGURES))
    return tmp_path / "old", tmp_path / "new"


def test_the_same_is_no_difference(pair):
    (pair[1] / "figures.json").write_text(
        json.dumps(FIGURES | {"rows": [{"psnr": 30.5, "seconds": 2.0}]}, indent=2)
    )
    assert list(differences(*pair)) == []


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("series/1.dcm", b"DICM_slice", "series/1.dcm: 10 and 10 bytes, unequal from byte 4"),
        ("series/1.dcm", b"DICM slic", "series/1.dcm: 10 and 9 bytes, unequal from byte 9"),
        ("series/2.dcm", b"", "series/2.dcm: only with NEW"),
        ("figures.json", b"{", "figures.json: 57 and 1 bytes, unequal from byte 1"),
    ],
)
def test_every_byte_counts(pair, file, content, said):
    (pair[1] / file).write_bytes(content)
    assert list(differences(*pair)) == [said]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (
            {"rows": [{"psnr": 30.500000000000004}]},
            ".rows[0].psnr: 30.5 with OLD, 30.500000000000004 with NEW",
        ),
        ({"rows": []}, ".rows: [{'psnr': 30.5, 'seconds': 1.0}] with OLD, [] with NEW"),
        ({"note": "two"}, ".note: 'one' with OLD, 'two' with NEW"),
        ({"more": 1}, ".more: None with OLD, 1 with NEW"),
        ({"rows": [{"psnr": "30.5"}]}, ".rows[0].psnr: 30.5 with OLD, '30.5' with NEW"),
    ],
)
def test_every_number_counts(pair, changed, said):
    (pair[1] / "figures.json").write_text(json.dumps(FIGURES | changed))
    assert list(differences(*pair)) == [f"figures.json{said}"]


def test_a_file_that_is_missing_is_a_difference(pair):
    (pair[1] / "figures.json").unlink()
    assert list(differences(*pair)) == ["figures.json: only with OLD"]
