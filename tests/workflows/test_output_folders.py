"""Names of outputs: which are folders is decided alike in every command."""

import os
import sys

import numpy as np
import pytest
from PIL import Image

from cddnet.cli import main
from cddnet.errors import FormatError
from cddnet.formats import is_folder, read_volume, write_volume
from cddnet.volume import CTVolume
from ct_tree import write_series

SIDE = 96
FOLDERS = (
    "1.2.840.113619.2.5",
    "patient_1.5mm",
    "Dr. Who",
    "dose_0.25",
    "v2.0-beta",
    "Thorax 1.0 B30f",
    "2024.05.17",
    "..dots",
)
NOT_WRITTEN = (
    *(".nrrd", ".bmp", ".hdr", ".img", ".mgz", ".gipl", ".vtk", ".gif", ".webp", ".NRRD"),
    *(".nhdr", ".mnc", ".jp2", ".pgm", ".nrrd.gz", ".zip"),
)


def body(place):
    """Air around soft tissue, HU (H, W)."""
    hu = np.full((SIDE, SIDE), -1000, np.int16)
    inside = np.random.default_rng(place).normal(40, 15, (64, 64))
    hu[16:80, 16:80] = np.rint(inside)
    return hu


@pytest.fixture
def series(tmp_path):
    write_series(tmp_path / "series", "ID", places=range(3), pixels=body)
    return tmp_path / "series"


@pytest.fixture
def cddnet(monkeypatch, capsys):
    """Run a command line; gives (exit code, stderr)."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["cddnet", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        return end.value.code or 0, capsys.readouterr().err

    return run


COMMANDS = {
    "denoise": ("denoise", "SERIES", "OUT", "--model", "WEIGHTS"),
    "simulate": ("simulate", "SERIES", "OUT", "--kernel", "soft"),
    "depth": ("depth", "SERIES", "OUT", "--kernel", "soft"),
    "export": ("export", "SERIES", "OUT", "--window", "-160", "240"),
    "phantom": ("phantom", "OUT", "--kind", "water", "--slices", "1", "--size", "64"),
    "prepare": ("prepare", "SERIES", "OUT", "--split", "1/0/0"),
    "archive": ("archive", "SERIES", "OUT", "--workers", "0", "--model", "WEIGHTS"),
}
# What they need beside a name is not made here: that the name is taken shows in what they miss.
OTHERS = {
    "explain": ("explain", "NOWHERE", "OUT", "--slice", "1"),
    "report": ("report", "OUT", "NOWHERE", "--method", "a=NOWHERE", "--protocol", "redcnn"),
    "demo": ("demo", "OUT", "--model", "NOWHERE"),
    "import": ("models", "import", "NOWHERE", "OUT", "--as", "name"),
}


def words(command, **known):
    return [str(known.get(word, word)) for word in (COMMANDS | OTHERS)[command]]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_writes_a_folder_of_a_dotted_name(
    cddnet, series, tiny_weights, tmp_path, command
):
    (tmp_path / "o").mkdir()
    names = FOLDERS if command == "denoise" else FOLDERS[:3]
    for name in (*names, "slash.nrrd/", "slash.nii.gz/"):
        out = f"{tmp_path / 'o'}{os.sep}{name}"
        code, err = cddnet(*words(command, SERIES=series, OUT=out, WEIGHTS=tiny_weights))
        assert (code, err) == (0, "")
        assert (tmp_path / "o" / name).is_dir()
    if command in ("denoise", "simulate"):
        for name in names:
            files = sorted(item.name for item in (tmp_path / "o" / name).iterdir())
            assert files == ["0001.dcm", "0002.dcm", "0003.dcm"]
            assert read_volume(tmp_path / "o" / name).shape == (3, SIDE, SIDE)


@pytest.mark.parametrize("command", [*COMMANDS, *OTHERS])
def test_every_command_refuses_names_of_files_that_cannot_be_written(
    cddnet, series, tiny_weights, tmp_path, command
):
    (tmp_path / "o").mkdir()
    for suffix in NOT_WRITTEN:
        known = {"SERIES": series, "OUT": tmp_path / "o" / f"x{suffix}", "WEIGHTS": tiny_weights}
        code, err = cddnet(*words(command, NOWHERE=tmp_path / "nowhere", **known))
        assert code == 1
        assert "files cannot be written" in err
        assert "end the name with /" in err
    assert list((tmp_path / "o").iterdir()) == []


@pytest.mark.parametrize("command", OTHERS)
def test_dotted_names_are_taken_where_only_the_rest_is_missing(cddnet, tmp_path, command):
    for name in ("1.2.840.5", "Dr. Who", "x.nrrd/"):
        out = f"{tmp_path}{os.sep}{name}"
        code, err = cddnet(*words(command, NOWHERE=tmp_path / "nowhere", OUT=out))
        assert code == 1
        assert "cannot be written" not in err
        assert "nowhere" in err


def test_files_are_still_files(series, tmp_path):
    for name in ("a.nii.gz", "1.2.840.nii", "Dr. Who.mha", "b.DCM", "c.npz"):
        assert not is_folder(tmp_path / name, from_folder=True)
    for name in ("a.xyz", "patient_1.5mm", "1.2.840"):
        assert is_folder(tmp_path / name, from_folder=True)
        with pytest.raises(FormatError, match="end the name with / for a folder"):
            is_folder(tmp_path / name, from_folder=False)
    for name in ("plain", "o.d/plain", ".hidden"):
        assert is_folder(tmp_path / name, from_folder=False)
    (tmp_path / "a.nii.gz").mkdir()
    assert is_folder(tmp_path / "a.nii.gz", from_folder=False)
    assert is_folder(f"{tmp_path / 'b.npz'}/", from_folder=False)


def test_a_dcm_name_with_a_slash_is_a_folder(cddnet, series, tiny_weights, tmp_path):
    target = tmp_path / "one.dcm"
    arguments = ("denoise", series, target, "--model", tiny_weights)
    code, err = cddnet(*arguments)
    assert code == 1
    assert "name a folder" in err
    assert cddnet("denoise", series, f"{target}/", "--model", tiny_weights) == (0, "")
    assert len(list(target.iterdir())) == 3


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "phantom"])
def test_an_empty_folder_is_filled_and_a_full_one_refused(
    cddnet, series, tiny_weights, tmp_path, command
):
    empty, full = tmp_path / "empty.nrrd", tmp_path / "full.hdr"
    for folder in (empty, full):
        folder.mkdir()
    (full / "mine.txt").write_text("mine")
    arguments = {"SERIES": series, "WEIGHTS": tiny_weights}
    assert cddnet(*words(command, OUT=empty, **arguments)) == (0, "")
    assert list(empty.iterdir())
    code, err = cddnet(*words(command, OUT=full, **arguments))
    assert code == 1
    assert "full.hdr" in err
    assert [item.name for item in full.iterdir()] == ["mine.txt"]


def test_pictures_keep_their_names_in_a_folder_of_any_name(cddnet, tiny_weights, tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("a.png", "b.png"):
        grey = np.random.default_rng(0).integers(100, 180, (SIDE, SIDE)).astype(np.uint8)
        Image.fromarray(grey).save(tmp_path / "in" / name)
    options = ("--window", "-160", "240", "--model", tiny_weights, "--force")
    for name in ("patient_1.5mm", "Dr. Who", "x.png/", "y.jpg/"):
        assert cddnet("denoise", tmp_path / "in", f"{tmp_path}/{name}", *options) == (0, "")
        made = sorted(item.name for item in (tmp_path / name).glob("*.png"))
        assert made == ["a.png", "b.png"]
    # A typing error in the suffix of one picture makes no folder.
    code, err = cddnet("denoise", tmp_path / "in" / "a.png", tmp_path / "b.pgn", *options)
    assert code == 1
    assert ".pgn files cannot be written" in err
    code, err = cddnet("denoise", tmp_path / "in", tmp_path / "b.jpg", *options)
    assert code == 1
    assert "JPEG would change" in err


def test_arrays_are_no_dicom_whatever_the_folder_is_called(cddnet, tiny_weights, tmp_path):
    source = tmp_path / "a.npy"
    np.save(source, np.stack([body(0), body(1)]))
    for name, reason in (("Dr. Who/", "no DICOM headers"), ("Dr. Who", "cannot be written")):
        code, err = cddnet("denoise", source, f"{tmp_path}/{name}", "--model", tiny_weights)
        assert code == 1
        assert reason in err
        assert not (tmp_path / "Dr. Who").exists()


def test_the_library_decides_as_the_commands_do(series, tmp_path):
    from cddnet import denoise_volume

    volume = denoise_volume(read_volume(series), strength=0.0)
    write_volume(volume, tmp_path / "dose_0.25")
    write_volume(volume, f"{tmp_path / 'x.dcm'}/")
    for name in ("dose_0.25", "x.dcm"):
        assert len(list((tmp_path / name).glob("*.dcm"))) == 3
    with pytest.raises(FormatError, match="no DICOM headers"):
        write_volume(CTVolume.from_hu(volume.hu, (1, 1, 1)), f"{tmp_path / 'x.npy'}/")
